"""Procgen games: environments to collect from, and levels to play beside a rollout.

A game is a handle of the native library, which holds the state. `save` and `load` copy that state
out and in exactly, also between handles of the same level. Games are independent: each may be
opened and stepped in its own thread, even the first ones of a process at the same time, and goes on
with the same frames in both processes after a fork. Only one call at a time may run on one game,
because the library does not lock.
"""

import contextlib
import difflib
import os
import zlib
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from genie_fn.data.game import Game, Step
from genie_fn.errors import UserError

SIZE = 64  # height and width of Procgen's frames, in pixels
ACTIONS = (
    *("LEFT+DOWN", "LEFT", "LEFT+UP", "DOWN", "NOOP", "UP", "RIGHT+DOWN", "RIGHT", "RIGHT+UP"),
    *("D", "A", "W", "S", "Q", "E"),  # keys that few games use
)
Visuals = Literal["full", "plain"]
"""`full`: as published; `plain`: a black background and a single theme, with the same levels and the
same physics."""
# The library ends the process if asked for these modes in another game.
RARE_MODES = {
    "extreme": ("chaser", "dodgeball", "leaper", "starpilot"),
    "memory": ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"),
}


def _library() -> ModuleType:
    """Procgen's module. Importing it prints a page about gym, which is not used here."""
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stderr(nowhere),
        ):
            import procgen.env  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"Procgen cannot be imported ({error}): on Linux x86-64 with Python 3.11 or 3.12 run `pip "
            "install procgen-mirror 'numpy<2'`; elsewhere choose a game such as gym:ALE/Breakout-v5"
        ) from error
    return procgen.env


def check(name: str, mode: str) -> None:
    """Raise UserError for a game or a distribution mode that Procgen does not have."""
    games = _library().ENV_NAMES
    if name not in games:
        (nearest,) = difflib.get_close_matches(name.lower(), games, n=1, cutoff=0)
        raise UserError(f"Procgen has no game {name!r}: did you mean {nearest!r}?")
    if mode not in ("easy", "hard") and name not in RARE_MODES.get(mode, ()):
        raise UserError(f"{name} has no {mode} mode: choose easy or hard")


def make_env(name: str, level: int, mode: str, visuals: Visuals = "full", num: int = 1) -> Any:
    """Procgen's own environment of `num` games of one level."""
    options = {
        "use_backgrounds": visuals == "full",
        "restrict_themes": visuals == "plain",
        "num_levels": 1,  # start_level is ignored unless this is set
        "start_level": level,
        "distribution_mode": mode,
        "rand_seed": 0,  # has no effect with a single level
    }
    # With num_threads=0 only the caller's thread works.
    return _library().ProcgenGym3Env(num=num, env_name=name, num_threads=0, **options)


def collection(meta: dict[str, Any]) -> dict[str, Any]:
    """How a store with this `meta` was collected from Procgen; raises UserError if it was not."""
    options = meta.get("collection", {})
    if not {"env", "distribution_mode"} <= options.keys():
        raise UserError(
            "this data was not collected from a Procgen game: choose a dataset that was"
        )
    return options


def visuals_of(collection: dict[str, Any]) -> Visuals:
    """What the games look like that were collected with these options.

    Raises UserError if this version does not know it.
    """
    visuals = collection.get("visuals", "full")
    if visuals not in get_args(Visuals):
        raise UserError(
            f"this data was collected with visuals {visuals!r}, which this version of genie_fn does "
            "not know: update it, or play without the game"
        )
    return visuals


def open_level(level: int, options: dict[str, Any], skip: int = 1) -> "ProcgenGame":
    """Open a level of the game that was collected with these options.

    Raises UserError if Procgen is missing.
    """
    name = options["env"]
    mode = options["distribution_mode"]
    check(name, mode)
    return ProcgenGame(make_env(name, level, mode, visuals_of(options)), level, skip)


def advance(env: Any, action: int, skip: int) -> tuple[dict[str, np.ndarray], bool, float]:
    """Hold an action for `skip` frames of the game, or to the end of the episode.

    Returns the observation after it, whether the episode ended, and the sum of the rewards.
    """
    total = 0.0
    observation: dict[str, np.ndarray] = {}
    ended = False
    for _ in range(skip):
        env.act(np.array([action]))
        reward, observation, first = env.observe()
        total += float(reward[0])
        ended = bool(first[0])
        if ended:
            break
    return observation, ended, total


class ProcgenGame(Game):
    """An open level: procgen's ProcgenGym3Env with a single environment."""

    action_names = ACTIONS

    def __init__(self, env: Any, level: int, skip: int = 1):
        self.env = env
        self.level = level
        self.skip = skip

    def frame(self) -> np.ndarray:
        return self.env.observe()[1]["rgb"][0]  # gym3 copies

    def step(self, action: int) -> Step:
        if not 0 <= action < len(ACTIONS):  # the library would read beyond its table
            raise UserError(
                f"the game has no action {action}: choose a number from 0 to {len(ACTIONS) - 1}"
            )
        observation, ended, reward = advance(self.env, action, self.skip)
        completed = ended and bool(self.env.get_info()[0]["prev_level_complete"])
        return Step(observation["rgb"][0], ended, reward, completed)

    def save(self) -> bytes:
        """The state, about 12 kB."""
        return zlib.compress(self.env.get_state()[0], 1)

    def load(self, saved: bytes) -> None:
        """Only for bytes from `save`: the library does not check them."""
        self.env.set_state([zlib.decompress(saved)])

    def close(self) -> None:
        self.env.close()
