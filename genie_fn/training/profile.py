"""A profile of a few training steps, as a Chrome trace (open it at ui.perfetto.dev or
chrome://tracing).

The loop names its regions by `torch.profiler.record_function`, which costs microseconds while
nothing is recorded.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from genie_fn.runtime.console import console

WARM_UP = 3
"""Steps of a process before those that are profiled: the first ones compile and allocate."""


class Profiler:
    """Records `steps` steps after WARM_UP others and writes them to `path`; with 0 steps it does
    nothing.

    `step` has to be called at the end of every training step.
    """

    def __init__(self, steps: int, path: Path):
        self._steps = steps
        self._path = path
        self._stack = ExitStack()
        self._profile: profile | None = None
        self._written = False

    def __enter__(self) -> "Profiler":
        if self._steps:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            when = schedule(wait=WARM_UP - 1, warmup=1, active=self._steps, repeat=1)
            self._profile = self._stack.enter_context(
                profile(activities=activities, schedule=when, on_trace_ready=self._write)
            )
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()
        if self._profile and not self._written:
            console.print(f"no profile: it begins after {WARM_UP} steps", soft_wrap=True)

    def step(self) -> None:
        if self._profile and not self._written:
            self._profile.step()

    def _write(self, recorded: profile) -> None:
        self._written = True
        try:
            recorded.export_chrome_trace(str(self._path))
        except (OSError, RuntimeError) as error:
            console.print(f"{self._path} cannot be written ({error})", soft_wrap=True, markup=False)
            return
        console.print(f"profile of {self._steps} steps: {self._path}", soft_wrap=True, markup=False)
