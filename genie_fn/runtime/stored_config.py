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
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from genie_fn.errors import UserError

T = TypeVar("T")
LARGEST_INT = 2**53
"""JSON readers represent integers up to this one exactly."""

RUN_FIELDS = {"mirror": "flip"}  # language: allow
"""Renamed fields of a run's configuration: the old name and the new."""

RUN_VALUES = {"actions": {"true": "recorded"}}
"""Renamed values of a run's configuration, by field (under its new name)."""

MODEL_FIELDS: dict[str, str] = {}
"""Renamed fields of a model's configuration, at any depth."""

IMPLEMENTATION_FIELDS = {"space_impl", "time_impl", "impl"}
"""Fields of a model's configuration, at any depth, that chose how to compute, not what."""

MODELS = ("model", "lam_model")
"""The fields of a run's configuration that hold a model's."""


def update_run(config: Any) -> Any:
    """The configuration of a training run, in terms of this version's fields and values."""
    if not isinstance(config, dict):
        return config
    updated = {}
    for name, value in config.items():
        current = str(RUN_FIELDS.get(name, name))
        updated[current] = _update_value(current, value)
    return updated


def _update_value(name: str, value: Any) -> Any:
    """The value of a field of a run's configuration."""
    if name in MODELS:
        return update_model(value)
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
        if name not in IMPLEMENTATION_FIELDS:
            updated[MODEL_FIELDS.get(name, name)] = update_model(value)
    return updated


def _is_implementation(item: Any) -> bool:
    """Whether an item of a stored list is the option `impl` of a layer of a blueprint."""
    return isinstance(item, list | tuple) and len(item) == 2 and item[0] == "impl"


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """A (nested, frozen) dataclass from the dict that `dataclasses.asdict` made of it.

    A field that the dict lacks takes its default. Raises UserError for a field that the dataclass
    lacks, a missing field without a default, and a value of another type than the field's, which
    includes other values than a Literal's.
    """
    hints = typing.get_type_hints(cls)
    required = {
        field.name
        for field in dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
        if field.default is field.default_factory is dataclasses.MISSING
    }
    differing = (values.keys() - hints.keys()) | (required - values.keys())
    if differing:
        raise UserError(
            f"a stored {cls.__name__} and this version's differ in {_names(differing)}: "
            "train again, or use the version that wrote it"
        )
    invalid = [name for name, value in values.items() if not _is_valid(hints[name], value)]
    if invalid:
        raise UserError(f"a stored {cls.__name__} has an invalid {_names(invalid)}: train again")
    return cls(**{name: _value(hints[name], value) for name, value in values.items()})


def _names(names: Iterable[str]) -> str:
    """Names from a file, which may be any text, for an error message."""
    printable = (name if name.isidentifier() else ascii(name) for name in sorted(names))
    return ", ".join(printable)[:200]


def _is_valid(hint: Any, value: Any) -> bool:
    """Whether a value that JSON can hold is one of a field's type."""
    kind = typing.get_origin(hint) or hint
    if kind is typing.Literal:
        choices = typing.get_args(hint)
        return any(type(value) is type(choice) and value == choice for choice in choices)
    if kind is float:
        return type(value) in (int, float)
    if kind is int:
        return type(value) is int and abs(value) < LARGEST_INT
    if kind is tuple:
        return type(value) in (list, tuple)
    if dataclasses.is_dataclass(kind):
        return type(value) is dict
    return type(value) is kind


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    return as_tuples(value)


def as_tuples(value: Any) -> Any:
    """Nested lists as nested tuples; anything else as it is."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value
