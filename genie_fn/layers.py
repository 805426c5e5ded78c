"""The layers that the three models share, from linear ones to the space-time transformer.

Every layer is a pair: `<name>_spec(...)`, a tree of `ParamSpec`, and a pure function of the
matching parameters. Parameters are float32; each product is computed in the dtype of its input, so
the dtype to which the input is cast is the compute dtype.

ST-transformer: Genie (arXiv 2402.15391), section 2: each block consists of spatial attention within
a frame, causal temporal attention across frames, and one feed-forward layer after both.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.kernels import attention
from genie_fn.kernels.attention import rms_norm, rotary
from genie_fn.runtime.backend import AUTO, Backend, ProductDtype
from genie_fn.tree import ParamSpec, Tree

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DtypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class STConfig:
    """A stack of space-time blocks."""

    layers: int = 4
    """Blocks."""
    dim: int = 128
    """Channels of every token."""
    heads: int = 4
    """Attention heads."""
    mlp: int = 4
    """Width of the feed-forward layer, in multiples of `dim`."""
    window: int = 16
    """The number of frames that temporal attention sees, the current one included."""
    dtype: DtypeName = "float32"
    """The compute dtype; parameters are float32 in any case."""

    def __post_init__(self):
        sizes = (self.layers, self.dim, self.heads, self.mlp, self.window)
        if min(sizes) < 1 or self.dim % (2 * self.heads):
            raise UserError(
                f"a transformer of width {self.dim} cannot have {self.heads} heads in "
                f"{self.layers} layers, an mlp of {self.mlp} and a window of {self.window}: choose "
                "a .dim that is an even multiple of .heads, and at least 1 of each"
            )


class Cache(NamedTuple):
    """The temporal layers' keys and values of the last `window - 1` frames, newest last."""

    k_LBSNGE: Tensor
    v_LBSNGE: Tensor
    seen: Tensor
    """How many frames have been processed, a 0-D int64 tensor; slots before the first are empty."""


class Visibility(NamedTuple):
    """Which frames of a stack's input see which, where they are not simply one after the other."""

    position_T1: Tensor
    """The time of each frame, (T, 1) int64."""
    visible_TS: Tensor
    """Whether a frame, by row, sees another, (T, T) bool."""


# Linear, norm, MLP


def linear_spec(inputs: int, outputs: int, *, bias: bool = False, scale: float = 1.0) -> Tree:
    """Weight (inputs, outputs) with variance scale²/inputs, and an optional zero bias."""
    spec = {"w": ParamSpec((inputs, outputs), std=scale * inputs**-0.5)}
    if bias:
        spec["b"] = ParamSpec((outputs,), "zeros", decay=False)
    return spec


def linear(params: Tree, x: Tensor, products: ProductDtype = "auto") -> Tensor:
    """(..., inputs) → (..., outputs), in the dtype of x.

    With `products` of bfloat16, x, the weight and their product are rounded to it, and so are the
    gradients and their products in the backward pass. Sums within a product are float32.
    """
    if products == "bfloat16":
        y = (x.bfloat16() @ params["w"].bfloat16()).to(x.dtype)
    else:
        y = x @ params["w"].to(x.dtype)
    return y + params["b"].to(x.dtype) if "b" in params else y


def norm_spec(dim: int) -> ParamSpec:
    """The scale of an RMS norm over `dim` channels."""
    return ParamSpec((dim,), "ones", decay=False)


def mlp_spec(dim: int, hidden: int, *, scale: float = 1.0) -> Tree:
    """Two linear layers, dim → hidden → dim; `scale` is that of the second."""
    return {"up": linear_spec(dim, hidden), "down": linear_spec(hidden, dim, scale=scale)}


def mlp(params: Tree, x: Tensor, products: ProductDtype = "auto") -> Tensor:
    """(..., dim) → (..., dim) through a GELU."""
    hidden = F.gelu(linear(params["up"], x, products), approximate="tanh")
    return linear(params["down"], hidden, products)


# Attention


def attention_spec(dim: int, heads: int, head_dim: int, scale: float) -> Tree:
    """Pre-norm attention of `heads` heads over x (..., dim); `scale` is its output projection's."""
    return {
        "norm": norm_spec(dim),
        "qkv": linear_spec(dim, 3 * heads * head_dim),
        "q_norm": norm_spec(head_dim),
        "k_norm": norm_spec(head_dim),
        "out": linear_spec(heads * head_dim, dim, scale=scale),
    }


def raw_qkv(
    params: Tree, x_BTND: Tensor, heads: int, products: ProductDtype = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the normalised input, (B, T, N, G, E): views of one product."""
    product = linear(params["qkv"], rms_norm(params["norm"], x_BTND), products)
    shape = (*product.shape[:-1], heads, -1)
    q, k, v = (part.reshape(shape) for part in product.chunk(3, -1))
    return q, k, v


def qkv(params: Tree, x_BTND: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """`raw_qkv` with queries and keys RMS-normalised per head (QK-norm, Dehghani et al. 2023)."""
    q, k, v = raw_qkv(params, x_BTND, heads)
    return rms_norm(params["q_norm"], q), rms_norm(params["k_norm"], k), v


# The space-time transformer


def st_spec(cfg: STConfig) -> Tree:
    """A stack of `layers` blocks with a leading layer axis, and the final norm."""
    # Three residual branches per block: this keeps the variance of their sum independent of depth.
    scale = (3 * cfg.layers) ** -0.5
    head_dim = cfg.dim // cfg.heads
    block = {
        "space": attention_spec(cfg.dim, cfg.heads, head_dim, scale),
        "time": attention_spec(cfg.dim, cfg.heads, head_dim, scale),
        "mlp_norm": norm_spec(cfg.dim),
        "mlp": mlp_spec(cfg.dim, cfg.mlp * cfg.dim, scale=scale),
    }
    return {"blocks": tree.stack(block, cfg.layers), "norm": norm_spec(cfg.dim)}


def st_transformer(
    params: Tree,
    x_BTND: Tensor,
    cfg: STConfig,
    cache: Cache | None = None,
    *,
    extend: bool = True,
    visibility: Visibility | None = None,
    backend: Backend = AUTO,
) -> tuple[Tensor, Cache | None]:
    """The output (B, T, N, D) of the stack on T frames of N tokens, and the extended cache.

    Frame t sees itself and the `window - 1` frames before it, nothing later. With a cache, the
    frames follow those that the cache has seen. The result equals that of the whole sequence in one
    call, at the cost of the new frames alone, because the past's keys and values cannot depend on
    the future. The returned cache is None if there was none, or without `extend`, which saves a
    copy of it. `visibility` replaces what a frame sees, in calls without a cache.
    """
    if visibility is None:
        visibility = _successive(x_BTND.shape[1], cfg.window, cache, x_BTND.device)
    position_T1, visible_TS = visibility
    x = x_BTND.to(DTYPES[cfg.dtype])
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for i, block in enumerate(tree.unstack(params["blocks"])):
        past = None if cache is None else (cache.k_LBSNGE[i], cache.v_LBSNGE[i])
        x, k, v = _block(block, x, position_T1, visible_TS, past, cfg, backend)
        keys.append(k)
        values.append(v)
    y = rms_norm(params["norm"], x)
    if cache is None or not extend:
        return y, None
    return y, _extend(cache, torch.stack(keys), torch.stack(values))


def _block(
    params: Tree,
    x_BTND: Tensor,
    position_T1: Tensor,
    visible_TS: Tensor,
    past: tuple[Tensor, Tensor] | None,
    cfg: STConfig,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spatial attention, temporal attention over the past's keys and values and the new ones, MLP.

    Returns x (B, T, N, D) and the keys and values of the new frames for the cache (without a past,
    keys are neither normalised nor rotated, and of no use).
    """
    space = params["space"]
    q, k, v = raw_qkv(space, x_BTND, cfg.heads, backend.products)
    y = attention.attend_within(q, k, v, space["q_norm"], space["k_norm"], impl=backend.space)
    x = x_BTND + linear(space["out"], y.flatten(-2), backend.products)

    time = params["time"]
    q, k, v = raw_qkv(time, x, cfg.heads, backend.products)
    if past is None:
        y = attention.attend_new_frames(
            q, k, v, time["q_norm"], time["k_norm"], position_T1, visible_TS, impl=backend.time
        )
    else:
        q = rotary(rms_norm(time["q_norm"], q), position_T1)
        k = rotary(rms_norm(time["k_norm"], k), position_T1)
        y = attention.attend_time(q, k, v, visible_TS, past=past, impl=backend.time)
    x = x + linear(time["out"], y.flatten(-2), backend.products)

    y = mlp(params["mlp"], rms_norm(params["mlp_norm"], x), backend.products)
    return x + y, k, v


def _successive(
    frames: int, window: int, cache: Cache | None, device: torch.device | str | None
) -> Visibility:
    """Frames one after the other, after those in the cache."""
    first = 0 if cache is None else cache.seen
    position_T1 = torch.arange(frames, device=device)[:, None] + first
    return Visibility(position_T1, visible_frames(frames, window, cache, device))


def visible_frames(
    frames: int, window: int, cache: Cache | None, device: torch.device | str | None
) -> Tensor:
    """Which key frames each query frame sees, bool (T, S): causal, windowed, no empty slots."""
    past = 0 if cache is None else cache.k_LBSNGE.shape[2]
    query = torch.arange(frames, device=device)[:, None] + past
    slot = torch.arange(past + frames, device=device)[None]
    visible = (slot <= query) & (slot > query - window)
    if cache is None:
        return visible
    return visible & (slot >= past - cache.seen)


def _extend(cache: Cache, k_LBTNGE: Tensor, v_LBTNGE: Tensor) -> Cache:
    """The cache after T new frames: it keeps the newest keys and values, as many as before."""
    new = k_LBTNGE.shape[2]
    k = torch.cat((cache.k_LBSNGE, k_LBTNGE), 2)
    v = torch.cat((cache.v_LBSNGE, v_LBTNGE), 2)
    return Cache(k[:, :, new:], v[:, :, new:], cache.seen + new)


def empty_cache(
    cfg: STConfig, batch: int, tokens: int, device: torch.device | str | None = None
) -> Cache:
    """The cache of a stack before any frame, for `batch` sessions of `tokens` tokens per frame."""
    shape = (cfg.layers, batch, cfg.window - 1, tokens, cfg.heads, cfg.dim // cfg.heads)
    zeros = torch.zeros(shape, dtype=DTYPES[cfg.dtype], device=device)
    seen = torch.zeros((), dtype=torch.int64, device=device)
    return Cache(zeros, zeros.clone(), seen)


def grid_spec(cfg: STConfig, inputs: int, outputs: int, tokens: int, *, scale: float = 1.0) -> Tree:
    """A transformer over a grid of tokens, which have learned place embeddings.

    It has a projection at each end; `scale` is that of the output.
    """
    return {
        "embed": linear_spec(inputs, cfg.dim, bias=True),
        "place": ParamSpec((tokens, cfg.dim), decay=False),
        "stack": st_spec(cfg),
        "head": linear_spec(cfg.dim, outputs, bias=True, scale=scale),
    }


def grid_transformer(
    params: Tree,
    x_BTNI: Tensor,
    cfg: STConfig,
    cache: Cache | None = None,
    *,
    condition: Tensor | float = 0.0,
    backend: Backend = AUTO,
) -> tuple[Tensor, Cache | None]:
    """(B, T, N, inputs) → (B, T, N, outputs), float32, and the extended cache.

    `condition` is added to the embedded input; it broadcasts to (B, T, N, D).
    """
    x = linear(params["embed"], x_BTNI) + params["place"] + condition
    x, cache = st_transformer(params["stack"], x, cfg, cache, backend=backend)
    return linear(params["head"], x).float(), cache


# Pixels


def check_patch(patch: int) -> None:
    """Raise UserError if a patch has no pixel."""
    if patch < 1:
        raise UserError(f"--cfg.model.patch is {patch}, but must be at least 1")


def check_divisible(height: int, width: int, side: int, advice: str) -> None:
    """Raise UserError unless frames of height × width pixels consist of patches of side × side."""
    if min(height, width) < side or height % side or width % side:
        raise UserError(
            f"{height}x{width} frames cannot be divided into {side}x{side} patches: {advice}"
        )


def patchify(video_BTHWC: Tensor, patch: int) -> Tensor:
    """(B, T, H, W, C) → (B, T, N, patch·patch·C), patches in row-major order."""
    return rearrange(video_BTHWC, "b t (h p) (w q) c -> b t (h w) (p q c)", p=patch, q=patch)


def unpatchify(x_BTNP: Tensor, patch: int, height: int) -> Tensor:
    """(B, T, N, patch·patch·C) → (B, T, H, W, C): the inverse of `patchify` for `height` pixels."""
    return rearrange(
        x_BTNP, "b t (h w) (p q c) -> b t (h p) (w q) c", p=patch, q=patch, h=height // patch
    )


def to_float(video_BTHWC: Tensor) -> Tensor:
    """uint8 pixels in [0, 255] → float32 in [-1, 1]."""
    return video_BTHWC.to(torch.float32) / 127.5 - 1.0


def to_uint8(video_BTHWC: Tensor) -> Tensor:
    """Floats in [-1, 1] → uint8 pixels in [0, 255], clipped and rounded to the nearest."""
    return ((video_BTHWC.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
