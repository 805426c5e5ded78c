"""Export a trained world to one file with all that playing it needs: for play.py, for a browser, or for
other programs.

    python export_world.py                                 # the demo's world to demo.safetensors
    python export_world.py --cfg.run runs/coinrun/dynamics # to coinrun.safetensors
    python play.py --cfg.world coinrun.safetensors
    python export_world.py --cfg.format html               # to demo.html, which plays in a browser
    python export_world.py --cfg.format web                # to the folder demo-web, for a static host
    python export_world.py --cfg.format onnx               # to the folder demo-onnx, for other programs

Parameters are rounded to bfloat16 in every format, and what only training needs is left out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import torch

from genie_fn import bundle, tree
from genie_fn.bundle import Bundle, hub
from genie_fn.errors import UserError
from genie_fn.evaluation.report import headlines
from genie_fn.export import folder
from genie_fn.maskgit import PLAY
from genie_fn.play import html
from genie_fn.runtime import files, provenance
from genie_fn.runtime.cli import run
from genie_fn.runtime.progress import stage
from genie_fn.world import World

ENDINGS = {"world": ".safetensors", "html": ".html", "web": "-web", "onnx": "-onnx"}
"""How the names of files and folders end, by format."""
HINTS = {
    "world": "Play it with `genie-fn play --cfg.world {}`.",
    "html": "Open {} in a browser, or send it to a friend.",
    "web": "Put the folder {0} on a static host, or try it with `python -m http.server -d {0}`.",
    "onnx": "Play it with `cd {} && python play.py 0 0 0`.",
}


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run, or a world file, which is written again with the effects of its
    actions if it lacks them."""
    format: Literal["world", "html", "web", "onnx"] = "world"
    """A world file, which play.py and evaluate.py read; a page in one HTML file, which plays the world
    in the browser without a server; the same as a folder for a static host; or a folder of ONNX graphs
    for programs without torch, with a README.md that says how to play them."""
    output: str = ""
    """The world file or folder to write; by default it is named after the world, as its pages are: `own`
    for runs/own/dynamics, in the current directory."""
    data: str = ""
    """The dataset that start frames are taken from, out of its test levels, and examples of latent
    actions, where evaluate.py has not chosen any; by default the one that the run was made from. A world
    file that has the effects of its actions needs none."""
    tokenizer: str = ""
    """The folder of the tokenizer's run, where it is not where the dynamics run expects it."""
    lam: str = ""
    """The folder of the latent action model's run, likewise."""
    frames: int = 16
    """The number of start frames."""
    upload: str = ""
    """A repository on the Hugging Face Hub to upload the world file to, with a model card, as in
    hf://owner/name; it is made if there is none."""

    def __post_init__(self):
        if not 1 <= self.frames <= bundle.MAX_START_FRAMES:
            raise UserError(
                f"--cfg.frames is {self.frames}: "
                f"choose a number from 1 to {bundle.MAX_START_FRAMES}"
            )
        if self.upload:
            hub.check_upload(self.upload)
        if self.upload and self.format != "world":
            raise UserError("--cfg.upload is for world files: leave --cfg.format out")
        ending = ENDINGS[self.format]
        if self.output and ending.startswith(".") and Path(self.output).suffix != ending:
            raise UserError(f"--cfg.output {self.output} should end in {ending}")


def default_output(cfg: Config) -> str:
    """What is written, by the name of the run's folder, or of the folder around the three stages."""
    return f"{bundle.name_of(cfg.run)}{ENDINGS[cfg.format]}"


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
    if hub.is_address(cfg.run):
        output = cfg.output or f"{hub.name_of(cfg.run)}{ENDINGS[cfg.format]}"
        cfg = replace(cfg, run=hub.fetch(cfg.run), output=output)
    cfg = replace(cfg, output=cfg.output or default_output(cfg))
    output = Path(cfg.output)
    check(cfg, output)
    loaded = bundle.load_complete(
        cfg.run, cfg.data, cfg.frames, tokenizer=cfg.tokenizer, lam=cfg.lam
    )
    loaded = loaded._replace(card=loaded.card or describe(cfg, loaded.world))
    size = write(cfg, output, loaded)
    for name, value in loaded.card.items():
        print(f"{name}: {value}")
    advice = advise_on_keys(cfg, loaded)
    if advice:
        print(advice)
    print(f"{output}: {size / 1e6:.1f} MB")
    print(HINTS[cfg.format].format(output))
    if cfg.upload:
        with stage(f"uploading to {cfg.upload}"):
            address = hub.upload(cfg.upload, output, loaded.card)
        print(f"Its page is {address}")


def check(cfg: Config, output: Path) -> None:
    """Raise UserError, before the work, where nothing can be written or a package is missing."""
    if ENDINGS[cfg.format].startswith("."):
        files.check_outputs("--cfg.output", output)
    else:
        files.check_folder("--cfg.output", output)
    if cfg.format in ("html", "web"):
        html.check()
    if cfg.format == "web":
        folder.check(output, html.FORMAT, html.CONTENT)
    if cfg.format == "onnx":
        folder.check(output)


def write(cfg: Config, output: Path, loaded: Bundle) -> int:
    """Write a world in the format that was chosen; returns its size in bytes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    match cfg.format:
        case "html":
            return html.write_file(output, loaded)
        case "web":
            return html.write_folder(output, loaded)
        case "onnx":
            about = {"card": loaded.card, "keys": bundle.key_actions(loaded)}
            world = bundle.rounded(loaded).world
            return folder.write(output, world, PLAY, loaded.start_frames, about)
    return bundle.save(output, loaded)


if __name__ == "__main__":
    run(main)
