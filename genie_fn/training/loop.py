"""The training loop: batches, steps, metrics, pictures, checkpoints, and how a run ends.

A run is a pure function of (config, step): the randomness of step s is `fold_in(run_key, s)`, and
so is its batch. A checkpoint therefore holds no random state, and a killed run resumes to the same
bits.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.profiler import record_function

from genie_fn import random
from genie_fn.errors import UserError
from genie_fn.runtime import files
from genie_fn.runtime.console import console
from genie_fn.runtime.progress import Progress, Task
from genie_fn.runtime.signals import Stop
from genie_fn.training import checkpoint, log, processes, sharding
from genie_fn.training.checkpointer import Checkpointer, Unsaved
from genie_fn.training.clock import Clock
from genie_fn.training.collapse import CollapseWarning
from genie_fn.training.config import RunConfig
from genie_fn.training.log import MetricLogger
from genie_fn.training.profile import Profiler
from genie_fn.training.step import TrainState
from genie_fn.tree import Tree

LOG_EVERY = 10
"""Steps between two rows of metrics."""
PATIENCE = 20
"""Steps skipped in a row, for a loss or gradient that was not finite, after which a run ends."""

Step = Callable[..., tuple[TrainState, dict[str, Tensor]]]
Sample = Callable[[Tree, Path], None]


def fit(
    step: Step, state: TrainState, batches: Iterable, cfg: RunConfig, sample: Sample
) -> TrainState:
    """Train for `cfg.steps` or `cfg.minutes`, with metrics, pictures and checkpoints in `cfg.out`.

    Returns the last state. `step(state, batch, key) -> (state, metrics)`; with `cfg.minutes` it
    also takes the expected total number of steps, a 0-D tensor, for the learning rate.
    `batches` yields the batch of the state's step first; `sample(weights, png_path)` draws a
    picture. Four things end a run early, with its state saved: Ctrl-C, SIGTERM, data that cannot be
    read, and PATIENCE steps in a row whose loss or gradients were not finite. --cfg.resume
    continues it. Several processes all leave at the same step and with the same error; the first
    one writes the files. No other run can train in the same folder meanwhile.
    """
    key = random.key(cfg.seed, state.step.device)
    first = int(state.step)
    done = first
    source = iter(batches)
    errors = FirstError()
    clock = Clock(cfg, spent=checkpoint.seconds_trained(cfg.out, first))
    with Stop(single_process=processes.count() == 1) as stop, _open_run(cfg, batches, first) as run:
        while not (clock.is_over(done) or is_stuck(run.logger)):
            with record_function("wait for batch"), clock.waiting():
                batch = errors.attempt(next, source)
            if processes.is_any(bool(stop or errors)):
                break
            with record_function("step"):
                state, metrics = step(state, batch, key, *clock.schedule(done, key.device))
            done += 1
            clock.tick()
            stop.can_save = True
            is_last = clock.is_over(done)
            with record_function("log"):
                run.logger.flush()
                errors.attempt(run.checkpointer.poll)
                if is_last or done % LOG_EVERY == 0:
                    run.logger.record(clock.measure(done, metrics))
                run.progress.update(done, clock.expected_steps(done))
            if is_last or done % cfg.sample_every == 0:
                with record_function("sample"):
                    draw(sample, state, run.folder / "samples" / f"{done:07d}.png")
            if is_last or done % cfg.save_every == 0:
                with record_function("save"):
                    run.logger.flush()  # the metrics never lack the step of a checkpoint
                    errors.attempt(run.checkpointer.save, done, state, cfg, clock.elapsed)
            run.profiler.step()
        run.logger.flush()
        errors.attempt(run.checkpointer.poll)
        unsaved = done > first and run.checkpointer.saved != done
        if unsaved and not processes.is_any(isinstance(errors.first, Unsaved)):
            errors.attempt(run.checkpointer.save, done, state, cfg, clock.elapsed)
        errors.attempt(run.checkpointer.finish)
        processes.raise_together(errors.first)
    clock.report(done - first)
    if is_stuck(run.logger):
        raise UserError(
            f"the loss or a gradient was not finite for {PATIENCE} steps in a row, which changed "
            f"nothing: the state before them is saved in {cfg.out}; lower --cfg.optim.lr or look "
            "at the data, and continue with --cfg.resume"
        )
    if not clock.is_over(done):
        console.print(
            f"stopped and saved at step {done}: continue with the same command and --cfg.resume"
        )
        stop.leave()
    return state


def is_stuck(logger: MetricLogger) -> bool:
    """Whether too many steps in a row were skipped."""
    return logger.not_finite_in_a_row >= PATIENCE


class FirstError:
    """The first UserError of this process, kept until all processes have heard that there is
    one."""

    def __init__(self):
        self.first: UserError | None = None

    def __bool__(self) -> bool:
        return self.first is not None

    def attempt(self, function: Callable[..., Any], *args) -> Any:
        """What `function` returns, or None after a UserError. Only the first error is kept; others
        are printed."""
        try:
            return function(*args)
        except UserError as error:
            if self.first:
                console.print(str(error), soft_wrap=True, markup=False)
            else:
                self.first = error


class _Run(NamedTuple):
    """The files of a run while it trains. All processes call the same methods; the first one
    writes."""

    folder: Path
    logger: MetricLogger
    checkpointer: Checkpointer
    profiler: Profiler
    progress: Task


@contextmanager
def _open_run(cfg: RunConfig, batches: Iterable, first: int) -> Iterator[_Run]:
    """Open the files of a run that has been trained up to step `first`. The first process holds the
    folder's lock."""
    folder = Path(cfg.out)
    checkpointer = Checkpointer(folder)
    profiler = Profiler(cfg.profile if processes.rank() == 0 else 0, folder / "trace.json")
    sinks: list[log.Sink] = []
    with ExitStack() as stack:

        def open_files() -> None:
            stack.enter_context(files.exclusive(folder, "trains in", "choose another --cfg.out"))
            checkpoint.move_damaged(folder, first)
            checkpoint.put_last(folder)
            with files.writing(folder):
                (folder / "samples").mkdir(exist_ok=True)
            sinks.append(CollapseWarning(cfg.watched(), 0 if cfg.minutes else cfg.steps))
            for sink in log.open_sinks(cfg.log, folder, first):
                stack.callback(sink.close)
                sinks.append(sink)

        processes.on_first(open_files)
        stack.enter_context(checkpointer)
        stack.enter_context(profiler)
        bars = stack.enter_context(Progress())
        total = None if cfg.minutes else cfg.steps
        note = "" if cfg.compile == "off" else "compiling"
        task = bars.task(f"{folder.name}, step", total, first, note)

        def show_metrics(headline: str) -> None:
            task.update(note=headline)

        def skipped_clips() -> int:
            return getattr(batches, "skipped", 0)

        count_skipped = skipped_clips if cfg.damaged == "skip" else None
        logger = MetricLogger(sinks, show_metrics, count_skipped)
        yield _Run(folder, logger, checkpointer, profiler, task)


def draw(sample: Sample, state: TrainState, path: Path) -> None:
    """Let the first process draw a picture with the state's weights. A full disk costs the picture,
    not the run."""
    weights = sharding.full(state.params | state.ema)
    if processes.rank() > 0:
        return
    try:
        sample(weights, path)
    except OSError as error:
        path.unlink(missing_ok=True)
        console.print(
            f"{path} cannot be written ({files.reason(error)}): free space",
            soft_wrap=True,
            markup=False,
        )
