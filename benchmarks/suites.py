"""The suites of benchmark.py. Each returns rows of `timing.compare`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import baselines, counts, timing
from benchmarks.attention import attention_suite
from benchmarks.play import play_suite
from benchmarks.timing import Work, compare
from benchmarks.training import step_suite
from genie_fn import data, dynamics, maskgit, random, tree
from genie_fn.dynamics import Memory
from genie_fn.errors import UserError
from genie_fn.kernels import lfq
from genie_fn.layers import DTYPES
from genie_fn.maskgit import Programs
from genie_fn.runtime import backend, compilation

ROOT = Path(__file__).parent.parent


def data_suite(cfg, device: torch.device) -> list[dict]:
    """Collecting levels of coinrun, with the start of its processes; reading random clips without
    a cache of decompressed blocks."""
    with tempfile.TemporaryDirectory() as folder:
        collect = {
            f"workers={n}": partial(_collect, cfg.levels, n, folder)
            for n in sorted({1, os.cpu_count() or 1})
        }
        rows = compare("collect", collect, max(2, cfg.repeats // 3), cfg.levels * data.BLOCK)
        root = cfg.data or _collect(cfg.levels, 1, folder)
        store = data.open_store(root, cache_bytes=0)
        for frames in (4, 16):
            read = {f"threads={n}": partial(_read, store, frames, cfg.batches, n) for n in (1, 2)}
            count = cfg.batches * 16 * frames
            rows += compare(f"read {frames}-frame clips", read, cfg.repeats, count)
    return rows


def _collect(levels: int, workers: int, folder: str) -> str:
    """Collect a dataset in a process of its own; returns its folder."""
    root = tempfile.mkdtemp(dir=folder)
    flags = {
        "root": root,
        "num-levels": levels,
        "steps-per-level": data.BLOCK,
        "workers": workers,
    }
    arguments = [f"--cfg.{name}={value}" for name, value in flags.items()]
    command = [sys.executable, str(ROOT / "generate_dataset.py"), *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(
            "collecting data failed, for the reason above: fix it, or choose another --cfg.suite"
        )
    return root


def _read(store: data.Store, frames: int, batches: int, threads: int) -> int:
    clips = data.ClipReader(store, "train", frames).batches(16, seed=0, threads=threads)
    return sum(1 for _ in zip(range(batches), clips, strict=False))


def compiled(function: Callable, mode: str, device: torch.device) -> Callable:
    """`function` as the scripts run it: compiled if this machine can, on a GPU with CUDA graphs."""
    if backend.pick_compile(mode, device) == "off":
        return function
    return compilation.compiled(function, cuda_graph=device.type == "cuda")


@torch.no_grad()
def generate_suite(cfg, device: torch.device) -> list[dict]:
    """The frame that fills the window, batch 1, with random weights.

    The cached variant also extends its cache by the frame.
    """
    mode = backend.pick_compile(cfg.compile, device)
    modes = ["off"] if mode == "off" else ["off", mode]
    rows = []
    for mode in modes:
        rows += _generate(cfg, mode, device)
    return rows


def _generate(cfg, mode: str, device: torch.device) -> list[dict]:
    """Sampling a frame without and with a cache."""
    model = cfg.model
    past = model.stack.window - 1
    chosen = cfg.backend.resolve(device, mode != "off")
    keys = random.split(random.key(0, device), 4)
    params = tree.init(dynamics.spec(model), keys[0])
    ids_BTN = random.randint(keys[1], (1, past, model.tokens), 0, model.codes)
    actions_BT = random.randint(keys[2], (1, past + 1), 0, model.actions)
    past_actions_BT, action_B = actions_BT[:, :past], actions_BT[:, past]
    empty = dynamics.empty_memory(model, 1, device)
    memory = maskgit.remember(params, ids_BTN, past_actions_BT, empty, model, chosen)

    def frame(history, programs: Programs, key: Tensor = keys[3]) -> Tensor:
        return maskgit.next_frame(
            params, action_B, history, key, model, cfg.sample, programs, backend=chosen
        ).ids

    def no_cache(*arguments) -> Memory:
        return empty

    unmask, remember = Programs()
    cached = Programs(compiled(unmask, mode, device), compiled(remember, mode, device))
    uncached = Programs(compiled(baselines.uncached_unmask, mode, device), no_cache)
    variants = {
        "no cache": partial(frame, (ids_BTN, past_actions_BT), uncached),
        "cached past": partial(frame, memory, cached),
    }
    for key in random.split(keys[3], 3):
        a, b = (variant(key=key) for variant in variants.values())
        baselines.check_same(a, b, "the generated ids")
    steps = cfg.sample.steps
    work = Work(counts.frame(model, steps), counts.frame_bytes(model, steps))
    ceiling = timing.measure_ceiling(device, DTYPES[model.stack.dtype])
    label = "eager" if mode == "off" else "compiled"
    case = f"frame of {model.tokens} tokens, T = {past + 1}, {steps} steps, {label}"
    return compare(case, variants, cfg.repeats, 1, work, ceiling)


def lfq_suite(
    cfg,
    device: torch.device,
    bits: tuple[int, ...] = (10, 14, 18),
    most: int = 14,
    tokens: int = 4096,
    kernel: bool | None = None,
) -> list[dict]:
    """The two entropies of LFQ and the gradient of their difference.

    The materialised softmax is measured for at most `most` bits, the Triton kernels on a GPU, or if
    `kernel` is true.
    """
    entropies = {"softmax": baselines.materialised_entropies, "factorised": lfq.entropies}
    if kernel or (kernel is None and device.type == "cuda"):
        entropies["triton"] = _triton_entropies
    rows = []
    for width in bits:
        z_MK = random.normal(random.key(width, device), (tokens, width))
        variants = {
            name: partial(tree.value_and_grad(_entropy_loss), z_MK, function)
            for name, function in entropies.items()
            if name != "softmax" or width <= most
        }
        _check_entropies(variants, width)
        measured = compare(f"2^{width} codes, {tokens} tokens", variants, cfg.repeats)
        rows += timing.with_peaks(measured, variants, device)
    return rows


def _triton_entropies(z_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    rounded = lfq.quantize(z_MK, lfq.Options(temperature=temperature, impl="triton"))
    return rounded.sample_entropy, rounded.code_entropy


def _entropy_loss(z_MK: Tensor, entropies: Callable) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    sample, average = entropies(z_MK, 1.0)
    return sample - average, (sample, average)


def _check_entropies(variants: dict[str, Callable], width: int) -> None:
    """Raise RuntimeError if entropies or gradients differ between the variants."""
    first, *others = [tree.leaves(variant()) for variant in variants.values()]
    for other in others:
        for a, b in zip(first, other, strict=True):
            baselines.check_same(a, b, f"the entropies of {width} bits", tolerance=1e-3)


SUITES = {
    "data": data_suite,
    "lfq": lfq_suite,
    "attention": attention_suite,
    "generate": generate_suite,
    "step": step_suite,
    "play": play_suite,
}
