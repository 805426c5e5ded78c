"""Clips drawn from a video store: where they may start, which ones a step reads, and reading them ahead."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from genie_fn.data.storage import (
    SPLITS,
    Segment,
)
from genie_fn.data.store import Batch, DamagedClips, Store, _lost, _read, read_clips
from genie_fn.errors import UserError

T = TypeVar("T")


RETRIES = 10  # draws in place of damaged clips; should all of these be damaged too, the dataset is


def clip_starts(
    store: Store, split: str, num_frames: int, skip: Callable[[str], None] | None = None
) -> np.ndarray:
    """(S,) int64: every offset o of `split` where frames o..o+num_frames-1 lie in one segment and in one episode.

    `skip` is told of segments that are left out because their cuts cannot be read; without it that is an error.
    """
    if split not in SPLITS or num_frames < 1:
        raise UserError(
            f"Cannot cut clips of {num_frames} frames from split {split!r}: choose one of {SPLITS}."
        )
    segments = [
        segment
        for segment in store.segments
        if segment.split == split and segment.length >= num_frames
    ]
    found = [np.empty(0, np.int64)]
    for segment, starts in zip(segments, _episode_starts(store, segments, skip), strict=True):
        if starts is not None:
            episode, first = np.cumsum(starts), np.arange(segment.length - num_frames + 1)
            found.append(segment.offset + first[episode[first] == episode[first + num_frames - 1]])
    starts = np.concatenate(found)
    if not len(starts):
        uncut = f"{store.root} has no {split} clip of {num_frames} frames without a cut"
        raise UserError(f"{uncut}: collect or import more, or ask for fewer frames.")
    return starts


def _episode_starts(
    store: Store, segments: list[Segment], skip: Callable[[str], None] | None
) -> list[np.ndarray | None]:
    """Of every segment its `episode_starts`; None where they cannot be read and `skip` has been told so."""
    spans = [(segment.offset, segment.offset + segment.length) for segment in segments]
    try:
        whole = _read(store, "episode_starts", 0, spans[-1][1] if spans else 0)
        return [whole[start:stop] for start, stop in spans]
    except Exception:  # tensorstore raises several kinds
        lost = [_lost(store, ("episode_starts",), *span) for span in spans]
    for sentence in filter(None, lost):
        if skip is None:
            raise DamagedClips({0: sentence})
        skip(sentence)
    return [
        None if bad else _read(store, "episode_starts", *span)
        for bad, span in zip(lost, spans, strict=True)
    ]


def clip_offsets(
    starts: np.ndarray, seed: int, step: int, batch_size: int, again: int = 0
) -> np.ndarray:
    """(batch_size,) int64 drawn from `starts`: a pure function of (seed, step), so a resumed run sees the same data.

    `again` numbers further draws of the same step.
    """
    bits = np.random.Philox(
        key=np.array([seed % 2**64, step % 2**64], np.uint64), counter=[0, 0, 0, again]
    )
    return starts[np.random.Generator(bits).integers(0, len(starts), batch_size)]


def eval_clips(
    store: Store,
    split: str,
    num_frames: int,
    count: int,
    seed: int = 0,
    skip: Callable[[str], None] | None = None,
) -> np.ndarray:
    """(count,) int64: fixed clips for evaluation, all different, drawn from as many levels as possible, evenly."""
    starts = clip_starts(store, split, num_frames, skip)
    if len(starts) < count:
        raise UserError(
            f"{store.root} has {len(starts)} {split} clips of {num_frames} frames, fewer than the {count} asked for: "
            f"collect or import more, or ask for fewer."
        )
    starts = np.random.default_rng(seed % 2**64).permutation(starts)
    segment = np.searchsorted(
        np.array([entry.offset for entry in store.segments]), starts, side="right"
    )
    grouped = np.argsort(segment, kind="stable")
    _, first, sizes = np.unique(segment[grouped], return_index=True, return_counts=True)
    turn = np.empty(len(starts), np.int64)  # how many clips of the same level come before this one
    turn[grouped] = np.arange(len(starts)) - np.repeat(first, sizes)
    return starts[np.argsort(turn, kind="stable")[:count]]


def batches(
    store: Store,
    split: str,
    num_frames: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    share: slice = slice(None),
    threads: int = 2,
    read: Callable[[np.ndarray], T] | None = None,
    skip: Callable[[str], None] | None = None,
) -> "Batches[Batch | T]":
    """An endless iterator whose s-th item is a `share` of the batch of step `start_step + s`: see `clip_offsets`.

    `read` makes a batch of its clips' offsets, by default `read_clips`. So many `threads` read four batches ahead;
    they end when the iterator is closed or dropped, and an error in one of them is raised here. With `skip`, clips that
    cannot be read are told to it and others take their places: which ones depends on nothing but the step and what is
    damaged.
    """
    starts, read = (
        clip_starts(store, split, num_frames, skip),
        read or (lambda o: read_clips(store, o, num_frames)),
    )

    def read_step(step: int) -> tuple[Batch | T, list[str]]:
        offsets, told = clip_offsets(starts, seed, step, batch_size)[share], []
        for again in range(1, RETRIES):
            try:
                return read(offsets), told
            except DamagedClips as damage:
                if skip is None:
                    raise
                told += damage.lost.values()
                lost = [*damage.lost]
                offsets[lost] = clip_offsets(starts, seed, step, batch_size, again)[share][lost]
        return read(offsets), told

    return Batches(_prefetched(read_step, start_step, 4, threads), skip)


class Batches(Iterator[T]):
    """What `batches` returns; `skipped` counts the damaged clips whose places others have taken."""

    def __init__(self, items: Iterator[tuple[T, list[str]]], skip: Callable[[str], None] | None):
        self._items, self._skip, self.skipped = items, skip, 0

    def __next__(self) -> T:
        batch, told = next(self._items)
        for sentence in told:
            self._skip(sentence)
        self.skipped += len(told)
        return batch

    def close(self) -> None:
        self._items.close()


def _prefetched(read: Callable[[int], T], step: int, prefetch: int, threads: int) -> Iterator[T]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="clips")
    try:
        queue = deque(pool.submit(read, step + ahead) for ahead in range(prefetch))
        while True:
            batch = queue.popleft().result()
            step += 1
            queue.append(pool.submit(read, step + prefetch - 1))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
