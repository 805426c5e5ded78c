"""Clips of a video store: where they may start, which ones are drawn, and their content."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from genie_fn.data import vectors
from genie_fn.data.storage import SPLITS, Segment
from genie_fn.data.store import VECTORS, DamagedClips, Store, describe_damage, read_entries
from genie_fn.errors import UserError
from genie_fn.runtime.files import reason


class Batch(NamedTuple):
    """B clips of T frames, as numpy arrays or as tensors."""

    frames: Any
    """(B, T, H, W, 3) uint8."""
    actions: Any
    """(B, T-1) int64; action t is taken between frames t and t+1 of the clip. With a stride, it is
    the first of those that are taken between them, whose effect shows the most. Of a store
    `as_vectors` (B, T-1, action_size) float32, in units of their standard deviation."""


def clip_starts(store: Store, split: str, num_frames: int, flags: str = "") -> np.ndarray:
    """(S,) int64: every offset at which a clip of `num_frames` frames of `split` may start.

    All frames of a clip lie in one segment and in one episode. Raises DamagedClips if the episodes
    cannot be read, and UserError if there is no such clip: it advises to lower the `flags` that
    decide the length, if any.
    """
    if split not in SPLITS or num_frames < 1:
        raise UserError(
            f"clips of {num_frames} frames cannot be taken from split {split!r}: ask for at least "
            f"one frame of {', '.join(SPLITS)}"
        )
    segments = segments_with_clips(store, split, num_frames)
    span = store.span(num_frames)
    starts = [np.empty(0, np.int64)]
    for segment, episode_starts in zip(segments, _episode_starts(store, segments), strict=True):
        episode = np.cumsum(episode_starts)
        first = np.arange(segment.length - span + 1)
        uncut = episode[first] == episode[first + span - 1]
        starts.append(segment.offset + first[uncut])
    if not any(map(len, starts)):
        raise no_clips(store, split, num_frames, flags)
    return np.concatenate(starts)


def no_clips(store: Store, split: str, num_frames: int, flags: str = "") -> UserError:
    """The error for a split without a clip of `num_frames` frames."""
    return UserError(
        f"{store.name} has no {split} clip of {num_frames} frames{_every(store)} within one "
        f"episode: collect or import more or longer ones{_or_lower(flags)}"
    )


def _or_lower(flags: str) -> str:
    return f", or lower {flags}" if flags else ""


def segments_with_clips(store: Store, split: str, num_frames: int) -> list[Segment]:
    """The segments of a split that are long enough for a clip."""
    span = store.span(num_frames)
    return [s for s in store.segments if s.split == split and s.length >= span]


def _every(store: Store) -> str:
    """The store's stride, for messages."""
    return f", {store.stride} frames apart," if store.stride > 1 else ""


def _episode_starts(store: Store, segments: list[Segment]) -> list[np.ndarray]:
    """The `episode_starts` of every segment, from a single read where that succeeds."""
    if not segments:
        return []
    try:
        values = read_entries(store, "episode_starts", 0, _span(segments[-1])[1])
    except Exception as error:  # tensorstore raises several kinds
        damage = damaged_episodes(store, segments)
        if damage:
            raise DamagedClips(damage) from error
        return [read_entries(store, "episode_starts", *_span(segment)) for segment in segments]
    return [values[slice(*_span(segment))] for segment in segments]


def damaged_episodes(store: Store, segments: list[Segment]) -> dict[int, str]:
    """The reasons why `episode_starts` cannot be read, by the positions of the damaged segments."""
    if not segments:
        return {}
    try:
        read_entries(store, "episode_starts", 0, _span(segments[-1])[1])
        return {}
    except Exception:  # tensorstore raises several kinds
        pass
    reasons = [describe_damage(store, ("episode_starts",), *_span(segment)) for segment in segments]
    return {i: sentence for i, sentence in enumerate(reasons) if sentence}


def _span(segment: Segment) -> tuple[int, int]:
    return segment.offset, segment.offset + segment.length


def occurring_actions(store: Store, split: str = "train") -> tuple[int, ...]:
    """The recorded actions that occur in a split, in order; of damaged segments none are known."""
    segments = [segment for segment in store.segments if segment.split == split]
    return tuple(np.flatnonzero(action_counts(store, segments)).tolist())


def action_counts(store: Store, segments: Iterable[Segment]) -> np.ndarray:
    """How often each recorded action occurs in segments, (num_actions,) int64; damaged ones are not
    counted."""
    counts = np.zeros(store.num_actions, np.int64)
    for segment in segments:
        with contextlib.suppress(Exception):  # tensorstore raises several kinds
            counts += np.bincount(
                read_entries(store, "actions", *_span(segment)), minlength=store.num_actions
            )
    return counts


class Shares(NamedTuple):
    """Of which datasets of a mixture clips are drawn, and how often."""

    ends: np.ndarray
    """(K,) int64: where in the sequence of all clips those of each of K datasets end."""
    weights: np.ndarray
    """(K,) float64: the probabilities of the datasets."""


def clip_shares(
    store: Store, starts: np.ndarray, split: str, num_frames: int, flags: str = ""
) -> Shares | None:
    """The shares of a mixture with weights, given its clip starts; None: all clips are equal.

    Raises UserError if a dataset of the mixture has no clip, as `clip_starts` does.
    """
    if not store.parts:
        return None
    bases = [part.base for part in store.parts]
    ends = np.append(np.searchsorted(starts, bases[1:]), len(starts))
    for part, count in zip(store.parts, np.diff(ends, prepend=0).tolist(), strict=True):
        if not count:
            raise no_clips(replace(part.store, stride=store.stride), split, num_frames, flags)
    if not store.weights:
        return None
    weights = np.array(store.weights, np.float64)
    return Shares(ends, weights / weights.sum())


def clip_offsets(
    starts: np.ndarray,
    seed: int,
    step: int,
    batch_size: int,
    attempt: int = 0,
    shares: Shares | None = None,
) -> np.ndarray:
    """(batch_size,) int64 drawn from `starts`: a pure function of (seed, step, attempt).

    A resumed run therefore sees the same data. `attempt` numbers further draws of the same step.
    All clips are equally likely; with `shares`, those of one dataset are.
    """
    key = np.array([seed % 2**64, step % 2**64], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, attempt]))
    if shares is None:
        return starts[generator.integers(0, len(starts), batch_size)]
    bounds = np.cumsum(shares.weights)[:-1]
    dataset = np.searchsorted(bounds, generator.random(batch_size), side="right")
    first = np.append(0, shares.ends[:-1])
    return starts[generator.integers(first[dataset], shares.ends[dataset])]


def eval_clips(
    store: Store, split: str, num_frames: int, count: int, seed: int = 0, flags: str = ""
) -> np.ndarray:
    """(count,) int64: distinct clips for evaluation, spread evenly over as many levels as possible.

    The result depends on the arguments alone. Raises UserError if there are fewer clips: it advises
    to lower the `flags` that decide their number or length, if any.
    """
    starts = clip_starts(store, split, num_frames, flags)
    if len(starts) < count:
        raise UserError(
            f"{store.name} has {len(starts)} {split} clips of {num_frames} frames, fewer than "
            f"{count}: collect or import more{_or_lower(flags)}"
        )
    return spread_clips(store, starts, count, seed)


def spread_clips(store: Store, starts: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """At most `count` of the clips, spread evenly over as many levels as possible."""
    starts = np.random.default_rng(seed % 2**64).permutation(starts)
    offsets = np.array([segment.offset for segment in store.segments])
    level = np.searchsorted(offsets, starts, side="right")
    by_level = np.argsort(level, kind="stable")
    _, first, sizes = np.unique(level[by_level], return_index=True, return_counts=True)
    rank = np.empty(len(starts), np.int64)  # how many clips of the same level come before this one
    rank[by_level] = np.arange(len(starts)) - np.repeat(first, sizes)
    return starts[np.argsort(rank, kind="stable")[:count]]


def read_clips(store: Store, offsets: np.ndarray, num_frames: int) -> Batch:
    """The clips that start at `offsets` (B,) int64. Raises DamagedClips if files are damaged."""
    frames = np.empty((len(offsets), num_frames, store.height, store.width, 3), np.uint8)
    span = store.span(num_frames)
    try:
        # Slices into one preallocated array are more than twice as fast as one indexed read.
        clips = zip(frames, offsets.tolist(), strict=True)
        jobs = [ts.array(clip).write(_frames_of(store, start, span)) for clip, start in clips]
        actions = _actions_of(store, offsets, num_frames)
        for job in jobs:
            job.result()
    except Exception as error:  # tensorstore raises several kinds
        raise _damaged_clips(store, offsets.tolist(), span, error) from error
    return Batch(frames, actions)


def read_actions(store: Store, offsets: np.ndarray, num_frames: int) -> np.ndarray:
    """The actions of clips as in `Batch.actions`. Raises DamagedClips."""
    try:
        return _actions_of(store, offsets, num_frames)
    except Exception as error:  # tensorstore raises several kinds
        span = store.span(num_frames)
        raise _damaged_clips(store, offsets.tolist(), span, error) from error


def _action_array(store: Store) -> str:
    """The array that the actions of clips are read from."""
    return VECTORS if store.as_vectors else "actions"


def _actions_of(store: Store, offsets: np.ndarray, num_frames: int) -> np.ndarray:
    """`Batch.actions` of clips. Raises what tensorstore raises."""
    transitions = offsets[:, None] + np.arange(num_frames - 1) * store.stride
    kept = np.asarray(store.arrays[_action_array(store)][transitions].read().result())
    if store.as_vectors:
        return vectors.standardised(kept, vectors.prototypes_of(store.datasets[0].meta))
    return kept.astype(np.int64)


def _frames_of(store: Store, start: int, span: int) -> ts.TensorStore:
    """The frames of a clip, as a view of the dataset's own array, which is read faster than that of
    a mixture."""
    part = store.part_at(start)
    first = start - part.base
    return part.store.arrays["frames"][first : first + span : store.stride]


def _damaged_clips(store: Store, offsets: list[int], span: int, error: Exception) -> DamagedClips:
    """Which of the clips that cover `span` frames cannot be read, and why; `error` is what reading raised."""
    lost = {}
    actions = _action_array(store)
    for i, offset in enumerate(offsets):
        sentence = describe_damage(store, ["frames"], offset, offset + span)
        sentence = sentence or describe_damage(store, [actions], offset, offset + span - 1)
        if sentence:
            lost[i] = sentence
    return DamagedClips(lost or {0: f"{store.name} could not be read ({reason(error)})"})
