"""Export a trained world to one file with all that playing it needs.

    python export_world.py                                 # the demo's world to demo.safetensors
    python export_world.py --cfg.run runs/coinrun/dynamics # to coinrun.safetensors
    python play.py --cfg.world coinrun.safetensors

The parameters are rounded to bfloat16, and what only training needs is left out.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import genie_fn.runtime.openmp  # noqa: F401  # isort: skip

import torch

from genie_fn import bundle, tree
from genie_fn.bundle import Bundle
from genie_fn.errors import UserError
from genie_fn.evaluation.report import headlines
from genie_fn.runtime import files, provenance
from genie_fn.runtime.cli import run
from genie_fn.training import checkpoint, setup
from genie_fn.world import World


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run, or a world file, which is written again with the effects of its
    actions if it lacks them."""
    output: str = ""
    """The world file to write; by default it is named after the folder of the run, which is `own`
    for runs/own/dynamics, and is in the current directory."""
    data: str = ""
    """The dataset that start frames are taken from, out of its test levels, and examples of latent
    actions, where evaluate.py has not chosen any; by default the one that the run was made from."""
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
        if self.output and Path(self.output).suffix != ".safetensors":
            raise UserError(f"--cfg.output {self.output} should end in .safetensors")


def default_output(run: str) -> str:
    """The name of the world file of a run: the folder's, or that of the folder around the three
    stages."""
    folder = checkpoint.run_of(bundle.results_folder(run)).resolve()
    name = folder.parent.name if folder.name in setup.STAGES else folder.name
    return f"{name or 'world'}.safetensors"


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


def load(cfg: Config) -> Bundle:
    """The world with its start frames and the effects of its actions."""
    loaded = bundle.load(cfg.run, tokenizer=cfg.tokenizer, lam=cfg.lam)
    store = bundle.open_dataset(loaded, cfg.data)
    if not bundle.is_world_file(cfg.run):
        loaded = bundle.with_dataset(loaded, store, cfg.frames)
    return bundle.with_effects(loaded, store)


def advise_on_keys(cfg: Config, loaded: Bundle) -> str:
    """What a person who plays should know about the arrow keys; empty if nothing."""
    if loaded.world.lam is None or loaded.action_map is not None:
        return ""
    if loaded.effects is None:
        return (
            "The arrow keys do nothing in this world: the dataset has no clip that is long enough to "
            "measure what each action does."
        )
    if not bundle.key_actions(loaded):
        return (
            "The arrow keys do nothing in this world, because no latent action moves the picture."
        )
    return ""


def main(cfg: Config) -> None:
    cfg = replace(cfg, output=cfg.output or default_output(cfg.run))
    files.check_outputs("--cfg.output", cfg.output)
    loaded = load(cfg)
    card = loaded.card or describe(cfg, loaded.world)
    size = bundle.save(cfg.output, loaded._replace(card=card))
    for name, value in card.items():
        print(f"{name}: {value}")
    advice = advise_on_keys(cfg, loaded)
    if advice:
        print(advice)
    print(f"{cfg.output}: {size / 1e6:.1f} MB")
    print(f"Play it with `python play.py --cfg.world {cfg.output}`.")


if __name__ == "__main__":
    run(main)
