"""The real game, one level of Procgen: to collect from, and to step with the same actions beside a dream.

A `Game` is a handle of the native library, which holds the state; `save` and `load` copy that state out and in,
exactly, also into another handle on the same level. Games are independent: each may be opened and stepped in a thread
of its own, even the first ones of a process at once, and goes on in both processes after a fork, with the same frames
as if alone. But of one game only one call may run at a time, since the library locks nothing.
"""

import contextlib
import difflib
import importlib.util
import os
import zlib
from typing import Any, NamedTuple

import numpy as np

from genie_fn.errors import UserError

SIZE = 64  # Procgen draws 64 x 64
ACTIONS = (
    *"LEFT+DOWN LEFT LEFT+UP DOWN NOOP UP RIGHT+DOWN RIGHT RIGHT+UP".split(),
    *"DAWSQE",
)  # keys few games use
MAX_LEVEL = 10**9  # level seeds are 32-bit
# Elsewhere, asking for these modes ends the process.
RARE_MODES = {
    "extreme": "chaser dodgeball leaper starpilot",
    "memory": "caveflyer dodgeball heist jumper maze miner",
}


class Game(NamedTuple):
    """An open level."""

    env: Any  # procgen's ProcgenGym3Env of a single environment
    level: int
    skip: int = 1  # frames of the game per step, as the data was collected


class Step(NamedTuple):
    """What an action led to. Where `ended`, the episode is over and `frame` is the first of the level's next one."""

    frame: np.ndarray  # (H, W, 3) uint8 RGB
    ended: bool
    reward: float


def procgen():
    """Procgen's module; importing it prints a page about gym, which nothing here uses."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            import procgen.env
    except ImportError as error:
        raise UserError(
            f"Procgen cannot be imported ({error}): `pip install procgen-mirror 'numpy<2'`."
        ) from error
    return procgen.env


def there(meta: dict) -> bool:
    """Whether a store's data, by its `meta`, came from a game, and Procgen is installed; this does not import it."""
    return "collection" in meta and importlib.util.find_spec("procgen") is not None


def check(name: str, mode: str) -> None:
    """Raise UserError for a game or a distribution mode that Procgen lacks."""
    games = procgen().ENV_NAMES
    if name not in games:
        (near,) = difflib.get_close_matches(name.lower(), games, n=1, cutoff=0)
        raise UserError(f"Procgen has no game {name!r}: did you mean {near!r}?")
    if mode not in ("easy", "hard") and name not in RARE_MODES.get(mode, "").split():
        raise UserError(f"{name} has no {mode} mode: choose easy or hard.")


def make_env(name: str, level: int, mode: str):
    """Procgen's own environment of one level. With one level, rand_seed has nothing left to decide."""
    # start_level is ignored unless num_levels is set. Without threads, only the caller's thread works.
    options = {"num_levels": 1, "start_level": level, "distribution_mode": mode, "rand_seed": 0}
    return procgen().ProcgenGym3Env(num=1, env_name=name, num_threads=0, **options)


def open_game(level: int, meta: dict, height: int = SIZE, width: int = SIZE) -> Game:
    """`level` of the game that a store's data came from, by the store's `meta`, to stand beside (height, width) frames.

    Raises UserError where the data is not Procgen's, where Procgen is missing, or where frames differ in size.
    """
    collection = meta.get("collection", {})
    if not {"env", "distribution_mode"} <= collection.keys():
        raise UserError(
            "this data was not collected from a Procgen game: there is nothing to step beside the dream"
        )
    if (height, width) != (SIZE, SIZE):
        raise UserError(
            f"the real game draws {SIZE}x{SIZE} frames and this world {height}x{width}: to see them side by side, play "
            f"a world of {SIZE}x{SIZE} frames"
        )
    if not 0 <= level <= MAX_LEVEL:
        raise UserError(f"there is no level {level}: choose a number from 0 to {MAX_LEVEL}")
    name, mode, skip = (
        collection["env"],
        collection["distribution_mode"],
        collection.get("frame_skip", 1),
    )
    check(name, mode)
    return Game(make_env(name, level, mode), level, skip)


def frame(game: Game) -> np.ndarray:
    """What the game shows, (H, W, 3) uint8 RGB."""
    return game.env.observe()[1]["rgb"][0]  # gym3 copies


def advance(env, action: int, skip: int) -> tuple[dict, bool, float]:
    """Hold an action for `skip` frames of Procgen's environment, or to the end of the episode.

    Returns what is then observed, whether the episode ended, and the rewards' sum.
    """
    earned = 0.0
    for _ in range(skip):
        env.act(np.array([action]))
        reward, observation, first = env.observe()
        earned += float(reward[0])
        if first[0]:
            break
    return observation, bool(first[0]), earned


def step(game: Game, action: int) -> Step:
    """Take a real action, an index into ACTIONS."""
    if not 0 <= action < len(ACTIONS):  # the library would read beyond its table
        raise UserError(
            f"the game has no action {action}: choose a number from 0 to {len(ACTIONS) - 1}"
        )
    observation, ended, reward = advance(game.env, action, game.skip)
    return Step(observation["rgb"][0], ended, reward)


def save(game: Game) -> bytes:
    """The whole state of the game, small enough to keep one per frame (about 12 kB)."""
    return zlib.compress(game.env.get_state()[0], 1)


def load(game: Game, saved: bytes) -> None:
    """Go back to a saved state of the same level. For `save`'s own bytes only: the library trusts what it reads."""
    game.env.set_state([zlib.decompress(saved)])


def close(game: Game) -> None:
    """Free the library's memory. The game cannot be used any more."""
    game.env.close()
