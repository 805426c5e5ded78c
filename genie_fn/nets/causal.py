"""The time axis of the layers of a blueprint: causality, frame rates, caches and conditions.

MAGVIT-2 (Yu et al. 2023, arXiv 2310.05737), section 3.2, after TATS and MAGVIT: at a constant frame
rate no layer lets frame t depend on a later frame.

Layers that divide the frame rate by s follow one of two rules. The length of the video decides
which (`blueprint.codes_first_frame_alone`):

- `first_frame_alone`, for videos of 1 + s·k frames: the first frame is coded by itself, so that a
  single image is a video. Coarse frame j depends on frames <= s·j.
- otherwise, for videos of s·k frames: the video is divided into k groups of s frames. Coarse frame
  j depends on frames < s·(j + 1).

A layer that keeps the frame rate can continue a video from its cache: a tree of tensors that the
layer returns with its output and that the next call receives. The cache is None before the first
frame, and {} for layers that do not look back.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import Tree


class Context(NamedTuple):
    """What all layers of a network receive beside their inputs."""

    first_frame_alone: bool = False
    """Which of the module's two rules applies."""
    condition: Tensor | None = None
    """An external input, (B, T, K) or (B, T, h, w, K), at the input's rate or a coarser one."""
    backend: Backend = AUTO
    """How attention within a frame is computed."""


def prepend_past(x: Tensor, frames: int, past: Tree | None) -> tuple[Tensor, Tree]:
    """x (B, T, …) behind the `frames` frames before it, and the last `frames` of both, to keep.

    `past` is what the call before kept. It is None before the first frame, which zeros precede.
    """
    if frames == 0:
        return x, {}
    if past is None:
        past = x.new_zeros(x.shape[0], frames, *x.shape[2:])
    extended = torch.cat((past, x), 1)
    return extended, extended[:, -frames:]


def drop_padding(x: Tensor, factor: int, first_frame_alone: bool) -> Tensor:
    """Upsampled frames (B, T·factor, …) without those of a first frame that was coded alone.

    Such a frame stands for one frame only, so 1 + (T-1)·factor frames remain.
    """
    return x[:, factor - 1 :] if first_frame_alone else x


def repeat_frames(x: Tensor, factor: int, first_frame_alone: bool) -> Tensor:
    """Every frame `factor` times; a first frame that was coded alone occurs once."""
    return drop_padding(x.repeat_interleave(factor, 1), factor, first_frame_alone)


def condition_per_frame(condition: Tensor | None, frames: int, first_frame_alone: bool) -> Tensor:
    """The condition, averaged over space, for each of `frames` frames: (B, frames, K).

    `condition` (B, T', K) or (B, T', h, w, K) has the same frame rate or a coarser one.
    """
    if condition is None:
        raise ValueError("this network has conditioned layers: give it a condition")
    coarse_BTK = condition if condition.dim() == 3 else condition.mean((2, 3))
    fine_steps = frames - first_frame_alone
    coarse_steps = coarse_BTK.shape[1] - first_frame_alone
    factor = fine_steps // coarse_steps if coarse_steps else 1
    return repeat_frames(coarse_BTK, factor, first_frame_alone)
