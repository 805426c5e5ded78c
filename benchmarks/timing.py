"""How benchmark.py measures: variants in turns, work counted by hand, ceilings and memory of the machine at hand."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from genie_fn import random


class Work(NamedTuple):
    """What one call has to do at least, counted by hand (`benchmarks/counts.py`)."""

    flops: float = 0.0
    """In matrix products."""
    bytes: float = 0.0
    """Read and written: inputs and outputs once."""


class Ceiling(NamedTuple):
    """What this machine was measured to do."""

    flops: float
    """Per second, in a large matrix product of the dtype."""
    bytes: float
    """Per second, in a copy: read and written."""


def synchronize() -> None:
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
    """Time the variants, the first being the baseline, in turns and every other time in reverse order.

    A row's `ratio` is the baseline's time over the variant's, repeat by repeat; `frames` are what one call handles.
    `first` is the first call's time, compilation included; `agree` is called with its result and the baseline's. With
    `work` and `ceiling` there is `floor`, the time that the work takes at the ceilings, and `share`, the floor over the
    median.
    """
    seconds, results = {name: [] for name in variants}, {}
    for repeat in range(-1, repeats):  # the first time compiles
        for name in list(variants)[:: 1 if repeat % 2 else -1]:
            began = time.perf_counter()
            result = variants[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - began)
            if repeat < 0:  # what a recording or an allocator still has to do does not count either
                results[name] = result
                for _ in range(3 if torch.cuda.is_initialized() else 1):
                    variants[name]()
                synchronize()
    base, rows = next(iter(variants)), []
    for name in variants if agree else ():
        agree(results[name], results[base])
    for name, (first, *taken) in seconds.items():
        times = {
            "seconds": taken,
            "ratio": [b / s for b, s in zip(seconds[base][1:], taken, strict=True)],
        }
        row = {
            key: {"median": median(x), "min": min(x), "max": max(x), "all": x}
            for key, x in times.items()
        }
        row |= {"first": first} | (
            {"frames/s": round(frames / row["seconds"]["median"], 1)} if frames else {}
        )
        if work and ceiling:
            floor = max(work.flops / ceiling.flops, work.bytes / ceiling.bytes)
            row |= {"flops": work.flops, "bytes": work.bytes, "floor": floor}
            row["share"] = floor / row["seconds"]["median"]
        rows.append({"case": case, "variant": name, "baseline": base} | row)
    return rows


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """The best of several large matrix products and copies, now, on this machine."""
    gpu = device.type == "cuda"
    side, words = (8192, 2**28) if gpu else (1024, 2**25)
    a = random.normal(random.key(0, device), (side, side)).to(
        dtype
    )  # not zeros, which draw less power
    x = torch.zeros(words, dtype=torch.float32, device=device)
    y = torch.empty_like(x)

    def best(f: Callable, times: int) -> float:
        taken = []
        for _ in range(times):
            synchronize()
            began = time.perf_counter()
            f()
            synchronize()
            taken.append(time.perf_counter() - began)
        return min(taken)

    product = best(lambda: a @ a, 20)
    return Ceiling(2 * side**3 / product, 2 * x.nbytes / best(lambda: y.copy_(x), 10))


def peak_bytes(function: Callable, device: torch.device) -> int:
    """The most memory that a call holds at once beyond what was there before, compiled or not. Runs it once."""
    if device.type == "cuda":
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """Without standard error, where the profiler's library tells of its own start and stop."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
