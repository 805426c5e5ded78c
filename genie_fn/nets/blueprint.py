"""Blueprints: networks over video as a tuple of layers, each a name or a pair (name, options).

    (("causal-conv3d", {"in_channels": 3, "out_channels": 64}), "silu", ("video-residual", {"in_channels": 64}))

`parse` checks a blueprint and makes it hashable, `spec` gives its parameters, `apply` runs it on
video (B, T, H, W, C). genie_fn/nets/registry.py lists the names; the fields of the classes there
are the options. All layers also take `n_rep`, the number of copies in a row.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from functools import cache
from typing import Any, Literal, get_args, get_origin

import torch
from einops import EinopsError
from rich.table import Table
from torch import Tensor

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.layers import DtypeName
from genie_fn.nets.causal import Context
from genie_fn.nets.registry import ALIASES, REGISTRY, Layer
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import Tree

MAX_LAYERS = 1000
MAX_SIDE = 64
"""The largest grid that is tried where a smaller one does not suffice."""
Entry = tuple[str, tuple]  # (name, ((option, value), ...))
Blueprint = tuple[Any, ...]  # of entries, hashable: the result of `parse`


def parse(description: Iterable[Any]) -> Blueprint:
    """Check a blueprint and make it hashable.

    UserError names the position of a mistake and, for an unknown name, the nearest known one.
    """
    blueprint = tuple(_entry(entry, i) for i, entry in enumerate(description))
    depth = sum(repeats for _, repeats in _layers(blueprint))
    if depth > MAX_LAYERS:
        raise UserError(
            f"the blueprint has {depth} layers, more than {MAX_LAYERS}: repeat them less often"
        )
    channels = None
    for i, (layer, _) in enumerate(_layers(blueprint)):
        if layer.inputs is None:
            continue
        if channels not in (None, layer.inputs):
            what = f"takes {layer.inputs} channels, but the layers before it give {channels}"
            raise _error(i, blueprint[i][0], what)
        channels = layer.outputs
    return blueprint


def _error(position: int, name: str, what: str) -> UserError:
    return UserError(f"layer {position} of the blueprint, {name}, {what}: change its options")


def _entry(entry: Any, position: int) -> Entry:
    """One checked and hashable entry of a blueprint."""
    name, options = (entry, ()) if isinstance(entry, str) else entry
    name = ALIASES.get(name, name)
    if name not in REGISTRY:
        near = _nearest(name, [*REGISTRY, *ALIASES])
        raise UserError(
            f"layer {position} of the blueprint has the unknown name {name!r}: "
            f"did you mean {near!r}?"
        )
    pairs = options.items() if isinstance(options, Mapping) else options
    options = {key: _hashable(value) for key, value in pairs}
    _check_options(name, options, position)
    checked = (name, tuple(sorted(options.items())))
    try:
        layer, repeats = _layer(checked)
        _check_choices(layer)
        layer.spec()
    except (ValueError, TypeError, ArithmeticError) as error:
        raise _error(position, name, f"is impossible, {error}") from None
    if not _repeatable(layer, repeats):
        raise _error(position, name, f"cannot be repeated {repeats} times")
    return checked


def _check_options(name: str, options: dict[str, Any], position: int) -> None:
    """Refuse unknown options and missing ones."""
    known = {field.name: field for field in fields(REGISTRY[name])}
    names = [*known, "n_rep"]
    for key in options:
        if key not in names:
            raise UserError(
                f"layer {position} of the blueprint, {name}, has no option {key!r}: did you mean "
                f"{_nearest(key, names)!r}? (It takes {', '.join(names)}.)"
            )
    for key, field in known.items():
        if field.default is MISSING and key not in options:
            raise UserError(
                f"layer {position} of the blueprint, {name}, needs the option {key!r}: "
                "give it a value"
            )


def _check_choices(layer: Layer) -> None:
    """Refuse a value that is none of those that an option's `Literal` type lists."""
    for field in fields(layer):
        choices = get_args(field.type) if get_origin(field.type) is Literal else None
        value = getattr(layer, field.name)
        if choices and value not in choices:
            raise ValueError(f"its {field.name} {value!r} is none of {', '.join(choices)}")


def _repeatable(layer: Layer, repeats: Any) -> bool:
    if type(repeats) is not int or not 1 <= repeats <= MAX_LAYERS:
        return False
    return repeats == 1 or layer.outputs == layer.inputs


def _nearest(name: str, names: list[str]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0)[0]


def _hashable(value: Any) -> Any:
    """An option's value as nested tuples, the same from Python and from JSON."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _hashable(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    return value


def _layer(entry: Entry) -> tuple[Layer, int]:
    name, pairs = entry
    options = dict(pairs)
    repeats = options.pop("n_rep", 1)
    return REGISTRY[name](**options), repeats


def _layers(blueprint: Blueprint) -> list[tuple[Layer, int]]:
    """The layers of a parsed blueprint, each with the number of its copies."""
    return [_layer(entry) for entry in blueprint]


def _keys(blueprint: Blueprint) -> list[str]:
    return [f"{i:02d}_{name}" for i, (name, _) in enumerate(blueprint)]


def spec(blueprint: Blueprint) -> Tree:
    """The parameters by layer; those of a repeated layer are stacked along a leading axis."""
    chain = zip(_keys(blueprint), _layers(blueprint), strict=True)
    return {key: tree.stack(layer.spec(), repeats) for key, (layer, repeats) in chain}


def apply(
    params: Tree,
    x_BTHWC: Tensor,
    blueprint: Blueprint,
    *,
    first_frame_alone: bool = False,
    condition: Tensor | None = None,
    cache: Tree | None = None,
    backend: Backend = AUTO,
) -> tuple[Tensor, Tree]:
    """Run the network; returns the output and the cache. Computes in the dtype of x.

    `first_frame_alone` chooses the rule of genie_fn/nets/causal.py by which layers change the frame
    rate. `condition` is the external input of conditioned layers, (B, T, K) or (B, T, h, w, K).
    With the cache of an earlier call, the frames continue those of that call, as if all had been
    given at once; the network must keep the frame rate. A cache holds, by the keys of the
    parameters, one tree for each copy of the layer.
    """
    x = x_BTHWC
    context = Context(first_frame_alone, condition, backend)
    extended = {}
    for key, (layer, repeats) in zip(_keys(blueprint), _layers(blueprint), strict=True):
        blocks = tree.unstack(params[key]) or [{}] * repeats
        pasts = [None] * repeats if cache is None else cache[key]
        kept = []
        for block, past in zip(blocks, pasts, strict=True):
            x, block_cache = layer.apply(block, x, past, context)
            kept.append(block_cache)
        extended[key] = tuple(kept)
    return x, extended


def growth(blueprint: Blueprint) -> tuple[Fraction, Fraction]:
    """The factors by which the network multiplies (frames, pixels per side)."""
    time = Fraction(1)
    space = Fraction(1)
    for layer, repeats in _layers(blueprint):
        time *= Fraction(layer.grows[0], layer.shrinks[0]) ** repeats
        space *= Fraction(layer.grows[1], layer.shrinks[1]) ** repeats
    return time, space


def divides_time(blueprint: Blueprint) -> bool:
    """Whether any layer divides the frame rate."""
    return any(layer.shrinks[0] > 1 for layer, _ in _layers(blueprint))


def multiplies_time(blueprint: Blueprint) -> bool:
    """Whether any layer multiplies the frame rate.

    A network that divides and multiplies it may let a frame see later ones of its group, even if
    the factors cancel out.
    """
    return any(layer.grows[0] > 1 for layer, _ in _layers(blueprint))


def conditions(blueprint: Blueprint) -> set[int]:
    """The widths of the external conditions that its layers need."""
    return {layer.condition for layer, _ in _layers(blueprint)} - {0}


def channels(blueprint: Blueprint) -> tuple[int, int]:
    """The numbers of input and output channels. UserError if no layer determines them."""
    ends = [(layer.inputs, layer.outputs) for layer, _ in _layers(blueprint)]
    inputs = [first for first, _ in ends if first is not None]
    outputs = [last for _, last in ends if last is not None]
    if not inputs or not outputs:
        raise UserError("no layer of the blueprint determines its channels: add a convolution")
    return inputs[0], outputs[-1]


def codes_first_frame_alone(frames: int, time_factor: int) -> bool:
    """Whether the first frame is coded alone: for 1 + k·time_factor frames, not for k·time_factor.

    UserError for any other number of frames.
    """
    if time_factor == 1 or frames % time_factor == 0:
        return False
    if frames % time_factor == 1:
        return True
    fewer = frames - frames % time_factor
    near = (fewer, fewer + 1) if fewer else (1, time_factor)
    raise UserError(
        f"a network that divides the frame rate by {time_factor} codes {time_factor}k or "
        f"1 + {time_factor}k frames, not {frames}: give it {near[0]} or {near[1]}, in training "
        "with --cfg.num-frames"
    )


@cache
def fits(blueprint: Blueprint, rows: int, columns: int) -> bool:
    """Whether the layers can be computed on a grid of this size, and leave some of it."""
    try:
        for x in _outputs(blueprint, (1, rows, columns), first_frame_alone=True):
            if not x.numel():
                return False
    except (
        RuntimeError,
        IndexError,
        EinopsError,
    ):  # what torch raises for a grid that is too small
        return False
    return True


def check_grid(blueprint: Blueprint, rows: int, columns: int, patch: int, what: str) -> None:
    """Raise UserError if the grid of patches of frames is too small for the layers of `what`."""
    if fits(blueprint, rows, columns):
        return
    sides = (side for side in range(1, MAX_SIDE + 1) if fits(blueprint, side, side))
    least = next(sides, MAX_SIDE)
    raise UserError(
        f"frames of {rows * patch}x{columns * patch} pixels are a grid of {rows}x{columns} patches, "
        f"and {what} needs one of {least}x{least}: use frames of at least "
        f"{least * patch}x{least * patch} pixels, or a smaller --cfg.model.patch"
    )


def _outputs(
    blueprint: Blueprint, shape: tuple[int, int, int], *, first_frame_alone: bool = False
) -> Iterator[Tensor]:
    """The output of each layer on a video (T, H, W), without values."""
    x = torch.empty((1, *shape, channels(blueprint)[0]), device="meta")
    for entry, (layer, _) in zip(blueprint, _layers(blueprint), strict=True):
        params = tree.map(lambda s: torch.empty(s.shape, device="meta"), spec((entry,)))
        condition = torch.empty((1, x.shape[1], layer.condition), device="meta")
        x, _ = apply(params, x, (entry,), first_frame_alone=first_frame_alone, condition=condition)
        yield x


def table(
    blueprint: Blueprint,
    shape: tuple[int, int, int],
    title: str,
    *,
    first_frame_alone: bool = False,
) -> Table:
    """Each layer with the shape of its output on a video (T, H, W), and its parameters."""
    result = Table("layer", "output (T, H, W, C)", "parameters", title=title)
    total = 0
    outputs = _outputs(blueprint, shape, first_frame_alone=first_frame_alone)
    for entry, (_, repeats), x in zip(blueprint, _layers(blueprint), outputs, strict=True):
        parameters = tree.count(spec((entry,)))
        copies = f" × {repeats}" if repeats > 1 else ""
        size = " × ".join(map(str, x.shape[1:]))
        result.add_row(entry[0] + copies, size, f"{parameters:,}")
        total += parameters
    result.add_row("all", "", f"{total:,}", style="bold")
    return result


@dataclass(frozen=True)
class Blueprints:
    """The encoder and decoder of an architecture built from blueprints, and their compute dtype."""

    encoder: tuple[Any, ...] = ()
    decoder: tuple[Any, ...] = ()
    dtype: DtypeName = "float32"

    def __post_init__(self):
        for side in ("encoder", "decoder"):
            object.__setattr__(self, side, parse(getattr(self, side)))
