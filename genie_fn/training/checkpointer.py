"""Saves the checkpoints of a run in the background while it trains, and copes with saves that fail.

orbax's CheckpointManager would keep the newest checkpoints and write in the background as well. But
an error in it ends the run, it leaves the partial files of a failed save on a full disk until it is
next created, and with several processes it needs jax.distributed.
"""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from genie_fn.errors import UserError
from genie_fn.runtime import files
from genie_fn.runtime.console import console
from genie_fn.training import checkpoint, processes, sharding
from genie_fn.tree import Tree


class Unsaved(UserError):
    """Saving has failed repeatedly, and there is no point in trying again."""


class Pending(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    job: Future


class Checkpointer:
    """Writes the checkpoints of one run, one after another, in a thread. A context: its end waits
    for the last one.

    All processes call the same methods, and the first one writes; the caller holds the run's folder
    exclusively. A save that fails, as on a full disk, leaves the earlier checkpoints as they were.
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
        if processes.rank() == 0:
            with files.writing(self._run):
                checkpoint.folder_of(self._run).mkdir(parents=True, exist_ok=True)
                checkpoint.sweep(self._run)
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
        whole = sharding.to_first(state)
        self.saved = step
        if processes.rank() > 0:
            return
        arrays = checkpoint.as_arrays(whole)
        self._wait()
        content = (step, arrays, dataclasses.asdict(config), seconds, self._keep)
        self._pending = Pending(step, self._thread.submit(checkpoint.write, self._run, *content))

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
