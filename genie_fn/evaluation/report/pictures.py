"""Which clips and transitions a report shows, and the files of pictures beside it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genie_fn import data, metrics
from genie_fn.data import Store, video


class Picture(NamedTuple):
    """Frames (T, H, W, 3) uint8, shown as a GIF where T > 1, and what stands below."""

    frames: np.ndarray
    caption: str


def above(*videos: Tensor) -> np.ndarray:
    """Videos (T, H, W, 3) above each other."""
    return torch.cat(videos, 1).cpu().numpy()


def choose(
    frames: Tensor, dreams: dict[str, Tensor], levels: np.ndarray
) -> tuple[list[Picture], list[Picture]]:
    """Clips from lively to still, and the worst: real, dreamed with the own actions, with another clip's."""
    future = frames[:, 1:]
    own, copied = (
        metrics.frame_psnr(future, dreams[name]).mean(1) for name in ("own", "copy_last")
    )
    order, count = copied.argsort().tolist(), len(copied)

    def picture(i: int) -> Picture:
        made = (torch.cat((frames[i, :1], dreams[name][i])) for name in ("own", "shuffled"))
        return Picture(
            above(frames[i], *made),
            f"level {levels[i]}: {own[i]:.1f} dB (copy-last {copied[i]:.1f})",
        )

    spread = order[count // 8 :: max(1, count // 8)][:6]
    return [picture(i) for i in spread], [picture(i) for i in own.argsort().tolist()[:6]]


def held(real: Tensor, dreamed: Tensor, keys: tuple[str, ...], most: int = 6) -> list[Picture]:
    """A film per held key of up to `most` starts side by side, real above dreamed: (K, N, T, H, W, 3) uint8 each."""
    films = []
    for key, *pair in zip(keys, real[:, :most], dreamed[:, :most], strict=True):
        beside = (torch.cat(tuple(side), 2) for side in pair)  # (N, T, H, W, 3) → (T, H, N W, 3)
        films.append(Picture(above(*beside), f"{key} held"))
    return films


def rows(*videos: Tensor) -> np.ndarray:
    """Rows of frames (T, H, W, 3) as one (H', W', 3) uint8 image."""
    return video.grid(torch.stack(videos).cpu().numpy(), gap=2)


def write(out: Path, clips: list[Picture], side: int, films: list[Picture]) -> None:
    """dream.gif and strip.png: the clips, real above dreamed; held.gif: the films of held keys above each other."""
    pairs = [picture.frames[:, : 2 * side] for picture in clips]
    video.write_video(out / "dream.gif", np.concatenate(pairs, 2), fps=5, scale=2)
    strips = np.concatenate([np.stack((pair[:, :side], pair[:, side:])) for pair in pairs])
    video.write_png(out / "strip.png", video.enlarge(video.grid(strips), 2))
    if films:
        together = np.concatenate([film.frames for film in films], 1)
        video.write_video(out / "held.gif", together, fps=5, scale=2)


def strip(store: Store, offsets: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Transitions side by side, (H', W', 3) uint8: frame, next frame, and their difference around grey."""
    if not pairs:
        return np.empty((0, 0, 3), np.uint8)
    starts = np.array([offsets[clip] + t for clip, t in pairs])
    before, after = data.read_clips(store, starts, 2).frames.swapaxes(0, 1)
    changed = np.clip(128 + (after.astype(int) - before) // 2, 0, 255).astype(np.uint8)
    return video.grid(np.stack((before, after, changed)), gap=2)
