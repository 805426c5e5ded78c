"""Microbatches: the equal parts in which a batch is processed, by several processes or in turn.

The gradients of all microbatches are averaged, which is exact for a loss that is a mean over clips.
If a loss needs other statistics of the whole batch (the number of hidden tokens, the mean
probability of each code), it takes them from `Microbatch.mean`. Random numbers for a clip are drawn
by the clip's index in the whole batch, which `first_clip` gives. Then the loss and its gradients
equal those of the undivided batch, up to rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


def _unchanged(name: str, x: Tensor) -> Tensor:
    return x


class Microbatch(NamedTuple):
    """One of `count` equal parts of a batch; by default all of it."""

    index: int | Tensor = 0
    count: int = 1
    mean: Callable[[str, Tensor], Tensor] = _unchanged
    """`mean(name, x)` is the average over all microbatches of the statistic `name`, x in this one.

    The gradient of the average goes to x undivided, which is right because the gradients of the
    microbatches are averaged. A statistic must not depend on the average of another one.
    """

    def first_clip(self, clips: int) -> int | Tensor:
        """The index in the whole batch of the first of this microbatch's `clips` clips."""
        return self.index * clips


WHOLE_BATCH = Microbatch()


class CodebookUpdate(NamedTuple):
    """A change of the parameters beside the optimizer's, from statistics of the whole batch."""

    collect: Callable
    """`(aux, key, microbatch) -> tree` of tensors to be summed over all microbatches, in shapes
    that do not depend on the number of clips."""
    apply: Callable
    """`(params, stats, sums) -> (params, stats)`; it may change only parameters that every process
    holds in full (`ParamSpec.whole`)."""
