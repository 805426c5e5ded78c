"""Layers that change the number of frames, rows and columns of video (B, T, H, W, C).

See genie_fn/nets/causal.py for the two rules of the time axis.
"""

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from genie_fn import layers
from genie_fn.nets.causal import Context, drop_padding
from genie_fn.nets.conv import Convolution, apply_in, causal_conv, conv_spec
from genie_fn.nets.layer import Layer, Size, Triple, odd_kernel, triple
from genie_fn.tree import Tree


def pool(x_BTHWC: Tensor, factor: Triple, *, blur: bool, first_frame_alone: bool = False) -> Tensor:
    """Every factor-th frame, row and column of the filtered video.

    The filter is a mean over `factor` values or, with `blur`, a triangle (1, 2, 1 for a factor of
    2; Zhang 2019, arXiv 1904.11486). It is centred in space and looks back in time. Edges are
    repeated.
    """
    x = x_BTHWC
    for axis, stride in zip((1, 2, 3), factor, strict=True):
        if stride == 1:
            continue
        weights = _triangle(stride) if blur else [1 / stride] * stride
        overlap = len(weights) - stride
        if axis == 1:
            before = len(weights) - 1 if first_frame_alone else overlap
            after = 0
        else:
            before = (overlap + 1) // 2
            after = overlap - before
        x = _strided_filter(_repeat_edges(x, axis, before, after), axis, stride, weights)
    return x


def _triangle(factor: int) -> list[float]:
    return [min(k + 1, 2 * factor - 1 - k) / factor**2 for k in range(2 * factor - 1)]


def _repeat_edges(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """x with its first and last values repeated so many times. Replication padding would compile to
    a backward pass with wrong strides."""
    first = x.narrow(axis, 0, 1)
    last = x.narrow(axis, x.shape[axis] - 1, 1)
    return torch.cat((*[first] * before, x, *[last] * after), axis)


def _strided_filter(x: Tensor, axis: int, stride: int, weights: list[float]) -> Tensor:
    x = x.movedim(axis, 0)
    span = len(x) - len(weights) + 1
    filtered = sum(w * x[k : k + span : stride] for k, w in enumerate(weights))
    return cast(Tensor, filtered).movedim(0, axis)


def depth_to_spacetime(
    x_BTHWC: Tensor, time: int, space: int, *, first_frame_alone: bool = False
) -> Tensor:
    """(B, T, H, W, C·time·space²) → (B, T·time, H·space, W·space, C)."""
    x = rearrange(x_BTHWC, "b t h w (c f p q) -> b (t f) (h p) (w q) c", f=time, p=space, q=space)
    return drop_padding(x, time, first_frame_alone)


def space_to_depth(x_BTHWC: Tensor, space: int) -> Tensor:
    """(B, T, H·space, W·space, C) → (B, T, H, W, C·space²)."""
    return rearrange(x_BTHWC, "b t (h p) (w q) c -> b t h w (c p q)", p=space, q=space)


@dataclass(frozen=True)
class SpaceTimeDownsample(Convolution):
    """A causal convolution with strides."""

    out_channels: int = 0
    time_factor: int = 2
    space_factor: int = 2

    @property
    def shrinks(self) -> tuple[int, int]:
        return self.time_factor, self.space_factor

    def apply(self, params, x, cache, context: Context):
        return apply_in(context, causal_conv, params, x, cache, self.shrinks)


@dataclass(frozen=True)
class SpaceDownsample(Layer):
    """Space to depth, then a linear layer."""

    in_channels: int
    out_channels: int = 0
    factor: int = 2

    @property
    def outputs(self) -> int:
        return self.out_channels or self.in_channels

    @property
    def shrinks(self) -> tuple[int, int]:
        return 1, self.factor

    def spec(self) -> Tree:
        return layers.linear_spec(self.in_channels * self.factor**2, self.outputs, bias=True)

    def apply(self, params, x, cache, context: Context):
        return layers.linear(params, space_to_depth(x, self.factor)), {}


@dataclass(frozen=True)
class BlurPool(Layer):
    """Blur, then keep every factor-th frame and pixel."""

    time_factor: int = 1
    space_factor: int = 2

    @property
    def shrinks(self) -> tuple[int, int]:
        return self.time_factor, self.space_factor

    def apply(self, params, x, cache, context: Context):
        factor = triple(self.shrinks)
        return pool(x, factor, blur=True, first_frame_alone=context.first_frame_alone), {}


@dataclass(frozen=True)
class SpaceTimeUpsample(Convolution):
    """A causal convolution to more channels, which then become frames, rows and columns."""

    out_channels: int = 0
    time_factor: int = 2
    space_factor: int = 2

    @property
    def grows(self) -> tuple[int, int]:
        return self.time_factor, self.space_factor

    def spec(self) -> Tree:
        channels = self.outputs * self.time_factor * self.space_factor**2
        return conv_spec(self.in_channels, channels, odd_kernel(self.kernel_size))

    def apply(self, params, x, cache, context: Context):
        y, cache = apply_in(context, causal_conv, params, x, cache)
        alone = context.first_frame_alone
        return depth_to_spacetime(y, *self.grows, first_frame_alone=alone), cache


@dataclass(frozen=True)
class SpaceUpsample(SpaceTimeUpsample):
    """`SpaceTimeUpsample` in space only; its default kernel stays within the frame."""

    time_factor: int = 1
    kernel_size: Size = (1, 3)

    def __post_init__(self):
        if self.time_factor != 1:
            raise ValueError("it keeps time: use depth2spacetime_upsample")


@dataclass(frozen=True)
class TimeUpsample(SpaceTimeUpsample):
    """`SpaceTimeUpsample` in time only."""

    space_factor: int = 1

    def __post_init__(self):
        if self.space_factor != 1:
            raise ValueError("it keeps space: use depth2spacetime_upsample")
