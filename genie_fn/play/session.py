"""A session: its frames, what led to each, and the state to continue from any of them.

A world's state is mostly caches of the last frames' keys and values, and the caches of two
neighbouring frames have all but one frame in common. So a session keeps the whole state after its
latest frame alone. For each frame it keeps what the frame added to the caches, and joins these parts
again to continue from another one: the result equals the original state bit for bit. Sessions are
values: a branch is the same value under another name.
"""

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from genie_fn import maskgit, random
from genie_fn import world as worlds
from genie_fn.layers import Cache
from genie_fn.maskgit import Noise, SampleConfig
from genie_fn.tree import Tree
from genie_fn.world import Programs, World

DRAWN_AHEAD = 32  # frames whose random numbers are drawn at once
MAX_MOMENTS = 300  # frames kept
MAX_BYTES = 256 << 20  # bytes kept, whatever the number of frames
MAX_RECORDS = 10_000  # frames whose actions are kept, for a recording


class ActionRecord(NamedTuple):
    """What generates a frame again, and the hash of its pixels."""

    action: int
    """The world's action."""
    recorded: int | None
    """The recorded action, where one was chosen and mapped to `action`."""
    temperature: float
    steps: int
    compiled: bool
    """Whether compiled programs generated the frame: their rounding differs."""
    hash: str = ""


class Moment(NamedTuple):
    """One frame of a session."""

    pixels: np.ndarray
    """(H, W, 3) uint8."""
    ids: np.ndarray
    """Token ids, (N,) uint32."""
    probability: np.ndarray
    """The probability of each id, (N,) uint8; 255 is certain."""
    revealed: np.ndarray
    """The MaskGIT step that revealed each id, (N,) uint8; 0 in a start frame."""
    added: Tree
    """What the frame added to the world's state."""
    record: ActionRecord | None = None
    """What led to the frame; None for the start frame."""
    ms: float = 0.0
    """How long generating it took."""
    game: np.ndarray | None = None
    """The frame of the real game that runs in parallel, (H, W, 3) uint8."""
    saved: bytes | None = None
    """The state of that game."""
    psnr: float | None = None
    """Of the generated frame against the game's."""
    mean_psnr: float | None = None
    """The mean over all generated frames so far."""
    size: int = 0
    """Bytes of its arrays."""


@dataclass(frozen=True)
class Session:
    """Consecutive moments, numbered from `first`; the present one has the number `at`.

    A change makes a new session.
    """

    moments: tuple[Moment, ...]
    at: int
    seed: int
    start: np.ndarray
    """The image that the session started from, (H, W, 3) uint8."""
    level: int | None = None
    """The level of the real game that runs in parallel."""
    first: int = 0
    records: tuple[ActionRecord, ...] = ()
    """The records of the generated frames before the first moment."""
    latest_state: Tree | None = None
    """The world's state at the present moment, if that was generated last; otherwise it is joined from
    its parts."""

    @property
    def present(self) -> Moment:
        """The moment at which the session continues."""
        return self.moments[self.at - self.first]

    @property
    def newest(self) -> int:
        """The number of the last frame that is kept."""
        return self.first + len(self.moments) - 1

    @property
    def oldest(self) -> int:
        """The number of the first frame to which one can return: its state must be complete."""
        return self.first if self.first == 0 else self.first + window(self.moments[0].added) - 1

    def past(self) -> tuple[Moment, ...]:
        """The moments up to the present one."""
        return self.moments[: self.at - self.first + 1]


# One action, one frame


def begin(
    world: World,
    image_HWC: np.ndarray,
    seed: int,
    level: int | None = None,
    programs: Programs = worlds.EAGER,
) -> Session:
    """The session whose only frame is a uint8 image, as the tokenizer encodes it."""
    device = world.dynamics.params["token"].device
    prompt_BTHWC = torch.from_numpy(image_HWC).to(device)[None, None]
    state, prompt = worlds.reset(world, prompt_BTHWC, programs=programs)
    ids = prompt.ids[0, 0].cpu().numpy().astype(np.uint32)
    certain = np.full(len(ids), 255, np.uint8)
    pixels = prompt.pixels[0, 0].cpu().numpy()
    moment = Moment(pixels, ids, certain, np.zeros(len(ids), np.uint8), added(state))
    return started(moment, seed, image_HWC, level)


def advance(
    world: World,
    session: Session,
    action: int,
    sample: SampleConfig,
    programs: Programs = worlds.EAGER,
    keep: int = MAX_MOMENTS,
) -> Session:
    """The session with one more frame, that which `action` leads to; it keeps `keep` moments.

    The function is pure, and frame t is sampled with fold_in(key(seed), t).
    """
    device = world.dynamics.params["token"].device
    cfg = world.dynamics.cfg
    block, place = divmod(session.at + 1, DRAWN_AHEAD)
    drawn = _draw_block(session.seed, block, sample.steps, cfg.tokens, len(cfg.sizes), device)
    key, threshold, score = (x[place] for x in drawn)
    noise = Noise(threshold, score)
    action_B = torch.tensor([action], device=device)
    new, frame = worlds.step(world, state(session), action_B, key, sample, programs, noise)
    pixels, ids, probability, revealed = (x[0].cpu().numpy() for x in frame)
    moment = Moment(
        pixels,
        ids.astype(np.uint32),
        (255 * probability).astype(np.uint8),
        revealed.astype(np.uint8),
        added(new),
        ActionRecord(action, None, sample.temperature, sample.steps, False, frame_hash(pixels)),
    )
    # Laid out as if it were joined: rounding can depend on that.
    latest = pytree.tree_map(torch.Tensor.contiguous, new)
    return replace(extended(session, moment, keep), latest_state=latest)


class _Drawn(NamedTuple):
    """Keys and noise of the successive frames of a block."""

    key: Tensor
    threshold: Tensor
    score: Tensor


@lru_cache(maxsize=64)
def _draw_block(
    seed: int, block: int, steps: int, tokens: int, factors: int, device: torch.device
) -> _Drawn:
    """What frames block · DRAWN_AHEAD and following are sampled with.

    Random numbers take many short operations, which take as long for one frame as for a block. Inside
    inference mode the tensors could not be used outside.
    """
    with torch.inference_mode(False):
        first = block * DRAWN_AHEAD
        frames = torch.arange(first, first + DRAWN_AHEAD, device=device)
        keys = random.fold_in(random.key(seed, device), frames)
        return _Drawn(keys, *maskgit.draw(keys, steps, (1, tokens), factors))


def frame_hash(pixels_HWC: np.ndarray) -> str:
    """Equal hashes, equal frames."""
    return f"{zlib.crc32(pixels_HWC.tobytes()):08x}"


# What a session keeps


def started(moment: Moment, seed: int, start: np.ndarray, level: int | None = None) -> Session:
    """The session of one moment, that of the image `start`."""
    return Session((_with_size(moment),), 0, seed, start, level)


def extended(session: Session, moment: Moment, keep: int = MAX_MOMENTS) -> Session:
    """The session with a moment after the present one, which replaces what came later.

    The oldest moments are dropped where there are more than `keep`, or more than MAX_BYTES, but
    never those that the present state consists of.
    """
    moment = _with_size(moment)
    moments = (*session.past(), moment)
    fitting = MAX_BYTES // max(moment.size, 1)
    room = max(min(keep, fitting), window(moment.added) + 1)
    dropped = moments[: max(0, len(moments) - room)]
    records = session.records
    if len(records) < MAX_RECORDS:  # a longer session cannot be recorded
        records += tuple(old.record for old in dropped if old.record is not None)
    return replace(
        session,
        moments=moments[len(dropped) :],
        first=session.first + len(dropped),
        at=session.at + 1,
        records=records,
        latest_state=None,
    )


def amended(session: Session, **fields: Any) -> Session:
    """The session with other fields of its present moment."""
    moments = list(session.moments)
    at = session.at - session.first
    moments[at] = _with_size(moments[at]._replace(**fields))
    return replace(session, moments=tuple(moments))


def relabelled(session: Session, **fields: Any) -> Session:
    """The session with other fields of its present moment's record; it has one if generated."""
    record = session.present.record
    if record is None:
        raise ValueError("a start frame has no record")
    return amended(session, record=record._replace(**fields))


def moved(session: Session, frame: int) -> Session:
    """The session at another of its frames, the nearest that is kept."""
    at = min(max(frame, session.oldest), session.newest)
    return replace(session, at=at, latest_state=None)


def _with_size(moment: Moment) -> Moment:
    arrays = (leaf for leaf in pytree.tree_leaves(moment) if isinstance(leaf, Tensor | np.ndarray))
    return moment._replace(size=sum(array.nbytes for array in arrays))


# States in parts


class Added(NamedTuple):
    """The part of a `Cache` that its newest frame added."""

    k_LB1NGE: Tensor
    v_LB1NGE: Tensor
    seen: Tensor
    """How many frames were seen, with this one."""
    frames: int
    """How many frames a cache holds."""


def added(state: Tree) -> Tree:
    """What the newest frame added to a state: one frame of each cache, and all of anything else."""

    def newest(part):
        if not isinstance(part, Cache):
            return part
        # Cloned, since a view would keep the whole cache in memory.
        k = part.k_LBSNGE[:, :, -1:].clone()
        v = part.v_LBSNGE[:, :, -1:].clone()
        return Added(k, v, part.seen, part.k_LBSNGE.shape[2])

    return pytree.tree_map(newest, state, is_leaf=lambda part: isinstance(part, Cache))


def _flatten(tree: Tree) -> tuple[list, pytree.TreeSpec]:
    return pytree.tree_flatten(tree, is_leaf=lambda part: isinstance(part, Added))


def window(part: Tree) -> int:
    """How many frames' parts make a state."""
    caches = [leaf for leaf in _flatten(part)[0] if isinstance(leaf, Added)]
    return max([1, *(cache.frames for cache in caches)])


def state(session: Session) -> Tree:
    """The world's state at the present frame."""
    if session.latest_state is not None:
        return session.latest_state
    past = session.past()
    return joined([moment.added for moment in past[-window(past[-1].added) :]])


def joined(parts: list[Tree]) -> Tree:
    """The state after the last of these parts.

    They are as many as its caches hold, or all since the start.
    """
    columns = zip(*(_flatten(part)[0] for part in parts), strict=True)
    leaves = [_join(column) for column in columns]
    return pytree.tree_unflatten(leaves, _flatten(parts[-1])[1])


def _join(column: tuple) -> Cache | Tensor:
    last = column[-1]
    if not isinstance(last, Added):
        return last
    k = _fill([part.k_LB1NGE for part in column], last.frames)
    v = _fill([part.v_LB1NGE for part in column], last.frames)
    return Cache(k, v, last.seen)


def _fill(parts: list[Tensor], frames: int) -> Tensor:
    """The last frames side by side; zeros, as in an empty cache, where there are fewer."""
    parts = parts[-max(frames, 1) :]
    layers, batch, _, *rest = parts[0].shape
    missing = max(frames - len(parts), 0)
    return torch.cat([parts[0].new_zeros((layers, batch, missing, *rest)), *parts], 2)
