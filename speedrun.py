"""From nothing to a measured world in a fixed time: collect, train the three stages, evaluate; one row of results.

    python speedrun.py                                            # 20 minutes, for a CPU
    python speedrun.py --cfg.preset small --cfg.minutes 30 --cfg.levels 5000     # for a large GPU
    python speedrun.py --cfg.frame-skip 2 --cfg.world coinrun.safetensors        # and keep the world as one file

Each stage has a share of the time. It begins, is timed, stops and saves, and goes on for as many steps as its share has
room for: the learning rate's plan needs to know its end, and the clock decides where that is. The evaluation is the
brief one of evaluate.py: for the probe, held keys and all ways to dream run that by itself. The row goes to
benchmarks/records/, beside a folder with what every stage logged. What was interrupted is no record, and is begun anew.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from rich.console import Console

from genie_fn.errors import UserError
from genie_fn.evaluation.report import headlines
from genie_fn.runtime import provenance
from genie_fn.runtime.cli import run

ROOT = Path(__file__).parent
STAGES = ("tokenizer", "lam", "dynamics")
OPEN_END = 1_000_000  # steps, while nobody knows how many there will be; no saving or drawing in between either
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Config:
    minutes: float = 20
    preset: str = "demo"
    levels: int = 200
    frame_skip: int = 1
    """Frames of the game per step of the world, as in generate_dataset.py: more make a livelier world to play."""
    actions: Literal["latent", "recorded"] = "latent"
    """`recorded`: the dataset's own actions. The dynamics model then also gets the latent action model's share of
    the time."""
    tokenizer: float = 0.33
    """Share of the time."""
    lam: float = 0.11
    dynamics: float = 0.45
    """What the three leave is for collecting and evaluating: two minutes on two CPU cores, also of five."""
    clips: int = 64
    """Of the evaluation."""
    seed: int = 0
    out: str = "runs/speedrun"
    """A new folder, for the dataset and the runs."""
    records: str = "benchmarks/records"
    world: str = ""
    """A file for the world, as of export_world.py; empty: none."""

    def __post_init__(self):
        if (
            min(self.tokenizer, self.lam, self.dynamics) <= 0
            or self.tokenizer + self.lam + self.dynamics >= 1
        ):
            raise UserError(
                "the shares --cfg.tokenizer, lam and dynamics are above 0, and together below 1"
            )
        if self.minutes <= 0 or self.levels < 10:
            raise UserError(
                "--cfg.minutes is above 0, and --cfg.levels at least 10, so that every split has one"
            )
        if self.world and Path(self.world).suffix != ".safetensors":
            raise UserError(f"--cfg.world {self.world} should end in .safetensors")

    @property
    def shares(self) -> dict[str, float]:
        """What part of the time each stage has."""
        if self.actions == "recorded":
            return {"tokenizer": self.tokenizer, "dynamics": self.lam + self.dynamics}
        return {stage: getattr(self, stage) for stage in STAGES}


def start(name: str, **flags) -> subprocess.Popen:
    """One of the scripts, with --cfg.* flags; True is a flag without a value."""
    words = [
        f"--cfg.{flag}".replace("_", "-") + ("" if x is True else f"={x}")
        for flag, x in flags.items()
    ]
    return subprocess.Popen([sys.executable, str(ROOT / f"{name}.py"), *words])


def finish(process: subprocess.Popen, code: int = 0) -> None:
    """Wait for a script that should end with `code`."""
    try:
        found = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C has reached it, too: let it save
        raise
    if found != code:
        raise UserError(
            "a part of the speedrun failed for the reason above: mend it, and begin anew"
        )


def rows(folder: Path) -> list[dict]:
    """The metrics of a run so far."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def train(cfg: Config, stage: str, seconds: float) -> dict:
    """Train a stage for about so many seconds. Returns its steps, and the seconds that it took."""
    began, folder = time.monotonic(), Path(cfg.out) / stage
    flags = {"preset": cfg.preset, "out": folder, "data": Path(cfg.out) / "data", "seed": cfg.seed}
    flags |= {"save_every": OPEN_END, "sample_every": OPEN_END}
    if stage == "dynamics":
        flags |= {name: Path(cfg.out) / name for name in STAGES[:2]} | {"actions": cfg.actions}
    process = start(f"train_{stage}", **flags, steps=OPEN_END)
    while process.poll() is None and (
        time.monotonic() < began + 0.15 * seconds or len(rows(folder)) < 3
    ):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # it saves, and ends as after Ctrl-C
    finish(process, 130)
    last, pace = rows(folder)[-1], _pace(rows(folder))
    again = (
        time.monotonic() - began - last["step"] * pace
    )  # what a start takes; compiling comes from a cache by then
    steps = last["step"] + max(10, int((began + seconds - time.monotonic() - again) / pace))
    console.rule(f"{stage}: {1 / pace:.2f} steps/s, {steps} steps in all")
    finish(start(f"train_{stage}", **flags, steps=steps, resume=True))
    return {"steps": steps, "seconds": round(time.monotonic() - began, 1)}


def _pace(measured: list[dict]) -> float:
    """Seconds per step, the median: other work on the machine for a moment should not count for the whole run."""
    pairs = zip(measured[:-1], measured[1:], strict=True)
    return median((b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs)


def record(cfg: Config, stages: dict, began: float) -> dict:
    """The row of results."""
    took = {"minutes": round((time.monotonic() - began) / 60, 2), "stages": stages}
    where = provenance.describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return (
        where
        | took
        | {
            "config": asdict(cfg),
            "results": headlines.results(Path(cfg.out) / "dynamics"),
        }
    )


def main(cfg: Config) -> None:
    if Path(cfg.out).exists():
        raise UserError(
            f"{cfg.out} is there already, and a speedrun begins with nothing: delete it, or name --cfg.out"
        )
    began, stages = time.monotonic(), {}
    collected = {
        "root": Path(cfg.out) / "data",
        "num_levels": cfg.levels,
        "frame_skip": cfg.frame_skip,
    }
    finish(start("generate_dataset", **collected, seed=cfg.seed))
    stages["dataset"] = {"levels": cfg.levels, "seconds": round(time.monotonic() - began, 1)}
    for stage, share in cfg.shares.items():
        stages[stage] = train(cfg, stage, 60 * cfg.minutes * share)
    evaluated = time.monotonic()
    flags = {
        "run": Path(cfg.out) / "dynamics",
        "data": Path(cfg.out) / "data",
        "clips": cfg.clips,
        "prompts": 1,
    }
    finish(start("evaluate", **flags, brief=True))
    stages["evaluation"] = {"clips": cfg.clips, "seconds": round(time.monotonic() - evaluated, 1)}
    row = record(cfg, stages, began)
    path = keep(cfg, row)
    if cfg.world:
        finish(start("export_world", run=flags["run"], data=flags["data"], output=cfg.world))
    print(f"{row['minutes']} of {cfg.minutes:g} minutes: {path}")


def keep(cfg: Config, row: dict) -> Path:
    """Write the row and the stages' logs; where they were written."""
    name = f"{row['date']}-{cfg.preset}-{cfg.actions}-{cfg.minutes:g}min-seed{cfg.seed}"
    path, logs = Path(cfg.records) / f"{name}.json", Path(cfg.records) / name
    logs.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")
    for stage in cfg.shares:
        shutil.copyfile(Path(cfg.out) / stage / "metrics.jsonl", logs / f"{stage}.jsonl")
    return path


if __name__ == "__main__":
    run(main)
