"""Measure speed as ratios: every variant against a named baseline, in turns, on one machine.

    python benchmark.py                                            # every suite; results go to benchmarks/results
    python benchmark.py --cfg.suite generate --cfg.compile step    # both ways of generating a frame, compiled

Tables show the median and range of ratios; absolute times, which hold for one machine, go into JSON with its name.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genie_fn import data, dynamics, quantize, random, train, tree
from genie_fn.errors import UserError, run


@dataclass(frozen=True)
class Config:
    suite: str = "all"  # data, generate, lfq, or all of them
    repeats: int = 7  # measurements of each variant, after a first one that does not count
    out: str = "benchmarks/results"
    data: str = ""  # dataset to read clips from; empty: one that is collected here
    levels: int = 8  # collected in one measurement
    batches: int = 64  # of 16 clips, read in one measurement
    compile: Literal["off", "step"] = "off"  # "step" compiles both ways of generating a frame, "off" leaves both eager
    device: str = "auto"
    model: dynamics.DynamicsConfig = field(default_factory=dynamics.DynamicsConfig)
    sample: dynamics.SampleConfig = field(default_factory=dynamics.SampleConfig)

    def __post_init__(self):
        if self.suite not in (*SUITES, "all"):
            raise UserError(f"there is no suite {self.suite!r}: --cfg.suite is one of {', '.join(SUITES)} and all")
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


def check_same(a: Tensor, b: Tensor, what: str, tolerance: float = 0.0) -> None:
    """A ratio of times counts only if both ways have the same result, up to a share of its norm."""
    if not (a.double() - b.double()).norm() <= tolerance * b.double().norm():
        raise RuntimeError(f"{what} differ between the variants, so their times cannot be compared")


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


def uncached_unmask(params, ids_BN, action_B, past, step, temperature, key, cfg, sample) -> tuple[Tensor, Tensor]:
    """`dynamics.unmask` with the past's ids and actions in the place of its cache: all logits are computed anew."""
    ids_BTN = torch.cat((past[0], ids_BN[:, None]), 1)
    logits, _ = dynamics.logits_next(params, ids_BTN, torch.cat((past[1], action_B[:, None]), 1), None, cfg)
    return dynamics.reveal(logits[:, -1], ids_BN, step, temperature, key, sample, cfg.sizes)


@torch.no_grad()
def generate_suite(cfg: Config, device: torch.device) -> list[dict]:
    """The frame that fills the window, batch 1, random weights. The cached way also extends its cache by the frame."""
    model, past, keys = cfg.model, cfg.model.stack.window - 1, random.split(random.key(0, device), 4)
    params = tree.init(dynamics.spec(model), keys[0])
    ids_BTN = random.randint(keys[1], (1, past, model.tokens), 0, model.codes)
    actions_BT, action_B1 = random.randint(keys[2], (1, past + 1), 0, model.actions).split((past, 1), 1)
    cache = dynamics.remember(params, ids_BTN, actions_BT, dynamics.empty_cache(model, 1, device), model)
    mode, functions = train.pick_compile(cfg.compile, device), [uncached_unmask, *dynamics.Programs()]
    if mode == "step":
        functions = [torch.compile(f, fullgraph=True, dynamic=False) for f in functions]

    def frame(past, programs: dynamics.Programs, key: Tensor = keys[3]) -> Tensor:
        return dynamics.next_frame(params, action_B1[:, 0], past, key, model, cfg.sample, programs)[0]

    uncached = partial(frame, (ids_BTN, actions_BT), dynamics.Programs(functions[0], lambda *_: None))
    cached = partial(frame, cache, dynamics.Programs(*functions[1:]))
    for key in random.split(keys[3], 3):
        check_same(uncached(key=key), cached(key=key), "the generated ids")
    return compare(f"frame, compile {mode}", {"no cache": uncached, "cached past": cached}, cfg.repeats)


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive after any one operation; on any device."""

    def __enter__(self):
        self.peak, self.alive = 0, weakref.WeakSet()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.alive.update(x.untyped_storage() for x in tree.leaves(out) if isinstance(x, Tensor))
        self.peak = max(self.peak, sum(storage.nbytes() for storage in self.alive))
        return out


def materialised_entropies(z_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The definition of `quantize.lfq_entropies`: entropies of a softmax over all 2^K codes."""
    codes_VK = quantize.lfq_codes(torch.arange(2 ** z_MK.shape[1], device=z_MK.device), z_MK.shape[1])
    log_p_MV = (2 / temperature * z_MK @ codes_VK.T).log_softmax(-1)
    p_MV = log_p_MV.exp()
    return -(p_MV * log_p_MV).sum(-1).mean(), torch.special.entr(p_MV.mean(0)).sum()


def lfq_suite(cfg: Config, device: torch.device, bits=(10, 14, 18), most: int = 14, tokens: int = 4096) -> list[dict]:
    """LFQ's two entropies and the gradient of their difference; the softmax for at most `most` bits."""

    def loss(z_MK: Tensor, entropies: Callable) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sample, average = entropies(z_MK, 1.0)
        return sample - average, (sample, average)

    rows, both = [], {"softmax": materialised_entropies, "factorised": quantize.lfq_entropies}
    for width in bits:
        z_MK, peaks, results = random.normal(random.key(width, device), (tokens, width)), {}, []
        ways = {name: partial(tree.value_and_grad(loss), z_MK, way) for name, way in [*both.items()][width > most :]}
        for name, way in ways.items():
            with PeakBytes() as peaks[name]:
                results.append(tree.leaves(way()))
        for a, b in zip(results[0], results[-1], strict=True):
            check_same(a, b, f"the entropies of {width} bits", tolerance=1e-3)
        timed = compare(f"2^{width} codes, {tokens} tokens", ways, cfg.repeats)
        rows += [row | {"peak bytes": peaks[row["variant"]].peak} for row in timed]
    return rows


SUITES = {"data": data_suite, "generate": generate_suite, "lfq": lfq_suite}


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
