"""What becomes of rollouts of many frames: whether pictures stay sharp and actions are followed.

Rollouts start at held-out frames. Their actions are the clip's own as long as a recorded clip
lasts, and then those of further clips, so that they occur in natural order and frequency. At a few
frames t the generated frames are compared with the recorded ones of the same time, where there are
any, and with recorded frames in general: by their edges, by how many different codes a frame
has, and by whether its ids belong together. From there every action is held for some frames, as in held_codes.py.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genie_fn import data, dynamics, metrics, random, tokenizer
from genie_fn import world as worlds
from genie_fn.data import Store
from genie_fn.errors import UserError
from genie_fn.evaluation import held_codes, reconstruction
from genie_fn.evaluation.clips import Clips, encode
from genie_fn.evaluation.record import LongRollouts
from genie_fn.maskgit import SampleConfig
from genie_fn.world import State, World

TIMES = (10, 50, 200, 1000)
"""The frames t at which rollouts are measured."""
STARTS = 8
LONGEST_CLIP = 200
"""Recorded frames after the first one with which rollouts are compared, at most."""
LEAST = 0.5
"""Below this share of what recorded frames have, of edges or of different codes, a world has
dissolved."""


class Start(NamedTuple):
    """N held-out clips."""

    frames: Tensor
    """(N, T, H, W, 3) uint8."""
    recorded: Tensor
    """(N, T-1) recorded actions."""


class Rollout(NamedTuple):
    """N rollouts at the times at which they are measured."""

    states: dict[int, State]
    frames: dict[int, Tensor]
    """By time, (N, H, W, 3) uint8."""
    ids: dict[int, Tensor]
    """By time, (N, tokens)."""


def times(frames: int) -> list[int]:
    """The times up to `frames`; it is the last one."""
    return [t for t in TIMES if t < frames] + [frames]


def find_starts(store: Store, split: str, frames: int, count: int, seed: int) -> Start:
    """Held-out clips of as many levels as possible, and of these as long as possible.

    They have at most `frames` frames after the first.
    """
    shortest = data.eval_clips(store, split, 2, count, seed)
    levels = _levels(store, shortest)
    for t in reversed(times(min(frames, LONGEST_CLIP))):
        try:
            offsets = data.eval_clips(store, split, t + 1, count, seed)
        except UserError:
            continue
        if _levels(store, offsets) == levels:
            return _read(store, offsets, t + 1)
    return _read(store, shortest, 2)


def _levels(store: Store, offsets: np.ndarray) -> int:
    """The number of levels that clips are from."""
    return len(np.unique(store.arrays["level_seeds"][offsets].read().result()))


def _encode(world: World, frames: Tensor, recorded: Tensor) -> Clips:
    """`clips.encode` one clip after the other, because they are long."""
    pairs = zip(frames.split(1), recorded.split(1), strict=True)
    encoded = [encode(world, *pair) for pair in pairs]
    return Clips(*(torch.cat(parts) for parts in zip(*encoded, strict=True)))


def _read(store: Store, offsets: np.ndarray, length: int) -> Start:
    batch = data.read_clips(store, offsets, length)
    return Start(torch.from_numpy(batch.frames), torch.from_numpy(batch.actions))


def continued(own: Tensor, codes: Tensor, frames: int) -> Tensor:
    """Actions (N, frames): `own` (N, T), and then those of the recorded transitions `codes`.

    Each of the N rollouts begins at another place of `codes`.
    """
    missing = frames - own.shape[1]
    if missing <= 0:
        return own[:, :frames]
    flat = codes.flatten().to(own.device)
    first = torch.arange(len(own), device=own.device)[:, None] * (len(flat) // len(own))
    index = (first + torch.arange(missing, device=own.device)) % len(flat)
    return torch.cat((own, flat[index]), 1)


def roll_out(  # noqa: PLR0913 (what is generated, how, and when it is kept)
    world: World,
    start: State,
    actions: Tensor,
    key: Tensor,
    sample: SampleConfig,
    stops: list[int],
) -> Rollout:
    """Frames under actions (N, frames) after a start, with the states at the times `stops`."""
    found = Rollout({}, {}, {})
    state = start
    for t, action in enumerate(actions.unbind(1), 1):
        state, frame = worlds.step(world, state, action, random.fold_in(key, t), sample)
        if t in stops:
            found.states[t] = state
            found.frames[t] = frame.pixels
            found.ids[t] = frame.ids
    return found


def perplexity(ids_BN: Tensor) -> float:
    """exp of the entropy of the codes of a frame, mean over the frames."""
    values = [math.exp(metrics.entropy(ids_N)) for ids_N in ids_BN]
    return sum(values) / len(values)


def kept(world: World, ids_BN: Tensor, frames_BHWC: Tensor) -> float:
    """The share of the digits of ids that encoding the frames decoded from them, by themselves, gives
    again."""
    model = world.tokenizer
    again = [
        tokenizer.tokenize(model.params, chunk[:, None], model.cfg, backend=model.backend)[1][:, 0]
        for (chunk,) in worlds.chunks(frames_BHWC)
    ]
    sizes = world.dynamics.cfg.sizes
    pairs = zip(
        dynamics.digits(ids_BN, sizes), dynamics.digits(torch.cat(again), sizes), strict=True
    )
    return torch.stack([a == b for a, b in pairs]).float().mean().item()


def evaluate(  # noqa: PLR0913 (a world, recorded transitions, and how frames are sampled)
    world: World,
    start: Start,
    codes: Tensor,
    shift: Tensor,
    frames: int,
    key: Tensor,
    sample: SampleConfig,
) -> LongRollouts:
    """The measures of rollouts of `frames` frames.

    `codes` (M, T-1) and `shift` (M, T-1, 2) are those of recorded transitions of the same split.
    """
    roll_key, hold_key = random.split(key).unbind(0)
    clips = _encode(world, start.frames.to(key.device), start.recorded.to(key.device))
    stops = times(frames)
    actions = continued(clips.actions, codes, frames)
    first, _ = worlds.start(world, clips.codes[:, :1], clips.ids[:, :1], actions[:, :0])
    rollout = roll_out(world, first, actions, roll_key, sample, stops)

    length = clips.frames.shape[1]
    different = perplexity(clips.ids.flatten(0, 1))
    one_by_one = [reconstruction.decode(world, ids) for ids in clips.ids.split(1)]
    decoded = torch.cat(one_by_one)  # as in `_encode`
    edges = [metrics.edge_ratio(rollout.frames[t], clips.frames) for t in stops]
    perplexities = [perplexity(rollout.ids[t]) for t in stops]
    tested = held_codes.tested(codes, world.dynamics.cfg.actions)
    followed: list[float | None] = [None] * len(stops)
    if len(tested):
        moves = metrics.mean_displacement(codes, shift, tested)
        followed = [
            _followed(world, rollout.states[t], rollout.frames[t], tested, moves, hold_key, sample)
            for t in stops
        ]
    psnr = [
        metrics.frame_psnr(rollout.frames[t], clips.frames[:, t]).mean().item()
        if t < length
        else None
        for t in stops
    ]
    dissolved = [
        t
        for t, sharpness, variety in zip(stops, edges, perplexities, strict=True)
        if sharpness < LEAST or variety < LEAST * different
    ]
    return LongRollouts(
        starts=len(clips.frames),
        times=stops,
        psnr=[None if value is None else round(value, 4) for value in psnr],
        edges=[round(value, 4) for value in edges],
        perplexity=[round(value, 4) for value in perplexities],
        recorded_perplexity=round(different, 4),
        kept=[round(kept(world, rollout.ids[t], rollout.frames[t]), 4) for t in stops],
        recorded_kept=round(kept(world, clips.ids.flatten(0, 1), decoded.flatten(0, 1)), 4),
        followed=followed,
        dissolved=min(dissolved, default=None),
    )


def _followed(  # noqa: PLR0913 (a state, what is held, and how frames are sampled)
    world: World,
    state: State,
    frames: Tensor,
    actions: Tensor,
    expected: Tensor,
    key: Tensor,
    sample: SampleConfig,
) -> float:
    """The share of held actions that are followed from a state."""
    agreed = []
    for action, direction in zip(actions.tolist(), expected, strict=True):
        held = torch.full((len(frames), held_codes.FRAMES), action, device=frames.device)
        video = worlds.generate(world, state, held, key, sample)
        video = torch.cat((frames[:, None], video), 1).cpu()
        moved = metrics.displacement(video[:, :-1], video[:, 1:]).sum(1)
        agreed.append(held_codes.agrees(moved, direction, held_codes.FRAMES))
    return round(torch.stack(agreed).float().mean().item(), 4)
