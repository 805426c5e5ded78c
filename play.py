"""Play a trained world from one image: a list of actions in, a video out.

    python play.py --cfg.actions 3,3,1,0 --cfg.output out.mp4
    python play.py --cfg.image assets/coinrun.png --cfg.actions 2,2,2,2 --cfg.output out.gif

The first frame is `--cfg.image`, cropped to a square and resized, or a held-out frame of the dataset. A run repeats
exactly: the same image, actions and seed give the same video.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from genie_fn import data, random, train, video, world
from genie_fn.dynamics import SampleConfig
from genie_fn.errors import UserError, run

MAX_PIXELS = 32_000_000


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run."""
    image: str = ""
    """The first frame, any image file; empty: a held-out frame of `data`."""
    actions: str = "0,1,2,3,4,5,0,1,2,3,4,5"
    """One frame is dreamed per action."""
    output: str = "out.mp4"
    """.mp4, .gif or .png"""
    data: str = "data/coinrun"
    clip: int = 0
    """Which held-out frame to start from, where no image is given."""
    seed: int = 0
    fps: int = 10
    scale: int = 4
    compile: str = "off"
    """`step` compiles the frame: worth its minute for long videos."""
    device: str = "auto"
    sample: SampleConfig = field(default_factory=SampleConfig)


def parse_actions(text: str, choices: int) -> list[int]:
    """`"3,3,1"` → [3, 3, 1]; UserError unless they are integers from 0 to choices - 1."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) < choices for word in words):
        raise UserError(f"--cfg.actions {text!r} should be numbers from 0 to {choices - 1} with commas, as in 3,3,1")
    return [int(word) for word in words]


def read_image(path: str, height: int, width: int) -> np.ndarray:
    """An image file as one (H, W, 3) uint8 frame: the largest part of the right shape, from the middle, resized."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} has {image.width}x{image.height} pixels: give one under {MAX_PIXELS:,} pixels")
            return np.array(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BOX))
    except FileNotFoundError as error:
        raise UserError(f"there is no image {path}: check --cfg.image") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not an image that can be read: give a PNG or JPEG file") from error


def first_frame(cfg: Config, height: int, width: int) -> np.ndarray:
    """The image asked for, or the first frame of a held-out clip."""
    if cfg.image:
        return read_image(cfg.image, height, width)
    store = data.open_store(cfg.data)
    return data.read_clips(store, data.eval_clips(store, "test", 1, cfg.clip + 1)[-1:], 1).frames[0, 0]


def main(cfg: Config) -> None:
    if Path(cfg.output).suffix.lower() not in (".mp4", ".gif", ".png"):
        raise UserError(f"--cfg.output {cfg.output} should end in .mp4, .gif or .png")
    device = train.pick_device(cfg.device)
    dream = world.load(cfg.run, device)
    actions = parse_actions(cfg.actions, dream.dynamics.cfg.actions)
    frame = first_frame(cfg, dream.tokenizer.cfg.height, dream.tokenizer.cfg.width)
    prompt = torch.from_numpy(frame).to(device)[None, None]
    programs = world.compiled() if train.pick_compile(cfg.compile, device) != "off" else world.Programs()
    key, frames = random.key(cfg.seed, device), [frame]
    with torch.no_grad():
        state, _ = world.reset(dream, prompt)
        for t, action in enumerate(track(actions, "dreaming", console=Console(stderr=True))):
            pressed = torch.tensor([action], device=device)
            state, shown = world.step(dream, state, pressed, random.fold_in(key, t), cfg.sample, programs)
            frames.append(shown.pixels[0].cpu().numpy())
    video.write_video(cfg.output, np.stack(frames), fps=cfg.fps, scale=cfg.scale)
    print(f"{len(actions)} frames dreamed: {cfg.output}")


if __name__ == "__main__":
    run(main)
