"""A session: every frame so far, what led to it, and enough of the world's state to go on from any of them exactly.

A world's state is mostly caches of the last frames' keys and values, and those of two neighbouring frames have all but
one frame in common. So a session keeps for each frame what it added to the caches, and joins these again to go on: bit
for bit the state that was there. Sessions are values: a branch is the same value under another name.
"""

import zlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from genie_fn.layers import Cache
from genie_fn.tree import Tree

MOMENTS = 300  # frames kept
MEMORY = 256 << 20  # bytes kept, whatever the number of frames
NOTES = 10_000  # frames of which the actions are kept, for a recording


class Note(NamedTuple):
    """What it takes to dream a frame again, and the hash of its pixels."""

    action: int | None
    real: int | None  # the same as a real action, where one was pressed
    temperature: float
    steps: int
    compiled: bool  # which of the two programs dreamed it: their rounding differs
    hash: str = ""


class Moment(NamedTuple):
    """One frame of a session."""

    pixels: np.ndarray  # (H, W, 3) uint8
    ids: np.ndarray  # (N,) uint32
    probability: np.ndarray  # (N,) uint8, 255 for certain
    revealed: (
        np.ndarray
    )  # (N,) uint8: the MaskGIT step that revealed each token, 0 in a start frame
    added: Tree  # what the frame added to the state
    note: Note | None = None  # what led here; None for the start
    ms: float = 0.0  # that dreaming it took
    game: np.ndarray | None = None  # the real game's frame beside it
    saved: bytes | None = None  # the real game's state
    psnr: float | None = None  # of the dream against it
    mean_psnr: float | None = None  # over the frames dreamed so far
    size: int = 0  # bytes of its arrays


@dataclass(frozen=True)
class Session:
    """Moments `first`, first + 1, … in a row, of which number `at` is shown. A change makes a new session."""

    moments: tuple[Moment, ...]
    at: int
    seed: int
    start: np.ndarray  # the image that it began from, (H, W, 3) uint8
    level: int | None = None  # of the real game beside it
    first: int = 0
    notes: tuple[Note, ...] = ()  # of the dreamed frames before the first moment

    @property
    def present(self) -> Moment:
        """The moment that is shown."""
        return self.moments[self.at - self.first]

    @property
    def newest(self) -> int:
        """The last frame that is kept."""
        return self.first + len(self.moments) - 1

    @property
    def oldest(self) -> int:
        """The first frame that one can go back to: its state must be whole."""
        return self.first if self.first == 0 else self.first + window(self.moments[0].added) - 1

    def past(self) -> tuple[Moment, ...]:
        """The moments up to the present one."""
        return self.moments[: self.at - self.first + 1]


def frame_hash(pixels_HWC: np.ndarray) -> str:
    """Equal hashes, equal frames."""
    return f"{zlib.crc32(np.ascontiguousarray(pixels_HWC)):08x}"


def _weighed(moment: Moment) -> Moment:
    """With its size, nearly all of which is arrays."""
    arrays = (leaf for leaf in pytree.tree_leaves(moment) if isinstance(leaf, Tensor | np.ndarray))
    return moment._replace(size=sum(array.nbytes for array in arrays))


class Added(NamedTuple):
    """The newest frame's keys and values, how many frames were seen with it, and how many a cache holds."""

    k_LB1NGE: Tensor
    v_LB1NGE: Tensor
    seen: Tensor
    frames: int


def added(state: Tree) -> Tree:
    """What the newest frame added to a state: of each cache one frame, of anything else all."""

    def newest(part):
        if not isinstance(part, Cache):
            return part
        k, v = (
            x[:, :, -1:].clone() for x in (part.k_LBSNGE, part.v_LBSNGE)
        )  # a view would keep the whole cache
        return Added(k, v, part.seen, part.k_LBSNGE.shape[2])

    return pytree.tree_map(newest, state, is_leaf=lambda part: isinstance(part, Cache))


def _parts(tree: Tree) -> tuple[list, pytree.TreeSpec]:
    return pytree.tree_flatten(tree, is_leaf=lambda part: isinstance(part, Added))


def window(piece: Tree) -> int:
    """How many frames' pieces make a state."""
    return max([1, *(part.frames for part in _parts(piece)[0] if isinstance(part, Added))])


def rebuilt(pieces: list[Tree]) -> Tree:
    """The state after the last of these pieces; there must be as many as its caches hold, or all since the start."""
    columns = list(zip(*(_parts(piece)[0] for piece in pieces), strict=True))
    return pytree.tree_unflatten([_joined(column) for column in columns], _parts(pieces[-1])[1])


def _joined(column: tuple) -> Cache | Tensor:
    last = column[-1]
    if not isinstance(last, Added):
        return last
    k, v = (
        _filled([getattr(part, name) for part in column], last.frames)
        for name in ("k_LB1NGE", "v_LB1NGE")
    )
    return Cache(k, v, last.seen)


def _filled(parts: list[Tensor], frames: int) -> Tensor:
    """The last frames side by side; zeros, as in an empty cache, where there are fewer."""
    parts = parts[-max(frames, 1) :]
    layers, batch, _, *rest = parts[0].shape
    return torch.cat(
        [parts[0].new_zeros((layers, batch, max(frames - len(parts), 0), *rest)), *parts], 2
    )


def state(session: Session) -> Tree:
    """The world's state at the present frame."""
    past = session.past()
    return rebuilt([moment.added for moment in past[-window(past[-1].added) :]])


def begun(moment: Moment, seed: int, start: np.ndarray, level: int | None = None) -> Session:
    """The session of one frame, that of the image `start`."""
    return Session((_weighed(moment),), 0, seed, start, level)


def extended(session: Session, moment: Moment) -> Session:
    """The session with a frame after the present one, in the place of what came later; the oldest may be dropped."""
    moment = _weighed(moment)
    moments = (*session.past(), moment)
    room = max(min(MOMENTS, MEMORY // max(moment.size, 1)), window(moment.added) + 1)
    dropped = moments[: max(0, len(moments) - room)]
    notes = session.notes
    if len(notes) < NOTES:  # beyond, nobody asks for them any more
        notes += tuple(old.note for old in dropped if old.note is not None)
    first = session.first + len(dropped)
    return replace(
        session, moments=moments[len(dropped) :], first=first, at=session.at + 1, notes=notes
    )


def moved(session: Session, frame: int) -> Session:
    """The session at another of its frames, the nearest that is kept."""
    return replace(session, at=min(max(frame, session.oldest), session.newest))
