"""Bootstrap intervals and permutation tests.

scipy.stats.bootstrap and permutation_test draw from NumPy generators. These draw from keys, so that
an interval is a function of the seed, and take all resamples in one matrix product.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genie_fn import random

PERMUTATIONS = 999


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: Tensor
    low: Tensor
    high: Tensor


def identity(x: Tensor) -> Tensor:
    """`x` itself: the default statistic of a mean."""
    return x


def resampling(key: Tensor, count: int, resamples: int = 1000) -> Tensor:
    """How often each item occurs in each resample with replacement: (resamples, count)."""
    drawn = random.randint(key, (resamples, count), 0, count)
    zeros = torch.zeros((resamples, count), device=key.device)
    return zeros.scatter_add_(1, drawn, torch.ones_like(drawn).float())


def bootstrap(  # noqa: PLR0913 (what is resampled, how often, which interval of which statistic)
    values: Tensor,
    key: Tensor,
    resamples: int = 1000,
    level: float = 0.95,
    of: Callable[[Tensor], Tensor] = identity,
    groups: Tensor | None = None,
) -> Interval:
    """The mean over B values (B, ...), with its percentile interval (Efron 1979).

    The values are independent, or those of the same one of `groups` (B,) belong together, such as
    clips of one level: then groups are drawn, with all of their values (cluster bootstrap; Davison
    & Hinkley 1997, section 3.8). With a function `of` the mean (PSNR of a mean error, a difference
    of two means), the interval is that function's. Values of a single group are drawn one by one.
    """
    values = values.float()
    weights = _weights(len(values), key, resamples, groups)
    means = weights @ values.reshape(len(values), -1) / weights.sum(1, keepdim=True)
    statistic = of(means.reshape(resamples, *values.shape[1:]))
    quantiles = statistic.new_tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = statistic.quantile(quantiles, dim=0)
    return Interval(of(values.mean(0)), low, high)


def _weights(count: int, key: Tensor, resamples: int, groups: Tensor | None) -> Tensor:
    """How often each value occurs in each resample, (resamples, count)."""
    if groups is None:
        return resampling(key, count, resamples)
    distinct, member = groups.unique(return_inverse=True)
    if len(distinct) == 1:
        return resampling(key, count, resamples)
    drawn = resampling(key, len(distinct), resamples)
    return drawn[:, member.to(key.device)]


def permutations(key: Tensor, count: int) -> Tensor:
    """Random orders of `count` items, (PERMUTATIONS, count)."""
    return random.uniform(key, (PERMUTATIONS, count)).argsort(1)


def p_value(observed: float, permuted: Sequence[float]) -> float:
    """The one-sided p-value of a permutation test: at least 1 / (permutations + 1)."""
    as_large = sum(value >= observed - 1e-12 for value in permuted)
    return round((1 + as_large) / (1 + len(permuted)), 4)
