"""Frames of a source at one size and one frame rate.

Time is resampled by timestamps, so a variable frame rate is handled correctly: sample k shows what
is on the screen k / fps seconds after the first frame. A frame counts from half a gap before it
appears (at most half a sample). In a regular source the nearest frame is thus taken however its
timestamps were rounded, and where a source pauses, no frame is early.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import numpy as np

from genie_fn.data.framing import Fit, Size
from genie_fn.data.images import Background
from genie_fn.data.importing.readers import SourceFrame, Unreadable

PAUSE = 10  # seconds without a new frame after which a new episode begins


class FrameFormat(NamedTuple):
    """How the frames of a source are stored."""

    size: Size
    fit: Fit
    fps: float
    """Frames per second; 0 keeps every frame."""
    cuts: float
    """The change of colours that counts as a cut; 0 detects none."""
    min_frames: int = 1
    """A source without an episode of this length is left out."""
    background: Background = "black"
    """What is seen through transparent pixels."""
    split_seconds: float = 0
    """The longest piece of a source that belongs to one split; 0: all of it does."""


class Sample(NamedTuple):
    """A frame at its place in the resampled video."""

    number: int
    """The number of the frame in its source."""
    begins_episode: bool
    frame: SourceFrame


class Pixels(NamedTuple):
    """A sample whose image is decoded and resized."""

    number: int
    begins_episode: bool
    pixels: np.ndarray
    """(height, width, 3) uint8."""
    aspect: float = 1
    """The displayed width of the source's picture divided by its height."""


def resample(frames: Iterable[SourceFrame], fps: float) -> Iterator[Sample]:
    """The frames at the times 0, 1/fps, 2/fps, …; all frames if fps is 0 or they have no times.

    After a pause, or if time runs backwards, an episode begins and the clock starts anew.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    numbered = enumerate(chain([first], frames))
    if fps and first.time is not None:
        yield from _at_rate(numbered, 1 / Fraction(fps).limit_denominator(1001))
    else:
        yield from _every_frame(numbered)


def _every_frame(numbered: Iterable[tuple[int, SourceFrame]]) -> Iterator[Sample]:
    last: SourceFrame | None = None
    for number, frame in numbered:
        begins = last is None
        if last is not None and last.time is not None and frame.time is not None:
            begins = _is_jump(frame.time - last.time)
        yield Sample(number, begins, frame)
        last = frame


def _at_rate(numbered: Iterator[tuple[int, SourceFrame]], period: Fraction) -> Iterator[Sample]:
    """One sample every `period` seconds."""
    number, last = next(numbered)
    last_time = _time(last)
    due = last_time
    gap = Fraction(0)
    begins = True
    for next_number, frame in numbered:
        time = _time(frame)
        gap = time - last_time
        jump = _is_jump(gap)
        until = last_time + period / 2 if jump else time - min(gap, period) / 2
        while due <= until:
            yield Sample(number, begins, last)
            begins = False
            due += period
        if jump:
            due = time
            begins = True
        number, last, last_time = next_number, frame, time
    tail = period if _is_jump(gap) else min(gap, period)
    while due <= last_time + tail / 2:
        yield Sample(number, begins, last)
        begins = False
        due += period


def _time(frame: SourceFrame) -> Fraction:
    if frame.time is None:
        raise Unreadable("some of its frames have no time")
    return frame.time


def _is_jump(gap: Fraction) -> bool:
    """True for a pause, and for time that runs backwards."""
    return not 0 <= gap <= PAUSE
