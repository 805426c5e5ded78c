"""Activations and the residual layers built from group norms, activations and convolutions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers
from genie_fn.nets import conv, norms, resampling
from genie_fn.nets.causal import Context
from genie_fn.nets.layer import Layer, Size, Triple, odd_kernel, triple
from genie_fn.tree import Tree

ActivationName = Literal["gelu", "relu", "leaky_relu", "leaky", "silu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "leaky": F.leaky_relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Activation(Layer):
    """An activation; each subclass names one."""

    name: ClassVar[ActivationName]

    def apply(self, params, x, cache, context: Context):
        return ACTIVATIONS[self.name](x), {}


class GELU(Activation):
    name = "gelu"


class ReLU(Activation):
    name = "relu"


class LeakyReLU(Activation):
    name = "leaky_relu"


class SiLU(Activation):
    name = "silu"


@dataclass(frozen=True)
class Residual(Layer):
    """Two rounds of group norm, activation and convolution, and a shortcut.

    Between the rounds, and on the shortcut, the video is pooled by `downsample`.
    """

    in_channels: int
    out_channels: int = 0
    kernel_size: Size = 3
    downsample: Size = 1
    """(time, space): the factors that divide the frame rate and the pixels per side."""
    use_blur: bool = False
    """Pool with a triangular filter; otherwise average."""
    num_groups: int = 8
    act_fn: ActivationName = "silu"
    use_causal: bool = True
    """Must be true: all layers are causal. The option exists for Open-Genie's descriptions."""

    def __post_init__(self):
        norms.check_groups(self.num_groups, self.in_channels)
        norms.check_groups(self.num_groups, self.outputs)
        if not self.use_causal:
            raise ValueError("use_causal=False would let a frame see later ones: remove it")

    @property
    def outputs(self) -> int:
        return self.out_channels or self.in_channels

    @property
    def kernel(self) -> Triple:
        return odd_kernel(self.kernel_size)

    @property
    def shrinks(self) -> tuple[int, int]:
        return triple(self.downsample)[:2]

    def spec(self) -> Tree:
        spec = {
            "norm1": norms.group_norm_spec(self.in_channels),
            "conv1": conv.conv_spec(self.in_channels, self.outputs, self.kernel),
            "norm2": norms.group_norm_spec(self.outputs),
            "conv2": conv.conv_spec(self.outputs, self.outputs, self.kernel, scale=0.3),
        }
        if self.outputs != self.inputs:
            spec["shortcut"] = layers.linear_spec(self.in_channels, self.outputs)
        return spec

    def apply(self, params, x, cache, context: Context):
        kept = {}
        y, kept["conv1"] = self._round("1", params, x, cache, context)
        shortcut = self._pool(x, context)
        y = self._pool(y, context)
        y, kept["conv2"] = self._round("2", params, y, cache, context)
        if "shortcut" in params:
            shortcut = layers.linear(params["shortcut"], shortcut)
        return shortcut + y, kept

    def _round(
        self, number: str, params: Tree, x: Tensor, cache: Tree | None, context: Context
    ) -> tuple[Tensor, Tree]:
        hidden = norms.group_norm(params[f"norm{number}"], x, self.num_groups)
        hidden = ACTIVATIONS[self.act_fn](hidden)
        name = f"conv{number}"
        past = None if cache is None else cache[name]
        return conv.apply_in(context, conv.causal_conv, params[name], hidden, past)

    def _pool(self, x: Tensor, context: Context) -> Tensor:
        factor = triple(self.shrinks)
        alone = context.first_frame_alone
        return resampling.pool(x, factor, blur=self.use_blur, first_frame_alone=alone)


@dataclass(frozen=True)
class ImageResidual(Residual):
    """`Residual` within each frame; a `downsample` of one number applies to space."""

    def __post_init__(self):
        super().__post_init__()
        if self.shrinks[0] != 1:
            raise ValueError(
                f"its downsample {self.downsample} divides time, which a layer within frames cannot"
            )

    @property
    def shrinks(self) -> tuple[int, int]:
        if isinstance(self.downsample, int):
            return 1, self.downsample
        return triple(self.downsample)[:2]

    @property
    def kernel(self) -> Triple:
        _, height, width = odd_kernel(self.kernel_size)
        return 1, height, width
