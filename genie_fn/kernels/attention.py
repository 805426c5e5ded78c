"""Softmax attention over one axis of (B, T, N, G, E): space or time.

The argument `impl` names the implementation; the input never decides it:

- "reference": scores in float32, written to memory; the definition against which others are tested;
- "sdpa": torch's fused scaled_dot_product_attention;
- "fused": products and sums that the compiler fuses. For the time axis, whose sequences are so
  short that a fused attention kernel mostly computes padding;
- "triton": for a GPU, genie_fn/kernels/space_attention.py and time_attention.py. These kernels read
  the axis in place, and normalise (and for time also rotate) what they read;
- "auto": sdpa in space and fused in time, unless `Backend.resolve` has replaced it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn.kernels import require_triton
from genie_fn.runtime.backend import SpaceImpl, TimeImpl


def rms_norm(scale: Tensor, x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x) · scale over the last axis, computed in float32 (Zhang & Sennrich 2019)."""
    x32 = x.float()
    mean_square = x32.square().mean(-1, keepdim=True) + eps
    if torch.compiler.is_exporting():  # the form that ONNX Runtime computes as one operation
        return (x32 / torch.sqrt(mean_square) * scale).to(x.dtype)
    return (x32 * torch.rsqrt(mean_square) * scale).to(x.dtype)


def rotary(x_BTNGE: Tensor, position: Tensor) -> Tensor:
    """Rotate pairs of channels by a position, so that scores depend on distances alone.

    RoPE, Su et al. 2021. `position` broadcasts to (B, T, N). Angles are computed in float64, so
    that the rotation per frame is still exact after a million frames.
    """
    half = x_BTNGE.shape[-1] // 2
    cos, sin = (x.to(x_BTNGE.dtype) for x in _angles(position, half))
    a = x_BTNGE[..., :half]
    b = x_BTNGE[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def _angles(position: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (…, 1, half) of the angle of every pair of channels at each position."""
    frequency = 100.0 ** (-torch.arange(half, device=position.device, dtype=torch.float64) / half)
    angle = position[..., None, None].double() * frequency
    return angle.cos(), angle.sin()


def attend_space(
    q_BTNGE: Tensor, k_BTNGE: Tensor, v_BTNGE: Tensor, *, impl: SpaceImpl = "sdpa"
) -> Tensor:
    """Every token attends to all tokens of its own frame. Returns (B, T, N, G, E)."""
    if impl == "triton":
        require_triton()
        from genie_fn.kernels import space_attention

        return space_attention.attend_space(q_BTNGE, k_BTNGE, v_BTNGE, None, None)[0]
    q, k, v = (x.transpose(2, 3) for x in (q_BTNGE, k_BTNGE, v_BTNGE))
    return _attend(q, k, v, None, impl).transpose(2, 3)


def attend_within(
    q_BTNGE: Tensor,
    k_BTNGE: Tensor,
    v_BTNGE: Tensor,
    q_scale_E: Tensor,
    k_scale_E: Tensor,
    *,
    impl: SpaceImpl = "sdpa",
) -> Tensor:
    """`attend_space` of raw queries and keys, which it first RMS-normalises with these scales."""
    if impl == "triton":
        require_triton()
        from genie_fn.kernels import space_attention

        return space_attention.attend_space(q_BTNGE, k_BTNGE, v_BTNGE, q_scale_E, k_scale_E)[0]
    q = rms_norm(q_scale_E, q_BTNGE)
    k = rms_norm(k_scale_E, k_BTNGE)
    return attend_space(q, k, v_BTNGE, impl=impl)


def attend_time(
    q_BTNGE: Tensor,
    k_BSNGE: Tensor,
    v_BSNGE: Tensor,
    visible_TS: Tensor,
    *,
    past: tuple[Tensor, Tensor] | None = None,
    impl: TimeImpl = "fused",
) -> Tensor:
    """Query frame t attends, at its own place n, to the key frames s where `visible_TS` is true.

    `past` holds the keys and values of cached frames, which precede the others. Returns
    (B, T, N, G, E).
    """
    if past is not None and impl in ("fused", "auto"):
        return _attend_past_and_new(q_BTNGE, past, (k_BSNGE, v_BSNGE), visible_TS)
    if past is not None:
        k_BSNGE = torch.cat((past[0], k_BSNGE), 1)
        v_BSNGE = torch.cat((past[1], v_BSNGE), 1)
    if impl == "triton":
        require_triton()
        from genie_fn.kernels import time_attention

        return time_attention.attend_time(
            q_BTNGE, k_BSNGE, v_BSNGE, visible_TS.to(torch.int8), None, None, None, None
        )
    if impl in ("fused", "auto"):
        return _attend_time_fused(q_BTNGE, k_BSNGE, v_BSNGE, visible_TS)
    q, k, v = (x.permute(0, 2, 3, 1, 4) for x in (q_BTNGE, k_BSNGE, v_BSNGE))
    return _attend(q, k, v, visible_TS, impl).permute(0, 3, 1, 2, 4)


def attend_new_frames(  # noqa: PLR0913 (what attention computes from)
    q_BTNGE: Tensor,
    k_BTNGE: Tensor,
    v_BTNGE: Tensor,
    q_scale_E: Tensor,
    k_scale_E: Tensor,
    position_T1: Tensor,
    visible_TT: Tensor,
    *,
    impl: TimeImpl = "fused",
) -> Tensor:
    """`attend_time` of raw queries and keys, which it first RMS-normalises and rotates."""
    if impl == "triton":
        require_triton()
        from genie_fn.kernels import time_attention

        angles = _angles(position_T1, q_BTNGE.shape[-1] // 2)
        cos_TH, sin_TH = (x.squeeze((1, 2)).float() for x in angles)
        mask = visible_TT.to(torch.int8)
        return time_attention.attend_time(
            q_BTNGE, k_BTNGE, v_BTNGE, mask, q_scale_E, k_scale_E, cos_TH, sin_TH
        )
    q = rotary(rms_norm(q_scale_E, q_BTNGE), position_T1)
    k = rotary(rms_norm(k_scale_E, k_BTNGE), position_T1)
    return attend_time(q, k, v_BTNGE, visible_TT, impl=impl)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, impl: TimeImpl) -> Tensor:
    """Attention over the second last axis of (..., length, E)."""
    if impl in ("sdpa", "auto"):
        # With five axes instead of the documented four, torch 2.13 compiles it to wrong results on
        # the CPU, without an error.
        flat = (x.flatten(0, -4) for x in (q, k, v))
        return F.scaled_dot_product_attention(*flat, attn_mask=visible).unflatten(0, q.shape[:-3])
    scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


def _attend_time_fused(
    q_BTNGE: Tensor, k_BSNGE: Tensor, v_BSNGE: Tensor, visible_TS: Tensor
) -> Tensor:
    weights_BTSNG = _softmax(_scores(q_BTNGE, k_BSNGE), visible_TS, v_BSNGE.dtype)
    return _weighted_sum(weights_BTSNG, v_BSNGE)


def _attend_past_and_new(
    q_BTNGE: Tensor,
    past: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    visible_TS: Tensor,
) -> Tensor:
    """One softmax over the keys of the past and the new ones, without a copy that joins them.

    Sampling calls it in every step, and most keys are the past's.
    """
    past_k, past_v = past
    new_k, new_v = new
    scores_BTSNG = torch.cat((_scores(q_BTNGE, past_k), _scores(q_BTNGE, new_k)), 2)
    weights_BTSNG = _softmax(scores_BTSNG, visible_TS, new_v.dtype)
    past_weights, new_weights = weights_BTSNG.split((past_k.shape[1], new_k.shape[1]), 2)
    return _weighted_sum(past_weights, past_v) + _weighted_sum(new_weights, new_v)


def _scores(q_BTNGE: Tensor, k_BSNGE: Tensor) -> Tensor:
    """Scaled products (B, T, S, N, G) of queries and keys, float32."""
    products = (q_BTNGE[:, :, None] * k_BSNGE[:, None]).sum(-1, dtype=torch.float32)
    return products * q_BTNGE.shape[-1] ** -0.5


def _softmax(scores_BTSNG: Tensor, visible_TS: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights over the visible key frames, zero elsewhere."""
    masked = scores_BTSNG.masked_fill(~visible_TS[:, :, None, None], -torch.inf)
    return masked.softmax(2).to(dtype)


def _weighted_sum(weights_BTSNG: Tensor, v_BSNGE: Tensor) -> Tensor:
    """The values summed over the key frames, (B, T, N, G, E)."""
    return (weights_BTSNG[..., None] * v_BSNGE[:, None]).sum(2)
