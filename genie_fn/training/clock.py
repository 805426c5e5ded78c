"""The time of a run: when it ends, by steps or by a time budget, and what it spent waiting."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from genie_fn.runtime.console import console
from genie_fn.training import processes
from genie_fn.training.config import RunConfig
from genie_fn.training.log import Measurement

MANY_STEPS = 1e6
"""The expected total of a run with a time budget before its first step."""


class Clock:
    """When a run ends, and how long this process has trained and waited for batches.

    `spent` is the time, in seconds, that earlier processes of the same run have trained.
    """

    def __init__(self, cfg: RunConfig, spent: float = 0.0):
        self._steps = cfg.steps
        self._budget = 60 * cfg.minutes
        self._spent = spent
        self._start = time.perf_counter()
        self._waited = 0.0
        self.elapsed = spent
        """Seconds that the run has trained up to the last tick, in this process and before."""

    def tick(self) -> None:
        """Read the time, after every step. With a time budget all processes agree on it."""
        self.elapsed = self._spent + self.seconds()
        if self._budget:
            self.elapsed = processes.max_of(self.elapsed)

    def is_over(self, done: int) -> bool:
        return self.elapsed >= self._budget if self._budget else done >= self._steps

    def expected_steps(self, done: int) -> float | None:
        """The total number of steps. With a time budget it is an estimate, from the share of the
        time that the first `done` steps took, and None before there is one."""
        if not self._budget:
            return self._steps
        if not (done and self.elapsed):
            return None
        return max(done, done * self._budget / self.elapsed)

    def schedule(self, done: int, device: torch.device) -> tuple[Tensor, ...]:
        """With a time budget the expected total number of steps, as a 0-D float32 tensor; otherwise
        ().

        A schedule that is a function of step / total then follows the elapsed share of the time.
        """
        if not self._budget:
            return ()
        expected = self.expected_steps(done) or MANY_STEPS
        return (torch.full((), expected, dtype=torch.float32, device=device),)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the context as waiting for a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def measure(self, step: int, metrics: dict[str, Tensor]) -> Measurement:
        return Measurement(step, self.seconds(), self._waited, metrics)

    def report(self, steps: int) -> None:
        """Print how long this process has taken for so many steps."""
        seconds = self.seconds()
        waited = self._waited / seconds
        console.print(f"{steps} steps in {seconds:.0f} s, {waited:.1%} of it waiting for batches")
