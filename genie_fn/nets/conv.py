"""Convolutions over video (B, T, H, W, C) that are causal in time, and the layers around one.

See genie_fn/nets/causal.py for the two rules of the time axis and for caches.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from genie_fn.nets import norms
from genie_fn.nets.causal import Context, drop_padding, prepend_past
from genie_fn.nets.layer import Layer, Size, Triple, odd_kernel, triple
from genie_fn.tree import ParamSpec, Tree


def conv_spec(inputs: int, outputs: int, kernel: Triple, *, scale: float = 1.0) -> Tree:
    """A kernel (outputs, inputs, t, h, w) with variance scale² / fan-in, and a zero bias."""
    fan_in = inputs * kernel[0] * kernel[1] * kernel[2]
    return {
        "w": ParamSpec((outputs, inputs, *kernel), std=scale * fan_in**-0.5),
        "b": ParamSpec((outputs,), "zeros", decay=False),
    }


def causal_conv(
    params: Tree,
    x_BTHWC: Tensor,
    cache: Tree | None = None,
    *,
    stride: Triple = (1, 1, 1),
    first_frame_alone: bool = False,
) -> tuple[Tensor, Tree]:
    """3D convolution with zero padding: in time only before the first frame.

    Kernels are odd in space. Returns the output and the cache.
    """
    time, height, width = params["w"].shape[2:]
    # In a video of groups, a window ends with the last frame of a group. Otherwise windows end
    # with the first frame, the s-th, the 2s-th and so on.
    before = time - 1 if first_frame_alone else time - stride[0]
    if before > 0:
        x, cache = prepend_past(x_BTHWC, before, cache)
    else:
        x = x_BTHWC[:, -before:]
        cache = {}
    y = F.conv3d(
        x.permute(0, 4, 1, 2, 3),
        params["w"].to(x.dtype),
        params["b"].to(x.dtype),
        stride=stride,
        padding=(0, height // 2, width // 2),
    )
    return y.permute(0, 2, 3, 4, 1), cache


def causal_conv_transpose(
    params: Tree,
    x_BTHWC: Tensor,
    cache: Tree | None = None,
    *,
    stride: Triple,
    first_frame_alone: bool = False,
) -> tuple[Tensor, Tree]:
    """Transposed 3D convolution: `stride` times as many frames, rows and columns.

    Coarse frame j contributes to its own fine frames and later ones. Kernels (outputs, inputs, t,
    h, w) are at least as long as the stride. Returns the output and the cache.
    """
    frames, height, width = (n * s for n, s in zip(x_BTHWC.shape[1:4], stride, strict=True))
    time, rows, columns = params["w"].shape[2:]
    past = (time - 1) // stride[0]  # the number of earlier coarse frames that overlap a frame
    x, cache = prepend_past(x_BTHWC, past, cache)
    y = F.conv_transpose3d(
        x.permute(0, 4, 1, 2, 3),
        params["w"].transpose(0, 1).to(x.dtype),
        params["b"].to(x.dtype),
        stride=stride,
    ).permute(0, 2, 3, 4, 1)
    t = past * stride[0]
    h = (rows - stride[1]) // 2
    w = (columns - stride[2]) // 2
    cropped = y[:, t : t + frames, h : h + height, w : w + width]
    return drop_padding(cropped, stride[0], first_frame_alone), cache


def apply_in(
    context: Context,
    convolution: Callable[..., tuple[Tensor, Tree]],
    params: Tree,
    x_BTHWC: Tensor,
    cache: Tree | None,
    stride: Size = 1,
) -> tuple[Tensor, Tree]:
    """The result of `causal_conv` or `causal_conv_transpose` by the rule of the context."""
    alone = context.first_frame_alone
    return convolution(params, x_BTHWC, cache, stride=triple(stride), first_frame_alone=alone)


@dataclass(frozen=True)
class Convolution(Layer):
    """The options of all layers around one convolution."""

    in_channels: int
    out_channels: int
    kernel_size: Size = 3

    @property
    def outputs(self) -> int:
        return self.out_channels or self.in_channels

    def spec(self) -> Tree:
        return conv_spec(self.in_channels, self.outputs, odd_kernel(self.kernel_size))


@dataclass(frozen=True)
class CausalConv(Convolution):
    """Convolution, causal in time."""

    stride: Size = 1

    @property
    def shrinks(self) -> tuple[int, int]:
        return triple(self.stride)[:2]

    def apply(self, params, x, cache, context: Context):
        return apply_in(context, causal_conv, params, x, cache, self.stride)


@dataclass(frozen=True)
class CausalConvTranspose(Convolution):
    """Transposed convolution, causal in time: `stride` times as many frames and pixels per side."""

    kernel_size: Size = 4
    stride: Size = 2

    def __post_init__(self):
        if any(k < s for k, s in zip(triple(self.kernel_size), triple(self.stride), strict=True)):
            raise ValueError(
                f"its kernel_size {self.kernel_size} is smaller than its stride {self.stride}"
            )

    @property
    def grows(self) -> tuple[int, int]:
        return triple(self.stride)[:2]

    def spec(self) -> Tree:
        return conv_spec(self.in_channels, self.out_channels, triple(self.kernel_size))

    def apply(self, params, x, cache, context: Context):
        return apply_in(context, causal_conv_transpose, params, x, cache, self.stride)


@dataclass(frozen=True)
class ProjOut(Convolution):
    """Group norm, SiLU, and a convolution to the latent width."""

    num_groups: int = 8

    def __post_init__(self):
        norms.check_groups(self.num_groups, self.in_channels)

    def spec(self) -> Tree:
        return {"norm": norms.group_norm_spec(self.in_channels), "conv": super().spec()}

    def apply(self, params, x, cache, context: Context):
        hidden = F.silu(norms.group_norm(params["norm"], x, self.num_groups))
        return apply_in(context, causal_conv, params["conv"], hidden, cache)
