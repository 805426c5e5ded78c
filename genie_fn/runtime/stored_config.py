"""Stored configurations: brings those of earlier versions up to date, and makes dataclasses of
them.

The stored form is that of `dataclasses.asdict`, as it is found in checkpoints (a run's
configuration) and world files (the models' configurations). Every renamed or removed field of a
stored configuration has an entry here, and nowhere else. Values come from files, so that anything
may stand in any place: updating leaves what it does not recognise as it is, and `from_dict` refuses
it. (cattrs would convert a value of another type where it can, and reports what it refuses as
nested groups of exceptions; here a user reads one sentence.)
"""

import dataclasses
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from genie_fn.errors import UserError
from genie_fn.runtime import versions

T = TypeVar("T")
LARGEST_INT = 2**53
"""JSON readers represent integers up to this one exactly."""

VERSION = 2
"""The version of a run's configuration and checkpoints, stored with them under the name `version`.
It rises when an earlier version of this program would misread them. Version 1 was not stored."""

RUN_FIELDS = {"mirror": "flip"}  # language: allow
"""Renamed fields of a run's configuration: the old name and the new."""

RUN_VALUES = {"actions": {"true": "recorded"}}
"""Renamed values of a run's configuration, by field (under its new name)."""

MODEL_FIELDS: dict[str, str] = {}
"""Renamed fields of a model's configuration, at any depth."""

IMPLEMENTATION_FIELDS = {"space_impl", "time_impl", "impl"}
"""Fields of a model's configuration, at any depth, that chose how to compute, not what."""

REMOVED_FIELDS = {"facing": "side"}
"""Removed options of a model's configuration, at any depth, each with the field of its value that
was 0 where the option was off."""

MODELS = ("model", "lam_model")
"""The fields of a run's configuration that hold a model's."""


def to_store(config: Any) -> dict[str, Any]:
    """The stored form of a run's configuration, which is a dataclass."""
    return dataclasses.asdict(config) | {"version": VERSION}


def check_version(config: Any, source: str | Path) -> None:
    """Raise NewerVersion, which names the `source`, for the stored configuration of a later
    version."""
    if isinstance(config, dict):
        versions.check(source, config.get("version"), VERSION)


def update_run(config: Any) -> Any:
    """The stored configuration of a training run, in terms of this version's fields and values."""
    if not isinstance(config, dict):
        return config
    updated = {}
    for name, value in config.items():
        if name == "version":
            continue
        current = str(RUN_FIELDS.get(name, name))
        updated[current] = _update_value(current, value)
    return updated


def _update_value(name: str, value: Any) -> Any:
    """The value of a field of a run's configuration."""
    if name in MODELS:
        return update_model(value)
    if name == "inputs" and isinstance(value, dict) and isinstance(value.get("data"), dict):
        return value | {"data": [value["data"]]}  # a run had one dataset
    values = RUN_VALUES.get(name, {})
    return values.get(value, value) if isinstance(value, str) else value


def update_model(config: Any) -> Any:
    """The configuration of a model, in terms of this version's fields."""
    if isinstance(config, list | tuple):
        return type(config)(update_model(item) for item in config if not _is_implementation(item))
    if not isinstance(config, dict):
        return config
    updated = {}
    for name, value in config.items():
        if name not in IMPLEMENTATION_FIELDS and not _is_unused(name, value):
            updated[MODEL_FIELDS.get(name, name)] = update_model(value)
    return updated


def _is_unused(name: str, value: Any) -> bool:
    """Whether a field is a removed option that was off."""
    switch = REMOVED_FIELDS.get(name)
    return switch is not None and isinstance(value, dict) and value.get(switch) == 0


def _is_implementation(item: Any) -> bool:
    """Whether an item of a stored list is the option `impl` of a layer of a blueprint."""
    return isinstance(item, list | tuple) and len(item) == 2 and item[0] == "impl"


def from_dict(cls: type[T], values: dict[str, Any], source: str | Path = "") -> T:
    """A (nested, frozen) dataclass from the dict that `dataclasses.asdict` made of it.

    A field that the dict lacks takes its default. Raises NewerVersion, which names the `source`, for
    a field that the dataclass lacks, if the dict has all that the dataclass has; and UserError for
    any other difference, and for a value of another type than the field's, which includes other
    values than a Literal's.
    """
    hints = typing.get_type_hints(cls)
    unknown = values.keys() - hints.keys()
    # A newer version's configuration has all of this one's fields; that of another kind does not.
    if unknown and (hints.keys() - values.keys() or unknown & REMOVED_FIELDS.keys()):
        raise _differing(cls, unknown)
    versions.check_names(source or f"a stored {cls.__name__}", values, hints)
    required = {
        field.name
        for field in dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
        if field.default is field.default_factory is dataclasses.MISSING
    }
    missing = required - values.keys()
    if missing:
        raise _differing(cls, missing)
    invalid = [name for name, value in values.items() if not _is_valid(hints[name], value)]
    if invalid:
        raise UserError(
            f"a stored {cls.__name__} has an invalid {versions.listed(invalid)}: train again"
        )
    return cls(**{name: _value(hints[name], value, source) for name, value in values.items()})


def _differing(cls: type, names: Iterable[str]) -> UserError:
    """The error for fields that only the stored configuration has, or only this version."""
    return UserError(
        f"a stored {cls.__name__} and this version's differ in {versions.listed(names)}: "
        "train again, or use the version that wrote it"
    )


def _is_valid(hint: Any, value: Any) -> bool:
    """Whether a value that JSON can hold is one of a field's type."""
    kind = typing.get_origin(hint) or hint
    if kind in (types.UnionType, typing.Union):
        return any(_is_valid(choice, value) for choice in typing.get_args(hint))
    if kind is typing.Literal:
        choices = typing.get_args(hint)
        return any(type(value) is type(choice) and value == choice for choice in choices)
    if kind is float:
        return type(value) in (int, float)
    if kind is int:
        return type(value) is int and abs(value) < LARGEST_INT
    if kind is tuple:
        item = _item_class(hint)
        is_list = type(value) in (list, tuple)
        return is_list and (item is None or all(_is_valid(item, entry) for entry in value))
    if dataclasses.is_dataclass(kind):
        return type(value) is dict
    return type(value) is kind


def _item_class(hint: Any) -> Any:
    """The dataclass of which a tuple holds any number; None for other tuples."""
    first = next(iter(typing.get_args(hint)), None)
    return first if isinstance(first, type) and dataclasses.is_dataclass(first) else None


def _value(hint: Any, value: Any, source: str | Path) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, source)
    item = _item_class(hint) if typing.get_origin(hint) is tuple else None
    if item is not None:
        return tuple(from_dict(item, entry, source) for entry in value)
    return as_tuples(value)


def as_tuples(value: Any) -> Any:
    """Nested lists as nested tuples; anything else as it is."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value
