"""Whether a held key moves the agent: dreams of left and right, beside the real game from the same moments.

A PSNR forgives a world in which nothing moves; who plays it does not. The view follows the agent, so an agent that goes
left shows as a picture that moves right.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genie_fn import data, metrics, world
from genie_fn.data import Store, procgen
from genie_fn.dynamics import SampleConfig
from genie_fn.evaluation import rollouts
from genie_fn.world import World

KEYS = ("LEFT", "RIGHT")
HELD = 10  # frames
FREE = 3  # pixels that the agent goes either way in the real game, where nothing is in its way
TRIES = 12  # moments looked at for one that is free


class Moments(NamedTuple):
    """N held-out moments at which the real agent can go both ways: `frames` (2, N, HELD + 1, H, W, 3) uint8 of the real
    game under each of KEYS, all from the same first frame, and by how many pixels it goes right, `gone` (2, N)."""

    frames: Tensor
    gone: Tensor


def gone(frames: Tensor) -> Tensor:
    """By how many pixels the agent goes right in frames (..., T, H, W, 3): (...,) int64."""
    return -metrics.displacement(frames[..., :-1, :, :, :], frames[..., 1:, :, :, :])[..., 0].sum(
        -1
    )


def moments(store: Store, split: str, count: int, seed: int) -> Moments | None:
    """Up to `count` moments of a split, found by playing the recorded actions again up to them, then holding each key.

    None where the data is not of a game that is installed and has such keys, or where no moment is free.
    """
    if not procgen.available(store.meta) or not set(KEYS) <= set(store.action_names):
        return None
    offsets = data.eval_clips(store, split, 1, min(TRIES * count, store.count(split)), seed)
    found: list[Tensor] = []
    for offset in offsets:
        held = _held(store, int(offset))
        if held is not None and len(found) < count:
            left, right = gone(held).tolist()
            found += [held] if left <= -FREE and right >= FREE else []
    if not found:
        return None
    frames = torch.stack(found, 1)
    return Moments(frames, gone(frames))


def _held(store: Store, offset: int) -> Tensor | None:
    """What either key leads to from a recorded frame on, (2, HELD + 1, H, W, 3); None if the episode ends before."""
    segment = next(s for s in store.segments if s.offset <= offset < s.offset + s.length)
    level = procgen.open_game(segment.level, store.meta)
    try:
        for action in np.asarray(store.arrays["actions"][segment.offset : offset].read().result()):
            procgen.step(level, int(action))
        saved, sides = procgen.save(level), []
        for key in KEYS:
            procgen.load(level, saved)
            first = procgen.frame(level)
            steps = [procgen.step(level, store.action_names.index(key)) for _ in range(HELD)]
            if any(step.ended for step in steps):
                return None
            sides.append(np.stack([first, *(step.frame for step in steps)]))
    finally:
        procgen.close(level)
    return torch.from_numpy(np.stack(sides))


def hold(
    dream: World, found: Moments, pressed: dict[str, int], key: Tensor, sample: SampleConfig
) -> Tensor:
    """The same moments dreamed on, under what the world takes for each key: frames as in `Moments`, on the CPU."""

    def continued(key: Tensor, first: Tensor, actions: Tensor) -> Tensor:
        return torch.cat((first, world.rollout(dream, first, actions, key, sample)), 1)

    sides = []
    for real, name in zip(found.frames.to(key.device), KEYS, strict=True):
        held = torch.full((len(real), HELD), pressed[name], device=key.device)
        sides.append(rollouts.batched(continued, key, real[:, :1], held))
    return torch.stack(sides).cpu()


def score(found: Moments, dreamed: Tensor) -> dict:
    """How far the agent goes in `dreamed` frames, and from how many moments it goes the key's way under both."""
    left, right = went = gone(dreamed)
    both = (left < 0) & (right > 0)
    return {
        "frames": HELD,
        "starts": len(both),
        "right_way": int(both.sum()),
        "share": round(both.float().mean().item(), 4),
        "apart": int((left < right).sum()),
        "dreamed": {name: row.tolist() for name, row in zip(KEYS, went, strict=True)},
        "real": {name: row.tolist() for name, row in zip(KEYS, found.gone, strict=True)},
    }
