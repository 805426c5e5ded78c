"""Which implementation a model uses: named in its config, or `auto`, which a script settles once for its machine."""

import dataclasses
import os
import shutil
from typing import Any

import torch

from genie_fn.errors import UserError
from genie_fn.runtime.console import console


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


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; anything else is torch's own name. Each process of a node has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (own := os.environ.get("LOCAL_RANK")) is not None:
        if int(own) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(
                f"there are {found} GPUs for more processes: start torchrun with --nproc-per-node {found}"
            )
        name = f"cuda:{own}"
    try:
        torch.empty(0, device=name)
    except RuntimeError as error:
        raise UserError(f"--cfg.device {name} cannot be used here: try auto or cpu") from error
    return torch.device(name)


def pick_compile(mode: str, device: torch.device) -> str:
    """The compile mode that this machine can carry out: without a C++ compiler everything runs uncompiled."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if mode != "off" and device.type == "cpu" and compiler is None:
        console.print(
            "no C++ compiler found: running uncompiled, several times slower; install g++ to change that"
        )
        return "off"
    return mode
