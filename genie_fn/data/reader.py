"""The clip reader: the clips of every training step, with one policy for damaged files."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from genie_fn.data.clips import (
    clip_offsets,
    clip_shares,
    clip_starts,
    damaged_episodes,
    read_clips,
    segments_with_clips,
    spread_clips,
)
from genie_fn.data.storage import Segment
from genie_fn.data.store import DamagedClips, Recording, Store, read_segment
from genie_fn.runtime.console import console

T = TypeVar("T")

OnDamage = Literal["refuse", "skip"]
MAX_DRAWS = 10  # of clips for one step; if all of these are damaged, the dataset is
BATCHES_AHEAD = 4


@dataclass(frozen=True)
class ClipReader:
    """Reads clips of `num_frames` frames from one split of a store.

    `on_damage` decides what happens if a file is missing or damaged. `refuse` raises DamagedClips.
    `skip` reads other clips instead and prints a message once for each file. Which clips replace
    damaged ones depends only on the seed, the step and the damage.
    """

    store: Store
    split: str
    num_frames: int
    on_damage: OnDamage = "refuse"
    load: Callable[[np.ndarray], Any] | None = None
    """Makes a batch from the offsets of its clips, in a reading thread; by default `read_clips`."""
    flags: str = ""
    """The flags to lower where the split has no clip, as in `clip_starts`."""
    reported: set[str] = field(default_factory=set, compare=False)
    """The messages printed so far."""

    @cached_property
    def readable(self) -> Store:
        """The store; if damage is skipped, without segments whose episodes cannot be read."""
        if self.on_damage == "refuse":
            return self.store
        segments = segments_with_clips(self.store, self.split, self.num_frames)
        damage = damaged_episodes(self.store, segments)
        self.report(damage.values())
        lost = {segments[i].offset for i in damage}
        kept = tuple(s for s in self.store.segments if s.offset not in lost)
        return replace(self.store, segments=kept)

    def batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        share: slice = slice(None),
        threads: int = 2,
    ) -> "Batches":
        """An endless iterator over the batches of the steps from `start_step` on.

        The clips of a batch are `clip_offsets(starts, seed, step, batch_size)[share]`, of a mixture
        with its `clip_shares`. `threads` threads read a few batches ahead; they end when the
        iterator is closed or garbage-collected. An error in a thread is raised by the iterator.
        """
        kind = self.split, self.num_frames, self.flags
        starts = clip_starts(self.readable, *kind)
        shares = clip_shares(self.readable, starts, *kind)

        def draw(step: int, attempt: int) -> np.ndarray:
            return clip_offsets(starts, seed, step, batch_size, attempt, shares)[share]

        def load_step(step: int) -> tuple[Any, list[str]]:
            return self._load_step(step, draw)

        return Batches(self, _prefetched(load_step, start_step, threads))

    def _load_step(
        self, step: int, draw: Callable[[int, int], np.ndarray]
    ) -> tuple[Any, list[str]]:
        """The batch of a step, and one sentence for every damaged clip that was replaced."""
        offsets = draw(step, 0)
        sentences: list[str] = []
        for attempt in range(1, MAX_DRAWS):
            try:
                return self._load(offsets), sentences
            except DamagedClips as damage:
                if self.on_damage == "refuse":
                    raise
                sentences += damage.lost.values()
                lost = list(damage.lost)
                offsets[lost] = draw(step, attempt)[lost]
        return self._load(offsets), sentences

    def _load(self, offsets: np.ndarray) -> Any:
        if self.load is not None:
            return self.load(offsets)
        return read_clips(self.store, offsets, self.num_frames)

    def fixed_batch(self, count: int, seed: int = 0) -> Any:
        """A batch of at most `count` clips, the same ones for the same seed: see `spread_clips`.

        Clips that cannot be read are replaced by repeating the others.
        """
        starts = clip_starts(self.readable, self.split, self.num_frames, self.flags)
        offsets = spread_clips(self.readable, starts, count, seed)
        try:
            return self._load(offsets)
        except DamagedClips as damage:
            undamaged = np.delete(offsets, list(damage.lost))
            if self.on_damage == "refuse" or not len(undamaged):
                raise
            self.report(damage.lost.values())
            return self._load(np.resize(undamaged, len(offsets)))

    def check(self) -> None:
        """Raise UserError if there is no clip, and DamagedClips if the episodes cannot be read."""
        clip_starts(self.readable, self.split, self.num_frames, self.flags)

    def read_segment(self, segment: Segment) -> Recording | None:
        """The content of one segment; None if it cannot be read and damage is skipped."""
        try:
            return read_segment(self.store, segment)
        except DamagedClips as damage:
            if self.on_damage == "refuse":
                raise
            self.report(damage.lost.values())
            return None

    def report(self, sentences: Iterable[str]) -> None:
        """Print a message for every sentence that was not reported before."""
        for sentence in sentences:
            if sentence not in self.reported:
                self.reported.add(sentence)
                console.print(
                    f"{sentence}: other clips are used instead", soft_wrap=True, markup=False
                )


class Batches(Iterator[T], Generic[T]):
    """The iterator that `ClipReader.batches` returns."""

    def __init__(self, reader: ClipReader, items: Generator[tuple[T, list[str]], None, None]):
        self._reader = reader
        self._items = items
        self.skipped = 0
        """The number of damaged clips that were replaced so far."""

    def __next__(self) -> T:
        batch, sentences = next(self._items)
        self._reader.report(sentences)
        self.skipped += len(sentences)
        return batch

    def close(self) -> None:
        self._items.close()


def _prefetched(load: Callable[[int], T], step: int, threads: int) -> Generator[T, None, None]:
    """`load(step)`, `load(step + 1)`, … in order, loaded ahead by threads."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="clips")
    try:
        queue = deque(pool.submit(load, step + ahead) for ahead in range(BATCHES_AHEAD))
        while True:
            batch = queue.popleft().result()
            step += 1
            queue.append(pool.submit(load, step + BATCHES_AHEAD - 1))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
