"""A warning while training if a codebook has collapsed: if nearly everything gets the same code."""

from collections.abc import Mapping

from genie_fn.runtime.console import console
from genie_fn.training.log import Row

COLLAPSED = 1.2
"""The perplexity of a batch's codes below which a codebook has collapsed: one code is used for at
least nineteen of twenty."""
FROM = 0.1
"""The share of the training from which on a collapse is reported; codes are often few before."""
EARLIEST = 50
"""The first step at which it is reported, however short the training is."""
ROWS = 3
"""Rows of metrics in a row that must agree, so that one batch of little variety is no collapse."""


class CollapseWarning:
    """A sink of metrics that prints one warning for each watched metric.

    `watched` has, for each metric that is the perplexity of codes, what has collapsed and what to
    try.
    """

    def __init__(self, watched: Mapping[str, str], steps: int):
        self._watched = dict(watched)
        self._first = max(EARLIEST, FROM * steps)
        self._low = dict.fromkeys(watched, 0)

    def write(self, step: int, row: Row) -> None:
        for name in list(self._watched):
            low = step >= self._first and row.get(name, COLLAPSED) < COLLAPSED
            self._low[name] = self._low[name] + 1 if low else 0
            if self._low[name] == ROWS:
                console.print(
                    f"warning at step {step}, {name} {row[name]:.2f}: {self._watched.pop(name)}",
                    soft_wrap=True,
                    markup=False,
                )

    def close(self) -> None:
        pass
