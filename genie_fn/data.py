"""The video store (tensorstore, zarr3), clip sampling and prefetch.

A store is a folder: five arrays that run along one flat time axis, and a manifest, `store.json`, that says which parts
of that axis exist. One part is a `Segment`: the frames of one level (or of one imported video), lossless, with the
action and the reward of each frame. Every segment starts on its own block of the time axis, so appending one never
rewrites another, and it is written before the manifest names it: whatever a killed writer leaves behind does not exist.
`actions[t]` is taken at frame t and leads to frame t+1; `rewards[t]` is what it earned; `episode_starts[t]` is true
where frame t does not continue frame t-1.
"""

import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import tensorstore as ts

from genie_fn.errors import UserError

T = TypeVar("T")
VERSION = 1
SPLITS = ("train", "val", "test")
BLOCK = 1000  # frames in a shard (one file); segments start at multiples of it
CHUNK = 10  # frames compressed together: longer is smaller on disk, shorter wastes less when a short clip is read
MANIFEST = "store.json"
DTYPES = {"frames": "uint8", "actions": "uint8", "rewards": "float32", "level_seeds": "int32", "episode_starts": "bool"}
HEADER = ("meta", "height", "width", "num_actions", "action_names")  # what the manifest says of the store as a whole
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


class Segment(NamedTuple):
    """One entry of the manifest: frames [offset, offset + length) of the flat time axis."""

    level: int
    split: str
    offset: int
    length: int
    crc: int  # over the arrays named in CHECKED, in that order
    info: dict


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


def damaged(what: str, root: Path) -> UserError:
    return UserError(f"{what}: restore the folder from a copy, or delete {root} and collect again.")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old file or the new one, nothing between."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    if os.name == "posix":  # make the rename itself survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def array_spec(path: Path, dtype: str, entry: tuple[int, ...] = (), chunk: int = BLOCK) -> dict:
    """tensorstore's description of a new array along the time axis, of entries of shape `entry`: zarr3, zstd.

    One file per block; `chunk` entries are compressed together.
    """
    zstd = {"name": "zstd", "configuration": {"level": 1}}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    shard = {"chunk_shape": [chunk, *entry], "codecs": [little, zstd], "index_codecs": [little, {"name": "crc32c"}]}
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "shape": [0, *entry],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [BLOCK, *entry]}},
            "codecs": [{"name": "sharding_indexed", "configuration": shard}],
        },
        "store_data_equal_to_fill_value": True,  # so that a chunk that is not there is an error, never zeros
    }


def open_arrays(root: Path, names: Iterable[str], cache_bytes: int) -> dict[str, ts.TensorStore]:
    """Arrays made by `array_spec`, for reading and writing. Raises UserError where one is missing or damaged."""
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    arrays = {}
    for name in names:
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(root / name)},
            "recheck_cached_data": "open",
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }
        try:
            arrays[name] = ts.open(spec, context=context).result()
        except Exception as error:  # tensorstore raises several kinds
            raise damaged(f"{root / name} is missing or damaged", root) from error
    return arrays


def _canonical(manifest: dict) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def _read_manifest(root: Path) -> dict:
    """The manifest, checked against its own hash. A `UserError` says what is wrong with it."""
    path = root / MANIFEST
    if not path.is_file():
        raise UserError(f"There is no dataset at {root}: make one with `python generate_dataset.py --cfg.root {root}`.")
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["version"]
        expected = manifest.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(f"{path} is damaged", root) from error
    if version != VERSION:
        raise UserError(f"{path} is of version {version} and this program reads version {VERSION}: collect it again.")
    if hashlib.sha256(_canonical(manifest)).hexdigest() != expected:
        raise damaged(f"{path} is damaged", root)
    return manifest | {"sha256": expected}


def open_store(root: str | Path, cache_bytes: int = 1 << 30) -> Store:
    """Open the store at `root`, keeping at most `cache_bytes` of decoded frames in memory.

    Raises UserError where there is none, where the manifest or an array is damaged, or an array is shorter than the
    manifest says. The content of the segments is not read: see `verify`.
    """
    root = Path(root)
    manifest = _read_manifest(root)
    header = {name: manifest[name] for name in HEADER} | {"action_names": tuple(manifest["action_names"])}
    segments = tuple(Segment(**segment) for segment in manifest["segments"])
    arrays = open_arrays(root, DTYPES, cache_bytes)
    store = Store(root=root, **header, segments=segments, data_hash=manifest["sha256"], arrays=arrays)
    end = max((segment.offset + segment.length for segment in store.segments), default=0)
    for name, array in store.arrays.items():
        frame = (store.height, store.width, 3) if name == "frames" else ()
        if array.shape[0] < end or array.shape[1:] != frame or array.dtype.name != DTYPES[name]:
            raise damaged(f"{root / name} does not hold the {end} entries that {MANIFEST} promises", root)
    return store


def create(
    root: str | Path, meta: dict, height: int, width: int, num_actions: int, action_names: Iterable[str] = ()
) -> Store:
    """Make an empty store at `root`, a new or empty folder, for frames of `height` x `width`.

    `num_actions` is 0 where the actions are unknown. `meta` must survive JSON. Raises UserError if `root` is in use.
    """
    root = Path(root)
    if (root / MANIFEST).exists():
        raise UserError(f"{root} already holds a dataset: choose another folder, or delete it first.")
    if root.exists() and (not root.is_dir() or {entry.name for entry in root.iterdir()} - set(DTYPES)):
        raise UserError(f"{root} already holds other files: choose a new or empty folder for the dataset.")
    for name, dtype in DTYPES.items():
        entry = ((height, width, 3), CHUNK) if name == "frames" else ()
        ts.open(array_spec(root / name, dtype, *entry), open=True, create=True).result()
    names = tuple(action_names)
    return commit(Store(root, meta, height, width, num_actions, names, (), "", {}), ())


def commit(store: Store, segments: Iterable[Segment]) -> Store:
    """Make `segments` (the old ones too), which are already written, the content of the store, atomically."""
    manifest = {name: getattr(store, name) for name in HEADER}
    manifest |= {"version": VERSION, "segments": [segment._asdict() for segment in segments]}
    manifest["sha256"] = hashlib.sha256(_canonical(manifest)).hexdigest()
    write_atomically(store.root / MANIFEST, _canonical(manifest))
    return open_store(store.root)


def blocks(length: int) -> int:
    """Entries of the time axis that a segment of `length` frames takes: whole blocks."""
    return -(-length // BLOCK) * BLOCK


def next_offset(store: Store) -> int:
    """Where the next segment of the time axis starts."""
    return max((segment.offset + blocks(segment.length) for segment in store.segments), default=0)


def reserve(store: Store, length: int) -> Store:
    """Extend the arrays to `length` entries where they are shorter; what is there stays."""
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
    for job in jobs:
        job.result()
    split = recording.split or split_of(recording.level)
    return Segment(recording.level, split, offset, length, crc, recording.info)


def append_segments(store: Store, recordings: Iterable[Recording]) -> Store:
    """Append recordings of any length one by one; each exists from its own commit on. Returns the store, reopened."""
    for recording in recordings:
        if recording.frames.shape[1:] != (store.height, store.width, 3) or not len(recording.frames):
            raise UserError(
                f"Recording {recording.level} has frames of shape {recording.frames.shape}, but {store.root} holds "
                f"{store.height}x{store.width} RGB: resize it first."
            )
        offset = next_offset(store)
        store = reserve(store, offset + blocks(len(recording.frames)))
        store = commit(store, (*store.segments, write_segment(store, offset, recording)))
    return store


def _read(store: Store, name: str, start: int, stop: int) -> np.ndarray:
    return np.asarray(store.arrays[name][start:stop].read().result())


def read_segment(store: Store, segment: Segment) -> Recording:
    """All of one segment. Raises UserError if its files are missing or damaged."""
    start, stop = segment.offset, segment.offset + segment.length
    try:
        arrays = {name: _read(store, name, start, stop) for name in CHECKED}
    except Exception as error:  # tensorstore raises several kinds
        raise damaged(f"Level {segment.level} of {store.root} is damaged or missing on disk", store.root) from error
    return Recording(segment.level, **arrays, split=segment.split, info=segment.info)


def verify(store: Store) -> int:
    """Recompute every checksum; a UserError names the first segment that differs. Returns the number of frames."""
    for segment in store.segments:
        if _checksum(read_segment(store, segment)) != segment.crc:
            raise damaged(f"Level {segment.level} of {store.root} is damaged on disk", store.root)
    return sum(segment.length for segment in store.segments)


def clip_starts(store: Store, split: str, num_frames: int) -> np.ndarray:
    """(S,) int64: every offset o of `split` where frames o..o+num_frames-1 lie in one segment and in one episode."""
    if split not in SPLITS or num_frames < 1:
        raise UserError(f"Cannot cut clips of {num_frames} frames from split {split!r}: choose one of {SPLITS}.")
    segments = [segment for segment in store.segments if segment.split == split and segment.length >= num_frames]
    found = [np.empty(0, np.int64)]
    if segments:
        end = max(segment.offset + segment.length for segment in segments)
        try:
            episode = np.cumsum(_read(store, "episode_starts", 0, end), dtype=np.int64)
        except Exception as error:  # tensorstore raises several kinds
            raise damaged(f"{store.root / 'episode_starts'} is damaged", store.root) from error
        for segment in segments:
            first = np.arange(segment.offset, segment.offset + segment.length - num_frames + 1)
            found.append(first[episode[first] == episode[first + num_frames - 1]])
    starts = np.concatenate(found)
    if not len(starts):
        uncut = f"{store.root} has no {split} clip of {num_frames} frames without a cut"
        raise UserError(f"{uncut}: collect or import more, or ask for fewer frames.")
    return starts


def clip_offsets(starts: np.ndarray, seed: int, step: int, batch_size: int) -> np.ndarray:
    """(batch_size,) int64 drawn from `starts`: a pure function of (seed, step), so a resumed run sees the same data."""
    bits = np.random.Philox(key=np.array([seed % 2**64, step % 2**64], np.uint64))
    return starts[np.random.Generator(bits).integers(0, len(starts), batch_size)]


def eval_clips(store: Store, split: str, num_frames: int, count: int, seed: int = 0) -> np.ndarray:
    """(count,) int64: fixed clips for evaluation, all different, drawn from as many levels as possible, evenly."""
    starts = clip_starts(store, split, num_frames)
    if len(starts) < count:
        raise UserError(
            f"{store.root} has {len(starts)} {split} clips of {num_frames} frames, fewer than the {count} asked for: "
            f"collect or import more, or ask for fewer."
        )
    starts = np.random.default_rng(seed % 2**64).permutation(starts)
    segment = np.searchsorted(np.array([entry.offset for entry in store.segments]), starts, side="right")
    grouped = np.argsort(segment, kind="stable")
    _, first, sizes = np.unique(segment[grouped], return_index=True, return_counts=True)
    turn = np.empty(len(starts), np.int64)  # how many clips of the same level come before this one
    turn[grouped] = np.arange(len(starts)) - np.repeat(first, sizes)
    return starts[np.argsort(turn, kind="stable")[:count]]


def read_clips(store: Store, offsets: np.ndarray, num_frames: int) -> Batch:
    """Read the clips that start at `offsets` (B,) int64. Raises UserError if a file is damaged."""
    frames = np.empty((len(offsets), num_frames, store.height, store.width, 3), np.uint8)
    source = store.arrays["frames"]
    try:
        # Slices into one preallocated array are more than twice as fast as one read through an index array.
        clips = zip(frames, offsets.tolist(), strict=True)
        jobs = [ts.array(clip).write(source[start : start + num_frames]) for clip, start in clips]
        actions = store.arrays["actions"][offsets[:, None] + np.arange(num_frames - 1)].read().result()
        for job in jobs:
            job.result()
    except Exception as error:  # tensorstore raises several kinds
        raise damaged(f"A clip of {store.root} is damaged or missing on disk", store.root) from error
    return Batch(frames, np.asarray(actions).astype(np.int64))


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
) -> Iterator[Batch | T]:
    """An endless iterator whose s-th item is a `share` of the batch of step `start_step + s`: see `clip_offsets`.

    `read` makes a batch of its clips' offsets, by default `read_clips`. So many `threads` read four batches ahead;
    they end when the iterator is closed or dropped, and an error in one of them is raised here.
    """
    starts, read = clip_starts(store, split, num_frames), read or (lambda o: read_clips(store, o, num_frames))
    return _prefetched(lambda step: read(clip_offsets(starts, seed, step, batch_size)[share]), start_step, 4, threads)


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
