"""Play a game by keyboard in the browser, and keep what you do as a dataset.

    python record.py                                        # CoinRun, to data/coinrun-recorded
    python record.py --cfg.env maze --cfg.distribution-mode easy
    python record.py --cfg.env gym:ALE/Breakout-v5 --cfg.fps 15
    python record.py --cfg.env gym:mygame:MyGame-v0 --cfg.size 96 128

The dataset holds frames, actions and rewards like those of generate_dataset.py. Each recording is one
level, and of five in turn three are for training, one for validation and one for tests: make at least
five. What is not saved when the page is closed, or when the program ends, is saved then. The same
command adds to the dataset.
"""

import secrets
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

from genie_fn import data
from genie_fn.data import framing, games, gym_game, procgen
from genie_fn.data.framing import Fit, Size, height_and_width
from genie_fn.data.game import MAX_LEVEL
from genie_fn.errors import UserError
from genie_fn.play import browser, recorder
from genie_fn.play.guard import LOCAL
from genie_fn.play.listening import listen, own_address
from genie_fn.play.server import serve_on
from genie_fn.runtime import files
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console
from genie_fn.runtime.signals import handled, terminable


@dataclass(frozen=True)
class Config:
    env: str = "coinrun"
    """The game: one of Procgen's, as coinrun, or a Gymnasium environment by its id, as in
    gym:ALE/Breakout-v5 or, where a module registers it, gym:mygame:MyGame-v0."""
    env_options: str = ""
    """Arguments of a Gymnasium environment, as in frameskip=1, mode='hard'."""
    root: str = ""
    """The folder of the dataset, new or to be added to; empty: data/<env>-recorded."""
    size: Size = 64
    """Height and width of the frames in pixels; one number for squares. Procgen's are 64."""
    fit: Fit = "crop"
    """How frames of another shape get this one: `crop`, `pad` or `stretch`."""
    start_level: int = 0
    """The seed of the first recording's level; the others follow it."""
    distribution_mode: Literal["easy", "hard", "extreme", "memory"] = "hard"
    """Procgen's variant of the levels."""
    visuals: procgen.Visuals = "full"
    """`full` or `plain`, as for generate_dataset.py."""
    frame_skip: int = 1
    """Frames of the game per step: an action is held for these, and the last one is kept."""
    fps: int = 10
    """Steps per second while the game runs."""
    host: str = "127.0.0.1"
    """The network address that serves the page; other addresses than this machine's own require a
    token, which is printed."""
    port: int = 8001
    """The port that serves the page; 0 takes a free one."""
    open: bool = True
    """Open the page in a browser, where there is one with windows."""

    def __post_init__(self):
        limits = {"start_level": (0, MAX_LEVEL), "frame_skip": (1, 1000), "fps": (1, 60)}
        limits["port"] = (0, 2**16 - 1)
        for name, (smallest, largest) in limits.items():
            value = getattr(self, name)
            if not smallest <= value <= largest:
                flag = name.replace("_", "-")
                raise UserError(
                    f"--cfg.{flag} is {value}: choose a number from {smallest} to {largest}"
                )
        framing.check(self.size)


def collection(cfg: Config) -> dict[str, Any]:
    """The options that decide what the game shows, as the dataset keeps them."""
    options: dict[str, Any] = {"env": cfg.env, "frame_skip": cfg.frame_skip, "policy": "person"}
    if games.is_gym(cfg.env):
        gym_game.parse_options(cfg.env_options)
        size = list(height_and_width(cfg.size))
        return options | {"env_options": cfg.env_options, "size": size, "fit": cfg.fit}
    return options | {"distribution_mode": cfg.distribution_mode, "visuals": cfg.visuals}


def default_root(cfg: Config) -> str:
    """The folder of the dataset where none is given."""
    return f"data/{games.folder_name(cfg.env)}-recorded"


def main(cfg: Config) -> None:
    """Serve the page until Ctrl-C, and then say what was recorded."""
    root = Path(cfg.root or default_root(cfg))
    files.check_folder("--cfg.root", root)
    store = recorder.open_or_create(root, collection(cfg), cfg.start_level)
    listening = listen(cfg.host, cfg.port)
    local = cfg.host in LOCAL
    token = "" if local else secrets.token_urlsafe(18)
    served = recorder.Recorder(store, cfg.start_level, cfg.fps, token)
    address = own_address("localhost" if local else cfg.host, listening.getsockname()[1])
    address += f"/?token={token}" if token else "/"
    console.print(f"Play {cfg.env} at {address} (Ctrl-C ends it)", soft_wrap=True)
    if cfg.open:
        browser.open_soon(address)
    hang_up = {signal.SIGHUP: lambda *_: served.stop()} if hasattr(signal, "SIGHUP") else {}
    with terminable(), handled(hang_up):  # a terminal that is closed ends it, too
        try:
            serve_on(served, listening)
        finally:
            report(data.open_store(root))


def report(store: data.Store) -> None:
    """Print what the dataset holds."""
    splits = ", ".join(f"{store.count(split):,} {split}" for split in data.SPLITS)
    print(f"{store.root}: {len(store.segments)} recordings, frames: {splits}")
    missing = len(recorder.SPLITS) - len(store.segments)
    if missing > 0:
        print(f"To train on them, make {missing} more: train, val and test each need some.")


if __name__ == "__main__":
    run(main)
