"""Measurements of benchmark.py: alternating timings, memory, and the ceilings of this machine."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from genie_fn import random


class Work(NamedTuple):
    """The least work of one call, counted by hand (`benchmarks/counts.py`)."""

    flops: float = 0.0
    """In matrix products."""
    bytes: float = 0.0
    """Transferred: inputs and outputs once."""


class Ceiling(NamedTuple):
    """Measured rates of this machine."""

    flops: float
    """Per second, in a large matrix product of the dtype."""
    bytes: float
    """Per second, in a copy, reads and writes together."""


def synchronize() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def compare(
    case: str,
    variants: dict[str, Callable],
    repeats: int,
    frames: int = 0,
    work: Work | None = None,
    ceiling: Ceiling | None = None,
    agree: Callable | None = None,
) -> list[dict]:
    """Time the variants alternately, in reverse order every other time; the first is the baseline.

    `ratio` of a row is the baseline's time divided by the variant's, repeat by repeat. `frames` is
    the number of frames of one call. `first` is the time of the first call, with compilation.
    `agree(result, baseline_result)` checks the results of the first calls. With `work` and
    `ceiling`, `floor` is the time of the work at the ceilings, and `share` is the floor divided by
    the median time.
    """
    seconds, results = _measure(variants, repeats)
    baseline = next(iter(variants))
    if agree:
        for result in results.values():
            agree(result, results[baseline])
    rows = []
    for name, (first, *rest) in seconds.items():
        ratios = [base / own for base, own in zip(seconds[baseline][1:], rest, strict=True)]
        row: dict[str, Any] = {"case": case, "variant": name, "baseline": baseline}
        row |= {"seconds": summarise(rest), "ratio": summarise(ratios), "first": first}
        median_time = row["seconds"]["median"]
        if frames:
            row["frames/s"] = round(frames / median_time, 1)
        if work and ceiling:
            floor = max(work.flops / ceiling.flops, work.bytes / ceiling.bytes)
            row |= {"flops": work.flops, "bytes": work.bytes, "floor": floor}
            row["share"] = floor / median_time
        rows.append(row)
    return rows


def summarise(values: list[float]) -> dict:
    """Median, extremes and all values."""
    return {"median": median(values), "min": min(values), "max": max(values), "all": values}


def _measure(
    variants: dict[str, Callable], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each variant's first call and of its `repeats` calls, and the first results."""
    seconds = {name: [] for name in variants}
    results = {}
    for repeat in range(-1, repeats):  # the first call compiles
        order = list(variants)
        if repeat % 2 == 0:
            order.reverse()
        for name in order:
            began = time.perf_counter()
            result = variants[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - began)
            if repeat < 0:
                results[name] = result
                _warm_up(variants[name])
    return seconds, results


def _warm_up(function: Callable) -> None:
    """Call it until allocators and CUDA graphs have done their one-time work."""
    for _ in range(3 if torch.cuda.is_initialized() else 1):
        function()
    synchronize()


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """The best of several large matrix products and copies on this machine."""
    gpu = device.type == "cuda"
    side = 8192 if gpu else 1024
    numbers = 2**28 if gpu else 2**25
    a = random.normal(random.key(0, device), (side, side)).to(dtype)  # zeros would draw less power
    x = torch.zeros(numbers, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    product = _best_time(lambda: a @ a, 20)
    copy = _best_time(lambda: y.copy_(x), 10)
    return Ceiling(2 * side**3 / product, 2 * x.nbytes / copy)


def _best_time(function: Callable, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        function()
        synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peak_bytes(function: Callable, device: torch.device) -> int:
    """The peak memory of one call beyond what was allocated before. Calls the function once."""
    if device.type == "cuda":
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    with (
        _silent_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording,
    ):
        function()
    allocated = 0
    peak = 0
    profiler = recording.profiler
    assert profiler is not None and profiler.kineto_results is not None
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, allocated)
    return peak


def with_peaks(rows: list[dict], variants: dict[str, Callable], device: torch.device) -> list[dict]:
    """The rows with the peak memory of each variant, measured in another call."""
    return [row | {"peak bytes": peak_bytes(variants[row["variant"]], device)} for row in rows]


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what the profiler's library prints to standard error when it starts and stops."""
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
