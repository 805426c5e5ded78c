"""The video store: a folder of arrays (tensorstore, zarr3) along one time axis, and a manifest.

The arrays of a store share one flat time axis. The manifest, `store.json`, lists the parts of that
axis that exist. A part is a `Segment`: the frames of one level (or of one imported video), stored
losslessly, with the action and the reward of each frame. Every segment starts on its own block of
the time axis, so appending a segment never rewrites another. A segment is written before the
manifest lists it: data that a killed writer left behind is not part of the store.

`actions[t]` is taken at frame t and leads to frame t+1; `rewards[t]` is the reward it earned;
`episode_starts[t]` is true where frame t does not continue frame t-1.
"""

import os
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from genie_fn.data import storage
from genie_fn.data.storage import BLOCK, CHUNK, MANIFEST, ArrayKind, Segment
from genie_fn.errors import UserError
from genie_fn.runtime.files import LOCK, partial_name, reason, write_atomically, writing

DTYPES = {
    "frames": "uint8",
    "actions": "uint8",  # or uint16: see `storage.action_dtype`
    "rewards": "float32",
    "level_seeds": "int32",
    "episode_starts": "bool",
}
VECTORS = "action_vectors"
"""An array that only stores whose actions are vectors have, float32; `actions` then holds the number of
the prototype nearest to each vector (see `vectors`)."""
CHECKED = ("frames", "actions", "rewards", "episode_starts")  # covered by a segment's checksum


class Recording(NamedTuple):
    """The content of one segment: `length` consecutive frames of one level or video."""

    level: int  # level seed, or the number of an imported video
    frames: np.ndarray  # (length, H, W, 3) uint8 RGB
    actions: np.ndarray  # (length,) action ids; zeros where unknown
    rewards: np.ndarray  # (length,) float32
    episode_starts: np.ndarray  # (length,) bool; the first is taken as true
    split: str = ""  # empty: `split_of(level)`
    info: Mapping[str, Any] = MappingProxyType(
        {}
    )  # kept with the segment, such as levels completed
    action_vectors: np.ndarray | None = (
        None  # (length, action_size) float32, if actions are vectors
    )


class DamagedClips(UserError):
    """Raised for clips that cannot be read.

    `lost` maps their positions among the requested clips to sentences with the reason.
    """

    def __init__(self, lost: dict[int, str]):
        first = next(iter(lost.values()))
        super().__init__(
            f"{first}: restore it from a copy, or train without it with --cfg.damaged skip"
        )
        self.lost = lost


class Part(NamedTuple):
    """A dataset of a mixture."""

    store: "Store"
    """The dataset alone."""
    base: int
    """Where its time axis begins on that of the mixture."""


@dataclass(frozen=True)
class Store:
    """An open store. `meta` says how the data was collected; `data_hash` identifies the content."""

    root: Path
    meta: dict[str, Any]
    height: int
    width: int
    num_actions: int
    action_names: tuple[str, ...]
    segments: tuple[Segment, ...]
    data_hash: str
    arrays: dict[str, ts.TensorStore]
    stride: int = 1
    """Frames from one frame of a clip to the next. The action between two frames of a clip is the
    first one of those between them."""
    action_size: int = 0
    """The numbers of an action that is a vector; 0: actions are numbers of `action_names`."""
    as_vectors: bool = False
    """Whether the actions of clips are vectors, where the store has some, and not their numbers."""
    parts: tuple[Part, ...] = ()
    """The datasets of a mixture, whose `root` is that of the first (see `mixture`); empty for one
    dataset."""
    weights: tuple[float, ...] = ()
    """The proportions in which clips are drawn from the datasets of a mixture; empty: every clip is
    as likely as any other."""

    def span(self, num_frames: int) -> int:
        """The number of successive frames that a clip of `num_frames` frames covers."""
        return (num_frames - 1) * self.stride + 1

    def count(self, split: str) -> int:
        """The number of frames in a split."""
        return sum(segment.length for segment in self.segments if segment.split == split)

    @property
    def datasets(self) -> tuple["Store", ...]:
        """The datasets of a mixture; a dataset has itself alone."""
        return tuple(part.store for part in self.parts) or (self,)

    @property
    def name(self) -> str:
        """The folder, or those of a mixture, for messages."""
        roots = [str(dataset.root) for dataset in self.datasets]
        return roots[0] if len(roots) == 1 else f"the mixture of {' and '.join(roots)}"

    def part_at(self, offset: int) -> Part:
        """The dataset that holds the frame at `offset`."""
        parts = self.parts or (Part(self, 0),)
        return parts[bisect_right(parts, offset, key=lambda part: part.base) - 1]

    def has_actions_of(self, other: "Store") -> bool:
        """Whether both have the same recorded actions in the same order, or both have none."""
        own, others = ((s.num_actions, s.action_names, s.action_size) for s in (self, other))
        prototypes = [s.meta.get("prototypes") for s in (self, other)]
        return own == others and (not self.action_size or prototypes[0] == prototypes[1])


def content_hash(store: Store, segments: int) -> str:
    """A hash of a store's first `segments` segments: of their frames, actions and rewards.

    Segments are only ever appended, so a store that has grown has the hash that it had of its
    first segments. The split of a segment is not part of it, nor is how the data was collected.
    """
    rows = [(s.level, s.offset, s.length, s.crc) for s in store.segments[:segments]]
    return storage.sha256({"size": [store.height, store.width], "segments": rows})


def is_store(root: str | Path) -> bool:
    """Whether there is a dataset in a folder."""
    return (Path(root) / MANIFEST).is_file()


def split_of(level: int) -> str:
    """The split of a level. It depends on the level seed alone, so appending levels moves none."""
    return {8: "val", 9: "test"}.get(level % 10, "train")


def _array_kinds(
    height: int, width: int, num_actions: int, action_size: int
) -> dict[str, ArrayKind]:
    """The kind of every array of a store."""
    kinds = {name: ArrayKind(dtype) for name, dtype in DTYPES.items()}
    kinds["frames"] = ArrayKind("uint8", (height, width, 3), CHUNK)
    kinds["actions"] = ArrayKind(storage.action_dtype(num_actions))
    if action_size:
        kinds[VECTORS] = ArrayKind("float32", (action_size,))
    return kinds


def _checked(has_vectors: bool) -> tuple[str, ...]:
    """The arrays that a segment's checksum covers."""
    return (*CHECKED, VECTORS) if has_vectors else CHECKED


# Opening and making


def open_store(root: str | Path, cache_bytes: int = 1 << 30) -> Store:
    """Open the store at `root`, with at most `cache_bytes` of decoded frames cached in memory.

    Raises UserError if there is no store, if the manifest or an array is damaged, or if an array is
    shorter than the manifest says. The content of the segments is not read: see `verify`.
    """
    root = Path(root)
    header, segments, data_hash = storage.read_manifest(root)
    sizes = (header[name] for name in ("height", "width", "num_actions", "action_size"))
    kinds = _array_kinds(*sizes)
    arrays = storage.open_arrays(root, kinds, cache_bytes)
    end = segments[-1].offset + segments[-1].length if segments else 0
    for name, array in arrays.items():
        if array.shape[0] < end:
            what = f"{root / name} does not hold the {end} entries listed in {MANIFEST}"
            raise storage.damaged(what, root)
    return Store(root=root, **header, segments=segments, data_hash=data_hash, arrays=arrays)


def create(
    root: str | Path,
    meta: dict[str, Any],
    height: int,
    width: int,
    num_actions: int,
    action_names: Iterable[str] = (),
    action_size: int = 0,
) -> Store:
    """Make an empty store for frames of `height` x `width` at `root`, a new or empty folder.

    `num_actions` is 0 if the actions are unknown; `action_size` is the length of vectors of actions.
    `meta` must be serialisable as JSON. Raises
    UserError if `root` is in use.
    """
    root = Path(root)
    _check_unused(root)
    names = tuple(action_names)
    store = Store(
        root, meta, height, width, num_actions, names, (), "", {}, action_size=action_size
    )
    try:
        storage.check_header(vars(store))
    except ValueError as error:
        raise UserError(
            f"a dataset cannot be made at {root} because {error}: resize the frames or reduce the "
            "actions"
        ) from error
    with writing(root):
        for name, kind in _array_kinds(height, width, num_actions, action_size).items():
            ts.open(storage.array_spec(root / name, kind), open=True, create=True).result()
    return commit(store, ())


def _check_unused(root: Path) -> None:
    """Raise UserError if `root` holds a dataset or any file that `create` does not make."""
    if (root / MANIFEST).exists():
        raise UserError(
            f"{root} already holds a dataset: choose another folder, or delete it first"
        )
    own_names = {*DTYPES, VECTORS, LOCK, partial_name(root / MANIFEST).name}
    if root.exists() and (
        not root.is_dir() or any(entry.name not in own_names for entry in root.iterdir())
    ):
        raise UserError(
            f"{root} already holds other files: choose a new or empty folder for the dataset"
        )


# Writing


def commit(store: Store, segments: Iterable[Segment]) -> Store:
    """Replace the list of segments in the manifest, atomically, and return the store reopened.

    `segments` are all segments, including the old ones; their data must already be written.
    """
    manifest = storage.make_manifest(vars(store), segments)
    write_atomically(store.root / MANIFEST, storage.canonical(manifest))
    return open_store(store.root)


class PeriodicCommit:
    """Commits segments now and then, in at most a twentieth of the time.

    The manifest grows with the segments, so writing it after each of them would become slow.
    """

    def __init__(self):
        self._due = 0.0

    def __call__(self, store: Store, segments: Iterable[Segment]) -> None:
        began = time.monotonic()
        if began > self._due:
            commit(store, segments)
            ended = time.monotonic()
            self._due = ended + 20 * (ended - began)


def padded_length(length: int) -> int:
    """The number of entries of the time axis that `length` frames occupy: whole blocks."""
    return -(-length // BLOCK) * BLOCK


def next_offset(store: Store) -> int:
    """The position on the time axis where the next segment starts."""
    ends = (segment.offset + padded_length(segment.length) for segment in store.segments)
    return max(ends, default=0)


def reserve(store: Store, length: int) -> Store:
    """Extend the arrays to at least `length` entries and return the store reopened."""
    with writing(store.root):
        for array in store.arrays.values():
            if array.shape[0] < length:
                array.resize(exclusive_max=[length, *array.shape[1:]], expand_only=True).result()
    return open_store(store.root)


def write_segment(store: Store, offset: int, recording: Recording) -> Segment:
    """Write `recording` at `offset` and return its manifest entry for `commit`.

    `offset` must be a multiple of BLOCK, and the space reserved. Several processes may write
    different segments at the same time. The data is on disk when this returns.
    """
    length = len(recording.frames)
    starts = np.array(recording.episode_starts, bool)
    starts[0] = True
    recording = recording._replace(episode_starts=starts)
    values = recording._asdict() | {"level_seeds": np.full(length, recording.level)}
    jobs = [
        array[offset : offset + length].write(np.ascontiguousarray(values[name], array.dtype.name))
        for name, array in store.arrays.items()
    ]
    crc = _checksum(store, recording)
    with writing(f"level {recording.level} of {store.root}"):
        for job in jobs:
            job.result()
    split = recording.split or split_of(recording.level)
    return Segment(recording.level, split, offset, length, crc, dict(recording.info))


def _checksum(store: Store, recording: Recording) -> int:
    crc = 0
    for name in _checked(recording.action_vectors is not None):
        values = np.ascontiguousarray(getattr(recording, name), store.arrays[name].dtype.name)
        crc = zlib.crc32(values.data, crc)
    return crc


def exclusive_writer(root: str | Path, doing: str, instead: str) -> AbstractContextManager[None]:
    """Lock the store at `root` against other writers: see `storage.exclusive_writer`."""
    return storage.exclusive_writer(root, (*DTYPES, VECTORS), doing, instead)


def append_segments(store: Store, recordings: Iterable[Recording]) -> Store:
    """Append recordings of any length, committing each, and return the store reopened."""
    with exclusive_writer(store.root, "collects into", "choose another folder"):
        store = open_store(store.root)
        for recording in recordings:
            store = _append(store, recording)
    return store


def _append(store: Store, recording: Recording) -> Store:
    shape = recording.frames.shape
    if shape[1:] != (store.height, store.width, 3) or not shape[0]:
        raise UserError(
            f"recording {recording.level} has frames of shape {shape}, but {store.root} holds "
            f"{store.height}x{store.width} RGB: resize it first"
        )
    offset = next_offset(store)
    store = reserve(store, offset + padded_length(shape[0]))
    return commit(store, (*store.segments, write_segment(store, offset, recording)))


# Reading


def read_entries(store: Store, name: str, start: int, stop: int) -> np.ndarray:
    """Entries [start, stop) of an array; raises if a file is missing or damaged.

    The files are counted first, so that memory is only allocated for data that can exist.
    """
    files = -(-stop // BLOCK) - start // BLOCK
    folders = (dataset.root / name / "c" for dataset in store.datasets)
    if files > 2 and files > sum(len(os.listdir(x)) for x in folders if x.is_dir()):
        raise ValueError(f"{name} has fewer than {files} files")
    return np.asarray(store.arrays[name][start:stop].read().result())


def describe_damage(store: Store, names: Iterable[str], start: int, stop: int) -> str | None:
    """A sentence with the level and the file of the first unreadable block in [start, stop).

    `names` are the arrays to look at. Returns None if everything can be read.
    """
    part = store.part_at(start)
    store = part.store
    start -= part.base
    stop -= part.base
    for name in names:
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            first = max(start, block * BLOCK)
            last = min(stop, (block + 1) * BLOCK)
            try:
                read_entries(store, name, first, last)
            except Exception as error:  # tensorstore raises several kinds
                level = segment_at(store, start).level
                inner = ["0"] * (store.arrays[name].ndim - 1)
                file = store.root.joinpath(name, "c", str(block), *inner)
                what = f"damaged on disk ({reason(error)})" if file.exists() else "missing"
                return f"level {level} of {store.root} is {what}, in the file {file}"
    return None


def segment_at(store: Store, offset: int) -> Segment:
    """The segment that holds the frame at `offset`."""
    return store.segments[bisect_right(store.segments, offset, key=lambda s: s.offset) - 1]


def read_segment(store: Store, segment: Segment) -> Recording:
    """The content of one segment. Raises DamagedClips if its files are missing or damaged."""
    start = segment.offset
    stop = start + segment.length
    try:
        names = _checked(store.action_size > 0)
        arrays = {name: read_entries(store, name, start, stop) for name in names}
    except Exception as error:  # tensorstore raises several kinds
        sentence = describe_damage(store, _checked(store.action_size > 0), start, stop)
        fallback = f"level {segment.level} of {store.name} could not be read"
        raise DamagedClips({0: sentence or fallback}) from error
    return Recording(segment.level, **arrays, split=segment.split, info=segment.info)


def verify(store: Store) -> int:
    """Recompute every checksum and return the number of frames.

    Raises UserError with the first segment whose content differs.
    """
    for segment in store.segments:
        if _checksum(store, read_segment(store, segment)) != segment.crc:
            what = f"level {segment.level} of {store.root} is damaged on disk"
            raise storage.damaged(what, store.root)
    return sum(segment.length for segment in store.segments)
