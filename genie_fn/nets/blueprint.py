"""Blueprints: networks over video written as a tuple of layers, each a name or a pair (name, options).

    (("causal-conv3d", {"in_channels": 3, "out_channels": 64}), "silu", ("video-residual", {"in_channels": 64}))

`parse` checks a blueprint and makes it hashable, `spec` gives its parameters, `apply` runs it on video (B, T, H, W, C).
The names and their options are in genie_fn/nets/registry.py; `n_rep`, which all take, repeats a layer.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from genie_fn import layers, tree
from genie_fn.errors import UserError
from genie_fn.nets.conv import Pass
from genie_fn.nets.registry import ALIASES, REGISTRY, Layer
from genie_fn.tree import Tree

MAX_LAYERS = 1000
Blueprint = tuple  # of (name, ((option, value), ...)), hashable: what `parse` returns


def parse(description: Iterable) -> Blueprint:
    """Check a blueprint and make it hashable. UserError names the position of what is wrong, and the nearest name."""
    found = tuple(_entry(entry, i) for i, entry in enumerate(description))
    if (depth := sum(repeats for _, repeats in _layers(found))) > MAX_LAYERS:
        raise UserError(
            f"a blueprint has at most {MAX_LAYERS} layers, and this one {depth}: repeat them less often"
        )
    channels = None
    for i, (layer, _) in enumerate(_layers(found)):
        if layer.inputs is not None:
            if channels not in (None, layer.inputs):
                what = f"takes {layer.inputs} channels, but the layers before it give {channels}"
                raise _wrong(i, found[i][0], what)
            channels = layer.outputs
    return found


def _wrong(at: int, name: str, what: str) -> UserError:
    return UserError(f"layer {at} of the blueprint, {name}, {what}: change its options")


def _entry(entry: Any, at: int) -> tuple[str, tuple]:
    name, options = (entry, ()) if isinstance(entry, str) else entry
    name = ALIASES.get(name, name)
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, [*REGISTRY, *ALIASES], n=1, cutoff=0)[0]
        raise UserError(
            f"layer {at} of the blueprint has the unknown name {name!r}: did you mean {near!r}?"
        )
    options = {
        key: _frozen(value)
        for key, value in (options.items() if isinstance(options, Mapping) else options)
    }
    valid = {f.name: f for f in fields(REGISTRY[name])}
    for key in options.keys() - valid.keys() - {"n_rep"}:
        near = difflib.get_close_matches(key, [*valid, "n_rep"], n=1, cutoff=0)[0]
        raise UserError(
            f"layer {at} of the blueprint, {name}, has no option {key!r}: did you mean {near!r}? "
            f"(It takes {', '.join([*valid, 'n_rep'])}.)"
        )
    for key, option in valid.items():
        if option.default is MISSING and key not in options:
            raise UserError(
                f"layer {at} of the blueprint, {name}, needs the option {key!r}: give it a value"
            )
    frozen = (name, tuple(sorted(options.items())))
    try:
        layer, repeats = _layer(frozen)
        layer.spec()
    except (ValueError, TypeError, ArithmeticError) as error:
        raise _wrong(at, name, f"is impossible, {error}") from None
    if (
        type(repeats) is not int
        or not 1 <= repeats <= MAX_LAYERS
        or (repeats > 1 and layer.outputs != layer.inputs)
    ):
        raise _wrong(at, name, f"cannot be repeated {repeats} times")
    return frozen


def _frozen(value: Any) -> Any:
    """Options as hashable values, the same from Python and from JSON."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _layer(entry: tuple[str, tuple]) -> tuple[Layer, int]:
    options = dict(entry[1])
    repeats = options.pop("n_rep", 1)
    return REGISTRY[entry[0]](**options), repeats


def _layers(blueprint: Blueprint) -> list[tuple[Layer, int]]:
    """The layers of a parsed blueprint, each with how often it is repeated."""
    return [_layer(entry) for entry in blueprint]


def _keys(blueprint: Blueprint) -> list[str]:
    return [f"{i:02d}_{name}" for i, (name, _) in enumerate(blueprint)]


def spec(blueprint: Blueprint) -> Tree:
    """The parameters, by layer; a repeated layer's are stacked along a leading axis."""
    chain = zip(_keys(blueprint), _layers(blueprint), strict=True)
    return {key: tree.stack(layer.spec(), repeats) for key, (layer, repeats) in chain}


def apply(params: Tree, x_BTHWC: Tensor, blueprint: Blueprint, at: Pass) -> Tensor:
    """Run the network. Computes in the dtype of x."""
    x = x_BTHWC
    for key, (layer, repeats) in zip(_keys(blueprint), _layers(blueprint), strict=True):
        for block in tree.unstack(params[key]) or [{}] * repeats:
            x = layer.apply(block, x, at)
    return x


def growth(blueprint: Blueprint) -> tuple[Fraction, Fraction]:
    """By how much the network multiplies (frames, pixels per side); below 1 where it divides."""
    time = space = Fraction(1)
    for layer, repeats in _layers(blueprint):
        time *= Fraction(layer.grows[0], layer.shrinks[0]) ** repeats
        space *= Fraction(layer.grows[1], layer.shrinks[1]) ** repeats
    return time, space


def time_changes(blueprint: Blueprint) -> set[str]:
    """Whether any of its layers `divides` the frame rate, and whether any `multiplies` it.

    A network that does both may let a frame see later ones of its group, even if the two cancel out.
    """
    found = [layer for layer, _ in _layers(blueprint)]
    does = {
        "divides": any(x.shrinks[0] > 1 for x in found),
        "multiplies": any(x.grows[0] > 1 for x in found),
    }
    return {name for name, true in does.items() if true}


def conditions(blueprint: Blueprint) -> set[int]:
    """The widths of the external conditions that its layers need."""
    return {layer.condition for layer, _ in _layers(blueprint)} - {0}


def channels(blueprint: Blueprint) -> tuple[int, int]:
    """The channels that the network takes and gives."""
    sized = [layer for layer, _ in _layers(blueprint) if layer.inputs is not None]
    return sized[0].inputs, sized[-1].outputs


def starts_alone(frames: int, time_factor: int) -> bool:
    """Whether a video of this many frames has its first coded alone: 1 + k·factor frames, rather than k·factor."""
    if time_factor == 1 or frames % time_factor == 0:
        return False
    if frames % time_factor == 1:
        return True
    raise UserError(
        f"a network that divides the frame rate by {time_factor} codes {time_factor}k or 1 + {time_factor}k frames, "
        f"not {frames}: give it {frames - frames % time_factor} or {frames - frames % time_factor + 1}"
    )


def table(
    blueprint: Blueprint, shape: tuple[int, int, int], title: str, alone: bool = False
) -> Table:
    """Each layer with its output shape on a video (T, H, W), and its parameters; `alone` as in conv.py."""
    made, total = Table("layer", "output (T, H, W, C)", "parameters", title=title), 0
    x = torch.empty((1, *shape, channels(blueprint)[0]), device="meta")
    for entry, (layer, repeats) in zip(blueprint, _layers(blueprint), strict=True):
        params = spec((entry,))
        condition = torch.empty((1, x.shape[1], layer.condition), device="meta")
        x = apply(
            tree.map(lambda s: torch.empty(s.shape, device="meta"), params),
            x,
            (entry,),
            Pass(alone, condition),
        )
        times = f" × {repeats}" if repeats > 1 else ""
        made.add_row(entry[0] + times, " × ".join(map(str, x.shape[1:])), f"{tree.count(params):,}")
        total += tree.count(params)
    made.add_row("all", "", f"{total:,}", style="bold")
    return made


@dataclass(frozen=True)
class Blueprints:
    """The two networks of an architecture built from blueprints, and the dtype that they compute in."""

    encoder: tuple = ()
    decoder: tuple = ()
    dtype: str = "float32"

    def __post_init__(self):
        for side in ("encoder", "decoder"):
            object.__setattr__(self, side, parse(getattr(self, side)))
        layers.check_dtype(self.dtype)
