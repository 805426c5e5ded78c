"""Play a trained world: in the browser, in the terminal, or from a list of actions to a video.

    python play.py                                  # a page with the newest trained world,
                                                    # or else the bundled pretrained world
    python play.py --cfg.world coinrun.safetensors  # a file written by export_world.py
    python play.py --cfg.ui terminal
    python play.py --cfg.actions 3,3,1,0 --cfg.output out.mp4
    python play.py --cfg.level 1009 --cfg.actions 7x20,8x6,7x20    # beside the real game
    python play.py --cfg.image assets/coinrun.png --cfg.actions 2,2,2,2 --cfg.output out.gif

The first frame is `--cfg.image`, cropped to the shape of the frames and resized, or a held-out
frame of the dataset. Sessions are reproducible: the same first frame, actions and seed give the
same frames.
"""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import numpy as np
import torch

from genie_fn import bundle, world
from genie_fn.bundle import Bundle, hub, pretrained
from genie_fn.data import games, images, video
from genie_fn.errors import UserError
from genie_fn.maskgit import PLAY, SampleConfig
from genie_fn.play import session
from genie_fn.runtime import backend, files
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console
from genie_fn.runtime.progress import track
from genie_fn.training import checkpoint

PRETRAINED = pretrained.path("coinrun-plain")
OUTPUT = "out.mp4"
MAX_FRAMES = 100_000
"""Of a video, which is held in memory."""


@dataclass(frozen=True)
class Config:
    run: str = ""
    """The folder of the dynamics run; by default the newest under `runs`, or else the bundled
    pretrained world."""
    world: str = ""
    """A world file, instead of a run and its dataset; hf://owner/name is one on the Hugging Face Hub, and
    coinrun-plain, coinrun and coinrun-latent are the bundled ones."""
    ui: Literal["browser", "terminal", "video"] = "browser"
    """Where to play; `--cfg.actions` or `--cfg.output` always make a video."""
    image: str = ""
    """The image file of the first frame; by default the first frame is a held-out frame of `data`.
    Transparent pixels show the background that the dataset was imported with, or black."""
    actions: str = ""
    """The actions of a video, as in 0,0,3,1: one frame is generated for each; 7x20 is action 7 twenty
    times."""
    output: str = ""
    """The video file to write (.mp4, .gif or .png); by default out.mp4."""
    data: str = ""
    """The dataset for held-out frames and the real game; by default the one that the run was made
    from."""
    tokenizer: str = ""
    """The folder of the tokenizer's run, where it is not where the dynamics run expects it."""
    lam: str = ""
    """The folder of the latent action model's run, likewise."""
    clip: int = 0
    """The number of the held-out frame to start from, in the dataset or the world file."""
    level: int = -1
    """A level of the game that the world was trained on, from which a video starts. It shows the game on the
    left, and `--cfg.actions` are actions of the game. -1: without the game."""
    seed: int = 0
    """The seed of the sampling."""
    fps: int = 10
    """Frames per second of the video."""
    scale: int = 4
    """The factor by which the video is enlarged."""
    host: str = "127.0.0.1"
    """The network address that serves the page; other addresses than this machine's own require a
    token, which is printed."""
    port: int = 8000
    """The port that serves the page; 0 takes a free one."""
    origin: str = ""
    """The address under which a proxy publishes the page, as in https://play.example; the page then
    requires a token, which is printed."""
    open: bool = True
    """Open the page in a browser, where there is one with windows."""
    visitors: int = 8
    """The largest number of simultaneous visitors of the page."""
    compile: Literal["auto", "off", "step"] = "auto"
    """`auto` prepares faster programs for the page while play begins: graphs for ONNX Runtime on a CPU,
    compiled programs on a GPU; `step` does so, and compiles the models for a video or the terminal, which
    takes a minute; `off` does neither."""
    device: str = "auto"
    """The device of the models: auto, cpu, cuda or cuda:1."""
    sample: SampleConfig = PLAY

    def __post_init__(self):
        if not 0 <= self.port < 2**16 or self.visitors < 1 or min(self.fps, self.scale) < 1:
            raise UserError(
                "--cfg.port is 0 to 65535, and --cfg.visitors, --cfg.fps and --cfg.scale are at "
                "least 1"
            )
        if self.origin and not is_page_address(self.origin):
            raise UserError(
                f"--cfg.origin {self.origin} should be the page's address at the proxy without a "
                "query, as in https://play.example or http://play.example:8080/world"
            )
        if self.image and self.ui == "browser" and not self.actions:
            raise UserError(
                "in the browser, images are chosen on the page: "
                "for a video from --cfg.image add --cfg.actions"
            )
        if self.level >= 0 and (self.image or not self.actions):
            raise UserError(
                "--cfg.level is for a video beside the real game: give the game's --cfg.actions, and no "
                "--cfg.image"
            )
        if self.output and Path(self.output).suffix.lower() not in (".mp4", ".gif", ".png"):
            raise UserError(f"--cfg.output {self.output} should end in .mp4, .gif or .png")


def is_page_address(text: str) -> bool:
    """Whether `text` is an address of the web, to which a query can be added."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # no number as port, or half a bracket
        return False
    named = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
    return named and not (parts.query or parts.fragment or parts.username or " " in text)


def choose_ui(cfg: Config) -> str:
    """Where to play: a list of actions or a video file always means a video."""
    return "video" if cfg.actions or cfg.output else cfg.ui


def choose_compile(cfg: Config, ui: str, device: torch.device) -> bool:
    """Whether to compile the models. The engine of the page finds out itself whether that works."""
    if ui == "browser":
        return cfg.compile != "off"
    mode = "off" if cfg.compile == "auto" else cfg.compile
    return backend.pick_compile(mode, device) != "off"


def newest_world() -> str:
    """The dynamics run under `runs` that was started or resumed last, of those with a checkpoint.

    Where there is none, it is the bundled pretrained world.
    """
    folders = [path.parent for path in Path("runs").glob("*/dynamics/checkpoints")]
    runs = [folder for folder in folders if checkpoint.latest(folder)]
    if runs:
        return str(max(runs, key=lambda run: (checkpoint.order(run), str(run))))
    if PRETRAINED.is_file():
        return str(PRETRAINED)
    raise UserError(
        "there is no trained world under runs: "
        "train one with `genie-fn demo`, or name one with --cfg.run or --cfg.world"
    )


def add_dataset(cfg: Config, loaded: Bundle, ui: str) -> Bundle:
    """The bundle with its dataset's start frames and the effects of its actions.

    Start frames are missing where images can replace them.
    """
    if bundle.is_world_file(loaded.path):
        return loaded
    try:
        store = bundle.open_dataset(loaded, cfg.data)
        loaded = bundle.with_dataset(loaded, store, max(bundle.START_FRAMES, cfg.clip + 1))
        return loaded if ui == "video" else bundle.with_effects(loaded, store)
    except UserError as error:
        if ui != "browser" and not cfg.image:
            raise
        if ui == "browser":
            console.print(
                f"playing without held-out frames and the real game: {error}", soft_wrap=True
            )
        return loaded


def parse_actions(text: str, choices: int) -> list[int]:
    """`"3x2,1"` → [3, 3, 1]; UserError unless they are integers from 0 to choices - 1."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    found = [re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", word) for word in words]
    pairs = [(int(match[1]), int(match[2] or 1)) for match in found if match]
    valid = len(pairs) == len(words) and all(action < choices for action, _ in pairs)
    frames = sum(count for _, count in pairs)
    if not valid or not frames:
        raise UserError(
            f"--cfg.actions {text!r} should be numbers from 0 to {choices - 1}, "
            "separated by commas, as in 3,3,1 or 3x2,1"
        )
    if frames > MAX_FRAMES:
        raise UserError(f"--cfg.actions asks for more than {MAX_FRAMES:,} frames: ask for fewer")
    return [action for action, count in pairs for _ in range(count)]


def first_frame(cfg: Config, loaded: Bundle) -> np.ndarray:
    """The image named by the configuration, or a held-out frame."""
    if cfg.image:
        size = loaded.world.tokenizer.cfg
        background = images.background_of(loaded.dataset.meta)
        return images.read_image(cfg.image, size.height, size.width, background)
    count = len(loaded.start_frames)
    if not 0 <= cfg.clip < count:
        raise UserError(
            f"--cfg.clip {cfg.clip} is not one of the {count} held-out frames: choose another"
        )
    return loaded.start_frames[cfg.clip]


def play_game(cfg: Config, loaded: Bundle, actions: list[int]) -> np.ndarray:
    """The frames of the real game under these actions, (T + 1, H, W, 3); fewer if its episode ends."""
    size = loaded.world.tokenizer.cfg
    dataset = loaded.dataset
    game = games.open_game(cfg.level, dataset.meta, size.height, size.width, dataset.stride)
    frames = [game.frame()]
    for action in actions:
        step = game.step(action)
        if step.ended:
            console.print(
                f"the game's episode ends after {len(frames)} actions: the others are left out"
            )
            break
        frames.append(step.frame)
    game.close()
    return np.stack(frames)


def make_video(
    cfg: Config, loaded: Bundle, actions: list[int], device: torch.device, compiled: bool
) -> None:
    """Write a video with one generated frame per action, with `--cfg.level` beside the real game's."""
    game = None
    if cfg.level >= 0:
        game = play_game(cfg, loaded, actions)
        in_world = bundle.world_actions(loaded)
        actions = [in_world[action] for action in actions[: len(game) - 1]]
    model = loaded.world
    sample = world.play_sample(cfg.sample, model.dynamics.cfg)
    programs = world.compiled(device) if compiled else world.EAGER
    image = first_frame(cfg, loaded) if game is None else game[0]
    frames = [image]
    now = session.begin(model, image, cfg.seed)
    for action in track(actions, "generating, frame"):
        now = session.advance(model, now, action, sample, programs, keep=1)
        frames.append(now.present.pixels)
    output = cfg.output or OUTPUT
    shown = np.stack(frames)
    if game is not None:
        shown = np.stack(
            [video.grid(np.stack(pair)[None]) for pair in zip(game, shown, strict=True)]
        )
    video.write_video(output, shown, fps=cfg.fps, scale=cfg.scale)
    print(f"{len(actions)} frames generated: {output}")


def play_in_terminal(cfg: Config, loaded: Bundle, device: torch.device, compiled: bool) -> None:
    """Play in this terminal until q is pressed."""
    from genie_fn.play import terminal

    model = loaded.world
    sample = world.play_sample(cfg.sample, model.dynamics.cfg)
    programs = world.compiled(device) if compiled else world.EAGER
    controls = terminal.controls_of(loaded)
    terminal.play(model, first_frame(cfg, loaded), sample, cfg.seed, programs, controls)


def serve(cfg: Config, loaded: Bundle, device: torch.device, compiled: bool) -> None:
    """Serve the page until Ctrl-C."""
    from genie_fn.play import browser
    from genie_fn.play.engine import Engine
    from genie_fn.play.guard import LOCAL
    from genie_fn.play.listening import listen, own_address
    from genie_fn.play.server import Limits, Server, serve_on

    listening = listen(cfg.host, cfg.port)
    local = cfg.host in LOCAL
    token = "" if local and not cfg.origin else secrets.token_urlsafe(18)
    engine = Engine(loaded, device, compiled, cfg.sample)
    identity = bundle.fingerprint(*loaded.world)
    server = Server(engine, identity, token, Limits(cfg.visitors))
    own = own_address("localhost" if local else cfg.host, listening.getsockname()[1])
    address = (cfg.origin or own).rstrip("/") + (f"/?token={token}" if token else "/")
    if loaded.card:
        console.print(loaded.describe())
    console.print(f"Play {loaded.path} at {address} (Ctrl-C stops the server)", soft_wrap=True)
    if cfg.open:
        browser.open_soon(address)
    serve_on(server, listening)


@torch.no_grad()
def main(cfg: Config) -> None:
    ui = choose_ui(cfg)
    device = backend.pick_device(cfg.device)
    if ui == "video":
        files.check_outputs("--cfg.output", cfg.output or OUTPUT)
    compiled = choose_compile(cfg, ui, device)
    path = hub.fetch(pretrained.find(cfg.world) or cfg.run or newest_world())
    loaded = bundle.load(path, device, compiled, tokenizer=cfg.tokenizer, lam=cfg.lam)
    actions: list[int] = []
    if ui == "video":  # wrong actions are refused before the dataset is opened
        choices = loaded.world.dynamics.cfg.actions
        if cfg.level >= 0:
            choices = len(bundle.world_actions(loaded))
        actions = parse_actions(cfg.actions, choices)
    loaded = add_dataset(cfg, loaded, ui)
    if ui == "video":
        make_video(cfg, loaded, actions, device, compiled)
    elif ui == "terminal":
        play_in_terminal(cfg, loaded, device, compiled)
    else:
        serve(cfg, loaded, device, compiled)


if __name__ == "__main__":
    run(main)
