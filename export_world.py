"""Make a trained world one file, which is all that it takes to play it: models, frames to start from, map of actions.

    python export_world.py                              # the demo's world to demo.safetensors
    python export_world.py --cfg.run runs/coinrun/dynamics --cfg.output coinrun.safetensors
    python play.py --cfg.world coinrun.safetensors

The parameters are rounded to bfloat16, and what only training needs stays out.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from genie_fn import data, headlines, machine, surroundings, tree, world
from genie_fn.errors import UserError, run


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
        if not 1 <= self.frames <= world.MOST_STARTS:
            raise UserError(f"--cfg.frames is {self.frames}: choose a number from 1 to {world.MOST_STARTS}")
        if Path(self.output).suffix != ".safetensors":
            raise UserError(f"--cfg.output {self.output} should end in .safetensors")


def card(cfg: Config, dream: world.World) -> dict:
    """Where the world comes from, for people: nothing reads it but them."""
    where = machine.describe(torch.device("cpu"))
    sizes = {name: tree.count(stage.params) for name, stage in dream._asdict().items() if stage}
    return {
        "run": cfg.run,
        "licence": "MIT",
        "exported": time.strftime("%Y-%m-%d"),
        "commit": where["commit"],
        "parameters": sizes,
        "measured": headlines.brief(cfg.run),
    }


def main(cfg: Config) -> None:
    dream, store = world.load(cfg.run), data.open_store(cfg.data)
    told = card(cfg, dream)
    content = surroundings.pack(cfg.run, dream, store, cfg.frames, told)
    data.write_atomically(Path(cfg.output), content)
    if not told["measured"]:
        print(f"without measurements, and without arrow keys for latent actions: run evaluate.py on {cfg.run} first")
    for name, value in told["measured"].items():
        print(f"{name}: {value}")
    print(f"{cfg.output}: {len(content) / 1e6:.1f} MB; play it with `python play.py --cfg.world {cfg.output}`")


if __name__ == "__main__":
    run(main)
