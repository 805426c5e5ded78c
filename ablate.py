"""Ablations: one choice at a time, everything else the demo's, a few seeds each; tables go to docs/ablations.md.

    python ablate.py                              # every choice: hours on two CPU cores; run again, it goes on
    python ablate.py --cfg.choices actions        # one of them
    python ablate.py --cfg.choices order steps temperature --cfg.worlds runs/a/dynamics runs/b/dynamics
                                                  # choices in sampling, in worlds that are trained already
    python ablate.py --cfg.choices table          # the tables, from what was measured before

Variants share whatever their choice does not touch: a choice in sampling trains nothing, one in the dynamics model
reads the same tokenizer and latent actions. Every world is evaluated on the same held-out clips.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from benchmarks import report
from genie_fn.errors import UserError
from genie_fn.evaluation import rollouts
from genie_fn.evaluation.report import headlines
from genie_fn.runtime import provenance
from genie_fn.runtime.cli import run
from genie_fn.training import checkpoint

ROOT = Path(__file__).parent
MARKS = "<!-- ablations: python ablate.py -->", "<!-- end of ablations -->"
READS = {
    "dataset": (),
    "tokenizer": ("dataset",),
    "lam": ("dataset",),
    "dynamics": ("dataset", "tokenizer", "lam"),
    "evaluation": ("dynamics",),
}
"""What each stage is made from."""

CHOICES = {
    "actions": ("dynamics", "How an action enters the dynamics model"),
    "quantizer": ("tokenizer", "What turns the tokenizer's latents into ids"),
    "history": ("lam", "Whether the latent action model's decoder sees more than the last frame"),
    "order": ("evaluation", "Which tokens a MaskGIT step reveals"),
    "steps": ("evaluation", "MaskGIT steps per frame"),
    "temperature": ("evaluation", "Temperature of the sampled tokens"),
    "guidance": ("evaluation", "By how much sampling exaggerates what the action changes"),
    "data": ("dataset", "Who played the training videos (all are evaluated on the explorer's)"),
}
"""The stage that a choice changes, and what it is about."""

VARIANTS = {
    "actions": {"add": "", "prepend": "--cfg.model.action-mode prepend"},
    "quantizer": {
        "vq": "",
        "lfq": "--cfg.model.quantizer.kind lfq --cfg.model.quantizer.entropy 0.1",
    },
    "history": {"seen": "", "masked": "--cfg.model.no-history"},
    "order": {"confidence": "", "random": "--cfg.sample.order random"},
    "steps": {"8": "", **{str(n): f"--cfg.sample.steps {n}" for n in (2, 4, 25)}},
    "temperature": {"1": "", **{str(x): f"--cfg.sample.temperature {x}" for x in (0.0, 0.3, 0.6)}},
    "guidance": {"0": "", "1": "--cfg.sample.guidance 1"},
    "data": {"explorer": "", "random": "--cfg.policy random"},
}
"""The flags of every variant; the first is the demo's."""

COLUMNS = (
    headlines.Row("tokenizer, dB", "reconstruction.psnr"),
    headlines.Row("t = 1, moving, dB", "rollouts.1.moving.psnr.own@1"),
    headlines.Row("t = 4, moving, dB", "rollouts.1.moving.psnr.own@4"),
    headlines.Row("mean of the frames, all, dB", "rollouts.1.all.psnr.own@average"),
    headlines.Row("Δ₄ shuffled, moving, dB", "rollouts.1.moving.delta.shuffled@4"),
    headlines.Row("actions' NMI", "actions.true.all.information", 3),
)


@dataclass(frozen=True)
class Config:
    choices: tuple[str, ...] = tuple(CHOICES)
    seeds: tuple[int, ...] = (0, 1, 2)
    """These, not how many. Once the data is there, several processes can train one each, with the same `out`; when they
    have ended, one command that names them all makes the tables."""
    worlds: tuple[str, ...] = ()
    """Runs of dynamics models in the place of seeds: nothing is trained, so the choices are of the evaluation's."""
    data: str = "data/coinrun"
    levels: int = 200  # of a dataset that is collected here
    tokenizer_steps: int = 1000
    lam_steps: int = 350
    dynamics_steps: int = 350
    clips: int = 64
    frames: int = 10
    """That are dreamed of each clip."""
    action_clips: int = 300
    out: str = "runs/ablations"
    results: str = "benchmarks/ablations.json"
    docs: str = "docs/ablations.md"

    def __post_init__(self):
        for name in self.choices:
            if name not in (*CHOICES, "table"):
                raise UserError(
                    f"there is no choice {name!r}: --cfg.choices are of {', '.join(CHOICES)} and table"
                )
        if (
            not self.seeds
            or min(self.levels, self.tokenizer_steps, self.lam_steps, self.dynamics_steps) < 1
        ):
            raise UserError(
                "--cfg.seeds names one or more, and --cfg.levels and steps are all at least 1"
            )
        if self.clips < 2 or self.frames < rollouts.HEADLINE:
            raise UserError(
                f"--cfg.clips is at least 2 and --cfg.frames {rollouts.HEADLINE}, as for evaluate.py"
            )
        trained = [
            name for name in self.choices if CHOICES.get(name, ("evaluation",))[0] != "evaluation"
        ]
        if self.worlds and trained:
            raise UserError(
                f"--cfg.worlds are trained already, which {trained[0]} changes: leave it out of --cfg.choices"
            )


class Variant(NamedTuple):
    """One world: a choice, what was chosen, and the training's seed."""

    choice: str
    name: str
    seed: int

    @property
    def flags(self) -> str:
        return VARIANTS[self.choice][self.name]

    def changes(self, stage: str) -> bool:
        """Whether this stage is another than the demo's, because of its own flags or of what it is made from."""
        own = bool(self.flags) and CHOICES[self.choice][0] == stage
        return own or any(self.changes(earlier) for earlier in READS[stage])


def folder(cfg: Config, variant: Variant, stage: str) -> Path:
    """Where a stage of a world lies; variants that do not change it share it."""
    tag = f"-{variant.choice}-{variant.name}" if variant.changes(stage) else ""
    if cfg.worlds:
        made = Path(cfg.worlds[variant.seed])
        return (
            made
            if stage == "dynamics"
            else Path(cfg.out) / "worlds" / str(made).replace("/", "-") / f"{stage}{tag}"
        )
    if stage == "dataset":
        return Path(cfg.out) / f"dataset{tag}" if tag else Path(cfg.data)
    scale = f"{cfg.tokenizer_steps}-{cfg.lam_steps}-{cfg.dynamics_steps}"
    return Path(cfg.out) / scale / f"seed{variant.seed}" / f"{stage}{tag}"


def command(cfg: Config, variant: Variant, stage: str) -> list[str]:
    """How a stage is made."""
    at = {name: str(folder(cfg, variant, name)) for name in READS}
    if stage == "dataset":
        script, flags = "generate_dataset", {"root": at["dataset"], "num-levels": cfg.levels}
    elif stage == "evaluation":
        script, flags = (
            "evaluate",
            {"run": at["dynamics"], "data": cfg.data, "out": at["evaluation"], "prompts": 1},
        )
        flags |= {"clips": cfg.clips, "frames": cfg.frames, "action-clips": cfg.action_clips}
    else:
        steps = {
            "tokenizer": cfg.tokenizer_steps,
            "lam": cfg.lam_steps,
            "dynamics": cfg.dynamics_steps,
        }[stage]
        script, flags = f"train_{stage}", {"data": at["dataset"], "out": at[stage], "steps": steps}
        flags |= {"seed": variant.seed, "save-every": steps, "sample-every": steps}
        flags |= {name: at[name] for name in READS[stage] if name != "dataset"}
    words = [word for name, value in flags.items() for word in (f"--cfg.{name}", str(value))]
    words += (
        ["--cfg.resume"]
        if script.startswith("train_")
        else ["--cfg.brief"]
        if script == "evaluate"
        else []
    )
    own = variant.flags.split() if CHOICES[variant.choice][0] == stage else []
    return [sys.executable, str(ROOT / f"{script}.py"), *words, *own]


def is_made(cfg: Config, variant: Variant, stage: str) -> bool:
    """Whether nothing is left to do for a stage."""
    at = folder(cfg, variant, stage)
    if stage == "evaluation":
        asked = {"clips": cfg.clips, "frames": cfg.frames, "action_clips": cfg.action_clips}
        return (at / "metrics.json").is_file() and asked.items() <= headlines.read(str(at))[
            "config"
        ].items()
    if cfg.worlds:
        return True
    return stage != "dataset" and checkpoint.latest(at) == getattr(cfg, f"{stage}_steps")


def worlds(cfg: Config) -> Iterator[Variant]:
    """Seed by seed, so that an early stop leaves every variant with as many."""
    for seed in range(len(cfg.worlds)) if cfg.worlds else cfg.seeds:
        for choice in cfg.choices:
            yield from (Variant(choice, name, seed) for name in VARIANTS[choice])


def measure(cfg: Config) -> None:
    """Make whatever is missing."""
    every = list(worlds(cfg))
    for number, variant in enumerate(every, 1):
        for stage in READS:
            if is_made(cfg, variant, stage):
                continue
            about = f"world {number} of {len(every)}: {variant.choice} {variant.name}, seed {variant.seed}: {stage}"
            Console(stderr=True).rule(about)
            if code := subprocess.run(command(cfg, variant, stage)).returncode:
                if code == 130:
                    raise KeyboardInterrupt
                raise UserError(
                    f"the {stage} failed for the reason above: mend it and run the same again, it goes on"
                )


def collect(cfg: Config, choice: str) -> dict:
    """Every number of COLUMNS for every world of a choice, as it goes to JSON."""
    rows = []
    for variant in worlds(replace(cfg, choices=(choice,))):
        record = headlines.read(str(folder(cfg, variant, "evaluation")))
        found = {column.label: headlines.find(record, column.path) for column in COLUMNS}
        rows.append(
            {"name": variant.name, "seed": variant.seed}
            | {label: x[0] for label, x in found.items() if x}
        )
    trained = () if cfg.worlds else ("tokenizer_steps", "lam_steps", "dynamics_steps")
    scale = {name: getattr(cfg, name) for name in (*trained, "clips", "frames")}
    return provenance.describe(torch.device("cpu")) | {
        "about": CHOICES[choice][1],
        "scale": scale,
        "rows": rows,
    }


def main(cfg: Config) -> None:
    path, found = Path(cfg.results), {}
    if cfg.choices != ("table",):
        measure(cfg)
        found = {choice: collect(cfg, choice) for choice in cfg.choices}
    records = (json.loads(path.read_text()) if path.is_file() else {}) | found
    if found:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records, indent=1) + "\n")
    report.put(
        Path(cfg.docs),
        *MARKS,
        report.ablations(records, {column.label: column.digits for column in COLUMNS}),
    )


if __name__ == "__main__":
    run(main)
