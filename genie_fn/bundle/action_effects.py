"""The effect of every latent action: how the agent moves in recorded transitions with it.

Without labels nothing says what a latent action is for, but recorded video shows what it does. The
effects are measured by `evaluate.py`, or on a few clips when they are first needed. They are stored
as `action_effects.json` in the folder of the dynamics run, and in world files. They consist of
numbers and of PNG files, so that any program can show them.
"""

import base64
import contextlib
import io
import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genie_fn import data, metrics
from genie_fn import world as worlds
from genie_fn.bundle.run import weights_fingerprint
from genie_fn.data import Store
from genie_fn.errors import UserError
from genie_fn.runtime import files
from genie_fn.world import World

FILE = "action_effects.json"
FILE_BYTES = 64 << 20
CLIP = 11  # frames of the clips that effects are measured on
CLIPS = 64
READ = 8  # clips at a time
EXAMPLES = 3  # recorded transitions that are kept of each action
STILL = 0.5
"""Pixels per step below which an agent or a picture counts as standing still."""
MIN_SHARE = 0.02
"""Actions in fewer transitions than this are given no key."""
MIN_COSINE = 0.3
"""Of the angle between the motion under an action and the direction of its key."""
MIN_DIAGONAL = 0.8
"""Of the angle between the motion under an action and a diagonal."""
MAX_NUMBER = 1e4
DIRECTIONS = {"LEFT": (-1, 0), "RIGHT": (1, 0), "UP": (0, -1), "DOWN": (0, 1)}
SECTORS = (
    ("→", "right"),
    ("↘", "down and right"),
    ("↓", "down"),
    ("↙", "down and left"),
    ("←", "left"),
    ("↖", "up and left"),
    ("↑", "up"),
    ("↗", "up and right"),
)
"""An arrow and words for each eighth of the directions, clockwise from the right."""


class ActionEffects(NamedTuple):
    """What each of A actions does."""

    motion: list[list[float] | None]
    """(A, 2): the mean displacement of the agent to the right and down, in pixels per step of the
    world; None for an action that does not occur."""
    share: list[float]
    """(A,): the share of transitions."""
    transitions: int
    """The number of recorded transitions that this was measured on."""
    examples: list[int]
    """(A,): the number of transitions in each strip."""
    strips: list[bytes]
    """(A,): PNG files of recorded transitions side by side, each as the frame before and the frame
    after; empty for an action without examples."""


# Measuring


def describe(
    store: Store, offsets: np.ndarray, codes: Tensor, shift: Tensor, actions: int
) -> ActionEffects:
    """The effects in the transitions of clips of a store, which start at `offsets` (M,).

    `codes` (M, T-1) are their actions, of which there are `actions`, and `shift` (M, T-1, 2) the
    displacements of the picture.
    """
    every = torch.arange(actions)
    motion = metrics.agent_motion(metrics.mean_displacement(codes, shift, every))
    share = torch.bincount(codes.flatten(), minlength=actions) / codes.numel()
    typical = _typical(codes, metrics.agent_motion(shift), motion)
    return ActionEffects(
        motion=[_rounded(mean) for mean in motion.tolist()],
        share=[round(x, 4) for x in share.tolist()],
        transitions=codes.numel(),
        examples=[len(pairs) for pairs in typical],
        strips=[_strip(store, offsets, pairs) for pairs in typical],
    )


def _rounded(motion: list[float]) -> list[float] | None:
    return None if any(map(math.isnan, motion)) else [round(x, 3) for x in motion]


def _typical(codes: Tensor, moved: Tensor, mean: Tensor) -> list[list[tuple[int, int]]]:
    """For each action up to EXAMPLES transitions (clip, t) whose displacement is near its mean.

    They are of different clips, from all over these.
    """
    of_action = codes[..., None] == torch.arange(len(mean))
    distance = (moved[..., None, :].float() - mean).norm(dim=-1)  # (M, T-1, A)
    nearest = distance.where(of_action, torch.inf).min(1)  # the best transition of every clip
    result = []
    for values, times in zip(nearest.values.T, nearest.indices.T, strict=True):
        limit = values.sort().values[:EXAMPLES][-1] + STILL
        clips = ((values <= limit) & values.isfinite()).nonzero().flatten()
        count = min(EXAMPLES, len(clips))
        rows = torch.linspace(0, max(len(clips) - 1, 0), count).round().long()
        result.append([(int(clip), int(times[clip])) for clip in clips[rows]])
    return result


def _strip(store: Store, offsets: np.ndarray, pairs: list[tuple[int, int]]) -> bytes:
    """A PNG file of the transitions (clip, t)."""
    if not pairs:
        return b""
    starts = np.array([offsets[clip] + t * store.stride for clip, t in pairs])
    frames = data.read_clips(store, starts, 2).frames
    content = io.BytesIO()
    Image.fromarray(np.concatenate([*frames.reshape(-1, *frames.shape[2:])], 1)).save(
        content, "png", optimize=True
    )
    return content.getvalue()


def split_of(store: Store) -> str:
    """The split in which the keys of a world are chosen: val, or train if val has no clip.

    It is not the one that worlds are evaluated on, so that held-out levels decide nothing, unless
    there is no other.
    """
    for split in ("val", "train"):
        with contextlib.suppress(UserError):
            data.clip_starts(store, split, CLIP)
            return split
    return "test"


@torch.no_grad()
def measure(world: World, store: Store) -> ActionEffects:
    """The effects of a world's latent actions in up to CLIPS clips of `split_of` the store.

    Raises UserError if the store has no clip that is long enough, or cannot be read.
    """
    split = split_of(store)
    count = min(CLIPS, len(data.clip_starts(store, split, CLIP)))
    offsets = data.eval_clips(store, split, CLIP, count)
    device = world.dynamics.params["token"].device
    codes = []
    shift = []
    for part in np.array_split(offsets, -(-count // READ)):
        frames = torch.from_numpy(data.read_clips(store, part, CLIP).frames).to(device)
        codes.append(worlds.infer_actions(world, frames).cpu())
        shift.append(metrics.displacement(frames[:, :-1], frames[:, 1:]).cpu())
    actions = world.dynamics.cfg.actions
    return describe(store, offsets, torch.cat(codes), torch.cat(shift), actions)


# What follows from them


def keys(effects: ActionEffects) -> dict[str, int]:
    """The action for each arrow key by the names of directions, and for no key (NOOP).

    Every direction has the action under which the agent moves furthest that way. Along each axis
    displacements are compared with those of all actions, because falling is faster than walking,
    and they count times the cosine of their angle to the direction. No action has two keys; as many
    directions as possible have one, and then the sum decides. Of the other actions, no key has the
    one under which the agent moves least, if that is less than half as far as under any key.
    """
    moving = _frequent(effects)
    scaled = _scaled(moving, effects.share)
    chosen = _assign([_along(moving, scaled, direction) for direction in DIRECTIONS.values()])
    result = {
        name: action for name, action in zip(DIRECTIONS, chosen, strict=True) if action is not None
    }
    speed = {action: math.hypot(*motion) for action, motion in scaled.items()}
    rest = [action for action in scaled if action not in chosen]
    if result and rest:
        calmest = min(rest, key=lambda action: speed[action])
        if speed[calmest] < min(speed[action] for action in result.values()) / 2:
            result["NOOP"] = calmest
    return result


def candidates(effects: ActionEffects, names: Sequence[str]) -> list[set[int]]:
    """For each recorded action the actions that move the agent as its name says.

    Names consist of directions: a diagonal such as LEFT+UP has the actions along it, or else those
    of its first direction that has any. Other names, and directions in which no action moves the
    agent, have none.
    """
    moving = _frequent(effects)
    scaled = _scaled(moving, effects.share)

    def along(direction: tuple[int, int], least: float) -> set[int]:
        scores = _along(moving, scaled, direction, least)
        return {action for action in scores if action is not None}

    found: list[set[int]] = []
    for name in names:
        if not is_direction(name):
            found.append(set())
            continue
        parts = _parts(name)
        options = [along(DIRECTIONS[part], MIN_COSINE) for part in parts]
        if len(parts) > 1:
            x, y = (sum(axis) for axis in zip(*(DIRECTIONS[part] for part in parts), strict=True))
            options = [along((x, y), MIN_DIAGONAL), *options]
        found.append(next(filter(None, options), set()))
    return found


def is_direction(name: str) -> bool:
    """Whether the name of a recorded action consists of directions, such as LEFT or RIGHT+JUMP."""
    return set(_parts(name)) <= DIRECTIONS.keys()


def _parts(name: str) -> list[str]:
    return ["UP" if part == "JUMP" else part for part in name.upper().split("+")]


def _frequent(effects: ActionEffects) -> dict[int, list[float]]:
    """The motion of each action that is frequent enough for a key."""
    return {
        action: motion
        for action, (motion, share) in enumerate(zip(effects.motion, effects.share, strict=True))
        if motion is not None and share >= MIN_SHARE
    }


def _scaled(moving: dict[int, list[float]], share: list[float]) -> dict[int, list[float]]:
    """Motions relative to the root mean square along each axis, which is taken as at least STILL."""
    total = sum(share[action] for action in moving)
    square = [
        sum(share[action] * motion[axis] ** 2 for action, motion in moving.items())
        for axis in range(2)
    ]
    scale = [max(math.sqrt(x / total), STILL) if total else STILL for x in square]
    return {
        action: [x / unit for x, unit in zip(motion, scale, strict=True)]
        for action, motion in moving.items()
    }


def _along(
    moving: dict[int, list[float]],
    scaled: dict[int, list[float]],
    direction: tuple[int, int],
    least: float = MIN_COSINE,
) -> dict[int | None, float]:
    """By how much the actions that move the agent in a direction do so: the best first, then none.

    As many as there are directions are enough: the other directions take at most all but one.
    """
    score: dict[int | None, float] = {}
    for action, motion in scaled.items():
        along = _dot(motion, direction)
        cosine = along / (math.hypot(*motion) * math.hypot(*direction) or 1)
        if cosine >= least and _dot(moving[action], direction) >= STILL:
            score[action] = along * cosine
    best = sorted(score, key=lambda action: -score[action])[: len(DIRECTIONS)]
    return {action: score[action] for action in best} | {None: 0.0}


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _assign(options: list[dict[int | None, float]]) -> tuple[int | None, ...]:
    """One action for each direction, or none, all different: as many as possible, and of these
    choices the one with the largest sum."""

    def differ(actions: tuple[int | None, ...]) -> bool:
        given = [action for action in actions if action is not None]
        return len(set(given)) == len(given)

    def value(actions: tuple[int | None, ...]) -> tuple[int, float]:
        given = sum(action is not None for action in actions)
        scores = (option[action] for option, action in zip(options, actions, strict=True))
        return given, sum(scores)

    return max(filter(differ, product(*options)), key=value)


def is_still(motion: list[float]) -> bool:
    """Whether an agent that moves so stands still."""
    return math.hypot(*motion) < STILL


def arrow(motion: list[float] | None) -> str:
    """A motion as one character: an arrow, a dot for standing still, a space if it is not known."""
    if motion is None:
        return " "
    return "·" if is_still(motion) else SECTORS[_sector(motion)][0]


def in_words(motion: list[float] | None) -> str:
    """A motion in words."""
    if motion is None:
        return "does not occur in recorded video"
    speed = f"{math.hypot(*motion):.1f} pixels per step"
    if is_still(motion):
        return f"hardly moves, {speed}"
    return f"moves {SECTORS[_sector(motion)][1]}, {speed}"


def _sector(motion: list[float]) -> int:
    dx, dy = motion
    return round(math.atan2(dy, dx) / (math.pi / 4)) % len(SECTORS)


# Storing


def save(effects: ActionEffects, world: World, run: str | Path) -> Path:
    """Write the effects to a run's folder; returns the file."""
    path = Path(run) / FILE
    strips = [base64.b64encode(strip).decode() for strip in effects.strips]
    content = {"lam": weights_fingerprint(world.lam)} | effects._replace(strips=strips)._asdict()
    files.write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def load(world: World, run: str | Path) -> ActionEffects | None:
    """The effects in a run's folder; None where there are none, or none of this world's actions."""
    try:
        content = files.read_json(Path(run) / FILE, FILE_BYTES)
        if content.pop("lam") != weights_fingerprint(world.lam):
            return None
        strips = [base64.b64decode(strip, validate=True) for strip in content.pop("strips")]
        effects = ActionEffects(**content, strips=strips)
        return effects if is_valid(effects, world) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def facts(effects: ActionEffects) -> dict[str, Any]:
    """The effects as they stand in the header of a world file, with the sizes of the strips."""
    sizes = [len(strip) for strip in effects.strips]
    return effects._asdict() | {"strips": sizes}


def strips_size(about: dict[str, Any]) -> int:
    """The bytes of all strips, given `facts`. Raises ValueError for impossible sizes."""
    sizes = about["strips"]
    if not all(type(size) is int and 0 <= size <= FILE_BYTES for size in sizes):
        raise ValueError("impossible sizes")
    return sum(sizes)


def from_facts(about: dict[str, Any], content: bytes) -> ActionEffects:
    """The effects of which these are the `facts` and the strips, one after another."""
    file = io.BytesIO(content)
    fields = dict(about)
    strips = [file.read(size) for size in fields.pop("strips")]
    return ActionEffects(**fields, strips=strips)


def is_valid(effects: ActionEffects, world: World) -> bool:
    """Whether numbers and pictures are possible for the actions of a world."""
    lists = (effects.motion, effects.share, effects.examples, effects.strips)
    actions = world.dynamics.cfg.actions
    return (
        all(type(values) is list and len(values) == actions for values in lists)
        and all(motion is None or _is_motion(motion) for motion in effects.motion)
        and all(_is_number(share) and 0 <= share <= 1 for share in effects.share)
        and type(effects.transitions) is int
        and 0 < effects.transitions < 2**53
        and all(
            _is_strip(strip, count, world)
            for strip, count in zip(effects.strips, effects.examples, strict=True)
        )
    )


def _is_motion(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def _is_strip(content: bytes, count: int, world: World) -> bool:
    """Whether it is a PNG file of `count` transitions; empty if that is 0."""
    size = world.tokenizer.cfg
    if type(count) is not int or not 0 <= count <= EXAMPLES:
        return False
    if not count:
        return not content
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return image.size == (2 * count * size.width, size.height) and not image.verify()
    except Exception:  # the decoder raises many kinds
        return False
