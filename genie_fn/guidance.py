"""Classifier-free guidance: predictions that depend more on the action, and its distillation.

The logits of the dynamics model move away from those under the mean action, at the price of a second
pass; distillation puts that into the weights, so that worlds are played without it.
"""

import torch
from torch import Tensor

from genie_fn import layers
from genie_fn.dynamics import (
    DynamicsConfig,
    Memory,
    Prediction,
    action_table,
    entering,
    given_digits,
    hidden_weight,
    logits_next,
    parts,
    predict_next,
    total,
)
from genie_fn.layers import Cache, Visibility
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import Tree


def guided_prediction(
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    memory: Memory,
    cfg: DynamicsConfig,
    guidance: float | None,
    *,
    backend: Backend = AUTO,
) -> Prediction:
    """What `predict_next` returns, with classifier-free guidance: l + guidance · (l - l').

    l' are the logits under the mean of the embeddings of all actions that occur. It replaces the
    null action of Ho & Salimans 2022 (arXiv 2207.12598, equation 6), which training would have to
    include.
    """
    if not guidance:
        prediction, _ = predict_next(
            params,
            ids_BTN,
            actions_BT,
            memory,
            cfg,
            extend=False,
            backend=backend,
        )
        return prediction
    mean_BT = _mean_action(actions_BT, cfg)
    both, _ = predict_next(
        _with_mean_action(params, cfg),
        torch.cat((ids_BTN, ids_BTN)),
        torch.cat((actions_BT, mean_BT)),
        _twice(memory),
        cfg,
        extend=False,
        backend=backend,
    )
    return _guided(both, 0, guidance)


def guided_clip_logits(  # noqa: PLR0913 (those of `logits_next`, and the guidance)
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    cfg: DynamicsConfig,
    guidance: float,
    *,
    unmasked_BTN: Tensor,
    given_BTN: Tensor | None = None,
    backend: Backend = AUTO,
) -> Tensor:
    """The logits of whole clips, each frame with the guidance that `guided_prediction` gives it.

    In l' only the action that led into the frame itself is the mean one. So every frame is there a second
    time, with the mean action, and this one sees the first ones of the frames before it. The logits of
    the first frame, which follows none, mean nothing.
    """
    frames = ids_BTN.shape[1]
    device = ids_BTN.device
    time_T1 = torch.arange(frames, device=device)[:, None]
    visible_TT = layers.visible_frames(frames, cfg.stack.window, None, device)
    itself_TT = torch.eye(frames, dtype=torch.bool, device=device)
    first = torch.cat((visible_TT, torch.zeros_like(visible_TT)), 1)
    second = torch.cat((visible_TT & ~itself_TT, itself_TT), 1)
    visibility = Visibility(torch.cat((time_T1, time_T1)), torch.cat((first, second)))
    mean_BT = _mean_action(actions_BT, cfg)
    both, _ = predict_next(
        _with_mean_action(params, cfg),
        torch.cat((ids_BTN, ids_BTN), 1),
        torch.cat((actions_BT, mean_BT), 1),
        None,
        cfg,
        unmasked_BTN=torch.cat((unmasked_BTN, unmasked_BTN), 1),
        visibility=visibility,
        backend=backend,
    )
    prediction = _guided(both, 1, guidance)
    return given_digits(prediction, unmasked_BTN if given_BTN is None else given_BTN, cfg)


def _guided(both: Prediction, axis: int, guidance: float) -> Prediction:
    """l + guidance · (l - l'), where l and l' are the halves of `both` along an axis."""

    def guided(logits: Tensor) -> Tensor:
        own, without_action = logits.chunk(2, axis)
        return own + guidance * (own - without_action)

    return both.rearranged(guided, lambda digit: torch.cat((digit, digit), axis))


def _with_mean_action(params: Tree, cfg: DynamicsConfig) -> Tree:
    """Parameters with a table of one action more, the mean of those that occur."""
    table = action_table(params, cfg)
    trained_AD = table[: cfg.actions]
    if cfg.occurring:  # without an index tensor, which would be a constant of a compiled program
        trained_AD = torch.stack([table[action] for action in cfg.occurring])
    return params | {"action_table": torch.cat((table, trained_AD.mean(0, keepdim=True)))}


def _mean_action(actions_BT: Tensor, cfg: DynamicsConfig) -> Tensor:
    """The mean action, as often as there are actions. The mean of vectors is 0."""
    if actions_BT.is_floating_point():
        return torch.zeros_like(actions_BT)
    return torch.full_like(actions_BT, cfg.actions + 1)


def _twice(memory: Memory) -> Memory:
    """The memory of twice as many sessions, each of which is there twice."""
    k, v, seen = memory.cache
    cache = Cache(torch.cat((k, k), 1), torch.cat((v, v), 1), seen)
    return Memory(cache, torch.cat((memory.newest_BN, memory.newest_BN)))


def distillation_loss(  # noqa: PLR0913 (those of `loss`, and the teacher's)
    params: Tree,
    teacher: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    mask_BTN: Tensor,
    cfg: DynamicsConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    shown_BTN: Tensor | None = None,
    *,
    backend: Backend = AUTO,
) -> tuple[Tensor, tuple[dict[str, Tensor], tuple[()]]]:
    """Kullback-Leibler divergence, in nats per hidden token, of the model without guidance from its
    teacher with guidance of scale `cfg.distilled` (Meng et al. 2022, arXiv 2210.03142, section 3.1, for
    diffusion models).

    `teacher` are the parameters of a model of the same configuration; the other arguments, and what is
    returned, are as for `loss`.
    """
    visible = ids_BTN if shown_BTN is None else shown_BTN
    masked = torch.where(mask_BTN, cfg.codes, visible)
    entering_BT = entering(actions_BT, cfg)
    with torch.no_grad():
        target = guided_clip_logits(
            teacher,
            masked,
            entering_BT,
            cfg,
            cfg.distilled,
            unmasked_BTN=visible,
            given_BTN=ids_BTN,
            backend=backend,
        )
    logits, _ = logits_next(
        params,
        masked,
        entering_BT,
        None,
        cfg,
        unmasked_BTN=visible,
        given_BTN=ids_BTN,
        backend=backend,
    )
    nats: list[Tensor] = []
    agree = torch.ones_like(mask_BTN)
    pairs = zip(parts(logits, cfg.sizes, -1), parts(target, cfg.sizes, -1), strict=True)
    for own, wanted in pairs:
        log_p = wanted.log_softmax(-1)
        nats.append((log_p.exp() * (log_p - own.log_softmax(-1))).sum(-1))
        agree = agree & (own.argmax(-1) == wanted.argmax(-1))
    weight = hidden_weight(mask_BTN, microbatch)
    divergence = (total(nats) * weight).sum()
    return divergence, ({"divergence": divergence, "agreement": (agree * weight).sum()}, ())
