"""Whether a held key moves the agent, in rollouts and in the real game.

A PSNR is high where nothing moves; a player needs an agent that moves. The view follows the agent,
so an agent that moves left appears as an image that moves right.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genie_fn import data, metrics
from genie_fn.data import Store, games
from genie_fn.data.game import Game
from genie_fn.errors import UserError
from genie_fn.evaluation import rollouts
from genie_fn.evaluation.clips import tokenize
from genie_fn.evaluation.record import HeldKeys
from genie_fn.maskgit import SampleConfig
from genie_fn.world import World

KEYS = ("LEFT", "RIGHT")
FRAMES = 10  # for which a key is held
MIN_DISPLACEMENT = 3  # pixels in either direction in the real game, from a frame that is used
TRIES = 12  # frames examined for each one that is used


class Starts(NamedTuple):
    """N held-out frames from which the real agent can move both ways."""

    frames: Tensor
    """(2, N, FRAMES + 1, H, W, 3) uint8 of the real game under each of KEYS."""
    displacement: Tensor
    """(2, N): by how many pixels the real agent moves to the right."""


def agent_displacement(frames: Tensor) -> Tensor:
    """By how many pixels the agent moves to the right in frames (..., T, H, W, 3): (...,) int64."""
    before, after = frames[..., :-1, :, :, :], frames[..., 1:, :, :, :]
    return metrics.agent_motion(metrics.displacement(before, after))[..., 0].sum(-1)


def find_starts(store: Store, split: str, count: int, seed: int) -> Starts | None:
    """Up to `count` frames of a split, and what holding each key leads to.

    The frames are reached by replaying the recorded actions. The result is None if the data is not
    of an installed game with such keys, or if the agent can move both ways from no frame.
    """
    if not games.available(store.meta) or not set(KEYS) <= set(store.action_names):
        return None
    if not _can_be_opened(store):
        return None
    candidates = data.eval_clips(store, split, 1, min(TRIES * count, store.count(split)), seed)
    accepted: list[Tensor] = []
    for offset in candidates:
        if len(accepted) == count:
            break
        frames = _replay(store, int(offset))
        if frames is not None and _moves_both_ways(frames):
            accepted.append(frames)
    if not accepted:
        return None
    frames = torch.stack(accepted, 1)
    return Starts(frames, agent_displacement(frames))


def _can_be_opened(store: Store) -> bool:
    """Whether the game can be opened here."""
    try:
        games.open_game(store.segments[0].level, store.meta).close()
    except UserError:
        return False
    return True


def _moves_both_ways(frames: Tensor) -> bool:
    left, right = agent_displacement(frames).tolist()
    return left <= -MIN_DISPLACEMENT and right >= MIN_DISPLACEMENT


def _replay(store: Store, offset: int) -> Tensor | None:
    """The frames that each key leads to from a recorded frame, (2, FRAMES + 1, H, W, 3).

    The result is None if the episode ends.
    """
    segment = next(s for s in store.segments if s.offset <= offset < s.offset + s.length)
    actions = np.asarray(store.arrays["actions"][segment.offset : offset].read().result())
    game = games.open_game(segment.level, store.meta)
    try:
        for action in actions:
            game.step(int(action))
        saved = game.save()
        game.skip *= store.stride
        videos = [_hold_in_game(game, saved, store.action_names.index(key)) for key in KEYS]
    finally:
        game.close()
    if any(video is None for video in videos):
        return None
    return torch.from_numpy(np.stack([video for video in videos if video is not None]))


def _hold_in_game(game: Game, saved: bytes, action: int) -> np.ndarray | None:
    """The frames of the real game from a saved state on; None if the episode ends."""
    game.load(saved)
    first = game.frame()
    steps = [game.step(action) for _ in range(FRAMES)]
    if any(step.ended for step in steps):
        return None
    return np.stack([first, *(step.frame for step in steps)])


def hold(
    world: World, starts: Starts, key_actions: dict[str, int], key: Tensor, sample: SampleConfig
) -> Tensor:
    """Rollouts under the world's action for each key: frames as in `Starts`, on the CPU."""

    first = starts.frames[0, :, :1].to(key.device)
    codes, ids = tokenize(world, first)
    videos = []
    for name in KEYS:
        held = torch.full((len(first), FRAMES), key_actions[name], device=key.device)
        frames = rollouts.free_running(world, codes, ids, held, key, sample)
        videos.append(torch.cat((first, frames), 1))
    return torch.stack(videos).cpu()


def score(starts: Starts, generated: Tensor) -> HeldKeys:
    """Displacements of the agent in generated frames, and how often they are correct."""
    left, right = agent_displacement(generated)
    correct = (left < 0) & (right > 0)
    recorded_left, recorded_right = starts.displacement
    return HeldKeys(
        frames=FRAMES,
        starts=len(correct),
        correct=int(correct.sum()),
        share=round(correct.float().mean().item(), 4),
        separated=int((left < right).sum()),
        generated={"LEFT": left.tolist(), "RIGHT": right.tolist()},
        recorded={"LEFT": recorded_left.tolist(), "RIGHT": recorded_right.tolist()},
    )
