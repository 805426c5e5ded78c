"""From sources to segments of a store: decoding in threads, actions, scenes, writing in order."""

import threading
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from genie_fn import data
from genie_fn.data import Segment, Store
from genie_fn.data.framing import fit, height_and_width
from genie_fn.data.importing import action_labels, readers, sources
from genie_fn.data.importing.action_labels import ActionTrack
from genie_fn.data.importing.cuts import mark_cuts
from genie_fn.data.importing.readers import Conversion, SourceFrame, Unreadable
from genie_fn.data.importing.resampling import FrameFormat, Pixels, Sample, resample
from genie_fn.data.importing.sources import Source

T = TypeVar("T")

PART_BYTES = 64 << 20  # of frames in a segment: a longer video becomes several segments
RESERVED_FRAMES = 64 * data.BLOCK  # by which the store grows


class VideoPart(NamedTuple):
    """Consecutive frames of one source, which become one segment."""

    frames: np.ndarray
    """(n, size, size, 3) uint8."""
    actions: np.ndarray
    """(n,) uint8."""
    episode_starts: np.ndarray
    """(n,) bool."""
    piece: int = 0
    """The number of the piece of the source, which has a split of its own."""
    aspect: float = 1
    """The displayed width of the source's pictures divided by their height."""
    vectors: np.ndarray | None = None
    """(n, A) float32: the actions, where they are vectors."""


class End(NamedTuple):
    """How a source ended."""

    note: str = ""
    """Why the rest of the source cannot be used; empty if all of it was."""
    refused: bool = False
    """True if none of it may be used."""


# Reading


def read_parts(
    source: Source,
    frame_format: FrameFormat,
    track: ActionTrack | None,
    stop: threading.Event,
    threads: int = 1,
) -> Iterator[VideoPart | End]:
    """A source part by part, and then its `End`. Setting `stop` ends it early."""
    height, width = height_and_width(frame_format.size)
    limit = max(1, PART_BYTES // (3 * height * width))
    times = array("d")
    pending: list[Pixels] = []
    piece = 0
    try:
        conversion = Conversion(frame_format.background, 4 * max(height, width))
        frames = readers.read(source, threads, conversion)
        if frame_format.split_seconds and not frame_format.fps:
            frames = _with_times(frames)
        frames = _recording_times(frames, track, times, stop)
        resized = _resized(resample(frames, frame_format.fps), frame_format)
        if frame_format.cuts:
            resized = mark_cuts(resized, frame_format.cuts)
        for number, pixels in _in_pieces(resized, times, frame_format):
            if pending and (len(pending) == limit or number != piece):
                yield _make_part(pending, track, times, piece)
                pending = []
            piece = number
            pending.append(pixels)
        end = _end_of(track, times)
    except Unreadable as error:
        end = End(str(error))
    if pending:
        yield _make_part(pending, track, times, piece)
    yield end


def _with_times(frames: Iterable[SourceFrame]) -> Iterator[SourceFrame]:
    for frame in frames:
        if frame.time is None:
            raise Unreadable("its frames have no times: --cfg.split-seconds then needs --cfg.fps")
        yield frame


def _in_pieces(
    samples: Iterable[Pixels], times: Sequence[float], frame_format: FrameFormat
) -> Iterator[tuple[int, Pixels]]:
    """The samples with the numbers of their pieces; the first of a piece begins an episode."""
    fps, seconds = frame_format.fps, frame_format.split_seconds
    piece = 0
    count = 0
    began = 0.0
    for sample in samples:
        elapsed = count / fps if fps else times[sample.number] - began
        if seconds and count and not 0 <= elapsed < seconds:
            piece += 1
            count = 0
            sample = sample._replace(begins_episode=True)
        if not count:
            began = times[sample.number]
        count += 1
        yield piece, sample


def _recording_times(
    frames: Iterable[SourceFrame],
    track: ActionTrack | None,
    times: "array[float]",
    stop: threading.Event,
) -> Iterator[SourceFrame]:
    """Pass frames on and append to `times` the seconds from the first of them.

    Of frames without times their numbers are appended.
    """
    first = None
    for frame in frames:
        if stop.is_set():
            return
        if frame.time is None and track and track.by == "time":
            raise Unreadable(
                f"{track.path.name} gives times, which these frames do not have: give frames"
            )
        if first is None:
            first = frame.time
        if frame.time is None or first is None:
            times.append(len(times))
        else:
            times.append(float(frame.time - first))
        yield frame


def _resized(samples: Iterable[Sample], frame_format: FrameFormat) -> Iterator[Pixels]:
    """Decode and resize samples. A repeated frame is decoded once."""
    last_number = -1
    pixels = None
    aspect = 1.0
    for number, begins, frame in samples:
        if number != last_number or pixels is None:
            image = frame.image()
            aspect = float(image.width * frame.aspect / image.height)
            pixels = fit(image, frame_format.size, frame_format.fit, frame.aspect)
        yield Pixels(number, begins, pixels, aspect)
        last_number = number


def _make_part(
    samples: list[Pixels], track: ActionTrack | None, times: Sequence[float], piece: int
) -> VideoPart:
    vectors = None
    if track is None:
        actions = np.zeros(len(samples), np.int64)
    elif track.vectors is None:
        actions = longest_actions(track, np.array([s.number for s in samples]), times)
    else:  # which have no duration that could be compared: the ones at the frames
        begin = samples[0].number
        seconds = np.array(times[begin : samples[-1].number + 1])
        rows = action_labels.rows_at(track, begin, seconds)[[s.number - begin for s in samples]]
        actions = track.ids[rows]
        vectors = track.vectors[rows]
    frames = np.stack([s.pixels for s in samples])
    starts = np.array([s.begins_episode for s in samples])
    return VideoPart(frames, actions, starts, piece, samples[0].aspect, vectors)


def _end_of(track: ActionTrack | None, times: "array[float]") -> End:
    """The end of a source that was read completely."""
    if not times:
        return End("it holds no frames")
    note = action_labels.mismatch(track, len(times)) if track else ""
    return End(note, refused=bool(note))


def longest_actions(track: ActionTrack, numbers: np.ndarray, times) -> np.ndarray:
    """(n,) int64: for each of the source's frames `numbers` (n,), the action held longest.

    The time from one of these frames to the next counts; of equally long actions the first is
    taken. A repeated frame and the last one have the action at that frame. `times` are the seconds
    of all frames of the source.
    """
    begin = int(numbers[0])
    until = np.append(numbers[1:], numbers[-1] + 1)
    every = action_labels.per_frame(track, begin, np.array(times[begin : numbers[-1] + 1]))
    actions = every[numbers - begin]
    for i in np.flatnonzero(until - numbers > 1):
        between = every[numbers[i] - begin : until[i] - begin]
        held, first, count = np.unique(between, return_index=True, return_counts=True)
        actions[i] = held[np.lexsort((first, -count))[0]]
    return actions


def in_order(
    streams: Iterable[Callable[[], Iterator[T]]], workers: int
) -> Generator[Iterator[T], None, None]:
    """An iterator over each stream, in order, while threads make the first items of the next ones.

    Up to `workers` streams are begun ahead. Read each to its end before the next. An error in a
    stream is raised where its item is requested.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="import")
    waiting: list[tuple[Iterator[T], Future]] = []
    remaining = iter(streams)
    try:
        while True:
            for make in remaining:
                stream = make()
                waiting.append((stream, pool.submit(next, stream, None)))
                if len(waiting) > workers:
                    break
            if not waiting:
                return
            yield _one_ahead(pool, *waiting.pop(0))
    finally:
        pool.shutdown(cancel_futures=True)


def _one_ahead(pool: ThreadPoolExecutor, stream: Iterator[T], job: Future) -> Iterator[T]:
    """The items of a stream, while a thread makes the next one. `job` makes the first."""
    item = job.result()
    while item is not None:
        job = pool.submit(next, stream, None)
        yield item
        item = job.result()


# Writing


class Owner(NamedTuple):
    """The piece of a video that segments belong to."""

    level: int
    piece: int


class Written(NamedTuple):
    """The result of `write`."""

    store: Store
    """The store, extended where that was necessary."""
    segments: list[Segment]
    """For a later commit."""
    reason: str = ""
    """Why there are no segments."""


def write(
    store: Store,
    source: Source,
    level: int,
    stream: Iterable[VideoPart | End],
    offset: int,
    frame_format: FrameFormat,
) -> Written:
    """Write a video from `offset` on, one segment for each part.

    The pieces of the video have the levels from `level` on. One that begins without a scene of
    `frame_format.min_frames` frames, such as the rest at the end, belongs to the piece before it.
    Nothing is written if no scene has `frame_format.min_frames` frames, or if the source is
    refused.
    """
    segments: list[Segment] = []
    pending: list[VideoPart] = []
    lengths: list[int] = []
    min_frames = frame_format.min_frames
    owner = Owner(level, 0)
    last_piece = 0
    end = End()
    for item in stream:
        if isinstance(item, End):
            end = item
            continue
        pending.append(item)
        lengths += episode_lengths(item)
        # A video that may be left out is not written yet, unless it is long.
        while pending and (max(lengths) >= min_frames or len(pending) > 2):
            part = pending.pop(0)
            if part.piece > last_piece and max(episode_lengths(part)) >= min_frames:
                owner = Owner(owner.level + 1, part.piece)
            last_piece = part.piece
            store, segment = _write_part(store, source, owner, part, offset)
            segments.append(segment)
            offset += data.padded_length(segment.length)
    if end.refused or not (segments or pending):
        return Written(store, [], end.note)
    if max(lengths) < min_frames:
        short = _too_short(lengths, frame_format)
        return Written(store, [], f"{short}; {end.note}" if end.note else short)
    total = sum(segment.length for segment in segments)
    info = {
        "file": source.name,
        "bytes": source.size(),
        "digest": source.digest,
        "note": f"after {total} frames: {end.note}" if end.note else "",
    }
    return Written(store, [segment._replace(info=segment.info | info) for segment in segments])


def _too_short(lengths: list[int], frame_format: FrameFormat) -> str:
    """Why a video with episodes of these lengths is left out, and the flags that decide that."""
    rate = f" at --cfg.fps {frame_format.fps:g}" if frame_format.fps else ""
    least = f"fewer than --cfg.min-frames {frame_format.min_frames}"
    if len(lengths) == 1:
        return f"it has {lengths[0]} frames{rate}, {least}"
    what = f"the longest of its {len(lengths)} scenes has {max(lengths)} frames{rate}, {least}"
    if frame_format.cuts and sum(lengths) >= frame_format.min_frames:
        return f"{what}: a --cfg.cuts above {frame_format.cuts:g}, or 0, finds fewer cuts"
    return what


def _write_part(
    store: Store, source: Source, owner: Owner, part: VideoPart, offset: int
) -> tuple[Store, Segment]:
    count = len(part.frames)
    if offset + count > store.arrays["frames"].shape[0]:
        blocks = -(-(offset + count) // RESERVED_FRAMES)
        store = data.reserve(store, blocks * RESERVED_FRAMES)
    split = sources.split_of(source.name, owner.piece)
    info = {"episodes": len(episode_lengths(part)), "aspect": round(part.aspect, 4)}
    recording = data.Recording(
        owner.level,
        part.frames,
        part.actions,
        np.zeros(count),
        part.episode_starts,
        split,
        info,
        part.vectors,
    )
    return store, data.write_segment(store, offset, recording)


def episode_lengths(part: VideoPart) -> list[int]:
    """The lengths of a part's episodes, the first of which begins with the part."""
    return np.diff(np.flatnonzero([True, *part.episode_starts[1:], True])).tolist()


def segments_by_video(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    """The segments of each video, by its name."""
    videos: dict[str, list[Segment]] = {}
    for segment in segments:
        videos.setdefault(segment.info["file"], []).append(segment)
    return videos
