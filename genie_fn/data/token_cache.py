"""The token cache: what a frozen model makes of every frame, computed once, kept beside the dataset.

A dynamics model reads every frame many times during training. One cache holds the ids of a tokenizer,
another one the actions of a latent action model, in arrays along the time axis of the dataset. Runs
with the same tokenizer share its ids, whatever their actions are.

Through causal attention the ids of a frame may depend on the frames before. The cache then encodes each
episode in clips as long as those of training, so that a frame has the same amount of past as there.
A clip from the cache begins with the ids of its first frame encoded on its own, as in play.

The name of a cache's folder is a hash of everything that its content depends on. Segments are
marked as encoded one by one: an interrupted build continues, and levels appended later are added.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorstore as ts

from genie_fn.data import storage
from genie_fn.data.clips import read_actions
from genie_fn.data.reader import ClipReader
from genie_fn.data.storage import CHUNK, ArrayKind, Segment
from genie_fn.data.store import Recording, Store, content_hash, padded_length
from genie_fn.errors import UserError
from genie_fn.runtime import files
from genie_fn.runtime.progress import track
from genie_fn.runtime.signals import terminable

VERSION = 2
MANIFEST = "tokens.json"
ARRAYS = ("values", "first")
SINGLE_FRAMES = 128
"""The size of a batch of frames that are encoded by themselves."""

Source = Literal["frame", "past", "transition"]
"""What a value depends on: a frame alone, a frame and those before it in the clip, or two frames."""

TITLES: dict[Source, str] = {
    "frame": "encoding frames to",
    "past": "encoding frames to",
    "transition": "inferring actions to",
}


class Encoder(NamedTuple):
    """A frozen model as a function of clips, and its identity."""

    encode: Callable[[np.ndarray], np.ndarray]
    """uint8 clips (B, T, H, W, 3) → the values of their frames (B, T, ...), or those of their
    transitions (B, T-1, ...)."""
    identity: str
    """A string that changes with the model."""
    source: Source
    shape: tuple[int, ...]
    """Of a value: (N,) ids of a frame, or () for an action."""
    choices: int
    """Values are integers from 0 to this, exclusive."""


class Cache(NamedTuple):
    """An open cache for clips of `num_frames` frames."""

    root: Path
    num_frames: int
    stride: int
    """As that of the store: frames from one frame of a clip to the next."""
    source: Source
    arrays: dict[str, ts.TensorStore]
    encoded: frozenset[tuple[int, int]]
    """The segments of the dataset that the cache holds, as (offset, checksum)."""
    parts: tuple["Cache", ...] = ()
    """For a mixture, the caches of its datasets, which this cache presents as one; else empty."""
    bases: tuple[int, ...] = ()
    """Where the time axes of these datasets begin on that of the mixture."""

    def holds(self, segment: Segment) -> bool:
        return (segment.offset, segment.crc) in self.encoded


def open_cache(store: Store, num_frames: int, encoder: Encoder, root: str | Path = "") -> Cache:
    """Open the cache of `encoder`'s values for clips of `num_frames` frames; make it if there is none.

    `root` is the folder that holds the caches of any number of datasets; by default a dataset's
    caches are within it. The cache of a mixture is a view of those of its datasets, which other
    runs share.
    """
    if store.parts:
        caches = [
            open_cache(replace(part.store, stride=store.stride), num_frames, encoder, root)
            for part in store.parts
        ]
        if len({cache.root for cache in caches}) < len(caches):
            raise UserError(
                "two of the datasets begin alike, so that their token caches would share a folder in "
                f"{root}: leave --cfg.tokens out"
            )
        return _joined(caches, [part.base for part in store.parts])
    # A dataset that has grown has the same first segment.
    folder = Path(root) / content_hash(store, 1)[:16] if root else store.root / "tokens"
    root = folder / _name(encoder, num_frames, store.stride)
    dtype = next(f"uint{bits}" for bits in (16, 32, 64) if encoder.choices <= 2**bits)
    names = ARRAYS if encoder.source == "past" else ARRAYS[:1]
    kinds = {name: ArrayKind(dtype, encoder.shape, CHUNK) for name in names}
    if not (root / MANIFEST).exists():
        with _exclusive_writer(root), files.writing(f"the token cache {root} (--cfg.tokens)"):
            _create(root, kinds)
    try:
        arrays = storage.open_arrays(root, kinds, cache_bytes=1 << 28)
    except UserError as error:
        raise _damaged(root) from error
    return Cache(root, num_frames, store.stride, encoder.source, arrays, _read_manifest(root))


def _name(encoder: Encoder, num_frames: int, stride: int) -> str:
    """The name of a cache's folder. What depends on a frame alone is the same for all clips."""
    clips = "" if encoder.source == "frame" else f"{num_frames}/{stride}"
    content = f"{VERSION} {encoder.source} {clips} {encoder.identity}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _joined(caches: list[Cache], bases: list[int]) -> Cache:
    """The view of the caches of the datasets of a mixture."""
    arrays = {
        name: storage.joined([cache.arrays[name] for cache in caches], bases)
        for name in caches[0].arrays
    }
    encoded = frozenset(
        (base + offset, crc)
        for cache, base in zip(caches, bases, strict=True)
        for offset, crc in cache.encoded
    )
    view = caches[0]._replace(arrays=arrays, encoded=encoded)
    return view._replace(parts=tuple(caches), bases=tuple(bases))


def _create(root: Path, kinds: dict[str, ArrayKind]) -> None:
    """Make an empty cache, unless another process has made it in the meantime."""
    if (root / MANIFEST).exists():
        return
    for name, kind in kinds.items():
        spec = storage.array_spec(root / name, kind)
        ts.open(spec, create=True, delete_existing=True).result()
    files.write_atomically(root / MANIFEST, b"[]")


def _exclusive_writer(root: Path) -> AbstractContextManager[None]:
    return storage.exclusive_writer(
        root, ARRAYS, "fills the token cache", "choose another --cfg.tokens"
    )


def _read_manifest(root: Path) -> frozenset[tuple[int, int]]:
    """The segments listed in the manifest of a cache, as (offset, checksum)."""
    try:
        rows = files.read_json(root / MANIFEST, storage.MANIFEST_BYTES)
        if not all(type(number) is int for offset, crc in rows for number in (offset, crc)):
            raise ValueError("not pairs of numbers")
        return frozenset((offset, crc) for offset, crc in rows)
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(root) from error


def _damaged(root: Path) -> UserError:
    return UserError(
        f"the token cache {root} is damaged: delete that folder to have it encoded anew"
    )


# Encoding


def fill(cache: Cache, reader: ClipReader, encoder: Encoder) -> Cache:
    """Encode the segments of the reader's split that the cache lacks, and show the progress.

    Segments that cannot be read are an error, or left out if the reader skips damage. One process
    fills a cache at a time. SIGTERM ends it as it ends training; the segments encoded by then stay.
    """
    if cache.parts:
        stores = reader.store.datasets
        filled = [
            fill(part, replace(reader, store=store), encoder)
            for part, store in zip(cache.parts, stores, strict=True)
        ]
        return _joined(filled, [*cache.bases])
    wanted = [segment for segment in reader.store.segments if segment.split == reader.split]
    if all(map(cache.holds, wanted)):
        return cache
    with _exclusive_writer(cache.root), terminable():
        cache = cache._replace(encoded=_read_manifest(cache.root))
        missing = [segment for segment in wanted if not cache.holds(segment)]
        for segment in track(missing, f"{TITLES[cache.source]} {cache.root}"):
            recording = reader.read_segment(segment)
            if recording is not None:
                cache = add(cache, segment, recording, encoder)
    return cache


def add(
    cache: Cache, segment: Segment, recording: Recording, encoder: Encoder, batch: int = 16
) -> Cache:
    """Encode one segment and return the cache with it; it is on disk when this returns."""
    order, episode_starts = by_phase(recording.episode_starts, cache.stride)
    ordered = recording._replace(
        frames=recording.frames[order],
        actions=recording.actions[order],
        episode_starts=episode_starts,
    )
    back = np.argsort(order)
    reserved = segment.offset + padded_length(segment.length)
    end = segment.offset + segment.length
    contents = encode(ordered, cache.num_frames, encoder, batch)
    with files.writing(f"the token cache {cache.root} (--cfg.tokens)"):
        for name, values in contents.items():
            array = cache.arrays[name]
            if array.shape[0] < reserved:
                shape = [reserved, *array.shape[1:]]
                array = array.resize(exclusive_max=shape, expand_only=True).result()
                cache.arrays[name] = array
            array[segment.offset : end].write(values[back].astype(array.dtype.name)).result()
    encoded = cache.encoded | {(segment.offset, segment.crc)}
    files.write_atomically(cache.root / MANIFEST, json.dumps(sorted(encoded)).encode())
    return cache._replace(encoded=encoded)


def encode(
    recording: Recording, num_frames: int, encoder: Encoder, batch: int
) -> dict[str, np.ndarray]:
    """The arrays of a cache for a recording of M frames, (M, ...) each.

    `values` has those of the frames, or of the transitions that follow them; `first`, of an encoder
    that sees the past, those of every frame as the first one of a clip. The model sees batches of
    equal shape: of `batch` clips, or of single frames. Values of episodes shorter than a clip are of
    no use and may be 0, because no clip is taken from them.
    """
    count = len(recording.frames)
    if encoder.source == "transition":
        values = np.zeros((count, *encoder.shape), np.int64)
        _encode_clips(recording, num_frames, encoder, batch, values)
        return {"values": values}
    batches = _batched(np.arange(count), SINGLE_FRAMES)
    alone = [encoder.encode(recording.frames[rows][:, None])[:, 0] for rows in batches]
    first = np.concatenate(alone)[:count]
    if encoder.source == "frame":
        return {"values": first}
    values = np.zeros_like(first)
    _encode_clips(recording, num_frames, encoder, batch, values)
    return {"values": values, "first": first}


def _encode_clips(
    recording: Recording, num_frames: int, encoder: Encoder, batch: int, values: np.ndarray
) -> None:
    """Write into `values` (M, ...) those of clips that cover the recording.

    Backwards, so that of two clips that share frames the earlier one, which has more of their past,
    is kept.
    """
    clips = [*_batched(clip_cover(recording.episode_starts, num_frames), batch)]
    for starts in reversed(clips):
        results = encoder.encode(recording.frames[starts[:, None] + np.arange(num_frames)])
        for start, result in reversed([*zip(starts.tolist(), results, strict=True)]):
            values[start : start + len(result)] = result


def by_phase(episode_starts: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a recording, ordered so that the frames of a clip follow each other.

    Of every episode first come frames 0, stride, 2 stride and so on, then 1, stride + 1 and so on;
    each such sequence counts as an episode. Returns indices (M,) and episode starts (M,).
    """
    if stride == 1:
        return np.arange(len(episode_starts)), episode_starts
    bounds = np.append(np.flatnonzero(episode_starts), len(episode_starts))
    order = []
    starts = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        for first in range(begin, min(begin + stride, end)):
            phase = np.arange(first, end, stride)
            order.append(phase)
            starts.append(phase == first)
    return np.concatenate(order), np.concatenate(starts)


def clip_cover(episode_starts: np.ndarray, num_frames: int) -> np.ndarray:
    """Starts, in order, of clips that cover every transition of every episode as long as a clip."""
    bounds = np.append(np.flatnonzero(episode_starts), len(episode_starts))
    hop = max(1, num_frames - 1)
    starts = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        last = end - num_frames
        if last >= begin:
            starts += [*range(begin, last, hop), last]
    return np.array(starts, np.int64)


def _batched(rows: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Batches of equal length, because a compiled model takes one shape.

    The last batch is padded with its last row.
    """
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        yield np.pad(part, (0, batch - len(part)), mode="edge")


# Reading


def read(cache: Cache, offsets: np.ndarray) -> np.ndarray:
    """The values, int64, of the clips that start at `offsets` (B,): (B, T, ...) those of frames, or
    (B, T-1, ...) of transitions."""
    source = cache.arrays["values"]
    length = cache.num_frames - (cache.source == "transition")
    values = np.empty((len(offsets), length, *source.shape[1:]), source.dtype.name)
    span = (length - 1) * cache.stride + 1
    clips = zip(values, offsets.tolist(), strict=True)
    try:
        jobs = [
            ts.array(clip).write(source[start : start + span : cache.stride])
            for clip, start in clips
        ]
        first = cache.arrays["first"][offsets].read() if cache.source == "past" else None
        for job in jobs:
            job.result()
        if first is not None:
            values[:, 0] = first.result()
        return values.astype(np.int64)
    except Exception as error:  # tensorstore raises several kinds
        dataset = np.searchsorted(cache.bases, offsets, side="right") - 1
        for number, part in enumerate(cache.parts):  # the one that is damaged names its folder
            read(part, offsets[dataset == number] - cache.bases[number])
        raise _damaged(cache.root) from error


def cached_reader(
    ids: Cache,
    actions: Cache | None,
    reader: ClipReader,
    finish: Callable[[np.ndarray, np.ndarray], Any],
) -> ClipReader:
    """A reader that draws the clips of `reader` and takes their ids and actions from caches. Without a
    cache of actions they are those of the store.

    Its batches are what `finish(ids, actions)` returns, called in the reading threads.
    """
    caches = [ids] if actions is None else [ids, actions]
    segments = tuple(x for x in reader.store.segments if all(cache.holds(x) for cache in caches))

    def load(offsets: np.ndarray) -> Any:
        if actions is None:
            between = read_actions(reader.store, offsets, ids.num_frames)
        else:
            between = read(actions, offsets)
        return finish(read(ids, offsets), between)

    return replace(reader, store=replace(reader.store, segments=segments), load=load)
