"""The progress of long work: bars on a terminal, and elsewhere a line now and then.

A log file or a pipe receives a line when a task starts, one at most every SECONDS while it is in
progress, and one when it ends.
"""

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from genie_fn.runtime.console import console

T = TypeVar("T")

SECONDS = 30
"""The shortest time between two lines about a task in progress."""


class Progress:
    """Tasks in progress, inside a `with` block."""

    def __init__(self) -> None:
        self._live = console.is_interactive
        self._tasks: list[Task] = []
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not self._live,
        )

    def __enter__(self) -> "Progress":
        self._bars.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._bars.__exit__(*error)
        for task in self._tasks:
            task.end()

    def task(self, what: str, total: float | None = None, done: int = 0, note: str = "") -> "Task":
        """A new task with `done` of its `total` parts finished; None if the total is not known."""
        task = Task(self._bars, what, total, done, note, lines=not self._live)
        self._tasks.append(task)
        return task

    def track(self, items: Collection[T], what: str) -> Iterator[T]:
        """The items, with their number as progress."""
        task = self.task(what, len(items))
        for item in items:
            yield item
            task.advance()
        task.end()


class Task:
    """The progress of one piece of work; made by `Progress.task`."""

    def __init__(
        self, bars: Bars, what: str, total: float | None, done: int, note: str, *, lines: bool
    ):
        self._bars = bars
        self._row = bars.add_task(what, total=total, completed=done, note=note)
        self._lines = lines
        self._what = what
        self._total = total
        self._done = done
        self._note = note
        self._start = self._last = time.monotonic()
        self._done_at_last = done
        self._is_over = False
        self._print("")

    def update(
        self, done: int | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        """Change what is given: the parts done, the total, the text after them."""
        self._done = self._done if done is None else done
        self._total = self._total if total is None else total
        self._note = self._note if note is None else note
        self._bars.update(self._row, completed=self._done, total=self._total, note=self._note)
        is_due = time.monotonic() - self._last >= SECONDS and self._done != self._total
        if self._lines and is_due:
            self._print(self._time_left())

    def advance(self, note: str | None = None, *, parts: int = 1) -> None:
        """Some more parts are done."""
        self.update(self._done + parts, note=note)

    def end(self) -> None:
        """Nothing more will be done. Calling it again changes nothing."""
        if not self._is_over:
            self._is_over = True
            self._print(f"in {_clock(time.monotonic() - self._start)}")

    def _time_left(self) -> str:
        """At the rate since the last line."""
        parts = self._done - self._done_at_last
        if self._total is None or parts <= 0:
            return ""
        seconds = (time.monotonic() - self._last) / parts * (self._total - self._done)
        return f"about {_clock(seconds)} left"

    def _print(self, about_time: str) -> None:
        """Print a line, where there are no bars."""
        if not self._lines:
            return
        self._last = time.monotonic()
        self._done_at_last = self._done
        count = f"{self._done:.0f}"
        if self._total is not None:
            count += f" of {self._total:.0f}"
        words = [count, self._note, about_time]
        _say(f"{self._what}: {', '.join(word for word in words if word)}")


def track(items: Collection[T], what: str) -> Iterator[T]:
    """The items, with their number as progress; nothing is shown of none."""
    if items:
        with Progress() as progress:
            yield from progress.track(items, what)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Show that work of unknown length is in progress."""
    if console.is_interactive:
        with console.status(Text(what)):
            yield
        return
    start = time.monotonic()
    over = threading.Event()

    def remind() -> None:
        while not over.wait(SECONDS):
            _say(f"{what}: {_clock(time.monotonic() - start)} so far")

    _say(f"{what}: started")
    threading.Thread(target=remind, daemon=True, name="progress").start()
    try:
        yield
    finally:
        over.set()
    _say(f"{what}: done in {_clock(time.monotonic() - start)}")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some: 0:07, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
