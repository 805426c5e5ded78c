"""Gymnasium environments as games: any that draws `rgb_array` and has a finite number of actions.

A level is the seed of the first reset; later episodes begin from seeds that follow from it. The state
of a game is the list of its actions, which are taken again to restore it, so that whatever is saved
is right for every environment that is deterministic given its seed.
"""

import ast
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genie_fn.data import framing
from genie_fn.data.framing import Fit, Size
from genie_fn.data.game import Game, Step
from genie_fn.data.storage import MAX_ACTIONS
from genie_fn.errors import UserError

PREFIX = "gym:"
"""The names of these games are this and Gymnasium's id, as in gym:ALE/Breakout-v5."""
EXTRAS = {"ALE/": ("ale_py", "atari"), "Vizdoom": ("vizdoom.gymnasium_wrapper", "vizdoom")}
"""The module that registers environments whose ids begin so, and the extra that installs it."""
DIRECTIONS = ("LEFT", "RIGHT", "UP", "DOWN", "FIRE")
"""The words of which the Arcade Learning Environment joins names, in our order."""
BUTTONS = {"FORWARD": "UP", "BACKWARD": "DOWN"}


def names_module(name: str) -> bool:
    """Whether a game's name asks for the import of a module that registers it."""
    return ":" in name.removeprefix(PREFIX)


def package_of(name: str) -> str:
    """The package that a game needs; "" if its name asks for a module of its own."""
    if names_module(name):
        return ""
    identifier = name.removeprefix(PREFIX)
    needed = [
        module for beginning, (module, _) in EXTRAS.items() if identifier.startswith(beginning)
    ]
    return needed[0].partition(".")[0] if needed else "gymnasium"


def parse_options(text: str) -> dict[str, Any]:
    """`"frameskip=1, mode='hard'"` → {"frameskip": 1, "mode": "hard"}: arguments of an environment.

    Raises UserError unless all are names with Python literals.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        assert all(word.arg for word in call.keywords)
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise UserError(
            f"--cfg.env-options {text!r} should be names with values, as in frameskip=1, mode='hard'"
        ) from error


class GymGame(Game):
    """A Gymnasium environment. Actions of MultiDiscrete and MultiBinary spaces are numbered."""

    def __init__(
        self,
        name: str,
        level: int,
        skip: int = 1,
        size: Size = 64,
        fit: Fit = "crop",
        options: Mapping[str, Any] | None = None,
    ):
        self.level = level
        self.skip = skip
        self._size = size
        self._fit: Fit = fit
        self._env = _make(name.removeprefix(PREFIX), options or {})
        self._actions, self.action_names = _actions(self._env)
        self.observation: Any = None
        """What the environment returned last, for policies."""
        self._episode = 0
        self._taken: list[int] = []
        self._begin_episode(0)

    def frame(self) -> np.ndarray:
        drawn = np.asarray(self._env.render())
        if drawn.dtype != np.uint8 or drawn.ndim != 3 or drawn.shape[-1] != 3:
            raise UserError(
                "the environment draws no RGB frames of bytes, but an array of shape "
                f"{drawn.shape} ({drawn.dtype}): wrap it in one whose render() does"
            )
        if drawn.shape[:2] == framing.height_and_width(self._size):
            return drawn.copy()
        return framing.fit(Image.fromarray(drawn), self._size, self._fit)

    def step(self, action: int) -> Step:
        if not 0 <= action < len(self._actions):
            raise UserError(
                f"the game has no action {action}: choose a number from 0 to {len(self._actions) - 1}"
            )
        total = 0.0
        ended = False
        for _ in range(self.skip):
            ended, reward = self._advance(action)
            total += reward
            if ended:
                break
        return Step(self.frame(), ended, total)

    def save(self) -> bytes:
        return json.dumps([self._episode, self._taken]).encode()

    def load(self, saved: bytes) -> None:
        episode, taken = json.loads(saved)
        if (episode, taken) == (self._episode, self._taken):
            return
        self._begin_episode(episode)
        for action in taken:
            self._advance(action)

    def close(self) -> None:
        self._env.close()

    def _begin_episode(self, number: int) -> None:
        seed = self.level
        if number:
            seed = int(np.random.SeedSequence([self.level, number]).generate_state(1)[0]) >> 1
        self.observation, _ = self._env.reset(seed=seed)
        self._episode = number
        self._taken = []

    def _advance(self, action: int) -> tuple[bool, float]:
        """One step of the environment: whether the episode ended, and the reward."""
        result = self._env.step(self._actions[action])
        self.observation, reward, terminated, truncated, _ = result
        self._taken.append(action)
        ended = bool(terminated or truncated)
        if ended:
            self._begin_episode(self._episode + 1)
        return ended, float(reward)


def look_in_this_folder() -> None:
    """Let modules of the current folder be imported, as `python` does and an installed command does not."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _make(identifier: str, options: Mapping[str, Any]) -> Any:
    """The environment. Raises UserError with a sentence for one that cannot be made."""
    import gymnasium

    if ":" in identifier:  # a module, as in mygame:MyGame-v0
        look_in_this_folder()
    for beginning, (module, extra) in EXTRAS.items():
        if identifier.startswith(beginning):
            try:
                __import__(module)
            except ImportError as error:
                raise UserError(
                    f"{identifier} needs {module.partition('.')[0]}, which cannot be imported "
                    f"({error}): run `pip install 'genie_fn[{extra}]'`"
                ) from error
    try:
        return gymnasium.make(identifier, render_mode="rgb_array", **options)
    except Exception as error:  # environments raise several kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Gymnasium cannot make {identifier} ({reason}): check the id, install its package, or "
            "name the module that registers it, as in gym:mygame:MyGame-v0"
        ) from error


def _actions(env: Any) -> tuple[list[Any], tuple[str, ...]]:
    """All actions of an environment, and their names. Raises UserError if they are not finite."""
    from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete

    space = env.action_space
    if isinstance(space, Discrete):
        first = int(space.start)
        _check_count(int(space.n))
        actions: list[Any] = list(range(first, first + int(space.n)))
        return actions, _names(env.unwrapped, len(actions))
    if isinstance(space, MultiDiscrete):
        sizes = np.ravel(space.nvec).tolist()
        starts = np.ravel(space.start).tolist()
    elif isinstance(space, MultiBinary):
        sizes = [2] * math.prod(np.atleast_1d(space.n).tolist())
        starts = [0] * len(sizes)
    else:
        raise UserError(
            f"the environment's actions are {space}: only a finite number of them can be numbered; "
            "wrap it in one with a Discrete or MultiDiscrete space"
        )
    _check_count(math.prod(sizes))
    choices = list(itertools.product(*(range(size) for size in sizes)))
    actions = [
        np.add(choice, starts).reshape(space.shape).astype(space.dtype) for choice in choices
    ]
    return actions, tuple(",".join(map(str, choice)) for choice in choices)


def _check_count(actions: int) -> None:
    if actions > MAX_ACTIONS:
        raise UserError(
            f"the environment has {actions} actions, more than {MAX_ACTIONS}: wrap it in one with fewer"
        )


def _names(env: Any, count: int) -> tuple[str, ...]:
    """Names of a Discrete space's actions: the environment's own where it has some."""
    names: Sequence[str] = ()
    if hasattr(env, "get_action_meanings"):
        names = [_split_directions(str(name)) for name in env.get_action_meanings()]
    elif hasattr(env, "button_map"):
        names = _button_names(env)
    if len(names) == count == len(set(names)):
        return tuple(names)
    return tuple(map(str, range(count)))


def _split_directions(name: str) -> str:
    """`"UPRIGHTFIRE"` → `"RIGHT+UP+FIRE"`; other names stay."""
    found = [word for word in DIRECTIONS if word in name]
    return "+".join(found) if len("".join(found)) == len(name) else name


def _button_names(env: Any) -> list[str]:
    """ViZDoom's: the buttons of every action. What moves or turns is named like its arrow key."""
    buttons = [str(button.name) for button in env.game.get_available_buttons()]
    turning = any(button.startswith("TURN_") for button in buttons)
    prefix = "TURN_" if turning else "MOVE_"
    words: list[str] = []
    for button in buttons:
        moved = button.removeprefix("MOVE_")
        words.append(BUTTONS[moved] if moved in BUTTONS else button.removeprefix(prefix))
    choices = [[bool(pressed) for pressed in choice] for choice in env.button_map]
    return ["+".join(itertools.compress(words, choice)) or "NOOP" for choice in choices]
