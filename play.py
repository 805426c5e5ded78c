"""Play a trained world: in the browser, in the terminal, or from a list of actions to a video.

    python play.py                                          # a page on this machine, of the newest trained world,
                                                            # or where none was trained yet, of the one in assets
    python play.py --cfg.world coinrun.safetensors          # a file of export_world.py, which needs no dataset
    python play.py --cfg.ui terminal
    python play.py --cfg.actions 3,3,1,0 --cfg.output out.mp4
    python play.py --cfg.image assets/coinrun.png --cfg.actions 2,2,2,2 --cfg.output out.gif

The first frame is `--cfg.image`, cropped to the frames' shape and resized, or a held-out frame of the dataset. A
session repeats exactly: the same image, actions and seed give the same frames.
"""

import secrets
import socket
import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from genie_fn import bundle, random, world
from genie_fn.bundle import Bundle
from genie_fn.data import video
from genie_fn.dynamics import PLAY, SampleConfig
from genie_fn.errors import UserError
from genie_fn.runtime import backend
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console
from genie_fn.training import checkpoint

SHIPPED = Path(__file__).parent / "assets" / "worlds" / "coinrun.safetensors"


@dataclass(frozen=True)
class Config:
    run: str = ""
    """The folder of the dynamics run; empty: the newest under `runs`, or the world that comes along."""
    world: str = ""
    """A world file, in the place of a run and its dataset."""
    ui: Literal["browser", "terminal", "video"] = "browser"
    image: str = ""
    """The first frame, any image file; empty: a held-out frame of `data`."""
    actions: str = ""
    """Makes a video: one frame is dreamed per action, as in 0,0,3,1."""
    output: str = ""
    """The video's file, .mp4, .gif or .png; by default out.mp4"""
    data: str = "data/coinrun"
    clip: int = 0
    """Which held-out frame, of the dataset's or the world file's, to start from, where no image is given."""
    seed: int = 0
    fps: int = 10
    scale: int = 4
    host: str = "127.0.0.1"
    """Where the page is served; anywhere else than on this machine its address needs a token, which is printed."""
    port: int = 8000
    """0 takes a free one."""
    open: bool = True
    """Open the page in a browser."""
    visitors: int = 8
    compile: Literal["auto", "off", "step"] = "auto"
    """`step` compiles the frame, which takes a minute; auto: for the page, which is played meanwhile."""
    device: str = "auto"
    sample: SampleConfig = PLAY

    def __post_init__(self):
        if not 0 <= self.port < 2**16 or self.visitors < 1 or min(self.fps, self.scale) < 1:
            raise UserError(
                "--cfg.port is 0 to 65535, and --cfg.visitors, fps and scale are at least 1"
            )
        if self.image and self.ui == "browser" and not self.actions:
            raise UserError(
                "images are chosen in the page: for a video from --cfg.image add --cfg.actions"
            )
        if self.output and Path(self.output).suffix.lower() not in (".mp4", ".gif", ".png"):
            raise UserError(f"--cfg.output {self.output} should end in .mp4, .gif or .png")


def newest_run() -> str:
    """The dynamics run under `runs` that was begun or continued last, of those that have a checkpoint; where there is
    none, the world that comes with this repository."""
    found = [
        path.parent
        for path in Path("runs").glob("*/dynamics/checkpoints")
        if checkpoint.latest(path.parent)
    ]
    if not found and not SHIPPED.is_file():
        raise UserError(
            "there is no trained world under runs: make one with `make demo`, or name one with --cfg.run"
        )
    return str(max(found, key=lambda path: (checkpoint.order(path), str(path)), default=SHIPPED))


def parse_actions(text: str, choices: int) -> list[int]:
    """`"3,3,1"` → [3, 3, 1]; UserError unless they are integers from 0 to choices - 1."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) < choices for word in words):
        raise UserError(
            f"--cfg.actions {text!r} should be numbers from 0 to {choices - 1} with commas, as in 3,3,1"
        )
    return [int(word) for word in words]


def add_dataset(cfg: Config, loaded: Bundle) -> Bundle:
    """The bundle of a run with start frames from its dataset; without them where an image can serve instead."""
    if bundle.is_world_file(loaded.path):
        return loaded
    try:
        return bundle.with_dataset(loaded, cfg.data, max(bundle.START_FRAMES, cfg.clip + 1))
    except UserError as error:
        browser = cfg.ui == "browser" and not (cfg.actions or cfg.output)
        if not (browser or cfg.image):
            raise
        if browser:
            console.print(f"without held-out frames and the real game: {error}")
        return loaded


def first_frame(cfg: Config, loaded: Bundle) -> np.ndarray:
    """The image asked for, or a held-out frame."""
    size = loaded.world.tokenizer.cfg
    if cfg.image:
        return video.read_image(cfg.image, size.height, size.width)
    count = len(loaded.start_frames)
    if not 0 <= cfg.clip < count:
        raise UserError(
            f"--cfg.clip {cfg.clip} is not one of the {count} held-out frames: choose another"
        )
    return loaded.start_frames[cfg.clip]


def make_video(cfg: Config, loaded: Bundle, device: torch.device) -> None:
    """One frame per action, to a file."""
    dream = loaded.world
    actions = parse_actions(cfg.actions, dream.dynamics.cfg.actions)
    frame = first_frame(cfg, loaded)
    programs = world.compiled(device) if cfg.compile == "step" else world.EAGER
    sample = world.played(dream, cfg.sample)
    key, frames = random.key(cfg.seed, device), [frame]
    state, _ = world.reset(dream, torch.from_numpy(frame).to(device)[None, None])
    for t, action in enumerate(track(actions, "dreaming", console=Console(stderr=True)), 1):
        pressed = torch.tensor([action], device=device)
        state, shown = world.step(dream, state, pressed, random.fold_in(key, t), sample, programs)
        frames.append(shown.pixels[0].cpu().numpy())
    output = cfg.output or "out.mp4"
    video.write_video(output, np.stack(frames), fps=cfg.fps, scale=cfg.scale)
    print(f"{len(actions)} frames dreamed: {output}")


def play_in_terminal(cfg: Config, loaded: Bundle, device: torch.device) -> None:
    """Until q is pressed."""
    from genie_fn.play import terminal

    dream = loaded.world
    frame = first_frame(cfg, loaded)
    prompt, programs = torch.from_numpy(frame).to(device)[None, None], world.EAGER
    if cfg.compile == "step":
        programs = world.compiled(device)
    sample = world.played(dream, cfg.sample)
    terminal.play(dream, prompt, sample, cfg.seed, programs, bundle.recorded_actions(loaded))


def serve(cfg: Config, loaded: Bundle, device: torch.device, compiled: bool) -> None:
    """The page, until Ctrl-C."""
    from genie_fn.play.engine import Engine
    from genie_fn.play.server import LOCAL, Limits, Server, serve_on

    dream = loaded.world
    listening = socket.socket(socket.AF_INET6 if ":" in cfg.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((cfg.host, cfg.port))
    except OSError as error:
        raise UserError(
            f"{cfg.host}:{cfg.port} cannot be served ({error.strerror}): choose another --cfg.port"
        ) from error
    token = "" if cfg.host in LOCAL else secrets.token_urlsafe(18)
    meta = loaded.dataset.meta
    engine = Engine(dream, device, loaded.action_map, compiled, meta, cfg.sample)
    server = Server(engine, loaded, bundle.fingerprint(*dream), token, Limits(cfg.visitors))
    everywhere = cfg.host in ("0.0.0.0", "::")
    name = "localhost" if cfg.host in LOCAL else socket.gethostname() if everywhere else cfg.host
    port = listening.getsockname()[1]
    address = f"http://{f'[{name}]' if ':' in name else name}:{port}/" + (
        f"?token={token}" if token else ""
    )
    if loaded.card:
        console.print(loaded.describe(), markup=False)
    console.print(f"{loaded.path} is played at {address} (Ctrl-C ends it)", soft_wrap=True)
    if cfg.open:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    serve_on(server, listening)


@torch.no_grad()
def main(cfg: Config) -> None:
    device, folder = backend.pick_device(cfg.device), cfg.world or cfg.run or newest_run()
    ui = "video" if cfg.actions or cfg.output else cfg.ui
    mode = backend.pick_compile(
        {"auto": "step" if ui == "browser" else "off"}.get(cfg.compile, cfg.compile), device
    )
    loaded = bundle.load(folder, device, mode != "off")
    loaded = add_dataset(cfg, loaded)
    if ui == "video":
        make_video(cfg, loaded, device)
    elif ui == "terminal":
        play_in_terminal(cfg, loaded, device)
    else:
        serve(cfg, loaded, device, mode != "off")


if __name__ == "__main__":
    run(main)
