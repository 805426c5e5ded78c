"""An expert that plays Procgen's games: search in the real game, with saved states.

The search is best-first. From the most promising positions so far each of a few moves is held for a
few frames, in many games at once. A move that ends the episode without a reward is dropped, and the
first reward is the goal. A position is the more promising the further the camera has moved since
the start, which is measured from the frames, so nothing is read from the game but its frames,
rewards and ends. Of positions in the same place that move the same way the first is kept. A camera
that stands still makes all positions equally promising; they then differ by their coarse picture,
and the search is breadth-first.

A Procgen level is the same for the same moves, so what was found is played again to record it.
"""

import functools
import heapq
from typing import Any, NamedTuple

import numpy as np
import torch

from genie_fn import metrics
from genie_fn.data import procgen
from genie_fn.data.procgen import ACTIONS, SIZE, ProcgenGame
from genie_fn.data.store import Recording

MOVES = tuple(
    ACTIONS.index(name) for name in ("RIGHT", "RIGHT+UP", "NOOP", "UP", "LEFT", "LEFT+UP", "DOWN")
)
UP_COST = 0.5
"""Pixels of progress that a move with UP has to gain, so that the expert jumps where it has to."""
EXPANDED = 4
"""Positions from which all moves are tried at once."""
HOLD = 4
"""Frames of the game for which a move is held, at least."""
MEASURED = 2
"""Frames of the game between two measurements of the camera, whose search range is limited."""
PLACE = 4.0
"""Pixels per side of a place."""
BUDGET = 20_000
"""Frames of the game after which a search gives up."""
COARSE = 8
"""Pixels per side of a coarse picture, and levels of its pixels."""


class Plan(NamedTuple):
    """What a search found."""

    actions: np.ndarray
    """(T,) uint8: those that earn the reward, or else those that lead to the most promising
    position."""
    solved: bool
    frames: int
    """Frames of the game that were played to find it."""


class Search(NamedTuple):
    """Open games to search in; a search can be used for every level of its game and mode."""

    env: Any
    """procgen's ProcgenGym3Env of EXPANDED times as many games as there are moves."""
    skip: int
    """Frames of the game per action."""
    hold: int
    """Actions per move."""


class _Position(NamedTuple):
    """A state of the game that a search has reached. Sorted by `order`, then by `index`."""

    order: float
    """Less is more promising."""
    index: int
    parent: int
    """The index of the position before; -1 for the first."""
    move: int
    state: bytes
    frame: np.ndarray
    """(H, W, 3) uint8."""
    place: np.ndarray
    """(2,): how far the camera has moved from the start to the right and down, in pixels."""


class _Tried(NamedTuple):
    """The results of M moves, each in a game of its own."""

    won: np.ndarray
    """(M,): after how many frames the first reward came; 0: none did."""
    alive: np.ndarray
    """(M,) bool: whether the episode goes on."""
    frames: np.ndarray
    """(M, H, W, 3) uint8: the last one."""
    moved: np.ndarray
    """(M, 2): how far the camera has moved."""


@functools.lru_cache(maxsize=1)
def open_search(
    name: str, mode: str, skip: int = 1, stride: int = 1, visuals: procgen.Visuals = "full"
) -> Search:
    """Games for a search whose actions last for `skip` frames of the game.

    A move is held for a multiple of `stride` actions. Raises UserError for a game or a mode that
    there is not, and if Procgen is missing.
    """
    procgen.check(name, mode)
    env = procgen.make_env(name, 0, mode, visuals, num=EXPANDED * len(MOVES))
    together = skip * stride
    return Search(env, skip, stride * -(-HOLD // together))


def solve(search: Search, game: ProcgenGame, budget: int = BUDGET) -> Plan:
    """A plan from the current state of a game, found by playing about `budget` frames at most.

    If no position is left, it searches once more, keeping more of them.
    """
    state = game.env.get_state()[0]
    first = _Position(0.0, 0, -1, -1, state, game.frame(), np.zeros(2))
    plan = _search(search, first, budget, detailed=False)
    if plan.solved or plan.frames >= budget:
        return plan
    again = _search(search, first, budget - plan.frames, detailed=True)
    return again._replace(frames=plan.frames + again.frames)


def _search(search: Search, first: _Position, budget: int, *, detailed: bool) -> Plan:
    """A plan from a position; with `detailed` positions of another coarse picture always differ."""
    reached = [first]
    open_positions = [first]
    seen = set()
    frames = 0
    while open_positions and frames < budget:
        count = min(EXPANDED, len(open_positions))
        expanded = [heapq.heappop(open_positions) for _ in range(count)]
        pairs = [(position, move) for position in expanded for move in MOVES]
        tried = _try(search, pairs)
        frames += len(pairs) * search.hold * search.skip
        if tried.won.any():
            i = int(np.flatnonzero(tried.won)[0])
            position, move = pairs[i]
            last = [move] * -(-int(tried.won[i]) // search.skip)
            return Plan(_actions(search, reached, position, last), True, frames)
        states = search.env.get_state()
        for i in np.flatnonzero(tried.alive).tolist():
            position, move = pairs[i]
            place = position.place + tried.moved[i]
            cell = _cell(place, tried.moved[i], tried.frames[i], detailed=detailed)
            if cell in seen:
                continue
            seen.add(cell)
            order = UP_COST * ("UP" in ACTIONS[move]) - float(np.hypot(*place))
            new = _Position(
                order, len(reached), position.index, move, states[i], tried.frames[i], place
            )
            reached.append(new._replace(state=b"", frame=np.empty(0)))
            heapq.heappush(open_positions, new)
    best = min(reached)
    last = [] if best.index else [ACTIONS.index("NOOP")]  # a recording has at least one action
    return Plan(_actions(search, reached, best, last), False, frames)


def _try(search: Search, pairs: list[tuple[_Position, int]]) -> _Tried:
    """Hold each move from its position."""
    count = len(pairs)
    total = search.env.num
    padded = pairs + pairs[:1] * (total - count)
    search.env.set_state([position.state for position, _ in padded])
    actions = np.array([move for _, move in padded])
    before = np.stack([position.frame for position, _ in padded])
    now = before
    won = np.zeros(total, int)
    alive = np.ones(total, bool)
    moved = np.zeros((total, 2))
    length = search.hold * search.skip
    for t in range(1, length + 1):
        search.env.act(actions)
        reward, observation, ended = search.env.observe()
        won[alive & (won == 0) & (reward > 0)] = t
        alive &= ~ended
        if t % MEASURED == 0 or t == length:
            now = observation["rgb"].copy()
            shift = metrics.displacement(torch.from_numpy(before), torch.from_numpy(now))
            moved -= shift.numpy()  # the picture moves against the camera
            before = now
    return _Tried(won[:count], alive[:count], now[:count], moved[:count])


def _cell(
    place: np.ndarray, moved: np.ndarray, frame: np.ndarray, *, detailed: bool = False
) -> tuple:
    """The cell of a position: the place, the direction of motion, and at the start, or if `detailed`,
    the coarse picture. Of the positions with the same cell, only the first is kept."""
    near = tuple(np.rint(place / PLACE).astype(int).tolist())
    direction = tuple(np.sign(moved).astype(int).tolist())
    if any(near) and not detailed:
        return near, direction
    side = SIZE // COARSE
    coarse = frame.reshape(COARSE, side, COARSE, side, 3).mean((1, 3, 4))
    return near, direction, (coarse * COARSE / 256).astype(np.uint8).tobytes()


def _actions(
    search: Search, reached: list[_Position], position: _Position, last: list[int]
) -> np.ndarray:
    """The actions that lead to a position, and then the last ones."""
    moves = []
    while position.parent >= 0:
        moves.append(position.move)
        position = reached[position.parent]
    return np.array([*np.repeat(moves[::-1], search.hold), *last], np.uint8)


def play(search: Search, game: ProcgenGame, limit: int | None = None) -> Recording:
    """Solve a game from its current state and record the plan, at most `limit` frames of it.

    The recording contains one episode, whose last frame is the one before the reward. `info` says
    whether the level was completed.
    """
    begin = game.save()
    plan = solve(search, game)
    actions = plan.actions[:limit]
    game.load(begin)
    frames = np.empty((len(actions), SIZE, SIZE, 3), np.uint8)
    rewards = np.zeros(len(actions), np.float32)
    for t, action in enumerate(actions.tolist()):
        frames[t] = game.frame()
        rewards[t] = game.step(action).reward
    starts = np.zeros(len(actions), bool)
    starts[:1] = True
    info = {
        "completed": int((rewards > 0).any()),
        "reward": float(rewards.sum()),
        "actions": np.bincount(actions, minlength=len(ACTIONS)).tolist(),
    }
    return Recording(game.level, frames, actions, rewards, starts, info=info)
