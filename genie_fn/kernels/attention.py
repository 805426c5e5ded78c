"""Softmax attention over one axis of (B, T, N, G, E): space (within a frame) or time (across frames).

`impl` names the implementation, never guessed from the input:
- "reference": materialised scores in float32, the definition that the others are tested against;
- "sdpa": torch's fused scaled_dot_product_attention;
- "fused": products and sums left to the compiler, for the time axis, where sequences are so short that a fused
  attention kernel spends its time on padding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IMPLS = ("reference", "sdpa", "fused")


def attend_space(q_BTNGE: Tensor, k_BTNGE: Tensor, v_BTNGE: Tensor, *, impl: str = "sdpa") -> Tensor:
    """Every token attends to all tokens of its own frame. Returns (B, T, N, G, E)."""
    q, k, v = (x.transpose(2, 3) for x in (q_BTNGE, k_BTNGE, v_BTNGE))
    return _attend(q, k, v, None, impl).transpose(2, 3)


def attend_time(
    q_BTNGE: Tensor, k_BSNGE: Tensor, v_BSNGE: Tensor, visible_TS: Tensor, *, impl: str = "fused"
) -> Tensor:
    """Query frame t attends, at its own place n, to the key frames s where `visible_TS` is true.

    Keys may have more frames than queries: a cached past in front. Returns (B, T, N, G, E).
    """
    if impl == "fused":
        return _attend_time_fused(q_BTNGE, k_BSNGE, v_BSNGE, visible_TS)
    q, k, v = (x.permute(0, 2, 3, 1, 4) for x in (q_BTNGE, k_BSNGE, v_BSNGE))
    return _attend(q, k, v, visible_TS, impl).permute(0, 3, 1, 2, 4)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, impl: str) -> Tensor:
    """Attention over the second last axis of (..., length, E)."""
    if impl == "sdpa":
        # Four axes, as it documents: with five, torch 2.13 compiles it on the CPU to wrong numbers without a word.
        flat = (x.flatten(0, -4) for x in (q, k, v))
        return F.scaled_dot_product_attention(*flat, attn_mask=visible).unflatten(0, q.shape[:-3])
    scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


def _attend_time_fused(q_BTNGE: Tensor, k_BSNGE: Tensor, v_BSNGE: Tensor, visible_TS: Tensor) -> Tensor:
    scale = q_BTNGE.shape[-1] ** -0.5
    scores_BTSNG = (q_BTNGE[:, :, None] * k_BSNGE[:, None]).sum(-1, dtype=torch.float32) * scale
    scores_BTSNG = scores_BTSNG.masked_fill(~visible_TS[:, :, None, None], -torch.inf)
    weights_BTSNG = scores_BTSNG.softmax(2).to(v_BSNGE.dtype)
    return (weights_BTSNG[..., None] * v_BSNGE[:, None]).sum(2)
