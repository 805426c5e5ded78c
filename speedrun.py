"""From nothing to a measured world in a fixed time: collect data, train three stages, evaluate.

    python speedrun.py                                            # 20 minutes, for a CPU
    python speedrun.py --cfg.preset small --cfg.minutes 30 --cfg.levels 5000     # for a large GPU
    python speedrun.py --cfg.frame-skip 2 --cfg.world coinrun.safetensors        # save the world, too

Each stage trains for its share of the time (--cfg.minutes of the training scripts), and its
learning-rate schedule ends with it. The evaluation is the brief one of evaluate.py; run evaluate.py
itself for the inverse dynamics model, held keys and all kinds of rollouts. The results are one row in
benchmarks/records/, beside a folder with every stage's metrics. A speedrun that is interrupted is
not a record: start it again in a new folder.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import torch

from genie_fn.errors import UserError
from genie_fn.evaluation import record_file
from genie_fn.evaluation.report import headlines
from genie_fn.runtime import files, provenance
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console

ROOT = Path(__file__).parent
STAGES = ("tokenizer", "lam", "dynamics")
NEVER = 1_000_000
"""Steps between checkpoints and between pictures: more than any stage here has."""
START_SECONDS = 10
"""What a training script takes besides training: importing torch, reading the data, saving."""


@dataclass(frozen=True)
class Config:
    minutes: float = 20
    """The time for everything."""
    preset: str = "demo"
    """The preset of all three stages."""
    levels: int = 200
    """The number of levels to collect."""
    data: str = ""
    """A dataset to train on, instead of a new one of `levels` levels."""
    frame_skip: int = 1
    """Frames of the game per frame of the dataset, as in generate_dataset.py; the preset's stride
    multiplies it. With more, the world moves faster when it is played."""
    actions: Literal["latent", "recorded"] = "latent"
    """What the dynamics model is conditioned on. Recorded actions need no latent action model,
    whose share of the time then goes to the dynamics model."""
    tokenizer: float = 0.33
    """The tokenizer's share of the time."""
    lam: float = 0.04
    """The latent action model's share of the time."""
    dynamics: float = 0.52
    """The dynamics model's share of the time. What the three leave is for collecting data and for
    the evaluation, which together take about two minutes on two CPU cores."""
    clips: int = 64
    """The number of clips of the evaluation."""
    seed: int = 0
    """The seed of training and of the actions with which the levels are played."""
    out: str = "runs/speedrun"
    """A new folder, for the dataset and the runs."""
    records: str = "benchmarks/records"
    """The folder for the row of results."""
    world: str = ""
    """A file for the world, as export_world.py writes it; empty: none."""

    def __post_init__(self):
        shares = (self.tokenizer, self.lam, self.dynamics)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise UserError(
                "the shares --cfg.tokenizer, lam and dynamics must be above 0, and together below 1"
            )
        if self.minutes <= 0 or self.levels < 10:
            raise UserError(
                "--cfg.minutes must be above 0, and --cfg.levels at least 10, "
                "so that every split has a level"
            )
        if self.world and Path(self.world).suffix != ".safetensors":
            raise UserError(f"--cfg.world {self.world} should end in .safetensors")

    @property
    def dataset(self) -> Path:
        """The folder of the dataset."""
        return Path(self.data or Path(self.out) / "data")

    @property
    def shares(self) -> dict[str, float]:
        """Each stage's share of the time."""
        if self.actions == "recorded":
            return {"tokenizer": self.tokenizer, "dynamics": self.lam + self.dynamics}
        return {stage: getattr(self, stage) for stage in STAGES}


def call(script: str, **flags) -> None:
    """Run one of the scripts with --cfg.* flags; True is a flag without a value."""
    process = subprocess.Popen([sys.executable, str(ROOT / f"{script}.py"), *words(flags)])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C has reached it, too: it saves
        raise
    if code:
        raise UserError(
            "a part of the speedrun failed for the reason above: correct it, and start again"
        )


def words(flags: dict[str, Any]) -> list[str]:
    """Flags as the words of a command line."""
    return [
        f"--cfg.{name}".replace("_", "-") + ("" if value is True else f"={value}")
        for name, value in flags.items()
    ]


def train(cfg: Config, stage: str) -> dict[str, float]:
    """Train a stage for its share of the time. Returns its steps, and the seconds that it took."""
    start = time.monotonic()
    folder = Path(cfg.out) / stage
    seconds = 60 * cfg.minutes * cfg.shares[stage]
    flags = {
        "preset": cfg.preset,
        "out": folder,
        "data": cfg.dataset,
        "seed": cfg.seed,
        "save_every": NEVER,
        "sample_every": NEVER,
        "minutes": max(seconds - START_SECONDS, seconds / 2) / 60,
    }
    if stage == "dynamics":
        flags |= {name: Path(cfg.out) / name for name in ("tokenizer", "lam")}
        flags |= {"actions": cfg.actions}
    console.rule(stage)
    call(f"train_{stage}", **flags)
    return {"steps": metrics(folder)[-1]["step"], "seconds": seconds_since(start)}


def metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics."""
    return [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def seconds_since(start: float) -> float:
    return round(time.monotonic() - start, 1)


def main(cfg: Config) -> None:
    out = Path(cfg.out)
    if os.path.lexists(out):
        raise UserError(
            f"{out} exists, and a speedrun starts from nothing: delete it, or name --cfg.out"
        )
    files.check_folder("--cfg.out", out)
    files.check_folder("--cfg.records", cfg.records)
    if cfg.world:
        files.check_outputs("--cfg.world", cfg.world)
    start = time.monotonic()
    stages: dict[str, dict[str, float]] = {}
    if not cfg.data:
        collection = {"num_levels": cfg.levels, "frame_skip": cfg.frame_skip, "seed": cfg.seed}
        call("generate_dataset", root=cfg.dataset, **collection)
        stages = {"dataset": {"levels": cfg.levels, "seconds": seconds_since(start)}}
    for stage in cfg.shares:
        stages[stage] = train(cfg, stage)

    evaluation_start = time.monotonic()
    places = {"run": out / "dynamics", "data": cfg.dataset}
    call("evaluate", **places, clips=cfg.clips, prompts=1, brief=True)
    stages["evaluation"] = {"clips": cfg.clips, "seconds": seconds_since(evaluation_start)}

    row = describe(cfg, stages, seconds_since(start) / 60)
    path = save(cfg, row)
    if cfg.world:
        call("export_world", **places, output=cfg.world)
    print(f"{row['minutes']} of {cfg.minutes:g} minutes: {path}")


def describe(cfg: Config, stages: dict, minutes: float) -> dict[str, Any]:
    """The row of results."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return provenance.describe(device) | {
        "minutes": round(minutes, 2),
        "stages": stages,
        "config": asdict(cfg),
        "schema": record_file.SCHEMA,
        "results": headlines.results(Path(cfg.out) / "dynamics"),
    }


def save(cfg: Config, row: dict[str, Any]) -> Path:
    """Write the row, and copies of the stages' metrics. Returns the row's path."""
    name = f"{row['date']}-{cfg.preset}-{cfg.actions}-{cfg.minutes:g}min-seed{cfg.seed}"
    path = Path(cfg.records) / f"{name}.json"
    logs = Path(cfg.records) / name
    logs.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(row, indent=1) + "\n")
    for stage in cfg.shares:
        shutil.copyfile(Path(cfg.out) / stage / "metrics.jsonl", logs / f"{stage}.jsonl")
    return path


if __name__ == "__main__":
    run(main)
