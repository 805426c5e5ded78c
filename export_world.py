"""Export a trained world to one file with all that playing it needs.

    python export_world.py                              # the demo's world to demo.safetensors
    python export_world.py --cfg.run runs/coinrun/dynamics --cfg.output coinrun.safetensors
    python play.py --cfg.world coinrun.safetensors

The parameters are rounded to bfloat16, and what only training needs is left out.
"""

from dataclasses import dataclass
from pathlib import Path

import genie_fn.runtime.openmp  # noqa: F401  # isort: skip

import torch

from genie_fn import bundle, tree
from genie_fn.errors import UserError
from genie_fn.evaluation.report import headlines
from genie_fn.runtime import files, provenance
from genie_fn.runtime.cli import run
from genie_fn.world import World


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run."""
    output: str = "demo.safetensors"
    """The world file to write."""
    data: str = ""
    """The dataset that start frames are taken from, out of its test levels; by default the one that
    the run was made from."""
    tokenizer: str = ""
    """The folder of the tokenizer's run, where it is not where the dynamics run expects it."""
    lam: str = ""
    """The folder of the latent action model's run, likewise."""
    frames: int = 16
    """The number of start frames."""

    def __post_init__(self):
        if not 1 <= self.frames <= bundle.MAX_START_FRAMES:
            raise UserError(
                f"--cfg.frames is {self.frames}: "
                f"choose a number from 1 to {bundle.MAX_START_FRAMES}"
            )
        if Path(self.output).suffix != ".safetensors":
            raise UserError(f"--cfg.output {self.output} should end in .safetensors")


def describe(cfg: Config, world: World) -> dict[str, str]:
    """The world's card: where it comes from and how good it is, for people."""
    machine = provenance.describe(torch.device("cpu"))
    parameters = sum(tree.count(stage.params) for stage in world if stage is not None)
    origin = {
        "run": cfg.run,
        "licence": "MIT",
        "exported": machine["date"],
        "commit": machine["commit"] or "unknown",
        "parameters": f"{parameters:,}",
    }
    return origin | headlines.card(cfg.run)


def main(cfg: Config) -> None:
    files.check_outputs("--cfg.output", cfg.output)
    loaded = bundle.load(
        cfg.run,
        data=cfg.data,
        start_frames=cfg.frames,
        tokenizer=cfg.tokenizer,
        lam=cfg.lam,
    )
    card = describe(cfg, loaded.world)
    size = bundle.save(cfg.output, loaded._replace(card=card))
    for name, value in card.items():
        print(f"{name}: {value}")
    if loaded.world.lam is not None and loaded.action_map is None:
        print(
            "The arrow keys do nothing in this world, because its latent actions were never "
            f"compared with recorded ones: run `python evaluate.py --cfg.run {cfg.run}` "
            "and export it again."
        )
    print(f"{cfg.output}: {size / 1e6:.1f} MB")
    print(f"Play it with `python play.py --cfg.world {cfg.output}`.")


if __name__ == "__main__":
    run(main)
