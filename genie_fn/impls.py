"""Which implementation a model uses: named in its config, or `auto`, which a script settles once for its machine."""

import dataclasses
from typing import Any

import torch


def resolve(cfg: Any, device: torch.device, compiled: bool, *, anew: bool = False) -> Any:
    """A config, however nested, with a name in the place of every `auto`; with `anew`, in the place of every choice.

    The choices are those measured to be fastest: see docs/LOG.md. Triton's kernels are used where they are asked for.
    """
    if not dataclasses.is_dataclass(cfg):
        return cfg
    best, changed = _best(device, compiled), {}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if field.name in best:
            changed[field.name] = best[field.name] if anew or value == "auto" else value
        else:
            changed[field.name] = resolve(value, device, compiled, anew=anew)
    return dataclasses.replace(cfg, **changed)


def chosen(cfg: Any) -> dict[str, str]:
    """Every choice in a config by its path: {"model.stack.time_impl": "fused", …}."""
    found = {}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if field.name in NAMES:
            found[field.name] = value
        elif dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{path}": name for path, name in chosen(value).items()}
    return found


NAMES = ("space_impl", "time_impl", "impl")


def _best(device: torch.device, compiled: bool) -> dict[str, str]:
    eager = "reference" if device.type == "cpu" else "sdpa"
    return dict(zip(NAMES, ("sdpa", "fused" if compiled else eager, "reference"), strict=True))
