"""Checkpoints of (state, config) with orbax: written asynchronously and atomically, the newest few kept.

The config lies beside the state: a later stage loads an earlier one's configuration and never declares it again.
"""

import dataclasses
import logging
import typing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.tree import Tree

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save at length

KEEP = 2


class Loaded(NamedTuple):
    """A checkpoint as read: the step it was saved at, the config as nested dicts, the state with tensors as leaves."""

    step: int
    config: dict
    state: Tree


def manager(run: str | Path, keep: int = KEEP):
    """An orbax CheckpointManager for the folder `run`; close it, or use it as a context, to finish pending writes."""
    import orbax.checkpoint as ocp  # imports JAX: a second that only training and loading should pay

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager(_folder(run), options=options)


def _folder(run: str | Path) -> Path:
    return Path(run).absolute() / "checkpoints"


def save(saver, step: int, state: Tree, config: Any) -> None:
    """Start writing a checkpoint. The state is copied first: a training step may overwrite its tensors at once."""
    import orbax.checkpoint as ocp

    arrays = tree.map(lambda x: x.detach().cpu().numpy().copy(), _as_dict(state))
    state_args, config_args = ocp.args.StandardSave(arrays), ocp.args.JsonSave(dataclasses.asdict(config))
    saver.save(step, args=ocp.args.Composite(state=state_args, config=config_args), force=True)


def _as_dict(state: Tree) -> Tree:
    return state._asdict() if hasattr(state, "_asdict") else state


def latest(run: str | Path) -> int | None:
    """The newest step saved in a run's folder, None where there is none."""
    folder = _folder(run)
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=None)


def load(run: str | Path, *, stage: str, device: torch.device | str = "cpu") -> Loaded:
    """The newest checkpoint of a run. `stage` names the script that makes one, for the error where there is none."""
    import orbax.checkpoint as ocp

    step = latest(run)
    if step is None:
        how = f"make one with `python train_{stage}.py --cfg.out {run}`"
        raise UserError(f"there is no {stage} checkpoint in {run}: {how}")
    args = ocp.args.Composite(state=ocp.args.StandardRestore(), config=ocp.args.JsonRestore())
    try:
        with manager(run, keep=None) as saver:
            read = saver.restore(step, args=args)
    except Exception as error:  # orbax and tensorstore raise many kinds; all mean that the files cannot be read
        raise UserError(
            f"the checkpoint {_folder(run) / str(step)} cannot be read ({type(error).__name__}): "
            "delete that folder to fall back to an older one, or train again"
        ) from error
    # A clone lies as torch aligns memory, on which the rounding of some CPU kernels depends.
    state = tree.map(lambda x: torch.from_numpy(np.array(x)).clone().to(device), read.state)
    return Loaded(step, read.config, state)


def weights(loaded: Loaded) -> Tree:
    """The parameters that later stages use: the moving average where the run kept one."""
    return loaded.state["ema"] or loaded.state["params"]


def check(params: Tree, spec: Tree, what: str) -> Tree:
    """`params` in the order of `spec`, if it has the same paths and shapes; otherwise a sentence naming a difference.

    The order matters: files hold leaves by name, and a sum over leaves in another order is rounded differently.
    """
    ours, theirs = tree.paths(spec), tree.paths(params)
    for path in sorted(ours.keys() | theirs.keys()):
        wanted, found = (tuple(x[path].shape) if path in x else None for x in (ours, theirs))
        if wanted != found:
            raise UserError(f"{what} does not fit its configuration: {path} is {found}, not {wanted}; train it again")
    return tree.map(lambda _, x: x, spec, params)


def from_dict(cls: type, values: dict) -> Any:
    """A (nested, frozen) dataclass from the dict that `dataclasses.asdict` made.

    A field that is newer than the dict takes its default; one that is no longer there, has no default, or is of another
    type, is refused.
    """
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    odd = {name for name in hints.keys() & values.keys() if not _fits(hints[name], values[name])}
    if wrong := (values.keys() - hints.keys()) | (needed - values.keys()) | odd:
        raise UserError(
            f"a stored {cls.__name__} and this version's differ in {', '.join(sorted(wrong))}: "
            "train again, or use the version that wrote it"
        )
    return cls(**{name: _value(hints[name], value) for name, value in values.items()})


def _fits(hint: Any, value: Any) -> bool:
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    kinds = {int: int, float: int | float, str: str, bool: bool, tuple: list | tuple}
    return hint not in kinds or isinstance(value, kinds[hint]) and isinstance(value, bool) == (hint is bool)


def _value(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
