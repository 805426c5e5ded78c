"""What a game is to this package: something with frames that answers actions, whose state can be saved.

`procgen` and `gym_game` open games; `games` finds out which of the two a dataset is of.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

MAX_LEVEL = 10**9
"""Seeds of levels are 32-bit numbers."""


class Step(NamedTuple):
    """The result of an action."""

    frame: np.ndarray
    """(H, W, 3) uint8 RGB; if `ended`, the first frame of the next episode."""
    ended: bool
    reward: float
    completed: bool = False
    """Whether the episode ended because a level was completed, where the game says so."""


class Game(ABC):
    """An open level of a game. Only one call at a time may run on one game."""

    level: int
    """The seed from which the game begins."""
    skip: int
    """Frames of the game per step: an action is held for these."""
    action_names: tuple[str, ...]

    @abstractmethod
    def frame(self) -> np.ndarray:
        """The current frame, (H, W, 3) uint8 RGB."""

    @abstractmethod
    def step(self, action: int) -> Step:
        """Take an action, an index into `action_names`. Raises UserError if there is none of that
        number."""

    @abstractmethod
    def save(self) -> bytes:
        """The complete state of the game."""

    @abstractmethod
    def load(self, saved: bytes) -> None:
        """Restore a state that `save` of a game of the same level returned."""

    @abstractmethod
    def close(self) -> None:
        """Free what the game holds. It cannot be used after this."""
