"""A batch in parts, on many devices or one after the other: what a loss must know so that they add up to the whole.

The parts are equal, and their gradients are averaged: right by itself for a loss that is a mean over clips. What else a
loss needs from all clips, such as how many tokens are hidden or how often each code is expected, it takes from
`Part.mean`; what it draws for each clip it draws from the clip's place in the whole batch, `Part.first`. So the loss
and its gradients are those of the undivided batch, to rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


def _same(x: Tensor) -> Tensor:
    return x


class Part(NamedTuple):
    """One of `count` equal parts of a batch, by default all of it."""

    index: int | Tensor = 0
    count: int = 1
    mean: Callable[[Tensor], Tensor] = _same
    """The average over all parts of a statistic x of each. It passes its gradient to this part's x undivided, which the
    averaging of the parts' gradients makes right. No argument may depend on an earlier result."""

    def first(self, clips: int) -> int | Tensor:
        """The place in the whole batch of this part's first clip; each part has so many `clips`."""
        return self.index * clips


WHOLE = Part()


class Update(NamedTuple):
    """What a training step does to parameters and statistics beside the optimizer's work."""

    collect: Callable
    """`(aux, key, part) → tree` of sizes that do not depend on the batch's, which are added up over the parts."""
    apply: Callable
    """`(params, stats, sums) → (params, stats)`, on parameters that every device holds whole (`ParamSpec.whole`)."""
