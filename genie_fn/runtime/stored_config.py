"""Brings configurations that earlier versions stored up to date: dicts in, dicts out.

The stored form is that of `dataclasses.asdict`, as it is found in checkpoints (a run's configuration) and world files
(the models' configurations). Every renamed or removed field of a stored configuration has an entry here, and nowhere
else. Values come from files, so that anything may stand in any place: what is not recognised is left as it is.
"""

from typing import Any

RUN_FIELDS = {"mirror": "flip"}
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
        current = RUN_FIELDS.get(name, name)
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
    if not isinstance(config, dict):
        return config
    updated = {}
    for name, value in config.items():
        if name not in IMPLEMENTATION_FIELDS:
            updated[MODEL_FIELDS.get(name, name)] = update_model(value)
    return updated
