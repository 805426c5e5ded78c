"""Cuts: changes of the colours from one frame to the next that last.

A flash is no cut: the frames after it have the colours of the frame before it.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np

from genie_fn.data.importing.resampling import Pixels

BINS = 8  # of each channel in a histogram
FLASH = 6  # frames; a change of colours that is undone after more of them is a cut


class _Candidate(NamedTuple):
    """A frame that may begin a new scene; the frames after it decide."""

    sample: Pixels
    histograms: np.ndarray


class _Decision(NamedTuple):
    """What the first samples that wait are."""

    kind: Literal["scene", "cut", "flash"]
    """Of the scene before them, the first of another scene, or a flash."""
    count: int = 1


def mark_cuts(samples: Iterable[Pixels], threshold: float) -> Iterator[Pixels]:
    """The samples; those after a cut begin an episode.

    A cut is a change of colours (see `colour_change`) by more than `threshold`, unless one of the
    next FLASH frames of the same episode has changed by less.
    """
    before: np.ndarray | None = None
    waiting: list[_Candidate] = []
    for sample in chain(samples, [None]):
        if sample is not None:
            waiting.append(_Candidate(sample, _histograms(sample.pixels)))
        while waiting and (decision := _decide(before, waiting, threshold, sample is None)):
            if decision.kind != "flash":
                before = waiting[0].histograms
            for candidate in waiting[: decision.count]:
                begins = candidate.sample.begins_episode or decision.kind == "cut"
                yield candidate.sample._replace(begins_episode=begins)
            del waiting[: decision.count]


def _decide(
    before: np.ndarray | None, waiting: list[_Candidate], threshold: float, ended: bool
) -> _Decision | None:
    """None if later samples have to be seen first."""
    first = waiting[0]
    if before is None or first.sample.begins_episode:
        return _Decision("scene")
    if _difference(before, first.histograms) <= threshold:
        return _Decision("scene")
    for count, later in enumerate(waiting[1:], 1):
        if later.sample.begins_episode:
            return _Decision("cut")
        if _difference(before, later.histograms) <= threshold:
            return _Decision("flash", count)
    return _Decision("cut") if ended or len(waiting) > FLASH else None


def colour_change(before: np.ndarray, after: np.ndarray) -> float:
    """How much the colours of two frames differ, from 0 to 1: large at a cut, small for movement.

    The share of pixels that would have to change colour for the histograms (8 x 8 x 8 bins) to be
    equal. It is the lesser of two such shares, whose bins are shifted by half a bin, because a
    plain background may lie at the edge of a bin of one of them.
    """
    return _difference(_histograms(before), _histograms(after))


def _difference(before: np.ndarray, after: np.ndarray) -> float:
    return float((abs(before - after).sum(1) / 2).min())


def _histograms(frame: np.ndarray) -> np.ndarray:
    """(2, bins): the share of the pixels in each bin, for bins shifted by nothing and by a half."""
    colours = frame.reshape(-1, 3).astype(np.int64)
    counts = [_histogram(colours, shift) for shift in (0, 128 // BINS)]
    return np.stack(counts) / len(colours)


def _histogram(colours: np.ndarray, shift: int) -> np.ndarray:
    levels = (colours + shift) * BINS // 256
    side = BINS + 1  # a shifted channel may fall into one more bin
    return np.bincount(levels @ (1, side, side**2), minlength=side**3)
