"""Make a trained world one file, which is all that it takes to play it: models, frames to start from, map of actions.

    python export_world.py                              # the demo's world to demo.safetensors
    python export_world.py --cfg.run runs/coinrun/dynamics --cfg.output coinrun.safetensors
    python play.py --cfg.world coinrun.safetensors

The parameters are rounded to bfloat16, and what only training needs stays out.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from genie_fn import data, tree, world
from genie_fn.bundle import action_map, loading, surroundings
from genie_fn.errors import UserError
from genie_fn.evaluation.report import headlines
from genie_fn.runtime import files, provenance
from genie_fn.runtime.cli import run


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run."""
    output: str = "demo.safetensors"
    data: str = "data/coinrun"
    """The dataset, for the frames to start from."""
    frames: int = 16
    """How many of them."""

    def __post_init__(self):
        if not 1 <= self.frames <= loading.MOST_STARTS:
            raise UserError(
                f"--cfg.frames is {self.frames}: choose a number from 1 to {loading.MOST_STARTS}"
            )
        if Path(self.output).suffix != ".safetensors":
            raise UserError(f"--cfg.output {self.output} should end in .safetensors")


def card(cfg: Config, dream: world.World) -> dict[str, str]:
    """Where the world comes from and how good it is, for people."""
    where = provenance.describe(torch.device("cpu"))
    size = sum(tree.count(stage.params) for stage in dream if stage)
    origin = {
        "run": cfg.run,
        "licence": "MIT",
        "exported": where["date"],
        "commit": where["commit"] or "unknown",
    }
    return origin | {"parameters": f"{size:,}"} | headlines.brief(cfg.run)


def main(cfg: Config) -> None:
    dream, store = loading.load(cfg.run), data.open_store(cfg.data)
    told = card(cfg, dream)
    content = surroundings.pack(cfg.run, dream, store, cfg.frames, told)
    files.write_atomically(Path(cfg.output), content)
    for name, value in told.items():
        print(f"{name}: {value}")
    if action_map.load(cfg.run, dream.dynamics.cfg.actions) is None and dream.lam is not None:
        print(
            f"arrow keys mean nothing in it: `python evaluate.py --cfg.run {cfg.run}` before would change that"
        )
    print(
        f"{cfg.output}: {len(content) / 1e6:.1f} MB; play it with `python play.py --cfg.world {cfg.output}`"
    )


if __name__ == "__main__":
    run(main)
