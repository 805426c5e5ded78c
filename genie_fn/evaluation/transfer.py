"""Whether the actions of one clip move the picture alike from a frame of another clip.

A rollout under shuffled actions starts at a frame of one clip and applies the actions of another
one, its *source*. If an action means the same everywhere, the generated picture is displaced,
transition by transition, as the recorded frames of the source are. Their correlation has a chance
level, of permuted sources, and a ceiling, of rollouts that start at the source's own frame.
"""

import torch
from torch import Tensor

from genie_fn import metrics
from genie_fn.evaluation import rollouts, statistics
from genie_fn.evaluation.record import Correlation, Transfer
from genie_fn.evaluation.rollouts import Videos

LEAST_VARIANCE = 1e-4
"""Squared pixels below which displacements count as being all the same."""


def evaluate(
    frames: Tensor, videos: Videos, prompt: int, level: Tensor, key: Tensor
) -> Transfer | None:
    """The measure of rollouts from B clips (B, T, H, W, 3) of levels (B,).

    `videos` has the frames after the `prompt` frames. Clips of the same level as their source are
    left out if there are enough others. The result is None where no recorded picture moves.
    """
    own, shuffled = (
        _displacement(torch.cat((frames[:, prompt - 1 : prompt], videos[method]), 1))
        for method in ("own_actions", "shuffled")
    )
    recorded = _displacement(frames[:, prompt - 1 :])
    recorded, own, source_level = map(rollouts.of_another_clip, (recorded, own, level.cpu()))
    elsewhere = source_level != level.cpu()
    if elsewhere.sum() > 1:
        recorded, own, shuffled, source_level = (
            x[elsewhere] for x in (recorded, own, shuffled, source_level)
        )
    if not (_varies(recorded)).any():
        return None
    key = key.cpu()
    permuted = _permuted(recorded, shuffled, key)
    transferred = _pearson(_moments(recorded, shuffled).mean(0))
    return Transfer(
        frames=recorded.shape[1],
        pairs=len(recorded),
        transferred=correlation(recorded, shuffled, source_level, key),
        permuted=_described(recorded, permuted.mean(0)[None]),
        p=statistics.p_value(transferred[-1].item(), permuted[:, -1].tolist()),
        own=correlation(recorded, own, source_level, key),
    )


def _displacement(video: Tensor) -> Tensor:
    """The displacement of the picture in each transition, (B, T-1, 2) float on the CPU."""
    return metrics.displacement(video[:, :-1], video[:, 1:]).float().cpu()


def _varies(shift: Tensor) -> Tensor:
    """Along which axes displacements (..., 2) differ, (2,) bool."""
    return shift.flatten(0, -2).var(0, correction=0) > LEAST_VARIANCE


def correlation(recorded: Tensor, generated: Tensor, level_B: Tensor, key: Tensor) -> Correlation:
    """Pearson's correlation of displacements (B, T-1, 2), with intervals over levels (B,)."""
    moments = _moments(recorded, generated)
    found = statistics.bootstrap(moments, key, of=_pearson, groups=level_B)
    return _described(recorded, torch.stack(found))


def _described(recorded: Tensor, values_V3: Tensor) -> Correlation:
    """Values for dx, dy and both; None for an axis along which no recorded picture moves."""
    varies = _varies(recorded).tolist()
    dx, dy, both = ([round(x, 4) for x in column] for column in values_V3.T.tolist())
    return Correlation(dx if varies[0] else None, dy if varies[1] else None, both)


def _moments(a: Tensor, b: Tensor) -> Tensor:
    """Means over each clip's transitions of a, b, a², b² and ab, (B, 5, 2)."""
    return torch.stack((a, b, a * a, b * b, a * b), 1).mean(2)


def _pearson(moments: Tensor) -> Tensor:
    """Correlations (..., 3) of dx, dy and both together from mean moments (..., 5, 2).

    Of both axes together, covariances and variances are summed. A correlation with what does not
    vary is 0.
    """
    a, b, aa, bb, ab = moments.unbind(-2)
    covariance, variance_a, variance_b = (
        torch.cat((x, x.sum(-1, keepdim=True)), -1) for x in (ab - a * b, aa - a * a, bb - b * b)
    )
    varies = torch.minimum(variance_a, variance_b) > LEAST_VARIANCE
    scale = (variance_a * variance_b).clamp(min=LEAST_VARIANCE**2).sqrt()
    return torch.where(varies, covariance / scale, 0.0)


def _permuted(recorded: Tensor, generated: Tensor, key: Tensor) -> Tensor:
    """The correlations (PERMUTATIONS, 3) with the clips of `recorded` in random orders."""
    order = statistics.permutations(key, len(recorded))
    product = torch.einsum("ifx,jfx->ijx", recorded, generated) / recorded.shape[1]
    mean_product = product[order, torch.arange(len(recorded))].mean(1)
    moments = _moments(recorded, generated).mean(0).repeat(len(order), 1, 1)
    moments[:, -1] = mean_product
    return _pearson(moments)
