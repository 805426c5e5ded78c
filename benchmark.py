"""Measure speed as ratios: every variant against a named baseline, in turns, on one machine.

    python benchmark.py                                            # every suite; results go to benchmarks/results
    python benchmark.py --cfg.suite step --cfg.compile step        # a training step against an nn.Module's, compiled

Tables show the median and range of ratios; absolute times, which hold for one machine, go into JSON with its name.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import baselines
from genie_fn import data, dynamics, quantize, random, tokenizer, train, tree
from genie_fn.errors import UserError, run
from genie_fn.optim import OptimConfig


@dataclass(frozen=True)
class Config:
    suite: str = "all"  # data, generate, lfq, step, or all of them
    preset: str = "demo"  # the tokenizer whose training step is measured: demo, small or coinrun
    repeats: int = 7  # measurements of each variant, after a first one that does not count
    out: str = "benchmarks/results"
    data: str = ""  # dataset to read clips from; empty: one that is collected here
    levels: int = 8  # collected in one measurement
    batches: int = 64  # of 16 clips, read in one measurement
    compile: Literal["off", "step"] = "off"  # "step" compiles all that generates and trains, "off" leaves it eager
    device: str = "auto"
    model: dynamics.DynamicsConfig = field(default_factory=dynamics.DynamicsConfig)
    sample: dynamics.SampleConfig = field(default_factory=dynamics.SampleConfig)

    def __post_init__(self):
        if self.suite not in (*SUITES, "all"):
            raise UserError(f"there is no suite {self.suite!r}: --cfg.suite is one of {', '.join(SUITES)} and all")
        if self.preset not in tokenizer.PRESETS:
            raise UserError(f"there is no preset {self.preset!r}: choose one of {', '.join(tokenizer.PRESETS)}")
        if min(self.repeats, self.levels, self.batches, self.model.stack.window - 1) < 1:
            raise UserError("--cfg.repeats, levels and batches are at least 1, and --cfg.model.stack.window at least 2")


def compare(case: str, variants: dict[str, Callable], repeats: int, frames: int = 0) -> list[dict]:
    """Time the variants, the first being the baseline, in turns and every other time in reverse order.

    A row's `ratio` is the baseline's time over the variant's, repeat by repeat; `frames` are what one call handles.
    """
    seconds = {name: [] for name in variants}
    for repeat in range(-1, repeats):  # the first time compiles and warms up
        for name in list(variants)[:: 1 if repeat % 2 else -1]:
            began = time.perf_counter()
            variants[name]()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    base, rows = next(iter(variants)), []
    for name, taken in seconds.items():
        times = {"seconds": taken[1:], "ratio": [b / s for b, s in zip(seconds[base], taken, strict=True)][1:]}
        row = {key: {"median": median(x), "min": min(x), "max": max(x), "all": x} for key, x in times.items()}
        row |= {"frames/s": round(frames / row["seconds"]["median"])} if frames else {}
        rows.append({"case": case, "variant": name, "baseline": base} | row)
    return rows


def data_suite(cfg: Config, device: torch.device) -> list[dict]:
    """Collect levels of coinrun, start of the processes included; read random clips, decompressing each anew."""

    def collect(workers: int, folder: str) -> str:
        root, script = tempfile.mkdtemp(dir=folder), str(Path(__file__).with_name("generate_dataset.py"))
        flags = f"--cfg.num-levels {cfg.levels} --cfg.steps-per-level {data.BLOCK} --cfg.workers {workers}".split()
        if subprocess.run([sys.executable, script, "--cfg.root", root, *flags], stdout=subprocess.DEVNULL).returncode:
            raise UserError("collecting failed for the reason above: mend it, or measure another --cfg.suite")
        return root

    def read(frames: int, threads: int, store: data.Store) -> int:
        clips = data.batches(store, "train", frames, 16, seed=0, threads=threads)
        return sum(1 for _ in zip(range(cfg.batches), clips, strict=False))

    with tempfile.TemporaryDirectory() as folder:
        workers = {f"workers={n}": partial(collect, n, folder) for n in sorted({1, os.cpu_count() or 1})}
        rows = compare("collect", workers, cfg.repeats, cfg.levels * data.BLOCK)
        store = data.open_store(cfg.data or collect(1, folder), cache_bytes=0)
        for t in (4, 16):
            threads = {f"threads={n}": partial(read, t, n, store) for n in (1, 2)}
            rows += compare(f"read {t}-frame clips", threads, cfg.repeats, cfg.batches * 16 * t)
    return rows


@torch.no_grad()
def generate_suite(cfg: Config, device: torch.device) -> list[dict]:
    """The frame that fills the window, batch 1, random weights. The cached way also extends its cache by the frame."""
    model, past, keys = cfg.model, cfg.model.stack.window - 1, random.split(random.key(0, device), 4)
    params = tree.init(dynamics.spec(model), keys[0])
    ids_BTN = random.randint(keys[1], (1, past, model.tokens), 0, model.codes)
    actions_BT, action_B1 = random.randint(keys[2], (1, past + 1), 0, model.actions).split((past, 1), 1)
    cache = dynamics.remember(params, ids_BTN, actions_BT, dynamics.empty_cache(model, 1, device), model)
    mode, functions = train.pick_compile(cfg.compile, device), [baselines.uncached_unmask, *dynamics.Programs()]
    if mode == "step":
        functions = [torch.compile(f, fullgraph=True, dynamic=False) for f in functions]

    def frame(past, programs: dynamics.Programs, key: Tensor = keys[3]) -> Tensor:
        return dynamics.next_frame(params, action_B1[:, 0], past, key, model, cfg.sample, programs)[0]

    uncached = partial(frame, (ids_BTN, actions_BT), dynamics.Programs(functions[0], lambda *_: None))
    cached = partial(frame, cache, dynamics.Programs(*functions[1:]))
    for key in random.split(keys[3], 3):
        baselines.check_same(uncached(key=key), cached(key=key), "the generated ids")
    return compare(f"frame, compile {mode}", {"no cache": uncached, "cached past": cached}, cfg.repeats)


def lfq_suite(cfg: Config, device: torch.device, bits=(10, 14, 18), most=14, tokens=4096, kernel=False) -> list[dict]:
    """LFQ's two entropies and the gradient of their difference: the softmax up to `most` bits, the kernel on GPUs."""

    def loss(z_MK: Tensor, entropies: Callable) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sample, average = entropies(z_MK, 1.0)
        return sample - average, (sample, average)

    rows, every = [], baselines.ways_to_entropies(kernel or device.type == "cuda")
    for width in bits:
        z_MK, peaks, results = random.normal(random.key(width, device), (tokens, width)), {}, []
        ways = {name: partial(tree.value_and_grad(loss), z_MK, way) for name, way in [*every.items()][width > most :]}
        for name, way in ways.items():
            with baselines.PeakBytes() as peaks[name]:
                results.append(tree.leaves(way()))
        for a, b in zip(results[0], results[-1], strict=True):
            baselines.check_same(a, b, f"the entropies of {width} bits", tolerance=1e-3)
        timed = compare(f"2^{width} codes, {tokens} tokens", ways, cfg.repeats)
        rows += [row | {"peak bytes": peaks[row["variant"]].peak} for row in timed]
    return rows


def step_suite(cfg: Config, device: torch.device, shape: tuple[int, int] = (16, 4)) -> list[dict]:
    """A training step of the tokenizer (with LFQ) on clips of `shape` (B, T), from the same weights in every way."""
    model = replace(tokenizer.PRESETS[cfg.preset], quantizer=quantize.QuantizerConfig(codes=1024))
    optim, mode = OptimConfig(warmup=1, ema=0.99), train.pick_compile(cfg.compile, device)
    spec = tokenizer.spec(model)
    params = tree.init(spec, random.key(0, device))
    video = random.randint(random.key(1, device), (*shape, model.height, model.width, 3), 0, 256).to(torch.uint8)

    def loss(params, batch, key, step):
        return tokenizer.loss(params, batch, model)

    def functional(compiled: str) -> Callable:
        step = train.make_step(loss, spec, train.RunConfig(compile=compiled, optim=optim))
        state = [train.init_state(spec, random.key(0, device), optim, {})]

        def once() -> Tensor:
            state[0], metrics = step(state[0], video, random.key(2, device))
            return metrics["loss"]

        return once

    usual = baselines.module_step(params, model, train.RunConfig(compile=mode, optim=optim), device)
    names = ("off",) if mode == "off" else ("step", "split")
    ways = {"nn.Module": partial(usual, video)} | {f"functional, {name}": functional(name) for name in names}
    expected, *others = (way() for way in ways.values())
    for other in others:
        baselines.check_same(other, expected, "the losses", tolerance=1e-3)
    title = f"{cfg.preset} tokenizer, {shape[0]} x {shape[1]} frames, compile {mode}"
    return compare(title, ways, cfg.repeats, shape[0] * shape[1])


SUITES = {"data": data_suite, "generate": generate_suite, "lfq": lfq_suite, "step": step_suite}


def main(cfg: Config) -> None:
    device, out, quiet = train.pick_device(cfg.device), Path(cfg.out), "2>/dev/null"
    out.mkdir(parents=True, exist_ok=True)
    cpu = subprocess.getoutput(f"grep -m1 'model name' /proc/cpuinfo {quiet}").split(": ")[-1] or "unknown CPU"
    where = {"device": torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu}, {os.cpu_count()} cores"}
    where |= {"torch": torch.__version__, "python": sys.version.split()[0], "threads": torch.get_num_threads()}
    git = f"git -C '{Path(__file__).parent}' --no-optional-locks describe --always --dirty --abbrev=40 --exclude='*'"
    where |= {"commit": subprocess.getoutput(f"{git} {quiet}") or None, "command": ["python", *sys.argv]}
    for name in SUITES if cfg.suite == "all" else [cfg.suite]:
        rows, path = SUITES[name](cfg, device), out / f"{name}-{device.type}.json"
        path.write_text(json.dumps(where | {"rows": rows}, indent=1) + "\n")
        unit = next((key for key in ("frames/s", "peak bytes") if key in rows[0]), "")
        table = Table("case", "variant", "speed", unit, title=f"{name}: {where['device']}")
        for row in rows:
            speed = "baseline" if row["variant"] == row["baseline"] else "{median:.2f} ({min:.2f}..{max:.2f})"
            table.add_row(row["case"], row["variant"], speed.format(**row["ratio"]), f"{row[unit]:,}" if unit else "")
        Console().print(table, f"absolute times: {path}")


if __name__ == "__main__":
    run(main)
