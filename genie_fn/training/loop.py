"""The training loop: progress, metrics, pictures, checkpoints, interruption.

A run is a pure function of (config, step): the randomness of step s is `fold_in(run_key, s)`, and so is its batch. A
checkpoint therefore holds no random state, and a killed run resumes bit for bit.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from genie_fn import random
from genie_fn.errors import UserError
from genie_fn.runtime import files
from genie_fn.runtime.console import console
from genie_fn.runtime.signals import Stop
from genie_fn.training import checkpoint, sharding
from genie_fn.training.config import RunConfig
from genie_fn.training.step import TrainState
from genie_fn.tree import Tree

PATIENCE = 20  # steps skipped in a row, after which a run that cannot go on ends


def fit(
    step: Callable,
    state: TrainState,
    batches: Iterable,
    cfg: RunConfig,
    sample: Callable[[Tree, Path], None],
) -> TrainState:
    """Train until `cfg.steps`: progress with rate and time left, metrics to JSONL, pictures, checkpoints.

    `batches` yields the batch of the state's step first; `sample(weights, png_path)` draws a picture. Ctrl-C and
    SIGTERM finish the step, save and leave; so do PATIENCE steps in a row whose loss was not finite, and data that
    cannot be read. The run then goes on with --cfg.resume. Of several processes, which all leave at the same step and
    for the same reason, the first writes; no other run trains in its folder meanwhile.
    """
    key, first = random.key(cfg.seed, state.step.device), int(state.step)
    source, done, saved, wait, began = iter(batches), first, first, 0.0, time.perf_counter()
    with Stop(alone=sharding.count() == 1) as stop, ExitStack() as held, _progress() as bar:
        run = _Run(cfg, batches, first, held, bar)
        while done < cfg.steps and not run.stuck:
            asked = time.perf_counter()
            batch = run.attempt(next, source)
            wait += time.perf_counter() - asked
            if sharding.anyone(bool(stop or run.trouble)):
                break
            state, metrics = step(state, batch, key)
            run.report()  # of a step before, so that a GPU has its next work while its numbers are read
            done, stop.save = done + 1, True
            if done % 10 == 0 or done == cfg.steps:
                run.measured = done, time.perf_counter() - began, wait, metrics
            bar.update(run.task, completed=done)
            if done % cfg.sample_every == 0 or done == cfg.steps:
                weights = sharding.full(state.ema or state.params)
                if run.writes:
                    _try_to_draw(sample, weights, run.out / "samples" / f"{done:07d}.png")
            if done % cfg.save_every == 0 or done == cfg.steps:
                run.report()  # a checkpoint's step is never missing from the metrics
                run.save(done, state)
                saved = done
        run.report()
        if done > saved and not sharding.anyone(isinstance(run.trouble, checkpoint.Unsaved)):
            run.save(done, state)
        sharding.end_together(run.trouble)
    spent = time.perf_counter() - began
    console.print(
        f"{done - first} steps in {spent:.0f} s, {wait / spent:.1%} of it waiting for batches"
    )
    if run.stuck:
        raise UserError(
            f"the loss or a gradient was not finite for {PATIENCE} steps in a row, which changed nothing: the "
            f"state before them is saved in {run.out}; lower --cfg.optim.lr or look at the data, and continue with "
            "--cfg.resume"
        )
    if done < cfg.steps:
        console.print(
            f"stopped and saved at step {done}: continue with the same command and --cfg.resume"
        )
        stop.leave()
    return state


class _Run:
    """A run as `fit` leaves it behind: rows of metrics, checkpoints, and what went wrong.

    Of several processes, which all call the same methods, only the first `writes`.
    """

    def __init__(
        self, cfg: RunConfig, batches: Iterable, first: int, held: ExitStack, bar: Progress
    ):
        self.cfg, self.batches, self.bar, self.out = cfg, batches, bar, Path(cfg.out)
        self.writes, self.stuck = sharding.rank() == 0, False
        self.trouble: UserError | None = None
        self.measured: tuple[int, float, float, dict[str, Tensor]] | None = None
        """A step that `report` is to tell of: its number, the seconds until then, those of waiting, and its metrics."""

        def begin() -> None:
            self._saver, self._write_row = held.enter_context(_alone(self.out, first))

        sharding.by_first(begin)
        self.task = bar.add_task(
            self.out.name, total=cfg.steps, completed=first, metrics="compiling"
        )

    def attempt(self, function: Callable, *args) -> Any:
        """What `function` returns. Its UserError waits in `trouble` until all processes know that there is one."""
        try:
            return function(*args)
        except UserError as error:
            self.trouble = self.trouble or error

    def report(self) -> None:
        """Write the row of what was `measured`, once, and see whether it was the last of too many that were skipped."""
        if self.writes:
            self.attempt(self._saver.poll)
        if self.measured is None:
            return
        (at, seconds, waited, metrics), self.measured = self.measured, None
        row = {name: float(value) for name, value in metrics.items()}
        self.stuck = row.pop("skipped_in_a_row", 0) >= PATIENCE
        if self.cfg.damaged == "skip":
            row["clips_skipped"] = sharding.summed(getattr(self.batches, "skipped", 0))
        if self.writes:
            self._write_row({"step": at, "seconds": seconds, "data_wait": waited} | row)
            self.bar.update(self.task, metrics=_headline(row))

    def save(self, done: int, state: TrainState) -> None:
        """A checkpoint of all that the processes hold of the state."""
        whole = sharding.to_first(state)
        if self.writes:
            self.attempt(checkpoint.save, self._saver, done, whole, self.cfg)


@contextmanager
def _alone(out: Path, first: int) -> Iterator[tuple[checkpoint.Saver, Callable[[dict], None]]]:
    """What writes a run's checkpoints and metrics from step `first` on, in a folder that is held meanwhile."""
    with files.exclusive(out, "trains in", "choose another --cfg.out"):
        checkpoint.set_aside(out, first)
        checkpoint.put_last(out)
        with files.writing(out):
            (out / "samples").mkdir(exist_ok=True)
        with checkpoint.manager(out) as saver:
            yield saver, files.open_log(out / "metrics.jsonl", first)


def _try_to_draw(sample: Callable[[Tree, Path], None], weights: Tree, path: Path) -> None:
    """A picture that cannot be written is missing; that is no reason to end a run."""
    try:
        sample(weights, path)
    except OSError as error:
        path.unlink(missing_ok=True)
        console.print(
            f"{path} cannot be written ({files.reason(error)}): free space",
            soft_wrap=True,
            markup=False,
        )


def _headline(row: dict[str, float]) -> str:
    shown = [
        f"{name} {row[name]:.3f}"
        for name in ("loss", "psnr", "accuracy", "perplexity")
        if name in row
    ]
    return "  ".join(
        shown
        + [f"{name} {row[name]:.0f}" for name in ("skipped", "clips_skipped") if row.get(name)]
    )


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(
        TextColumn("{task.description}"),
        *columns,
        TextColumn("{task.fields[metrics]}"),
        console=console,
    )
