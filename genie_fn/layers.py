"""The layers that the three models share: linear, norm, rotary positions, MLP, and the space-time transformer.

Every layer is a pair: `<name>_spec(...)`, a tree of `ParamSpec`, and a pure function on the matching parameters.
Parameters are float32; each product runs in the dtype of its input, so casting the input chooses the compute dtype.

ST-transformer: Genie (arXiv 2402.15391), section 2: per block spatial attention within a frame, causal temporal
attention across frames, and one feed-forward layer after both.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.kernels import attention
from genie_fn.kernels.attention import rms_norm, rotary
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import ParamSpec, Tree

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_dtype(name: str) -> None:
    """Raise UserError if `name` is no dtype to compute in."""
    if name not in DTYPES:
        raise UserError(f"the compute dtype is {' or '.join(DTYPES)}, not {name!r}")


@dataclass(frozen=True)
class STConfig:
    """A stack of space-time blocks."""

    layers: int = 4
    dim: int = 128
    heads: int = 4
    mlp: int = 4
    """Width of the feed-forward layer, in multiples of `dim`."""
    window: int = 16
    """Frames that temporal attention sees, the current one included."""
    dtype: str = "float32"
    """Compute dtype, float32 or bfloat16; parameters stay float32."""

    def __post_init__(self):
        if min(self.layers, self.dim, self.heads, self.window) < 1 or self.dim % (2 * self.heads):
            raise UserError(
                f"a transformer of width {self.dim} cannot have {self.heads} heads in {self.layers} layers: "
                "take a width that is an even multiple of the heads, and at least one layer"
            )
        check_dtype(self.dtype)


class Cache(NamedTuple):
    """Keys and values of the last `window - 1` frames in every temporal layer, newest last, and the frames seen."""

    k_LBSNGE: Tensor
    v_LBSNGE: Tensor
    seen: Tensor


def linear_spec(inputs: int, outputs: int, *, bias: bool = False, scale: float = 1.0) -> Tree:
    """Weight (inputs, outputs) with variance scale²/inputs, and an optional zero bias."""
    spec = {"w": ParamSpec((inputs, outputs), std=scale * inputs**-0.5)}
    return spec | ({"b": ParamSpec((outputs,), "zeros", decay=False)} if bias else {})


def linear(params: Tree, x: Tensor) -> Tensor:
    """(..., inputs) → (..., outputs)."""
    y = x @ params["w"].to(x.dtype)
    return y + params["b"].to(x.dtype) if "b" in params else y


def norm_spec(dim: int) -> ParamSpec:
    """The scale of an RMS norm over `dim` channels."""
    return ParamSpec((dim,), "ones", decay=False)


def mlp_spec(dim: int, hidden: int) -> Tree:
    """Two linear layers, dim → hidden → dim."""
    return {"up": linear_spec(dim, hidden), "down": linear_spec(hidden, dim)}


def mlp(params: Tree, x: Tensor) -> Tensor:
    """(..., dim) → (..., dim) through a GELU."""
    return linear(params["down"], F.gelu(linear(params["up"], x), approximate="tanh"))


def attention_spec(dim: int, heads: int, head_dim: int, scale: float) -> Tree:
    """Pre-norm attention of `heads` heads over x (..., dim); `scale` is that of its output projection."""
    return {
        "norm": norm_spec(dim),
        "qkv": linear_spec(dim, 3 * heads * head_dim),
        "q_norm": norm_spec(head_dim),
        "k_norm": norm_spec(head_dim),
        "out": linear_spec(heads * head_dim, dim, scale=scale),
    }


def raw_qkv(params: Tree, x_BTND: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the normalised input, (B, T, N, G, E) each, views of one product."""
    qkv = linear(params["qkv"], rms_norm(params["norm"], x_BTND))
    return rearrange(qkv, "b t n (three g e) -> three b t n g e", three=3, g=heads).unbind(0)


def qkv(params: Tree, x_BTND: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same with queries and keys RMS-normalised per head (QK-norm, Dehghani et al. 2023)."""
    q, k, v = raw_qkv(params, x_BTND, heads)
    return rms_norm(params["q_norm"], q), rms_norm(params["k_norm"], k), v


def st_spec(cfg: STConfig) -> Tree:
    """A stack of `layers` blocks with a leading layer axis, and the final norm."""
    scale = (
        3 * cfg.layers
    ) ** -0.5  # three residual branches per block: keeps the sum's variance independent of depth
    block = {
        "space": attention_spec(cfg.dim, cfg.heads, cfg.dim // cfg.heads, scale),
        "time": attention_spec(cfg.dim, cfg.heads, cfg.dim // cfg.heads, scale),
        "mlp_norm": norm_spec(cfg.dim),
        "mlp": mlp_spec(cfg.dim, cfg.mlp * cfg.dim)
        | {"down": linear_spec(cfg.mlp * cfg.dim, cfg.dim, scale=scale)},
    }
    return {"blocks": tree.stack(block, cfg.layers), "norm": norm_spec(cfg.dim)}


def st_transformer(
    params: Tree,
    x_BTND: Tensor,
    cfg: STConfig,
    cache: Cache | None = None,
    *,
    extend: bool = True,
    backend: Backend = AUTO,
) -> tuple[Tensor, Cache | None]:
    """Run the stack on T frames of N tokens; frame t sees itself and the `window - 1` frames before it, nothing later.

    With a cache, the frames follow those the cache has seen: the result equals that of the whole sequence in one call,
    at the cost of the new frames alone, because the past's keys and values cannot depend on the future.
    Returns the output (B, T, N, D) and the cache extended by these T frames (None if none was given, or not `extend`,
    which spares a copy of it).
    """
    position_T1 = torch.arange(x_BTND.shape[1], device=x_BTND.device)[:, None] + (
        0 if cache is None else cache.seen
    )
    visible_TS = _visible(x_BTND.shape[1], cfg.window, cache, x_BTND.device)
    x, keys, values = x_BTND.to(DTYPES[cfg.dtype]), [], []
    for i, block in enumerate(tree.unstack(params["blocks"])):
        past = None if cache is None else (cache.k_LBSNGE[i], cache.v_LBSNGE[i])
        x, k, v = _block(block, x, position_T1, visible_TS, past, cfg, backend)
        keys.append(k)
        values.append(v)
    x = rms_norm(params["norm"], x)
    return x, _extend(cache, keys, values) if cache is not None and extend else None


def _block(
    params: Tree,
    x_BTND: Tensor,
    position_T1: Tensor,
    visible_TS: Tensor,
    past: tuple[Tensor, Tensor] | None,
    cfg: STConfig,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """Space attention, time attention over the past's keys and values and the new, MLP.

    Returns x, and if there is a past, the keys and values of the new frames.
    """
    space, time = params["space"], params["time"]
    q, k, v = raw_qkv(space, x_BTND, cfg.heads)
    y = attention.attend_within(q, k, v, space["q_norm"], space["k_norm"], impl=backend.space)
    x = x_BTND + linear(space["out"], y.flatten(-2))
    q, k, v = raw_qkv(time, x, cfg.heads)
    scales = time["q_norm"], time["k_norm"]
    if past is None:
        y = attention.attend_new_frames(
            q, k, v, *scales, position_T1, visible_TS, impl=backend.time
        )
    else:
        q, k = (
            rotary(rms_norm(scale, x), position_T1) for scale, x in zip(scales, (q, k), strict=True)
        )
        y = attention.attend_time(q, k, v, visible_TS, past=past, impl=backend.time)
    x = x + linear(time["out"], y.flatten(-2))
    return x + mlp(params["mlp"], rms_norm(params["mlp_norm"], x)), k, v


def _visible(frames: int, window: int, cache: Cache | None, device) -> Tensor:
    """Which key frames each query frame sees, (T, S): causal, within the window, and only slots already filled."""
    past = 0 if cache is None else cache.k_LBSNGE.shape[2]
    query = torch.arange(frames, device=device)[:, None] + past
    slot = torch.arange(past + frames, device=device)[None]
    visible = (slot <= query) & (slot > query - window)
    return visible if cache is None else visible & (slot >= past - cache.seen)


def _extend(cache: Cache, keys: list[Tensor], values: list[Tensor]) -> Cache:
    """Slide the cache on by the new frames, of which `keys` and `values` hold a tensor (B, T, N, G, E) per layer."""
    k, v = torch.stack(keys), torch.stack(values)
    new, past = k.shape[2], cache.k_LBSNGE.shape[2]
    k, v = (torch.cat(x, 2) for x in ((cache.k_LBSNGE, k), (cache.v_LBSNGE, v)))
    return Cache(k[:, :, new : new + past], v[:, :, new : new + past], cache.seen + new)


def empty_cache(cfg: STConfig, batch: int, tokens: int, device=None) -> Cache:
    """The cache of a stack that has seen no frame, for `batch` sessions of `tokens` tokens per frame."""
    shape = (cfg.layers, batch, cfg.window - 1, tokens, cfg.heads, cfg.dim // cfg.heads)
    zeros = torch.zeros(shape, dtype=DTYPES[cfg.dtype], device=device)
    return Cache(zeros, zeros.clone(), torch.zeros((), dtype=torch.int64, device=device))


def grid_spec(cfg: STConfig, inputs: int, outputs: int, tokens: int, *, scale: float = 1.0) -> Tree:
    """A space-time transformer with its ends: input projection, learned places, stack, output projection (`scale`)."""
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
    """(B, T, N, inputs) → (B, T, N, outputs), float32. `condition` (… N, D) is added to the input."""
    x = linear(params["embed"], x_BTNI) + params["place"] + condition
    x, cache = st_transformer(params["stack"], x, cfg, cache, backend=backend)
    return linear(params["head"], x).float(), cache


def patchify(video_BTHWC: Tensor, patch: int) -> Tensor:
    """(B, T, H, W, C) → (B, T, N, patch·patch·C), patches in row-major order."""
    return rearrange(video_BTHWC, "b t (h p) (w q) c -> b t (h w) (p q c)", p=patch, q=patch)


def unpatchify(x_BTNP: Tensor, patch: int, height: int) -> Tensor:
    """The inverse of `patchify` for frames of `height` pixels: (B, T, N, patch·patch·C) → (B, T, H, W, C)."""
    return rearrange(
        x_BTNP, "b t (h w) (p q c) -> b t (h p) (w q) c", p=patch, q=patch, h=height // patch
    )


def to_float(video_BTHWC: Tensor) -> Tensor:
    """uint8 pixels in [0, 255] → float32 in [-1, 1]."""
    return video_BTHWC.to(torch.float32) / 127.5 - 1.0


def to_uint8(video_BTHWC: Tensor) -> Tensor:
    """Floats in [-1, 1] → uint8 pixels in [0, 255], clipped and rounded to the nearest."""
    return ((video_BTHWC.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
