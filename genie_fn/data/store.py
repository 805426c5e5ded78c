"""The video store (tensorstore, zarr3), clip sampling and prefetch.

A store is a folder: five arrays that run along one flat time axis, and a manifest, `store.json`, that says which parts
of that axis exist. One part is a `Segment`: the frames of one level (or of one imported video), lossless, with the
action and the reward of each frame. Every segment starts on its own block of the time axis, so appending one never
rewrites another, and it is written before the manifest names it: whatever a killed writer leaves behind does not exist.
`actions[t]` is taken at frame t and leads to frame t+1; `rewards[t]` is what it earned; `episode_starts[t]` is true
where frame t does not continue frame t-1.
"""

import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from genie_fn.data import storage
from genie_fn.data.storage import (
    BLOCK,
    CHUNK,
    MANIFEST,
    Segment,
    array_spec,
    damaged,
    open_arrays,
)
from genie_fn.errors import UserError
from genie_fn.runtime.files import LOCK, partial_name, reason, write_atomically, writing

DTYPES = {
    "frames": "uint8",
    "actions": "uint8",
    "rewards": "float32",
    "level_seeds": "int32",
    "episode_starts": "bool",
}


CHECKED = ("frames", "actions", "rewards", "episode_starts")  # what a segment's checksum covers


class Recording(NamedTuple):
    """What becomes one segment: `length` consecutive frames of one level or video, with what happened at each."""

    level: int  # level seed, or the number of an imported video
    frames: np.ndarray  # (length, H, W, 3) uint8 RGB
    actions: np.ndarray  # (length,) action ids; zeros where unknown
    rewards: np.ndarray  # (length,) float32
    episode_starts: np.ndarray  # (length,) bool; the first is taken as true
    split: str = ""  # empty: `split_of(level)`
    info: dict = {}  # counts to keep with the segment, such as levels completed


class DamagedClips(UserError):
    """Clips that cannot be read: `lost` says why, by their places among those that were asked for."""

    def __init__(self, lost: dict[int, str]):
        super().__init__(
            f"{next(iter(lost.values()))}: restore it from a copy, or train without: --cfg.damaged skip"
        )
        self.lost = lost


class Batch(NamedTuple):
    """B clips of T frames: `frames` (B, T, H, W, 3) uint8, `actions` (B, T-1) int64, action t between frames t, t+1."""

    frames: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class Store:
    """An open store. `meta` says how the data was collected; `data_hash` changes whenever any of the data does."""

    root: Path
    meta: dict
    height: int
    width: int
    num_actions: int
    action_names: tuple[str, ...]
    segments: tuple[Segment, ...]
    data_hash: str
    arrays: dict[str, ts.TensorStore]

    def count(self, split: str) -> int:
        """Frames in a split."""
        return sum(segment.length for segment in self.segments if segment.split == split)


def split_of(level: int) -> str:
    """The split of a level seed. It depends on the seed alone, so appending levels never moves one across splits."""
    return {8: "val", 9: "test"}.get(level % 10, "train")


def _kinds(height: int, width: int) -> dict[str, tuple[str, tuple, int]]:
    """Dtype, shape of an entry, and entries that are compressed together, of every array of a store."""
    entries = {"frames": ((height, width, 3), CHUNK)}
    return {name: (dtype, *entries.get(name, ((), BLOCK))) for name, dtype in DTYPES.items()}


def open_store(root: str | Path, cache_bytes: int = 1 << 30) -> Store:
    """Open the store at `root`, keeping at most `cache_bytes` of decoded frames in memory.

    Raises UserError where there is none, where the manifest or an array is damaged, or an array is shorter than the
    manifest says. The content of the segments is not read: see `verify`.
    """
    root = Path(root)
    header, segments, data_hash = storage.read_manifest(root)
    arrays = open_arrays(root, _kinds(header["height"], header["width"]), cache_bytes)
    end = segments[-1].offset + segments[-1].length if segments else 0
    for name, array in arrays.items():
        if array.shape[0] < end:
            raise damaged(
                f"{root / name} does not hold the {end} entries that {MANIFEST} promises", root
            )
    return Store(root=root, **header, segments=segments, data_hash=data_hash, arrays=arrays)


def create(
    root: str | Path,
    meta: dict,
    height: int,
    width: int,
    num_actions: int,
    action_names: Iterable[str] = (),
) -> Store:
    """Make an empty store at `root`, a new or empty folder, for frames of `height` x `width`.

    `num_actions` is 0 where the actions are unknown. `meta` must survive JSON. Raises UserError if `root` is in use.
    """
    root = Path(root)
    if (root / MANIFEST).exists():
        raise UserError(
            f"{root} already holds a dataset: choose another folder, or delete it first."
        )
    ours = {*DTYPES, LOCK, partial_name(root / MANIFEST).name}
    if root.exists() and (not root.is_dir() or {entry.name for entry in root.iterdir()} - ours):
        raise UserError(
            f"{root} already holds other files: choose a new or empty folder for the dataset."
        )
    store = Store(root, meta, height, width, num_actions, tuple(action_names), (), "", {})
    try:
        storage.check_header(vars(store))
    except ValueError as error:
        raise UserError(
            f"A dataset cannot be made at {root}, for its {error}: resize or rename what it is to hold."
        ) from error
    with writing(root):
        for name, kind in _kinds(height, width).items():
            ts.open(array_spec(root / name, *kind), open=True, create=True).result()
    return commit(store, ())


def commit(store: Store, segments: Iterable[Segment]) -> Store:
    """Make `segments` (the old ones too), which are already written, the content of the store, atomically."""
    write_atomically(
        store.root / MANIFEST, storage.canonical(storage.signed(vars(store), segments))
    )
    return open_store(store.root)


def blocks(length: int) -> int:
    """Entries of the time axis that a segment of `length` frames takes: whole blocks."""
    return -(-length // BLOCK) * BLOCK


def next_offset(store: Store) -> int:
    """Where the next segment of the time axis starts."""
    return max((segment.offset + blocks(segment.length) for segment in store.segments), default=0)


def reserve(store: Store, length: int) -> Store:
    """Extend the arrays to `length` entries where they are shorter; what is there stays."""
    with writing(store.root):
        for array in store.arrays.values():
            if array.shape[0] < length:
                array.resize(exclusive_max=[length, *array.shape[1:]], expand_only=True).result()
    return open_store(store.root)


def _checksum(recording: Recording) -> int:
    crc = 0
    for name in CHECKED:
        crc = zlib.crc32(np.ascontiguousarray(getattr(recording, name), DTYPES[name]), crc)
    return crc


def write_segment(store: Store, offset: int, recording: Recording) -> Segment:
    """Write `recording` at `offset` (a multiple of BLOCK, space reserved) and return its manifest entry for `commit`.

    Processes may write different segments at the same time. The data is on disk when this returns.
    """
    length = len(recording.frames)
    starts = np.array(recording.episode_starts, bool)
    starts[0] = True
    recording = recording._replace(episode_starts=starts)
    values = recording._asdict() | {"level_seeds": np.full(length, recording.level)}
    jobs = [
        array[offset : offset + length].write(np.ascontiguousarray(values[name], DTYPES[name]))
        for name, array in store.arrays.items()
    ]
    crc = _checksum(recording)
    with writing(f"level {recording.level} of {store.root}"):
        for job in jobs:
            job.result()
    split = recording.split or split_of(recording.level)
    return Segment(recording.level, split, offset, length, crc, recording.info)


def alone(root: str | Path, doing: str, instead: str) -> AbstractContextManager:
    """Hold the store at `root` as the only one that writes there: see `storage.alone`."""
    return storage.alone(root, DTYPES, doing, instead)


def append_segments(store: Store, recordings: Iterable[Recording]) -> Store:
    """Append recordings of any length one by one; each exists from its own commit on. Returns the store, reopened."""
    with alone(store.root, "collects into", "choose another folder"):
        return _append(open_store(store.root), recordings)


def _append(store: Store, recordings: Iterable[Recording]) -> Store:
    for recording in recordings:
        if recording.frames.shape[1:] != (store.height, store.width, 3) or not len(
            recording.frames
        ):
            raise UserError(
                f"Recording {recording.level} has frames of shape {recording.frames.shape}, but {store.root} holds "
                f"{store.height}x{store.width} RGB: resize it first."
            )
        offset = next_offset(store)
        store = reserve(store, offset + blocks(len(recording.frames)))
        store = commit(store, (*store.segments, write_segment(store, offset, recording)))
    return store


def _read(store: Store, name: str, start: int, stop: int) -> np.ndarray:
    """Entries [start, stop) of an array. No memory is taken for more than there are files for."""
    files = -(-stop // BLOCK) - start // BLOCK
    if files > 2 and files > len(os.listdir(store.root / name / "c")):
        raise ValueError(f"{name} has fewer than {files} files")
    return np.asarray(store.arrays[name][start:stop].read().result())


def _lost(store: Store, names: Iterable[str], start: int, stop: int) -> str | None:
    """Which level, in which file, is the first that cannot be read of entries [start, stop) of some arrays."""
    for name in names:
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            try:
                _read(store, name, max(start, block * BLOCK), min(stop, (block + 1) * BLOCK))
            except Exception as error:  # tensorstore raises several kinds
                at = bisect_right(store.segments, start, key=lambda segment: segment.offset) - 1
                file = store.root / name / "c" / str(block) / ("0/0/0" if name == "frames" else "")
                what = "missing" if not file.exists() else f"damaged on disk ({reason(error)})"
                return f"Level {store.segments[at].level} of {store.root} is {what}, in the file {file}"
    return None


def read_segment(store: Store, segment: Segment) -> Recording:
    """All of one segment. Raises UserError if its files are missing or damaged."""
    start, stop = segment.offset, segment.offset + segment.length
    try:
        arrays = {name: _read(store, name, start, stop) for name in CHECKED}
    except Exception as error:  # tensorstore raises several kinds
        lost = (
            _lost(store, CHECKED, start, stop)
            or f"Level {segment.level} of {store.root} could not be read"
        )
        raise DamagedClips({0: lost}) from error
    return Recording(segment.level, **arrays, split=segment.split, info=segment.info)


def verify(store: Store) -> int:
    """Recompute every checksum; a UserError names the first segment that differs. Returns the number of frames."""
    for segment in store.segments:
        if _checksum(read_segment(store, segment)) != segment.crc:
            raise damaged(f"Level {segment.level} of {store.root} is damaged on disk", store.root)
    return sum(segment.length for segment in store.segments)


def read_clips(store: Store, offsets: np.ndarray, num_frames: int) -> Batch:
    """Read the clips that start at `offsets` (B,) int64. Raises DamagedClips where files are damaged."""
    frames = np.empty((len(offsets), num_frames, store.height, store.width, 3), np.uint8)
    source = store.arrays["frames"]
    try:
        # Slices into one preallocated array are more than twice as fast as one read through an index array.
        clips = zip(frames, offsets.tolist(), strict=True)
        jobs = [ts.array(clip).write(source[start : start + num_frames]) for clip, start in clips]
        actions = (
            store.arrays["actions"][offsets[:, None] + np.arange(num_frames - 1)].read().result()
        )
        for job in jobs:
            job.result()
    except Exception as error:  # tensorstore raises several kinds
        parts = ((("frames",), num_frames), (("actions",), num_frames - 1))
        why = (
            (_lost(store, names, o, o + length) for names, length in parts)
            for o in offsets.tolist()
        )
        lost = {
            i: sentence
            for i, found in enumerate(why)
            if (sentence := next(filter(None, found), None))
        }
        raise DamagedClips(
            lost or {0: f"{store.root} could not be read ({reason(error)})"}
        ) from error
    return Batch(frames, np.asarray(actions).astype(np.int64))
