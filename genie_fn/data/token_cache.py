"""The token cache: what the frozen models say of every frame, computed once and kept beside the dataset.

A dynamics model meets every frame many times in its training. The cache holds the frame's ids, its ids as the first
frame of a clip, and the action that follows it, in arrays along the dataset's own time axis. Ids depend on the frames
before, through causal attention: the cache reads each episode in clips as long as training's, so that a frame is seen
with as much of its past as there. A clip from the cache begins with the ids that its first frame has on its own, as in
play. The cache's folder is named by a hash of all that its content depends on; segments are marked as done one by one,
so an interrupted build goes on where it was, and levels that are appended later are added.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from rich.console import Console
from rich.progress import track

from genie_fn import data
from genie_fn.data import Segment, Store, storage
from genie_fn.errors import UserError
from genie_fn.runtime import files
from genie_fn.runtime.signals import terminable

VERSION = 1
MANIFEST = "tokens.json"
ARRAYS = ("ids", "first", "actions")


class Encoder(NamedTuple):
    """The frozen models as functions of uint8 clips (B, T, H, W, 3), and what identifies them."""

    tokenize: Callable[[np.ndarray], np.ndarray]
    """Ids (B, T, N)."""
    name: Callable[[np.ndarray], np.ndarray] | None
    """Latent actions (B, T-1); None: the recorded actions are taken."""
    identity: str
    tokens: int
    codes: int


class Cache(NamedTuple):
    """An open cache, and the segments of the dataset that are in it, as (offset, checksum)."""

    root: Path
    arrays: dict[str, ts.TensorStore]
    done: frozenset[tuple[int, int]]


def open_cache(store: Store, num_frames: int, encoder: Encoder, root: str | Path = "") -> Cache:
    """The cache of `encoder`'s ids for clips of `num_frames`, made if there is none; by default within the dataset."""
    identity = hashlib.sha256(f"{VERSION} {num_frames} {encoder.identity}".encode()).hexdigest()
    root = Path(root or store.root / "tokens") / identity[:16]
    kind = "uint16" if encoder.codes <= 2**16 else "uint32"
    entries = dict(
        zip(
            ARRAYS,
            ((kind, (encoder.tokens,)), (kind, (encoder.tokens,)), ("uint16", ())),
            strict=True,
        )
    )
    kinds = {name: (*entry, storage.CHUNK) for name, entry in entries.items()}
    if not (root / MANIFEST).exists():
        with _alone(root), files.writing(f"the token cache {root} (--cfg.tokens)"):
            for name, entry in kinds.items() if not (root / MANIFEST).exists() else ():
                ts.open(
                    storage.array_spec(root / name, *entry), create=True, delete_existing=True
                ).result()
            files.write_atomically(root / MANIFEST, b"[]")
    try:
        arrays = storage.open_arrays(root, kinds, 1 << 28)
    except UserError as error:
        raise _damaged(root) from error
    return Cache(root, arrays, _done(root))


def _alone(root: Path) -> AbstractContextManager:
    return storage.alone(root, ARRAYS, "fills the token cache", "choose another --cfg.tokens")


def _done(root: Path) -> frozenset[tuple[int, int]]:
    """The segments that a cache's manifest names, as (offset, checksum)."""
    try:
        rows = files.read_json(root / MANIFEST, storage.MANIFEST_BYTES)
        if not all(type(number) is int for offset, crc in rows for number in (offset, crc)):
            raise ValueError("not pairs of numbers")
        return frozenset((offset, crc) for offset, crc in rows)
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(root) from error


def fill(
    cache: Cache,
    store: Store,
    split: str,
    num_frames: int,
    encoder: Encoder,
    console: Console,
    skip: Callable[[str], None] | None = None,
) -> Cache:
    """The cache with all of `split`, segment by segment, with a progress bar where something is missing.

    `skip` is told of segments that cannot be read, and they are left out; without it that is an error. One process
    fills a cache at a time; SIGTERM ends it as it ends training, and what is done by then is kept.
    """
    wanted = [segment for segment in store.segments if segment.split == split]
    if all((s.offset, s.crc) in cache.done for s in wanted):
        return cache
    with _alone(cache.root), terminable():
        cache = cache._replace(done=_done(cache.root))
        todo = [s for s in wanted if (s.offset, s.crc) not in cache.done]
        for segment in track(todo, f"encoding to {cache.root}", console=console, disable=not todo):
            try:
                recording = data.read_segment(store, segment)
            except data.DamagedClips as damage:
                if skip is None:
                    raise
                skip(damage.lost[0])
            else:
                cache = add(cache, segment, recording, num_frames, encoder)
    return cache


def add(
    cache: Cache,
    segment: Segment,
    recording: data.Recording,
    num_frames: int,
    encoder: Encoder,
    batch: int = 64,
) -> Cache:
    """The cache with one more segment, on disk when this returns."""
    ids, first, actions = encode(recording, num_frames, encoder, batch)
    length = segment.offset + data.blocks(segment.length)
    with files.writing(f"the token cache {cache.root} (--cfg.tokens)"):
        for name, values in (("ids", ids), ("first", first), ("actions", actions)):
            array = cache.arrays[name]
            if array.shape[0] < length:
                array = array.resize(
                    exclusive_max=[length, *array.shape[1:]], expand_only=True
                ).result()
                cache.arrays[name] = array
            array[segment.offset : segment.offset + segment.length].write(
                values.astype(array.dtype.name)
            ).result()
    done = cache.done | {(segment.offset, segment.crc)}
    files.write_atomically(cache.root / MANIFEST, json.dumps(sorted(done)).encode())
    return cache._replace(done=done)


def encode(
    recording: data.Recording, num_frames: int, encoder: Encoder, batch: int
) -> tuple[np.ndarray, ...]:
    """A recording's ids (M, N), ids as first frames (M, N), and actions (M,), in batches of equal shape.

    Episodes shorter than a clip stay 0: no clip is cut from them.
    """
    count, shape = len(recording.frames), (len(recording.frames), encoder.tokens)
    ids, actions = np.zeros(shape, np.int64), recording.actions.astype(np.int64)
    # Backwards, so that of two clips that share frames the earlier decides: it has more of their past.
    for starts in reversed([*_batched(clip_cover(recording.episode_starts, num_frames), batch)]):
        clips = recording.frames[starts[:, None] + np.arange(num_frames)]
        coded = encoder.tokenize(clips)
        named = encoder.name(clips) if encoder.name else None
        for i, start in reversed([*enumerate(starts.tolist())]):
            ids[start : start + num_frames] = coded[i]
            if named is not None:
                actions[start : start + num_frames - 1] = named[i]
    alone = [
        encoder.tokenize(recording.frames[rows][:, None])[:, 0]
        for rows in _batched(np.arange(count), batch)
    ]
    return ids, np.concatenate(alone)[:count], actions


def clip_cover(episode_starts: np.ndarray, num_frames: int) -> np.ndarray:
    """Starts of clips that cover every transition of every episode of at least `num_frames`, in order."""
    bounds = np.append(np.flatnonzero(episode_starts), len(episode_starts))
    starts, stride = [], max(1, num_frames - 1)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        last = end - num_frames
        if last >= begin:
            starts += [*range(begin, last, stride), last]
    return np.array(starts, np.int64)


def _batched(rows: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Batches of equal length, the last one filled up with its last row: a compiled model takes one shape."""
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        yield np.pad(part, (0, batch - len(part)), mode="edge")


def read(cache: Cache, offsets: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The clips that start at `offsets` (B,): ids (B, T, N) and actions (B, T-1), int64."""
    ids = np.empty(
        (len(offsets), num_frames, cache.arrays["ids"].shape[1]), cache.arrays["ids"].dtype.name
    )
    starts = offsets.tolist()
    try:
        jobs = [
            ts.array(x).write(cache.arrays["ids"][o : o + num_frames])
            for x, o in zip(ids, starts, strict=True)
        ]
        first = cache.arrays["first"][offsets].read()
        actions = cache.arrays["actions"][offsets[:, None] + np.arange(num_frames - 1)].read()
        for job in jobs:
            job.result()
        ids[:, 0] = first.result()
        return ids.astype(np.int64), np.asarray(actions.result()).astype(np.int64)
    except Exception as error:  # tensorstore raises several kinds
        raise _damaged(cache.root) from error


def _damaged(root: Path) -> UserError:
    return UserError(f"the token cache {root} is damaged: delete that folder, and it is made anew")


def batches(
    cache: Cache, store: Store, split: str, num_frames: int, finish: Callable[..., Any], **order
) -> Iterator:
    """As `data.batches`, of clips from the cache; `finish(ids, actions)` runs in the reading threads."""
    held = replace(
        store, segments=tuple(s for s in store.segments if (s.offset, s.crc) in cache.done)
    )
    return data.batches(
        held, split, num_frames, read=lambda o: finish(*read(cache, o, num_frames)), **order
    )
