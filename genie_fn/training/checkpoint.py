"""Checkpoints on disk: a run's state and configuration by step, with checksums of every array.

A single process writes the state with orbax. Several processes write their own shards (see shards),
so that no process ever holds the whole state; any number of processes reads either.

A checkpoint appears atomically: it is written beside its place and renamed. Loading compares the
checksums and takes the newest checkpoint that is intact. The configuration is stored with the
state, so that a later stage never declares an earlier stage's configuration again.
"""

import json
import logging
import math
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.runtime import files, stored_config
from genie_fn.runtime.console import console
from genie_fn.runtime.versions import NewerVersion
from genie_fn.training import processes, sharding, shards
from genie_fn.training.shards import Damaged
from genie_fn.tree import Tree

FOLDER = "checkpoints"
KEEP = 2
"""How many checkpoints a run keeps."""
CONFIG_BYTES = 1 << 20
CHECKSUMS_BYTES = 1 << 24
"""The most that is read of either file."""
MAX_COMPRESSION = 64
"""A state that claims to be larger than its files by this factor is damaged, and no memory is
allocated for it."""
SMALL_STATE = 1 << 26
"""Bytes that a state may have whatever the size of its files."""
ORDER = "order"
"""A run's file with a number above those of the runs that were started earlier."""


class Loaded(NamedTuple):
    """A checkpoint as it was read."""

    step: int
    config: dict[str, Any]
    """The run's configuration as nested dicts, brought up to date."""
    state: Tree
    """Tensors as leaves."""


def run_of(path: str | Path) -> Path:
    """The folder of a run, which may also be named by one of its checkpoints."""
    return Path(path).parent.parent if _is_checkpoint(path) else Path(path)


def _is_checkpoint(path: str | Path) -> bool:
    """Whether a path names a single checkpoint, as in runs/demo/tokenizer/checkpoints/1800."""
    path = Path(path)
    return path.name.isdigit() and path.parent.name == FOLDER


class Misfit(UserError):
    """Parameters or a state of other paths or shapes than expected."""


def folder_of(run: str | Path) -> Path:
    """The folder of a run's checkpoints, each in a folder named by its step."""
    return run_of(run).absolute() / FOLDER


def steps_of(run: str | Path) -> list[int]:
    """The steps saved in a run's folder, newest first; of a single checkpoint only its own."""
    folder = folder_of(run)
    if _is_checkpoint(run):
        return [int(Path(run).name)] if Path(run).is_dir() else []
    if not folder.is_dir():
        return []
    return sorted(
        (int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True
    )


def latest(run: str | Path) -> int | None:
    """The newest step saved in a run's folder; None if there is none."""
    return next(iter(steps_of(run)), None)


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Within the context orbax writes no log, and no errors beside the exception that it raises.

    When a save fails, as on a full disk, orbax leaves coroutines that were never awaited, and
    tensorstore's threads report to an event loop that has been closed.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    hook = sys.unraisablehook

    def unraisable(event: Any) -> None:
        if str(event.exc_value) != "Event loop is closed":
            hook(event)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = unraisable
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"coroutine '\w+Handler\.", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)


def sweep(run: str | Path) -> None:
    """Remove from the folder of checkpoints what is none: partial saves, and old ones that were
    being removed."""
    for path in folder_of(run).iterdir():
        if not path.name.isdigit():
            shutil.rmtree(path, ignore_errors=True)


def checksums_of(arrays: Tree) -> dict[str, int]:
    """A checksum of every array with its type and shape, by path."""
    leaves = tree.paths(arrays)
    with ThreadPoolExecutor() as pool:
        return dict(zip(leaves, pool.map(_checksum, leaves.values()), strict=True))


def _checksum(array: np.ndarray) -> int:
    kind = f"{array.dtype} {array.shape}".encode()
    return zlib.crc32(np.ascontiguousarray(array).data, zlib.crc32(kind))


def config_checksum(config: dict) -> int:
    return zlib.crc32(json.dumps(config, sort_keys=True).encode())


# Reading


def read_config(run: str | Path) -> dict[str, Any] | None:
    """The configuration of a run by its newest checkpoint of which that can be read, brought up to
    date; None if there is none."""
    for step in steps_of(run):
        try:
            config = _read_config(folder_of(run) / str(step))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return stored_config.update_run(config)
    return None


def _read_config(path: Path) -> Any:
    """The stored configuration of a checkpoint. Raises NewerVersion for one of a later version of
    this program."""
    config = files.read_json(path / "config" / "metadata", CONFIG_BYTES)
    stored_config.check_version(config, path)
    return config


def load(run: str | Path, *, stage: str, device: torch.device | str = "cpu") -> Loaded:
    """The newest intact checkpoint of a run; a message names those that were passed over.

    `stage` names the script that makes such a run, for the error if there is none.
    """
    with quiet_orbax():
        loaded = _read_newest(run, stage)
    return loaded._replace(
        config=stored_config.update_run(loaded.config),
        # A clone lies as torch aligns memory, on which the rounding of some CPU kernels depends.
        state=tree.map(lambda x: torch.from_numpy(x).clone().to(device), loaded.state),
    )


def _read_newest(run: str | Path, stage: str) -> Loaded:
    """The newest checkpoint that can be read, its leaves arrays. Another process may add and remove
    some meanwhile."""
    damage = None
    tried = set()
    while untried := [step for step in steps_of(run) if step not in tried]:
        step = untried[0]
        tried.add(step)
        path = folder_of(run) / str(step)
        try:
            loaded = _read(path)
        except NewerVersion:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds for unreadable files
            replaced_by_a_newer_one = not path.exists()
            # Threads of tensorstore, for which it offers no way to wait, report the error once more
            # a little later: until then this context keeps them quiet.
            time.sleep(0.2)
            if damage is None and not replaced_by_a_newer_one:
                damage = error, f"the checkpoint {path} cannot be read ({_reason(error)})"
            continue
        if damage:
            message = f"{damage[1]}: step {step} is used instead"
            console.print(message, soft_wrap=True, markup=False)
        return loaded
    if damage:
        raise UserError(f"{damage[1]}, and there is no older one: train it again") from damage[0]
    inner = Path(run) / stage
    if latest(inner) is not None:
        raise UserError(f"{run} is not the folder of a run: name {inner}, which is in it")
    raise UserError(
        f"there is no {stage} checkpoint in {run}: "
        f"make one with `python train_{stage}.py --cfg.out {run}`"
    )


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Damaged) else type(error).__name__


def _read(path: Path) -> Loaded:
    """The checkpoint in a folder, its leaves arrays. Raises exceptions of many kinds if it is not
    what was saved."""
    config = _read_config(path)
    state = _read_pieces(path / "state") if _is_in_pieces(path) else _read_whole(path / "state")
    if not isinstance(config, dict) or not {"params", "ema"} <= state.keys():
        raise Damaged("it is not of a training run")
    if (path / "checksums").exists():  # the earliest checkpoints have none
        stored = files.read_json(path / "checksums" / "metadata", CHECKSUMS_BYTES)
        checksums = {} if _is_in_pieces(path) else checksums_of(state)
        _compare(stored, {"config": config_checksum(config), "state": checksums})
    return Loaded(int(path.name), config, state)


def _read_whole(folder: Path) -> Tree:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        metadata = reader.metadata(folder).item_metadata.tree
        _check_size(folder, tree.leaves(metadata))
        return tree.map(np.array, reader.restore(folder))


def _is_in_pieces(path: Path) -> bool:
    """Whether several processes wrote the checkpoint."""
    return (path / "state" / shards.INDEX).exists()


def _read_pieces(folder: Path) -> Tree:
    """A state that several processes wrote, put together."""
    leaves = shards.read_index(folder)
    parts = {path: shards.part_of(leaf) for path, leaf in tree.paths(leaves).items()}
    arrays = shards.read_parts(folder, parts, leaves)
    return tree.map_with_path(lambda path, _: arrays[path], leaves)


def load_together(run: str | Path, state: Tree) -> Tree:
    """The state of the newest intact checkpoint for several processes, who all call this.

    `state` is laid out as the result will be. Each process reads its own part; of a checkpoint that
    a single process wrote, the first process reads all and sends the others theirs.
    """
    damage = None
    for step in processes.on_first(lambda: steps_of(run)):
        path = folder_of(run) / str(step)
        what = f"the checkpoint in {run}"
        in_pieces = processes.on_first(lambda path=path: _is_in_pieces(path))
        read = _read_own if in_pieces else _read_and_send
        loaded, reason = read(path, state, what)
        if reason is None:
            if damage:
                message = f"{damage}: step {step} is used instead"
                console.print(message, soft_wrap=True, markup=False)
            return loaded
        damage = damage or f"the checkpoint {path} cannot be read ({reason})"
    raise UserError(f"{damage}, and there is no older one: train it again")


def _read_own(path: Path, state: Tree, what: str) -> tuple[Tree, str | None]:
    """Each process's part of a checkpoint in pieces, or the reason why some process cannot read
    it."""
    own = None
    reason = None
    try:
        leaves = check(shards.read_index(path / "state"), state, what)
        parts = {name: shards.part_of(leaf) for name, leaf in tree.paths(state).items()}
        arrays = shards.read_parts(path / "state", parts, leaves)

        def to_tensor(name: str, leaf: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(arrays[name]).clone().to(leaf.device)

        own = tree.map_with_path(to_tensor, sharding.local(state))
    except UserError:  # it does not fit, for all processes alike
        raise
    except Exception as error:
        reason = _reason(error)
    reason = processes.first_of(reason)
    return (None, reason) if reason else (sharding.wrap(own, state), None)


def _read_and_send(path: Path, state: Tree, what: str) -> tuple[Tree, str | None]:
    """A checkpoint of a single process, read by the first process and sent to the others."""
    whole = None

    def read() -> str | None:
        nonlocal whole
        try:
            with quiet_orbax():
                loaded = _read(path).state
        except Exception as error:
            return _reason(error)
        counters = {"skipped": state["skipped"].cpu()}  # the earliest checkpoints have none
        loaded = counters | tree.map(lambda x: torch.from_numpy(x).clone(), loaded)
        whole = check(loaded, state, what)
        return None

    reason = processes.on_first(read)
    return (None, reason) if reason else (sharding.from_first(whole, state), None)


def _compare(stored: dict, computed: dict) -> None:
    """Raise Damaged if checksums differ."""
    paths = stored["state"].keys() | computed["state"].keys()
    differing = [path for path in paths if stored["state"].get(path) != computed["state"].get(path)]
    if differing:
        raise Damaged(f"{ascii(min(differing))[:200]} is not as it was saved")
    if stored["config"] != computed["config"]:
        raise Damaged("its configuration is not as it was saved")


def _check_size(folder: Path, arrays: list) -> None:
    """Raise Damaged if arrays, by their metadata, would take memory that the files in `folder`
    cannot fill."""
    file_bytes = sum(path.stat().st_size for path in folder.rglob("*"))
    claimed_bytes = 0
    for array in arrays:
        chunk_shape = (array.storage and array.storage.chunk_shape) or ()
        values = max(math.prod(array.shape), math.prod(chunk_shape))
        claimed_bytes += values * np.dtype(array.dtype).itemsize
    if claimed_bytes > MAX_COMPRESSION * file_bytes + SMALL_STATE:
        raise Damaged(f"its {file_bytes:,} bytes claim to hold {claimed_bytes:,}")


def seconds_trained(run: str | Path, step: int) -> float:
    """How long a run had trained when it saved `step`; 0 if that was not stored."""
    path = folder_of(run) / str(step) / "progress" / "metadata"
    try:
        return float(files.read_json(path, CONFIG_BYTES)["seconds"])
    except (OSError, ValueError, TypeError, LookupError):
        return 0.0


def move_damaged(run: str | Path, step: int) -> None:
    """Move the checkpoints newer than `step`, which `load` passed over, out of the way of training
    on from there."""
    for newer in (saved for saved in steps_of(run) if saved > step):
        path = folder_of(run) / str(newer)
        try:
            with quiet_orbax():
                _read(path)
        except NewerVersion:
            raise
        except Exception:  # as in `load`
            target = Path(run) / "damaged" / str(newer)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        else:
            raise UserError(
                f"another process has continued {run} meanwhile: give the same command again"
            )


# The order of runs


def order(run: str | Path) -> int:
    """A number that is higher the later a run was started or resumed, among the runs of its stage.
    It uses no clock."""
    try:
        return int((Path(run) / ORDER).read_bytes()[:20])
    except (OSError, ValueError):
        return 0


def put_last(run: str | Path) -> None:
    """Give a run the highest `order` among the runs of its stage."""
    path = Path(run).absolute()
    others = path.parent.parent.glob(f"*/{path.name}/{ORDER}")
    highest = max((order(other.parent) for other in others), default=0)
    files.write_atomically(path / ORDER, str(highest + 1).encode())


# Using what was loaded


def weights(loaded: Loaded) -> Tree:
    """The parameters that later stages use: of each network the moving average, if it has one."""
    return loaded.state["params"] | loaded.state["ema"]


def check(params: Tree, spec: Tree, what: str) -> Tree:
    """`params` in the order of `spec`. Raises Misfit, naming a difference, unless paths and
    shapes are the same.

    The order matters: files hold leaves by name, and a sum over leaves in another order is rounded
    differently.
    """
    expected = {path: tuple(leaf.shape) for path, leaf in tree.paths(spec).items()}
    actual = {path: tuple(leaf.shape) for path, leaf in tree.paths(params).items()}
    for path in sorted(expected.keys() | actual.keys()):
        if expected.get(path) != actual.get(path):
            raise Misfit(
                f"{what} does not fit its configuration: {path} is {actual.get(path)}, "
                f"not {expected.get(path)}; train it again"
            )
    return tree.map(lambda _, x: x, spec, params)
