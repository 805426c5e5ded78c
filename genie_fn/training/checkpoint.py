"""Checkpoints of (state, config) with orbax: written in the background and atomically, the newest few kept.

Beside every checkpoint lie checksums of all that it holds: loading compares them, and takes the newest that is whole.
The config lies there, too: a later stage loads an earlier one's configuration and never declares it again.
"""

import dataclasses
import json
import logging
import math
import shutil
import sys
import typing
import warnings
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.runtime import files, stored_config
from genie_fn.runtime.console import console
from genie_fn.tree import Tree

logging.getLogger("absl").setLevel(
    logging.CRITICAL
)  # orbax reports every save at length, and failures twice
warnings.filterwarnings(
    "ignore", r"coroutine '\w+Handler\.", RuntimeWarning
)  # that it leaves behind when it fails


def _unraisable(event: Any, tell: Callable = sys.unraisablehook) -> None:
    if str(event.exc_value) != "Event loop is closed":
        tell(event)


sys.unraisablehook = (
    _unraisable  # tensorstore's threads report to orbax's event loop, which an error has closed
)

KEEP = 2
CONFIG_BYTES, SUMS_BYTES = 1 << 20, 1 << 24  # the most that is read of each
RATIO = (
    64  # how far weights may have been compressed: more is no checkpoint, and is given no memory
)
ORDER = "order"  # a run's file with a number above those of the runs that were begun before


class Loaded(NamedTuple):
    """A checkpoint as read: the step it was saved at, the config as nested dicts, the state with tensors as leaves."""

    step: int
    config: dict
    state: Tree


class Unsaved(UserError):
    """Saving has failed, and is not to be tried again."""


class Saver:
    """Writes the checkpoints of one run, one after another, in a thread; leaving the context waits for the last.

    A save that fails, as on a full disk, leaves those before it as they were. It is said, and the next one tries again;
    a second failure in a row, or one of the last save, is a UserError. The caller holds the run's folder alone.
    """

    def __init__(self, run: str | Path, keep: int):
        self._run, self._keep, self._failed = Path(run), keep, False
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, Future] | None = None
        with files.writing(run):
            _folder(run).mkdir(parents=True, exist_ok=True)
            _sweep(run)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            self._wait(last=kind is None)
        finally:
            self._thread.shutdown()

    def start(self, step: int, arrays: Tree, config: dict) -> None:
        """Begin to write, once the save before is done."""
        self._wait()
        self._pending = (
            step,
            self._thread.submit(_write, self._run, self._keep, step, arrays, config),
        )

    def poll(self) -> None:
        """Say at once, not at the next save, that one has failed."""
        if self._pending and self._pending[1].done():
            self._wait()

    def _wait(self, last: bool = False) -> None:
        if self._pending is None:
            return
        (step, job), self._pending = self._pending, None
        again, error = self._failed, job.exception()
        self._failed = error is not None
        if error is None:
            return
        newest = latest(self._run)
        kept = (
            "none is saved yet"
            if newest is None
            else f"the newest that is saved is of step {newest}"
        )
        what = f"the state of step {step} could not be saved in {self._run} ({files.reason(error)}), {kept}: free space"
        if last or again:
            raise Unsaved(f"{what}, and continue with the same command and --cfg.resume") from error
        console.print(
            f"{what}; training goes on, and the next save tries again", soft_wrap=True, markup=False
        )


def manager(run: str | Path, keep: int = KEEP) -> Saver:
    """What `save` writes the checkpoints of the folder `run` with: a context, whose end finishes pending writes."""
    return Saver(run, keep)


def _folder(run: str | Path) -> Path:
    return Path(run).absolute() / "checkpoints"


def _sweep(run: str | Path) -> None:
    """Remove what is no checkpoint: saves that were cut short, and old ones that were being removed."""
    for path in _folder(run).iterdir():
        if not path.name.isdigit():
            shutil.rmtree(path, ignore_errors=True)


def save(saver: Saver, step: int, state: Tree, config: Any) -> None:
    """Start writing a checkpoint. The state is copied first: a training step may overwrite its tensors at once."""
    arrays = tree.map(lambda x: x.detach().cpu().numpy().copy(), _as_dict(state))
    saver.start(step, arrays, dataclasses.asdict(config))


def _as_dict(state: Tree) -> Tree:
    return state._asdict() if hasattr(state, "_asdict") else state


def _write(run: Path, keep: int, step: int, arrays: Tree, config: dict) -> None:
    import orbax.checkpoint as ocp  # imports JAX: a second that only training and loading should pay

    sums = {"config": _config_sum(config), "state": _sums(arrays)}
    items = {"state": ocp.args.StandardSave(arrays), "config": ocp.args.JsonSave(config)}
    try:
        with ocp.Checkpointer(
            ocp.CompositeCheckpointHandler()
        ) as writer:  # writes beside it and renames
            writer.save(
                _folder(run) / str(step),
                ocp.args.Composite(**items, checksums=ocp.args.JsonSave(sums)),
            )
    finally:
        _sweep(run)  # what was written of a failed save would keep a full disk full
    for old in _steps(run)[keep:]:
        doomed = _folder(run) / f"{old}.old"  # half removed it must not look like a checkpoint
        (_folder(run) / str(old)).rename(doomed)
        shutil.rmtree(doomed)


def _sums(arrays: Tree) -> dict[str, int]:
    """A checksum of every array with its type and shape, by path."""
    found = tree.paths(arrays)
    with ThreadPoolExecutor() as pool:
        return dict(zip(found, pool.map(_sum, found.values()), strict=True))


def _sum(array: np.ndarray) -> int:
    return zlib.crc32(
        np.ascontiguousarray(array), zlib.crc32(f"{array.dtype} {array.shape}".encode())
    )


def _config_sum(config: dict) -> int:
    return zlib.crc32(json.dumps(config, sort_keys=True).encode())


def _steps(run: str | Path) -> list[int]:
    """The steps saved in a run's folder, newest first."""
    folder = _folder(run)
    found = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return sorted(found, reverse=True)


def latest(run: str | Path) -> int | None:
    """The newest step saved in a run's folder, None where there is none."""
    return next(iter(_steps(run)), None)


def load(run: str | Path, *, stage: str, device: torch.device | str = "cpu") -> Loaded:
    """The newest checkpoint of a run that is whole; of those that are not it is said that they were passed over.

    `stage` names the script that makes one, for the error where there is none.
    """
    damage, tried = None, set()
    while (step := next((found for found in _steps(run) if found not in tried), None)) is not None:
        tried.add(step)
        try:
            loaded = _read(run, step)
        except Exception as error:  # orbax and tensorstore raise many kinds; all mean that the files cannot be read
            if (
                damage is None and (_folder(run) / str(step)).exists()
            ):  # and not just been replaced by a newer one
                damage = (
                    error,
                    f"the checkpoint {_folder(run) / str(step)} cannot be read ({_why(error)})",
                )
            continue
        if damage:
            console.print(
                f"{damage[1]}: step {step} is used in its place", soft_wrap=True, markup=False
            )
        # A clone lies as torch aligns memory, on which the rounding of some CPU kernels depends.
        return loaded._replace(
            config=stored_config.update_run(loaded.config),
            state=tree.map(lambda x: torch.from_numpy(x).clone().to(device), loaded.state),
        )
    if damage:
        raise UserError(
            f"{damage[1]}, and there is no older one that can: train it again"
        ) from damage[0]
    raise UserError(
        f"there is no {stage} checkpoint in {run}: make one with `python train_{stage}.py --cfg.out {run}`"
    )


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, Damaged) else type(error).__name__


class Damaged(Exception):
    """What a checkpoint holds is not what was saved."""


def _read(run: str | Path, step: int) -> Loaded:
    """One checkpoint, its leaves arrays. Raises many kinds of exception where anything in it is not what was saved."""
    import orbax.checkpoint as ocp

    folder = _folder(run) / str(step)
    config = files.read_json(folder / "config" / "metadata", CONFIG_BYTES)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        _check_size(
            folder / "state", tree.leaves(reader.metadata(folder / "state").item_metadata.tree)
        )
        state = tree.map(np.array, reader.restore(folder / "state"))
    if not isinstance(config, dict) or not {"params", "ema"} <= state.keys():
        raise Damaged("it is not of a training run")
    if (folder / "checksums").exists():  # the earliest checkpoints have none
        sums, found = files.read_json(folder / "checksums" / "metadata", SUMS_BYTES), _sums(state)
        wrong = sorted(
            path for path in sums["state"] | found if sums["state"].get(path) != found.get(path)
        )
        if wrong or sums["config"] != _config_sum(config):
            raise Damaged(
                f"{ascii(wrong[0])[:200] if wrong else 'its configuration'} is not as it was saved"
            )
    return Loaded(step, config, state)


def _check_size(folder: Path, arrays: list) -> None:
    """Raises Damaged where arrays, by their metadata, would take memory that the files in `folder` cannot fill."""
    there = sum(path.stat().st_size for path in folder.rglob("*"))
    claimed = 0
    for array in arrays:
        values = max(
            math.prod(array.shape), math.prod((array.storage and array.storage.chunk_shape) or ())
        )
        claimed += values * np.dtype(array.dtype).itemsize
    if claimed > RATIO * there + (1 << 26):
        raise Damaged(f"its {there:,} bytes claim to hold {claimed:,}")


def set_aside(run: str | Path, step: int) -> None:
    """Move the checkpoints newer than `step`, which are damaged, to where they do not hinder training on from there."""
    for newer in (found for found in _steps(run) if found > step):
        try:
            _read(run, newer)
        except Exception:  # as in `load`
            target = Path(run) / "damaged" / str(newer)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (_folder(run) / str(newer)).rename(target)
        else:
            raise UserError(
                f"{run} was trained on by another process meanwhile: give the same command again"
            )


def order(run: str | Path) -> int:
    """A number that is the higher the later a run was begun or continued, among those of its stage, without a clock."""
    try:
        return int((Path(run) / ORDER).read_bytes()[:20])
    except (OSError, ValueError):
        return 0


def put_last(run: str | Path) -> None:
    """Give a run the highest `order` of those in the folders beside its own."""
    others = [
        order(path.parent)
        for path in Path(run).absolute().parent.parent.glob(f"*/{Path(run).name}/{ORDER}")
    ]
    files.write_atomically(Path(run) / ORDER, str(max(others, default=0) + 1).encode())


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
            raise UserError(
                f"{what} does not fit its configuration: {path} is {found}, not {wanted}; train it again"
            )
    return tree.map(lambda _, x: x, spec, params)


def from_dict(cls: type, values: dict) -> Any:
    """A (nested, frozen) dataclass from the dict that `dataclasses.asdict` made.

    A field that is newer than the dict takes its default; one that is no longer there, has no default, or is of another
    type, is refused.
    """
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    if wrong := (values.keys() - hints.keys()) | (needed - values.keys()):
        raise UserError(
            f"a stored {cls.__name__} and this version's differ in {_names(wrong)}: "
            "train again, or use the version that wrote it"
        )
    if wrong := [name for name, value in values.items() if not _fits(hints[name], value)]:
        raise UserError(f"a stored {cls.__name__} has no sensible {_names(wrong)}: train again")
    return cls(**{name: _value(hints[name], value) for name, value in values.items()})


def _names(found: Iterable[str]) -> str:
    """Names from a file, which may be anything, for a sentence."""
    return ", ".join(name if name.isidentifier() else ascii(name) for name in sorted(found))[:200]


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value from JSON can be one of a field's type."""
    kind = typing.get_origin(hint) or hint
    if kind is typing.Literal:
        return value in typing.get_args(hint)
    stored = {float: (int, float), tuple: (list, tuple)}.get(
        kind, (dict if dataclasses.is_dataclass(kind) else kind,)
    )
    return type(value) in stored and (kind is not int or abs(value) < 2**53)


def _value(hint: Any, value: Any) -> Any:
    return from_dict(hint, value) if dataclasses.is_dataclass(hint) else _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
