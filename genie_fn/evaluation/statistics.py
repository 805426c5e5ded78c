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


def bootstrap(
    values: Tensor,
    key: Tensor,
    resamples: int = 1000,
    level: float = 0.95,
    of: Callable[[Tensor], Tensor] = identity,
) -> Interval:
    """The mean over B independent values (B, ...), with its percentile interval (Efron 1979).

    With a function `of` the mean (PSNR of a mean error, a difference of two means), the interval is
    that function's.
    """
    values = values.float()
    weights = resampling(key, len(values), resamples)
    means = weights @ values.reshape(len(values), -1) / len(values)
    statistic = of(means.reshape(resamples, *values.shape[1:]))
    quantiles = statistic.new_tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = statistic.quantile(quantiles, dim=0)
    return Interval(of(values.mean(0)), low, high)


def permutations(key: Tensor, count: int) -> Tensor:
    """Random orders of `count` items, (PERMUTATIONS, count)."""
    return random.uniform(key, (PERMUTATIONS, count)).argsort(1)


def p_value(observed: float, permuted: Sequence[float]) -> float:
    """The one-sided p-value of a permutation test: at least 1 / (permutations + 1)."""
    as_large = sum(value >= observed - 1e-12 for value in permuted)
    return round((1 + as_large) / (1 + len(permuted)), 4)
