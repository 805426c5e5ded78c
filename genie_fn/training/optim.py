"""Optimisers as free functions on pytrees: AdamW, Muon, clipping, schedules, moving averages.

Every hyperparameter that changes during a run is a 0-D tensor, so that nothing recompiles.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from genie_fn import tree
from genie_fn.tree import ParamSpec, Tree


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019), clipping, a learning-rate schedule, a moving average."""

    lr: float = 3e-4
    muon: bool = False
    """Update the matrices of stacked blocks by Muon (Jordan et al. 2024), scaled to the size of
    AdamW's updates, and the rest by AdamW."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """The learning rate after its warm-up: `constant`, `cosine` decay, or `wsd` (warm-up, stable,
    linear decay)."""
    warmup: int = 100
    """Steps of linear warm-up."""
    final: float = 0.1
    """The last learning rate as a share of the peak (cosine, wsd)."""
    decay: float = 0.2
    """The share of the steps over which wsd decays."""
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip: float = 1.0
    """The largest global gradient norm."""
    ema: float = 0.0
    """Decay of the average of the weights that later stages use; 0 keeps none."""


_LAM = OptimConfig(lr=2e-3, schedule="wsd", warmup=30, decay=0.4, final=0.02, ema=0.98)
LAM_PRESETS = {
    "demo": _LAM,
    "small": _LAM,
    "coinrun": OptimConfig(lr=3e-5, schedule="cosine", warmup=5_000, b2=0.9),
}
"""The latent action model's optimizer by preset, whether it is trained alone or jointly with the
dynamics model."""


def learning_rate(step: Tensor, steps: int | Tensor, cfg: OptimConfig) -> Tensor:
    """The learning rate of step 0..steps-1, a 0-D float32 tensor. A 0-D tensor `steps` may change
    from step to step without a new compilation."""
    warm = ((step + 1) / max(cfg.warmup, 1)).clamp(max=1.0)
    if cfg.schedule == "constant":
        return cfg.lr * warm
    if cfg.schedule == "cosine":
        left = 0.5 * (1 + torch.cos(math.pi * _progress(step, cfg.warmup, steps)))
    else:
        left = 1 - _progress(step, steps * (1 - cfg.decay), steps)
    return cfg.lr * warm * (cfg.final + (1 - cfg.final) * left)


def _progress(step: Tensor, start: float | Tensor, end: int | Tensor) -> Tensor:
    """How far a step is from `start` to `end`, in [0, 1]."""
    length = end - start
    length = length.clamp(min=1) if isinstance(length, Tensor) else max(length, 1)
    return ((step - start) / length).clamp(0.0, 1.0)


def global_norm(grads: Tree) -> Tensor:
    """The 2-norm of all leaves together."""
    return torch.stack([g.float().square().sum() for g in tree.leaves(grads)]).sum().sqrt()


def clip(grads: Tree, limit: float, norm: Tensor | None = None) -> tuple[Tree, Tensor]:
    """Scale the gradients so that their global norm is at most `limit`.

    Also returns the norm before. Where the leaves are shards, the caller passes this `norm`.
    """
    if norm is None:
        norm = global_norm(grads)
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    return tree.map(lambda g: g * scale, grads), norm


def adamw_init(params: Tree) -> Tree:
    """The moments, zeros in the shape of the parameters."""
    return {"m": tree.map(torch.zeros_like, params), "v": tree.map(torch.zeros_like, params)}


def orthogonal(x_LMN: Tensor) -> Tensor:
    """Matrices (L, m, n) → nearly orthogonal ones: all singular values between 0.7 and 1.2.

    Five Newton-Schulz steps with the coefficients of Jordan et al. 2024
    (kellerjordan.github.io/posts/muon).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x_LMN.shape[-2] > x_LMN.shape[-1]
    x = x_LMN.mT if tall else x_LMN
    x = x / (x.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


MUON_MOMENTUM = 0.95
MUON_RMS = 0.2
"""The root mean square of an update's entries. AdamW's updates have about the same, so that one
learning rate suits both (arXiv 2502.16982)."""


def _is_stacked(p: Tensor | ParamSpec, decayed: bool) -> bool:
    """Whether a leaf holds the matrices (L, inputs, outputs) of a stack of blocks."""
    return len(p.shape) == 3 and decayed


def divisible(spec: Tree, cfg: OptimConfig) -> Tree:
    """The spec with the axes along which devices may divide the parameters.

    Muon needs every matrix of a stack in one place.
    """
    return tree.map(
        lambda s: replace(s, axis=0) if cfg.muon and _is_stacked(s, s.decay) else s, spec
    )


def adamw(
    grads: Tree, state: Tree, params: Tree, step: Tensor, lr: Tensor, decay: Tree, cfg: OptimConfig
) -> tuple[Tree, Tree]:
    """The parameters and moments after one AdamW step; steps count from 0.

    With `cfg.muon` stacked matrices are updated by Muon, and their second moment stays 0. `decay`
    is a tree of bools: the leaves that weight decay applies to.
    """
    m_scale = lr / (1 - cfg.b1 ** (step + 1))
    v_scale = (1 - cfg.b2 ** (step + 1)).rsqrt()
    keep = 1 - lr * cfg.weight_decay
    # Stacked, these scalars are computed once, not again in the compiled kernel of every leaf.
    rate, v_scale, keep = torch.stack((m_scale, v_scale, keep)).unbind()
    by_muon = tree.map(lambda p, decayed: cfg.muon and _is_stacked(p, decayed), params, decay)

    def first(m: Tensor, g: Tensor, muon: bool) -> Tensor:
        return m + (1 - (MUON_MOMENTUM if muon else cfg.b1)) * (g - m)

    def move(p: Tensor, g: Tensor, m: Tensor, v: Tensor, decayed: bool, muon: bool) -> Tensor:
        p = p * keep if decayed else p
        if not muon:
            return p - rate * m / (v.sqrt() * v_scale + cfg.eps)
        ahead = g + MUON_MOMENTUM * (m - g)  # Nesterov's
        return p - lr * (MUON_RMS * max(p.shape[-2:]) ** 0.5) * orthogonal(ahead)

    m = tree.map(first, state["m"], grads, by_muon)
    v = tree.map(
        lambda v, g, muon: v if muon else v + (1 - cfg.b2) * (g * g - v), state["v"], grads, by_muon
    )
    return tree.map(move, params, grads, m, v, decay, by_muon), {"m": m, "v": v}


def ema(average: Tree, params: Tree, step: Tensor, decay: float) -> Tree:
    """The moving average of the weights. Its horizon grows with the first steps."""
    rate = 1 - torch.stack([(1 + step) / (10 + step)]).clamp(max=decay)[0]
    return tree.map(lambda a, p: a + rate * (p - a), average, params)
