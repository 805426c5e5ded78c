"""From frames as they come to frames as a world learns them: one size, one pace, scenes apart, an action for each.

Time is resampled by timestamps, so a variable frame rate is right: sample k shows what is on the screen k / fps seconds
after the first frame. A frame counts from half a gap before it appears on (at most half a sample): where the source is
regular, the nearest frame is taken whatever its timestamps were rounded to, and where it pauses, nothing is early.
"""

import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from genie_fn import data
from genie_fn.data import Segment, Store
from genie_fn.data.importing import action_labels, readers, sources
from genie_fn.data.importing.action_labels import Known
from genie_fn.data.importing.readers import Shown, Unreadable
from genie_fn.data.importing.sources import Source

T = TypeVar("T")
PART_BYTES = 64 << 20  # of frames that become one segment: a long video becomes several
RESERVE = 64 * data.BLOCK  # frames by which the store grows
PAUSE = 10  # seconds without a new frame after which a new episode begins
LEVELS = 8  # of each channel in a histogram


class Shape(NamedTuple):
    """What frames are made to: `fps` 0 keeps every frame, `cuts` 0 finds none."""

    size: int
    fit: str
    fps: float
    cuts: float


class Part(NamedTuple):
    """Consecutive frames of one source, (n, size, size, 3), with the actions and episode starts (n,)."""

    frames: np.ndarray
    actions: np.ndarray
    starts: np.ndarray


class End(NamedTuple):
    """How a source ended: `note` says why the rest of it, or with `refused` all of it, cannot be used."""

    note: str = ""
    refused: bool = False


def resample(shown: Iterable[Shown], fps: float) -> Iterator[tuple[int, bool, Shown]]:
    """The frames at the times 0, 1/fps, 2/fps, …: the number in the source, whether an episode begins, the frame.

    After a pause, or where time runs backwards, the clock starts anew. Frames without times are taken as they come.
    """
    period = 1 / Fraction(fps).limit_denominator(1001) if fps else None
    last, due, gap, begins = None, None, Fraction(0), True
    for now in enumerate(shown):
        index, frame = now
        if period is None or frame.time is None:
            jump = (
                last is not None
                and frame.time is not None
                and not 0 <= frame.time - last[1].time <= PAUSE
            )
            yield index, begins or jump, frame
            last, begins = now, False
            continue
        if last is None:
            due = frame.time
        else:
            gap = frame.time - last[1].time
            jump = not 0 <= gap <= PAUSE
            until = last[1].time + period / 2 if jump else frame.time - min(gap, period) / 2
            while due <= until:
                yield last[0], begins, last[1]
                due, begins = due + period, False
            if jump:
                due, begins = frame.time, True
        last = now
    while (
        period
        and due is not None
        and due <= last[1].time + min(gap if 0 <= gap <= PAUSE else period, period) / 2
    ):
        yield last[0], begins, last[1]
        due, begins = due + period, False


def fit(image: Image.Image, size: int, how: str, aspect: Fraction = Fraction(1)) -> np.ndarray:
    """An image as (size, size, 3) uint8, every pixel the mean of what it covers.

    `crop` keeps the largest square in the middle, `pad` the whole picture between black bars, `stretch` neither its
    shape. `aspect` is how much wider a pixel is shown than high.
    """
    width, height = image.size
    shown = width * aspect
    if how == "crop":
        side = min(shown, height)
        x, y = float(width - side / aspect) / 2, float(height - side) / 2
        return np.array(
            image.resize((size, size), Image.Resampling.BOX, box=(x, y, width - x, height - y))
        )
    inner = size, size
    if how == "pad":
        longer = max(shown, height)
        inner = tuple(max(1, round(size * side / longer)) for side in (shown, height))
    frame = Image.new("RGB", (size, size))
    frame.paste(
        image.resize(inner, Image.Resampling.BOX), tuple((size - side) // 2 for side in inner)
    )
    return np.array(frame)


def change(before: np.ndarray, after: np.ndarray) -> float:
    """How much of two frames' colours differs, from 0 to 1: what a cut changes and movement hardly does.

    The share of pixels that would have to take another colour for the histograms (8 x 8 x 8 bins) to be equal. The
    lesser of two such shares, whose bins lie half a bin apart: a plain background may lie at the edge of a bin of one.
    """
    shares = []
    for shift in (0, 128 // LEVELS):
        bins = (
            (frame.reshape(-1, 3).astype(np.int64) + shift) * LEVELS // 256
            for frame in (before, after)
        )
        counts = [
            np.bincount(b @ (1, LEVELS + 1, (LEVELS + 1) ** 2), minlength=(LEVELS + 1) ** 3)
            for b in bins
        ]
        shares.append(abs(counts[0] - counts[1]).sum() / (2 * counts[0].sum()))
    return float(min(shares))


def parts(
    source: Source, shape: Shape, known: Known | None, stop: threading.Event, threads: int = 1
) -> Iterator[Part | End]:
    """All of a source, a part after another, and then its `End`. An event ends it early."""
    times, limit = array("d"), max(1, PART_BYTES // (3 * shape.size**2))
    frames, numbers, starts, end = [], [], [], End()

    def watched() -> Iterator[Shown]:
        first = None
        for shown in readers.read(source, threads):
            if stop.is_set():
                return
            if shown.time is None and known and known.by == "time":
                raise Unreadable(
                    f"{known.path.name} gives times, which these frames do not have: give frames"
                )
            first = shown.time if first is None else first
            times.append(len(times) if first is None else float(shown.time - first))
            yield shown

    def part() -> Part:
        actions = (
            chosen(known, np.array(numbers), times) if known else np.zeros(len(frames), np.uint8)
        )
        return Part(np.stack(frames), actions, np.array(starts))

    last, pixels = -1, None
    try:
        for number, begins, shown in resample(watched(), shape.fps):
            if number != last:
                before, pixels = pixels, fit(shown.image(), shape.size, shape.fit, shown.aspect)
                begins |= bool(
                    shape.cuts and before is not None and change(before, pixels) > shape.cuts
                )
            frames.append(pixels)
            numbers.append(number)
            starts.append(begins)
            last = number
            if len(frames) == limit:
                yield part()
                frames, numbers, starts = [], [], []
        wrong = action_labels.objection(known, len(times)) if known else ""
        end = End(wrong, bool(wrong)) if times else End("it holds no frames")
    except Unreadable as error:
        end = End(str(error))
    if frames:
        yield part()
    yield end


def chosen(known: Known, numbers: np.ndarray, times: Iterable[float]) -> np.ndarray:
    """(n,) uint8: for the source's frames `numbers` (n,), the action that held longest until the next of them.

    Of equally long ones the first; where a frame is repeated, its own; of the last frame, its own.
    """
    first, until = numbers, np.append(numbers[1:], numbers[-1] + 1)
    each = action_labels.per_frame(known, int(first[0]), np.array(times[first[0] : first[-1] + 1]))
    actions = each[first - first[0]]
    for i in np.flatnonzero(until - first > 1):
        held, begun, count = np.unique(
            each[first[i] - first[0] : until[i] - first[0]], return_index=True, return_counts=True
        )
        actions[i] = held[np.lexsort((begun, -count))[0]]
    return actions


def in_order(streams: Iterable[Callable[[], Iterator[T]]], workers: int) -> Iterator[Iterator[T]]:
    """An iterator over each stream, in their order, while `workers` threads make the first items of the next ones.

    Read each to its end before the next. An error in a stream is raised where its item is asked for.
    """

    def items(stream: Iterator[T], job: Future) -> Iterator[T]:
        while (item := job.result()) is not None:
            job = pool.submit(next, stream, None)
            yield item

    pool, waiting, streams = (
        ThreadPoolExecutor(workers, thread_name_prefix="import"),
        [],
        iter(streams),
    )
    try:
        while True:
            for make in streams:
                stream = make()
                waiting.append((stream, pool.submit(next, stream, None)))
                if len(waiting) > workers:
                    break
            if not waiting:
                return
            yield items(*waiting.pop(0))
    finally:
        pool.shutdown(cancel_futures=True)


def write(
    store: Store, source: Source, level: int, stream: Iterator[Part | End], at: int, least: int
) -> tuple[Store, list[Segment], str]:
    """Write a video at `at`, a segment per part, for a later commit.

    The store, grown where it had to be; the segments; and if there are none, since no scene has `least` frames or all
    of it was refused, why.
    """
    segments, held, longest, end = [], [], 0, End()
    for item in stream:
        if isinstance(item, End):
            end = item
            continue
        held.append(item)
        longest = max(longest, max(episodes(item)))
        while held and (
            longest >= least or len(held) > 2
        ):  # what is left out is not written, unless it is long
            store, segment = _write_part(store, source, level, held.pop(0), at)
            segments.append(segment)
            at += data.padded_length(segment.length)
    if end.refused or not (segments or held):
        return store, [], end.note
    if longest < least:
        short = f"it has no scene of {least} frames"
        return store, [], f"{short}: {end.note}" if end.note else short
    total = sum(segment.length for segment in segments)
    note = f"after {total} frames: {end.note}" if end.note else ""
    told = {
        "file": source.name,
        "bytes": source.size(),
        "digest": sources.digest(source),
        "note": note,
    }
    return store, [segment._replace(info=segment.info | told) for segment in segments], ""


def _write_part(
    store: Store, source: Source, level: int, part: Part, at: int
) -> tuple[Store, Segment]:
    count = len(part.frames)
    if at + count > store.arrays["frames"].shape[0]:
        store = data.reserve(store, -(-(at + count) // RESERVE) * RESERVE)
    split, info = sources.split_of(source.name), {"episodes": len(episodes(part))}
    made = data.Recording(
        level, part.frames, part.actions, np.zeros(count), part.starts, split, info
    )
    return store, data.write_segment(store, at, made)


def episodes(part: Part) -> list[int]:
    """The lengths of a part's episodes."""
    return np.diff(np.flatnonzero([True, *part.starts[1:], True])).tolist()


def videos(segments: list[Segment]) -> dict[str, list[Segment]]:
    """The segments of each video, by its name."""
    found: dict[str, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.info["file"], []).append(segment)
    return found
