"""Softmax attention over one axis of (B, T, N, G, E): space (within a frame) or time (across frames).

`impl` names the implementation, never guessed from the input:
- "reference": materialised scores in float32, the definition that the others are tested against;
- "sdpa": torch's fused scaled_dot_product_attention;
- "fused": products and sums left to the compiler, for the time axis, where sequences are so short that a fused
  attention kernel spends its time on padding;
- "triton": for a GPU, genie_fn/kernels/space_attention.py and time_attention.py, which read the axis where it lies, and
  normalise (and for time turn) what they read;
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
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * scale).to(x.dtype)


def rotary(x_BTNGE: Tensor, position: Tensor) -> Tensor:
    """Rotate pairs of channels by a position (RoPE, Su et al. 2021): scores depend on the distance alone.

    `position` broadcasts to (B, T, N). Angles are taken in float64, so that a session of a million frames still turns
    by exact steps.
    """
    half = x_BTNGE.shape[-1] // 2
    cos, sin = (x.to(x_BTNGE.dtype) for x in _angles(position, half))
    a, b = x_BTNGE[..., :half], x_BTNGE[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def _angles(position: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (…, 1, half) of every pair's angle at each position."""
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
    """`attend_space` of raw queries and keys: RMS norm with the scales comes first."""
    if impl == "triton":
        require_triton()
        from genie_fn.kernels import space_attention

        return space_attention.attend_space(q_BTNGE, k_BTNGE, v_BTNGE, q_scale_E, k_scale_E)[0]
    return attend_space(
        rms_norm(q_scale_E, q_BTNGE), rms_norm(k_scale_E, k_BTNGE), v_BTNGE, impl=impl
    )


def attend_time(
    q_BTNGE: Tensor,
    k_BSNGE: Tensor,
    v_BSNGE: Tensor,
    visible_TS: Tensor,
    *,
    past=None,
    impl: TimeImpl = "fused",
) -> Tensor:
    """Query frame t attends, at its own place n, to the key frames s where `visible_TS` is true.

    `past` are the keys and values of a cached past, in front of the others. Returns (B, T, N, G, E).
    """
    if past is not None and impl in ("fused", "auto"):
        return _attend_past_and_new(q_BTNGE, *past, k_BSNGE, v_BSNGE, visible_TS)
    if past is not None:
        k_BSNGE, v_BSNGE = (torch.cat(x, 1) for x in zip(past, (k_BSNGE, v_BSNGE), strict=True))
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


def attend_new_frames(
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
    """`attend_time` of raw queries and keys: RMS norm with the scales and rotary positions come first."""
    if impl == "triton":
        cos_TH, sin_TH = (
            x.squeeze((1, 2)).float() for x in _angles(position_T1, q_BTNGE.shape[-1] // 2)
        )
        mask = visible_TT.to(torch.int8)
        require_triton()
        from genie_fn.kernels import time_attention

        return time_attention.attend_time(
            q_BTNGE, k_BTNGE, v_BTNGE, mask, q_scale_E, k_scale_E, cos_TH, sin_TH
        )
    q, k = (
        rotary(rms_norm(s, x), position_T1) for s, x in ((q_scale_E, q_BTNGE), (k_scale_E, k_BTNGE))
    )
    return attend_time(q, k, v_BTNGE, visible_TT, impl=impl)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, impl: TimeImpl) -> Tensor:
    """Attention over the second last axis of (..., length, E)."""
    if impl in ("sdpa", "auto"):
        # Four axes, as it documents: with five, torch 2.13 compiles it on the CPU to wrong numbers without a word.
        flat = (x.flatten(0, -4) for x in (q, k, v))
        return F.scaled_dot_product_attention(*flat, attn_mask=visible).unflatten(0, q.shape[:-3])
    scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


def _scores(q_BTNGE: Tensor, k_BSNGE: Tensor) -> Tensor:
    """(B, T, S, N, G)"""
    return (q_BTNGE[:, :, None] * k_BSNGE[:, None]).sum(-1, dtype=torch.float32) * q_BTNGE.shape[
        -1
    ] ** -0.5


def _weigh(scores_BTSNG: Tensor, visible_TS: Tensor, dtype: torch.dtype) -> Tensor:
    return scores_BTSNG.masked_fill(~visible_TS[:, :, None, None], -torch.inf).softmax(2).to(dtype)


def _gather(weights_BTSNG: Tensor, v_BSNGE: Tensor) -> Tensor:
    return (weights_BTSNG[..., None] * v_BSNGE[:, None]).sum(2)


def _attend_time_fused(
    q_BTNGE: Tensor, k_BSNGE: Tensor, v_BSNGE: Tensor, visible_TS: Tensor
) -> Tensor:
    return _gather(_weigh(_scores(q_BTNGE, k_BSNGE), visible_TS, v_BSNGE.dtype), v_BSNGE)


def _attend_past_and_new(q_BTNGE, past_k, past_v, k_BTNGE, v_BTNGE, visible_TS: Tensor) -> Tensor:
    """One softmax over both, without joining them: sampling comes here at every step, and the past is most of it."""
    scores_BTSNG = torch.cat((_scores(q_BTNGE, past_k), _scores(q_BTNGE, k_BTNGE)), 2)
    sizes = past_k.shape[1], k_BTNGE.shape[1]
    weights = _weigh(scores_BTSNG, visible_TS, v_BTNGE.dtype).split(sizes, 2)
    return _gather(weights[0], past_v) + _gather(weights[1], v_BTNGE)
