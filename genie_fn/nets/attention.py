"""Attention over video (B, T, H, W, C): within each frame, and causally over time at each place."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from genie_fn import layers
from genie_fn.kernels import attention as kernels
from genie_fn.layers import linear, linear_spec, rms_norm
from genie_fn.nets.causal import Context, condition_per_frame, prepend_past
from genie_fn.nets.layer import Layer
from genie_fn.runtime.backend import SpaceImpl
from genie_fn.tree import Tree


def attention_spec(dim: int, heads: int, head_dim: int, condition: int = 0) -> Tree:
    """Attention of `heads` heads; a `condition` width adds keys and values of an external input."""
    spec = layers.attention_spec(dim, heads, head_dim, scale=0.3)
    if condition:
        spec["condition"] = linear_spec(condition, 2 * heads * head_dim)
    return spec


def space_attention(params: Tree, x_BTHWC: Tensor, heads: int, impl: SpaceImpl) -> Tensor:
    """x plus attention among the places of each frame.

    Positions are rotary, with half of each head's channels per axis.
    """
    height, width = x_BTHWC.shape[2:4]
    q, k, v = layers.qkv(params, x_BTHWC.flatten(2, 3), heads)
    row = torch.arange(height, device=q.device).repeat_interleave(width)
    column = torch.arange(width, device=q.device).repeat(height)

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((layers.rotary(a, row), layers.rotary(b, column)), -1)

    y = kernels.attend_space(rotate(q), rotate(k), v, impl=impl)
    return x_BTHWC + linear(params["out"], y.flatten(-2)).unflatten(2, (height, width))


def time_attention(
    params: Tree,
    x_BTHWC: Tensor,
    cache: Tree | None,
    context: Context,
    *,
    heads: int,
    window: int,
) -> tuple[Tensor, Tree]:
    """x plus attention of each place to itself in the last `window` frames.

    Parameters with a `condition` also attend to the conditions of these frames. Returns the output
    and the cache: the keys and values of the last window - 1 frames and the number of frames seen.
    """
    frames, height, width = x_BTHWC.shape[1:4]
    q, k, v = layers.qkv(params, x_BTHWC.flatten(2, 3), heads)
    seen = torch.zeros((), dtype=torch.int64, device=q.device) if cache is None else cache["seen"]
    position = torch.arange(frames, device=q.device)[:, None] + seen
    q = layers.rotary(q, position)
    k = layers.rotary(k, position)
    sources = {"frames": (k, v)}
    if "condition" in params:
        external = condition_per_frame(context.condition, frames, context.first_frame_alone)
        sources["condition"] = _condition_keys(params, external.to(q.dtype), position, k)
    keys, values, kept = _extend(sources, window - 1, cache)
    past = keys.shape[1] // len(sources) - frames
    visible = _visible(past, frames, window, seen).repeat(1, len(sources))
    y = kernels.attend_time(q, keys, values, visible, impl="fused")
    y = x_BTHWC + linear(params["out"], y.flatten(-2)).unflatten(2, (height, width))
    return y, kept | {"seen": seen + frames}


def _condition_keys(
    params: Tree, condition_BTK: Tensor, position: Tensor, like_BTNGE: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values of the condition, the same at every place: shaped like `like_BTNGE`."""
    pairs = linear(params["condition"], condition_BTK)
    pairs = rearrange(pairs, "b t (two g e) -> two b t 1 g e", two=2, g=like_BTNGE.shape[3])
    k, v = pairs.expand(-1, *like_BTNGE.shape).unbind(0)
    return layers.rotary(rms_norm(params["k_norm"], k), position), v


def _extend(
    sources: dict[str, tuple[Tensor, Tensor]], frames: int, cache: Tree | None
) -> tuple[Tensor, Tensor, Tree]:
    """Keys and values of all sources behind those of the last `frames` frames, and what to keep.

    Before the first frame nothing precedes them, but what is kept has its full length.
    """
    keys, values, kept = [], [], {}
    for source, (k, v) in sources.items():
        for name, new, joined in (("k", k, keys), ("v", v, values)):
            past = None if cache is None else cache[f"{source}_{name}"]
            extended, kept[f"{source}_{name}"] = prepend_past(new, frames, past)
            joined.append(new if cache is None else extended)
    return torch.cat(keys, 1), torch.cat(values, 1), kept


def _visible(past: int, frames: int, window: int, seen: Tensor) -> Tensor:
    """(frames, past + frames): which cached or new frame each new frame attends to.

    The first slots of a cache that has `seen` fewer frames than it holds are empty.
    """
    slot = torch.arange(past + frames, device=seen.device)
    query = torch.arange(frames, device=seen.device)[:, None] + past
    return (slot <= query) & (slot > query - window) & (slot >= past - seen)


@dataclass(frozen=True)
class Attention(Layer):
    """The options of the three kinds of attention."""

    n_embd: int
    n_head: int = 4
    d_head: int = 16
    transpose: bool = False
    """Open-Genie's choice of the channels' axis; without effect here, where it is the last."""

    def __post_init__(self):
        if self.d_head % 4:
            raise ValueError(
                f"its d_head {self.d_head} is not a multiple of 4, which rotary positions need"
            )

    @property
    def inputs(self) -> int:
        return self.n_embd

    def spec(self) -> Tree:
        return attention_spec(self.n_embd, self.n_head, self.d_head)


@dataclass(frozen=True)
class SpaceAttention(Attention):
    """Attention among the places of each frame."""

    def apply(self, params, x, cache, context: Context):
        return space_attention(params, x, self.n_head, context.backend.space), {}


@dataclass(frozen=True)
class TimeAttention(Attention):
    """Causal attention of each place to its own past and, with `has_ext`, to past conditions."""

    window: int = 16
    has_ext: bool = False
    key_dim: int = 0
    """Width of the external condition."""

    def __post_init__(self):
        super().__post_init__()
        if self.has_ext != (self.key_dim > 0):
            raise ValueError("has_ext and key_dim, the condition's width, require each other")

    @property
    def condition(self) -> int:
        return self.key_dim

    def spec(self) -> Tree:
        return attention_spec(self.n_embd, self.n_head, self.d_head, self.key_dim)

    def apply(self, params, x, cache, context: Context):
        return time_attention(params, x, cache, context, heads=self.n_head, window=self.window)


@dataclass(frozen=True)
class SpaceTimeAttention(TimeAttention):
    """The paper's block: attention in space, causal attention in time, MLP (Genie, section 2)."""

    mlp: int = 4
    """Width of the feed-forward layer, in multiples of `n_embd`."""
    time_attn_kw: tuple = ()
    """Options of the attention in time: `key_dim`, the width of the condition, and `window`."""

    def __post_init__(self):
        unknown = dict(self.time_attn_kw).keys() - {"key_dim", "window"}
        if unknown:
            raise ValueError(
                f"time_attn_kw takes key_dim and window, not {', '.join(sorted(unknown))}"
            )
        for name, value in self.time_attn_kw:
            object.__setattr__(self, name, value)
        super().__post_init__()

    def spec(self) -> Tree:
        return {
            "space": attention_spec(self.n_embd, self.n_head, self.d_head),
            "time": super().spec(),
            "norm": layers.norm_spec(self.n_embd),
            "mlp": layers.mlp_spec(self.n_embd, self.mlp * self.n_embd),
        }

    def apply(self, params, x, cache, context: Context):
        x = space_attention(params["space"], x, self.n_head, context.backend.space)
        x, cache = super().apply(params["time"], x, cache, context)
        return x + layers.mlp(params["mlp"], layers.rms_norm(params["norm"], x)), cache
