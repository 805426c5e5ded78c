"""The layers that blueprints name. A layer is a frozen dataclass of its options, with its parameters and its function.

All are causal in time; see genie_fn/nets/conv.py for what that means where the frame rate changes.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers
from genie_fn.kernels.attention import SPACE_IMPLS
from genie_fn.nets import conv
from genie_fn.nets.conv import Pass, Triple
from genie_fn.tree import Tree


def _triple(value: int | tuple[int, ...]) -> Triple:
    """A size per axis (time, height, width) of one number for all, or of (time, space)."""
    if isinstance(value, int):
        return value, value, value
    return (value[0], value[1], value[1]) if len(value) == 2 else tuple(value)


def _odd(kernel_size: int | tuple[int, ...]) -> Triple:
    """A kernel that is centred in space."""
    if any(side % 2 == 0 for side in _triple(kernel_size)[1:]):
        raise ValueError(
            f"its kernel_size {kernel_size} is even in space, where it has to have a middle"
        )
    return _triple(kernel_size)


@dataclass(frozen=True)
class Layer:
    """One kind of layer; its fields are its options. A subclass says what it does to channels, frames and pixels."""

    @property
    def inputs(self) -> int | None:
        """The channels it takes, None if any."""
        return getattr(self, "in_channels", None)

    @property
    def outputs(self) -> int | None:
        """The channels it gives, None if as many as it takes."""
        return getattr(self, "out_channels", None) or self.inputs

    @property
    def shrinks(self) -> tuple[int, int]:
        """By how much it divides frames and pixels per side."""
        return 1, 1

    @property
    def grows(self) -> tuple[int, int]:
        """By how much it multiplies frames and pixels per side."""
        return 1, 1

    @property
    def condition(self) -> int:
        """The width of the external condition that it needs, 0 if none."""
        return 0

    def spec(self) -> Tree:
        """Its parameters."""
        return {}

    def apply(self, params: Tree, x: Tensor, at: Pass) -> Tensor:
        """(B, T, H, W, inputs) → (B, T', H', W', outputs)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Convolution(Layer):
    """What the layers around one convolution share."""

    in_channels: int
    out_channels: int
    kernel_size: int | tuple = 3

    def spec(self):
        return conv.conv_spec(self.in_channels, self.outputs, _odd(self.kernel_size))


@dataclass(frozen=True)
class CausalConv(Convolution):
    """Convolution, causal in time."""

    stride: int | tuple = 1

    @property
    def shrinks(self):
        return _triple(self.stride)[:2]

    def apply(self, params, x, at):
        return conv.causal_conv(params, x, at, _triple(self.stride))


@dataclass(frozen=True)
class CausalConvTranspose(Convolution):
    """Transposed convolution, causal in time: `stride` times as many frames and pixels per side."""

    kernel_size: int | tuple = 4
    stride: int | tuple = 2

    def __post_init__(self):
        if any(k < s for k, s in zip(_triple(self.kernel_size), _triple(self.stride), strict=True)):
            raise ValueError(
                f"its kernel_size {self.kernel_size} is smaller than its stride {self.stride}"
            )

    @property
    def grows(self):
        return _triple(self.stride)[:2]

    def spec(self):
        return conv.conv_spec(self.in_channels, self.out_channels, _triple(self.kernel_size))

    def apply(self, params, x, at):
        return conv.causal_conv_transpose(params, x, at, _triple(self.stride))


@dataclass(frozen=True)
class SpaceTimeDownsample(Convolution):
    """A causal convolution with strides."""

    out_channels: int = 0
    time_factor: int = 2
    space_factor: int = 2

    @property
    def shrinks(self):
        return self.time_factor, self.space_factor

    def apply(self, params, x, at):
        return conv.causal_conv(params, x, at, _triple(self.shrinks))


@dataclass(frozen=True)
class SpaceDownsample(Layer):
    """Space to depth, then a linear layer."""

    in_channels: int
    out_channels: int = 0
    factor: int = 2

    @property
    def shrinks(self):
        return 1, self.factor

    def spec(self):
        return layers.linear_spec(self.in_channels * self.factor**2, self.outputs, bias=True)

    def apply(self, params, x, at):
        return layers.linear(params, conv.space_to_depth(x, self.factor))


@dataclass(frozen=True)
class Upsample(Convolution):
    """A causal convolution to more channels, which then become frames, rows and columns."""

    out_channels: int = 0
    time_factor: int = 2
    space_factor: int = 2

    @property
    def grows(self):
        return self.time_factor, self.space_factor

    def spec(self):
        outputs = self.outputs * self.time_factor * self.space_factor**2
        return conv.conv_spec(self.in_channels, outputs, _odd(self.kernel_size))

    def apply(self, params, x, at):
        return conv.depth_to_spacetime(conv.causal_conv(params, x, at), at, *self.grows)


@dataclass(frozen=True)
class Depth2Space(Upsample):
    """`Upsample` in space alone, its kernel within the frame."""

    time_factor: int = 1
    kernel_size: int | tuple = (1, 3)

    def __post_init__(self):
        if self.time_factor != 1:
            raise ValueError("it keeps time: use depth2spacetime_upsample")


@dataclass(frozen=True)
class Depth2Time(Upsample):
    """`Upsample` in time alone."""

    space_factor: int = 1

    def __post_init__(self):
        if self.space_factor != 1:
            raise ValueError("it keeps space: use depth2spacetime_upsample")


@dataclass(frozen=True)
class BlurPool(Layer):
    """Blur, then keep every factor-th frame and pixel."""

    time_factor: int = 1
    space_factor: int = 2

    @property
    def shrinks(self):
        return self.time_factor, self.space_factor

    def apply(self, params, x, at):
        return conv.pool(x, at, _triple(self.shrinks), blur=True)


ACTIVATIONS = {
    "gelu": F.gelu,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "leaky": F.leaky_relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Residual(Layer):
    """Twice (group norm, activation, convolution), with a pooling in between and on the shortcut."""

    in_channels: int
    out_channels: int = 0
    kernel_size: int | tuple = 3
    downsample: int | tuple = 1
    """Frames and pixels per side are divided by (time, space)."""
    use_blur: bool = False
    """Blur before leaving out pixels; otherwise average."""
    num_groups: int = 8
    act_fn: str = "silu"
    use_causal: bool = True
    """The only choice: everything here is causal."""

    def __post_init__(self):
        _check_groups(self.num_groups, self.in_channels)
        _check_groups(self.num_groups, self.outputs)
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"its act_fn {self.act_fn!r} is none of {', '.join(ACTIVATIONS)}")
        if not self.use_causal:
            raise ValueError("use_causal=False would let a frame see later ones: leave it out")

    @property
    def kernel(self) -> Triple:
        return _odd(self.kernel_size)

    @property
    def shrinks(self):
        return _triple(self.downsample)[:2]

    def spec(self):
        spec = {
            "norm1": conv.group_norm_spec(self.in_channels),
            "conv1": conv.conv_spec(self.in_channels, self.outputs, self.kernel),
            "norm2": conv.group_norm_spec(self.outputs),
            "conv2": conv.conv_spec(self.outputs, self.outputs, self.kernel, scale=0.3),
        }
        same = self.outputs == self.inputs
        return (
            spec
            if same
            else spec | {"shortcut": layers.linear_spec(self.in_channels, self.outputs)}
        )

    def apply(self, params, x, at):
        act, factor = ACTIVATIONS[self.act_fn], _triple(self.shrinks)
        y = conv.causal_conv(
            params["conv1"], act(conv.group_norm(params["norm1"], x, self.num_groups)), at
        )
        if factor != (1, 1, 1):
            x, y = (conv.pool(z, at, factor, blur=self.use_blur) for z in (x, y))
        y = conv.causal_conv(
            params["conv2"], act(conv.group_norm(params["norm2"], y, self.num_groups)), at
        )
        return (layers.linear(params["shortcut"], x) if "shortcut" in params else x) + y


@dataclass(frozen=True)
class ImageResidual(Residual):
    """`Residual` within each frame; a `downsample` of one number is that of space."""

    def __post_init__(self):
        super().__post_init__()
        if self.shrinks[0] != 1:
            raise ValueError(
                f"its downsample {self.downsample} divides time, which a layer within frames cannot"
            )

    @property
    def shrinks(self):
        return (
            (1, self.downsample)
            if isinstance(self.downsample, int)
            else _triple(self.downsample)[:2]
        )

    @property
    def kernel(self) -> Triple:
        return (1, *_odd(self.kernel_size)[1:])


def _check_groups(groups: int, channels: int) -> None:
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be cut into num_groups={groups} equal groups")


@dataclass(frozen=True)
class GroupNorm(Layer):
    """Group norm, frame by frame."""

    num_channels: int
    num_groups: int = 8

    def __post_init__(self):
        _check_groups(self.num_groups, self.num_channels)

    @property
    def inputs(self):
        return self.num_channels

    def spec(self):
        return conv.group_norm_spec(self.num_channels)

    def apply(self, params, x, at):
        return conv.group_norm(params, x, self.num_groups)


@dataclass(frozen=True)
class AdaptiveGroupNorm(GroupNorm):
    """Group norm whose scale and shift follow the external condition of the same frame."""

    dim_cond: int = 18
    has_ext: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.has_ext:
            raise ValueError("has_ext=False leaves it without its condition: use group_norm")

    @property
    def condition(self):
        return self.dim_cond

    def spec(self):
        return conv.adaptive_group_norm_spec(self.num_channels, self.dim_cond)

    def apply(self, params, x, at):
        return conv.adaptive_group_norm(params, x, at, self.num_groups)


@dataclass(frozen=True)
class ProjOut(Convolution):
    """Group norm, SiLU, and a convolution to the latent width."""

    num_groups: int = 8

    def __post_init__(self):
        _check_groups(self.num_groups, self.in_channels)

    def spec(self):
        return {"norm": conv.group_norm_spec(self.in_channels), "conv": super().spec()}

    def apply(self, params, x, at):
        return conv.causal_conv(
            params["conv"], F.silu(conv.group_norm(params["norm"], x, self.num_groups)), at
        )


@dataclass(frozen=True)
class Attention(Layer):
    """What the three kinds of attention share."""

    n_embd: int
    n_head: int = 4
    d_head: int = 16
    transpose: bool = False
    """Whether channels come first, in Open-Genie; here they always come last."""

    def __post_init__(self):
        if getattr(self, "impl", "sdpa") not in SPACE_IMPLS:
            raise ValueError(f"its impl {self.impl!r} is none of {', '.join(SPACE_IMPLS)}")
        if self.d_head % 4:
            raise ValueError(
                f"its d_head {self.d_head} is not a multiple of 4, as rotary positions in a frame need"
            )

    @property
    def inputs(self):
        return self.n_embd

    def spec(self):
        return conv.attention_spec(self.n_embd, self.n_head, self.d_head)


@dataclass(frozen=True)
class SpaceAttention(Attention):
    """Attention among the places of each frame."""

    impl: str = "sdpa"
    """How it is computed: see `kernels/attention.py`. Only `reference` has a second derivative."""

    def apply(self, params, x, at):
        return conv.space_attention(params, x, self.n_head, self.impl)


@dataclass(frozen=True)
class TimeAttention(Attention):
    """Causal attention of each place to itself in earlier frames and, with `has_ext`, to the conditions so far."""

    window: int = 16
    has_ext: bool = False
    key_dim: int = 0
    """Width of the external condition."""

    def __post_init__(self):
        super().__post_init__()
        if self.has_ext != (self.key_dim > 0):
            raise ValueError("has_ext and key_dim, the condition's width, come together")

    @property
    def condition(self):
        return self.key_dim

    def spec(self):
        return conv.attention_spec(self.n_embd, self.n_head, self.d_head, self.key_dim)

    def apply(self, params, x, at):
        return conv.time_attention(params, x, at, self.n_head, self.window)


@dataclass(frozen=True)
class SpaceTimeAttention(TimeAttention):
    """The paper's block: attention in space, causal attention in time, a feed-forward layer (Genie, section 2)."""

    mlp: int = 4
    impl: str = "sdpa"
    """Of the attention in space, as in space_attn."""
    time_attn_kw: tuple = ()
    """Options of the attention in time: ("key_dim", width) of the external condition."""

    def __post_init__(self):
        if unknown := dict(self.time_attn_kw).keys() - {"key_dim", "window"}:
            raise ValueError(
                f"time_attn_kw takes key_dim and window, not {', '.join(sorted(unknown))}"
            )
        for name, value in self.time_attn_kw:
            object.__setattr__(self, name, value)
        super().__post_init__()

    def spec(self):
        return {
            "space": conv.attention_spec(self.n_embd, self.n_head, self.d_head),
            "time": super().spec(),
            "norm": layers.norm_spec(self.n_embd),
            "mlp": layers.mlp_spec(self.n_embd, self.mlp * self.n_embd),
        }

    def apply(self, params, x, at):
        x = conv.space_attention(params["space"], x, self.n_head, self.impl)
        x = super().apply(params["time"], x, at)
        return x + layers.mlp(params["mlp"], layers.rms_norm(params["norm"], x))


@dataclass(frozen=True)
class Activation(Layer):
    """An activation without parameters; the registry gives it its function."""

    def apply(self, params, x, at):
        return ACTIVATIONS[self.name](x)


def _activation(name: str) -> type[Layer]:
    return dataclass(frozen=True)(type(name, (Activation,), {"name": name}))


REGISTRY: dict[str, type[Layer]] = {
    "space_attn": SpaceAttention,
    "time_attn": TimeAttention,
    "space-time_attn": SpaceTimeAttention,
    "blur_pool": BlurPool,
    "space_downsample": SpaceDownsample,
    "spacetime_downsample": SpaceTimeDownsample,
    "image-residual": ImageResidual,
    "video-residual": Residual,
    "causal-conv3d": CausalConv,
    "causal-conv3d-transpose": CausalConvTranspose,
    "depth2space_upsample": Depth2Space,
    "depth2time_upsample": Depth2Time,
    "depth2spacetime_upsample": Upsample,
    "group_norm": GroupNorm,
    "adaptive_group_norm": AdaptiveGroupNorm,
    "proj_out": ProjOut,
} | {name: _activation(name) for name in ("gelu", "relu", "leaky_relu", "silu")}

ALIASES = {
    "causal": "causal-conv3d",
    "residual": "video-residual",
    "spacetime_upsample": "depth2spacetime_upsample",
}
