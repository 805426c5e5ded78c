"""Which clips and transitions a report shows, and the picture files beside it."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genie_fn import data, metrics
from genie_fn.data import Store, video
from genie_fn.evaluation.rollouts import Videos

COUNT = 6  # clips of each kind


class Picture(NamedTuple):
    """Frames (T, H, W, 3) uint8, a GIF if T > 1, and their caption."""

    frames: np.ndarray
    caption: str


def stacked(*videos: Tensor) -> np.ndarray:
    """Videos (T, H, W, 3) above each other."""
    return torch.cat(videos, 1).cpu().numpy()


def choose_clips(
    frames: Tensor, videos: Videos, levels: np.ndarray
) -> tuple[list[Picture], list[Picture]]:
    """Clips from those that change most to those that change least, and those of the lowest PSNR.

    `frames` begin with the last prompt frame. Each picture stacks the recorded frames and the
    rollouts under the clip's own actions and under another clip's.
    """
    future = frames[:, 1:]
    own = metrics.frame_psnr(future, videos["own_actions"]).mean(1)
    copied = metrics.frame_psnr(future, videos["copy_last"]).mean(1)

    def picture(i: int) -> Picture:
        rollouts = (
            torch.cat((frames[i, :1], videos[method][i])) for method in ("own_actions", "shuffled")
        )
        caption = f"level {levels[i]}: {own[i]:.1f} dB (copy-last {copied[i]:.1f})"
        return Picture(stacked(frames[i], *rollouts), caption)

    stride = len(copied) // 8
    spread = copied.argsort().tolist()[stride :: max(1, stride)][:COUNT]
    worst = own.argsort().tolist()[:COUNT]
    return [picture(i) for i in spread], [picture(i) for i in worst]


def held_keys(
    recorded: Tensor, generated: Tensor, keys: tuple[str, ...], count: int = COUNT
) -> list[Picture]:
    """A video per held key of up to `count` starts side by side, recorded above generated.

    `recorded` and `generated` are (K, N, T, H, W, 3).
    """
    pictures = []
    for key, real, rollout in zip(keys, recorded[:, :count], generated[:, :count], strict=True):
        rows = (torch.cat(tuple(videos), 2) for videos in (real, rollout))  # N videos side by side
        pictures.append(Picture(stacked(*rows), f"{key} held"))
    return pictures


def rows(*videos: Tensor) -> np.ndarray:
    """Rows of frames (T, H, W, 3) as one (H', W', 3) uint8 image."""
    return video.grid(torch.stack(videos).cpu().numpy(), gap=2)


def write(out: Path, clips: list[Picture], height: int, held: list[Picture]) -> list[Path]:
    """Write rollouts.gif, strip.png (recorded above generated) and, if keys were held, held.gif.

    Returns the files.
    """
    pairs = [picture.frames[:, : 2 * height] for picture in clips]
    video.write_video(out / "rollouts.gif", np.concatenate(pairs, 2), fps=5, scale=2)
    strips = np.concatenate([np.stack((pair[:, :height], pair[:, height:])) for pair in pairs])
    video.write_png(out / "strip.png", video.enlarge(video.grid(strips), 2))
    paths = [out / "rollouts.gif", out / "strip.png"]
    if held:
        frames = np.concatenate([picture.frames for picture in held], 1)
        video.write_video(out / "held.gif", frames, fps=5, scale=2)
        paths.append(out / "held.gif")
    return paths


def transitions(store: Store, offsets: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Transitions (clip, t) side by side, (H', W', 3) uint8.

    Above each other stand frame, next frame, and their difference around grey.
    """
    if not pairs:
        return np.empty((0, 0, 3), np.uint8)
    starts = np.array([offsets[clip] + t * store.stride for clip, t in pairs])
    before, after = data.read_clips(store, starts, 2).frames.swapaxes(0, 1)
    difference = np.clip(128 + (after.astype(int) - before) // 2, 0, 255).astype(np.uint8)
    return video.grid(np.stack((before, after, difference)), gap=2)


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """An image (H, W, 3) uint8 with a line of text above it, widened where the text needs it."""
    font = ImageFont.load_default()
    left, top, right, bottom = font.getbbox(text)
    width = max(image.shape[1], math.ceil(right - left) + 4)
    height = math.ceil(bottom - top) + 6
    canvas = Image.new("RGB", (width, height + image.shape[0]), "white")
    ImageDraw.Draw(canvas).text((2 - left, 3 - top), text, fill="black", font=font)
    canvas.paste(Image.fromarray(image), (0, height))
    return np.asarray(canvas)
