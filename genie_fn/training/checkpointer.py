"""Saves the checkpoints of a run in the background while it trains, and copes with saves that fail.

orbax's CheckpointManager would keep the newest checkpoints and write in the background as well. But
an error in it ends the run, it leaves the partial files of a failed save on a full disk until it is
next created, and with several processes it needs jax.distributed.
"""

import gc
import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.runtime import files, stored_config
from genie_fn.runtime.console import console
from genie_fn.training import checkpoint, processes, shards
from genie_fn.tree import Tree


class Snapshot(NamedTuple):
    """A copy, in host memory, of what one of several processes writes of a state."""

    index: dict[str, Any]
    pieces: shards.Pieces


class Unsaved(UserError):
    """Saving has failed repeatedly, and there is no point in trying again."""


class Pending(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    job: Future


class Checkpointer:
    """Writes the checkpoints of one run, one after another, in a thread. A context: its end waits
    for the last one.

    All processes call the same methods, and each writes its own part; the caller holds the run's
    folder exclusively. A save that fails, as on a full disk, leaves the earlier checkpoints as they were.
    The failure is printed and the next save tries again; a second failure in a row, or one of the
    last save, raises Unsaved.
    """

    def __init__(self, run: str | Path, keep: int = checkpoint.KEEP):
        self._run = Path(run)
        self._keep = keep
        self._pending: Pending | None = None
        self._failed = False
        self._stack = ExitStack()
        self.saved: int | None = None
        """The step of the last save, whether or not it is written yet."""

    def __enter__(self) -> "Checkpointer":
        def prepare() -> None:
            with files.writing(self._run):
                checkpoint.folder_of(self._run).mkdir(parents=True, exist_ok=True)
                checkpoint.sweep(self._run)

        processes.on_first(prepare)
        processes.prepare_saving()
        self._stack.enter_context(checkpoint.quiet_orbax())
        self._thread = self._stack.enter_context(ThreadPoolExecutor(1, "checkpoint"))
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        with self._stack:
            self._wait(last=kind is None)

    def save(self, step: int, state: Tree, config: Any, seconds: float = 0.0) -> None:
        """Begin to write a checkpoint of a run that has trained for `seconds`, once the one before
        is written.

        The state is copied first, so that the caller may overwrite it at once. All processes have
        to call this.
        """
        self.saved = step
        content = snapshot(state)
        self._wait()
        arguments = (self._run, step, content, stored_config.to_store(config), seconds, self._keep)
        self._pending = Pending(step, self._thread.submit(write, *arguments))

    def poll(self) -> None:
        """Report a save that has failed now, rather than at the next save."""
        if self._pending and self._pending.job.done():
            self._wait()

    def finish(self) -> None:
        """Wait for the last save."""
        self._wait(last=True)

    def _wait(self, last: bool = False) -> None:
        if self._pending is None:
            return
        step, job = self._pending
        self._pending = None
        error = job.exception()
        failed_before = self._failed
        self._failed = error is not None
        if error is None:
            return
        message = f"step {step} could not be saved in {self._run} ({files.reason(error)})"
        newest = checkpoint.latest(self._run)
        kept = (
            "there is no checkpoint yet" if newest is None else f"the last saved step is {newest}"
        )
        if last or failed_before:
            raise Unsaved(
                f"{message}; {kept}: free space, and continue with the same command and "
                "--cfg.resume"
            ) from error
        console.print(
            f"{message}; {kept}. Training continues, and the next save tries again: free space",
            soft_wrap=True,
            markup=False,
        )


# Writing one checkpoint


def snapshot(state: Tree) -> Tree | Snapshot:
    """A copy, in host memory, of this process's part of a state, which may be overwritten
    afterwards."""
    state = state._asdict() if hasattr(state, "_asdict") else state
    if processes.count() > 1:
        return Snapshot(shards.index_of(state), shards.own_pieces(state))
    return tree.map(lambda x: x.detach().cpu().numpy().copy(), state)


def write(
    run: Path, step: int, content: Tree | Snapshot, config: dict, seconds: float, keep: int
) -> None:
    """Write a checkpoint, and remove all but the newest `keep`. `seconds` is how long the run has
    trained. All processes have to call this, each with its `snapshot`."""
    if isinstance(content, Snapshot):
        _write_together(run, step, content, config, seconds, keep)
    else:
        _write_whole(run, step, content, config, seconds)
        _prune(run, keep)


def _write_whole(run: Path, step: int, arrays: Tree, config: dict, seconds: float) -> None:
    import orbax.checkpoint as ocp  # imports JAX, which only training and loading should wait for

    checksums = {
        "config": checkpoint.config_checksum(config),
        "state": checkpoint.checksums_of(arrays),
    }
    content = ocp.args.Composite(
        state=ocp.args.StandardSave(arrays),
        config=ocp.args.JsonSave(config),
        checksums=ocp.args.JsonSave(checksums),
        progress=ocp.args.JsonSave({"seconds": seconds}),
    )
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(checkpoint.folder_of(run) / str(step), content)
    except BaseException:
        gc.collect()  # orbax's coroutines warn when they are collected: now, while that is silenced
        raise
    finally:
        checkpoint.sweep(run)  # the partial files of a failed save would keep a full disk full


def _write_together(
    run: Path, step: int, own: Snapshot, config: dict, seconds: float, keep: int
) -> None:
    """Write this process's pieces; once all have, the first process completes the checkpoint."""
    partial = checkpoint.folder_of(run) / f"{step}.partial"
    error = None
    try:
        shards.write_pieces(partial / "state", own.pieces)
    except Exception as failure:  # the other processes have to know
        error = files.reason(failure)
    errors = processes.gather_saved(error)
    error = next(filter(None, errors), None)
    if processes.rank() == 0:
        try:
            if error is None:
                _complete(run, step, partial, own.index, config, seconds)
                _prune(run, keep)
        except Exception as failure:
            error = files.reason(failure.__cause__ or failure)
        finally:
            checkpoint.sweep(run)
    error = processes.gather_saved(error)[0]  # no process begins another save before the sweep
    if error:
        raise OSError(None, error)


def _complete(
    run: Path, step: int, partial: Path, index: dict, config: dict, seconds: float
) -> None:
    """Add to a folder of pieces what belongs to a checkpoint, and give it the name of one."""
    files.write_atomically(partial / "state" / shards.INDEX, json.dumps(index).encode())
    contents = {
        "config": config,
        "checksums": {"config": checkpoint.config_checksum(config), "state": {}},
        "progress": {"seconds": seconds},
    }
    for name, content in contents.items():
        (partial / name).mkdir()
        files.write_atomically(partial / name / "metadata", json.dumps(content).encode())
    partial.rename(checkpoint.folder_of(run) / str(step))


def _prune(run: Path, keep: int) -> None:
    """Remove all checkpoints but the newest; one that is half removed must not look like one."""
    for step in checkpoint.steps_of(run)[keep:]:
        doomed = checkpoint.folder_of(run) / f"{step}.old"
        (checkpoint.folder_of(run) / str(step)).rename(doomed)
        shutil.rmtree(doomed)
