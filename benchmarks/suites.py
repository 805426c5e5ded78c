"""The suites of benchmark.py: what is compared with what, at which sizes. Each returns rows of `timing.compare`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from benchmarks import baselines, counts, timing
from benchmarks.play import play_suite
from benchmarks.timing import Work, compare
from genie_fn import data, dynamics, layers, random, tokenizer, tree
from genie_fn.errors import UserError
from genie_fn.kernels import attention, lfq
from genie_fn.layers import DTYPES
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime import backend, compilation
from genie_fn.runtime.console import console
from genie_fn.training.config import RunConfig
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import Objective, init_state, make_step

ROOT = Path(__file__).parent.parent
SHAPES = {"cpu": {"demo": (16, 4), "small": (2, 4), "coinrun": (1, 4)}}
SHAPES["cuda"] = {"demo": (48, 16), "small": (48, 16), "coinrun": (48, 16)}


def data_suite(cfg, device: torch.device) -> list[dict]:
    """Collect levels of coinrun, start of the processes included; read random clips, decompressing each anew."""

    def collect(workers: int, folder: str) -> str:
        root, script = tempfile.mkdtemp(dir=folder), str(ROOT / "generate_dataset.py")
        flags = f"--cfg.num-levels {cfg.levels} --cfg.steps-per-level {data.BLOCK} --cfg.workers {workers}".split()
        if subprocess.run(
            [sys.executable, script, "--cfg.root", root, *flags], stdout=subprocess.DEVNULL
        ).returncode:
            raise UserError(
                "collecting failed for the reason above: mend it, or measure another --cfg.suite"
            )
        return root

    def read(frames: int, threads: int, store: data.Store) -> int:
        clips = data.ClipReader(store, "train", frames).batches(16, seed=0, threads=threads)
        return sum(1 for _ in zip(range(cfg.batches), clips, strict=False))

    with tempfile.TemporaryDirectory() as folder:
        workers = {
            f"workers={n}": partial(collect, n, folder) for n in sorted({1, os.cpu_count() or 1})
        }
        rows = compare("collect", workers, max(2, cfg.repeats // 3), cfg.levels * data.BLOCK)
        store = data.open_store(cfg.data or collect(1, folder), cache_bytes=0)
        for t in (4, 16):
            threads = {f"threads={n}": partial(read, t, n, store) for n in (1, 2)}
            rows += compare(f"read {t}-frame clips", threads, cfg.repeats, cfg.batches * 16 * t)
    return rows


def compiled(function: Callable, cfg, device: torch.device) -> Callable:
    """`function` as scripts run it: compiled if this machine can, and on a GPU replayed as a CUDA graph."""
    if backend.pick_compile(cfg.compile, device) == "off":
        return function
    return compilation.compiled(function, cuda_graph=device.type == "cuda")


@torch.no_grad()
def generate_suite(cfg, device: torch.device) -> list[dict]:
    """The frame that fills the window, batch 1, random weights. The cached way also extends its cache by the frame."""
    rows = []
    for mode in ("off", cfg.compile) if cfg.compile != "off" else ("off",):
        model = cfg.model
        chosen = cfg.backend.resolve(device, mode != "off")
        past, keys = model.stack.window - 1, random.split(random.key(0, device), 4)
        params = tree.init(dynamics.spec(model), keys[0])
        ids_BTN = random.randint(keys[1], (1, past, model.tokens), 0, model.codes)
        actions_BT, action_B1 = random.randint(keys[2], (1, past + 1), 0, model.actions).split(
            (past, 1), 1
        )
        cache = dynamics.remember(
            params, ids_BTN, actions_BT, dynamics.empty_cache(model, 1, device), model, chosen
        )
        functions = [baselines.uncached_unmask, *dynamics.Programs()]
        functions = [compiled(f, replace(cfg, compile=mode), device) for f in functions]

        def frame(
            past,
            programs: dynamics.Programs,
            key=keys[3],
            params=params,
            action_B=action_B1[:, 0],
            model=model,
            chosen=chosen,
        ) -> Tensor:
            return dynamics.next_frame(
                params, action_B, past, key, model, cfg.sample, programs, backend=chosen
            ).ids

        uncached = partial(
            frame, (ids_BTN, actions_BT), dynamics.Programs(functions[0], lambda *_: None)
        )
        cached = partial(frame, cache, dynamics.Programs(*functions[1:]))
        for key in random.split(keys[3], 3):
            baselines.check_same(uncached(key=key), cached(key=key), "the generated ids")
        steps = cfg.sample.steps
        work = Work(counts.frame(model, steps), counts.frame_bytes(model, steps))
        ceiling = timing.measure_ceiling(device, DTYPES[model.stack.dtype])
        way = "eager" if mode == "off" else "compiled"
        case = f"frame of {model.tokens} tokens, T = {past + 1}, {steps} steps, {way}"
        rows += compare(
            case, {"no cache": uncached, "cached past": cached}, cfg.repeats, 1, work, ceiling
        )
    return rows


def lfq_suite(
    cfg,
    device: torch.device,
    bits=(10, 14, 18),
    most: int = 14,
    tokens: int = 4096,
    kernel: bool | None = None,
) -> list[dict]:
    """LFQ's two entropies and the gradient of their difference; the softmax for at most `most` bits.

    The Triton kernels are measured where there is a GPU, or if `kernel` says so.
    """

    def loss(z_MK: Tensor, entropies: Callable) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sample, average = entropies(z_MK, 1.0)
        return sample - average, (sample, average)

    rows, every = [], {"softmax": baselines.materialised_entropies, "factorised": lfq.entropies}
    if device.type == "cuda" if kernel is None else kernel:
        every["triton"] = lambda z_MK, temperature: lfq.quantize(
            z_MK, temperature=temperature, impl="triton"
        )[3:]
    for width in bits:
        z_MK = random.normal(random.key(width, device), (tokens, width))
        ways = {
            name: partial(tree.value_and_grad(loss), z_MK, way)
            for name, way in [*every.items()][width > most :]
        }
        results = [tree.leaves(way()) for way in ways.values()]
        for result in results[1:]:
            for a, b in zip(results[0], result, strict=True):
                baselines.check_same(a, b, f"the entropies of {width} bits", tolerance=1e-3)
        rows += with_peaks(
            compare(f"2^{width} codes, {tokens} tokens", ways, cfg.repeats), ways, device
        )
    return rows


def with_peaks(rows: list[dict], ways: dict[str, Callable], device: torch.device) -> list[dict]:
    """The rows with the memory that each way takes."""
    return [row | {"peak bytes": timing.peak_bytes(ways[row["variant"]], device)} for row in rows]


def attention_suite(cfg, device: torch.device) -> list[dict]:
    """QK-norm, rotary positions and attention, forward and backward, over each axis; the baseline transposes."""
    gpu = device.type == "cuda"
    batch, frames, places, heads, dim = cfg.shape or (
        (48, 16, 256, 8, 64) if gpu else (4, 16, 64, 4, 32)
    )
    dtype, mode = (
        (torch.bfloat16 if gpu else torch.float32),
        backend.pick_compile(cfg.compile, device),
    )
    keys = random.split(random.key(0, device), 3)
    packed = random.normal(keys[0], (batch, frames, places, 3, heads, dim)).to(
        dtype
    )  # as a model's projection gives it
    inputs = (*packed.unbind(3), *(1 + 0.1 * random.normal(key, (dim,)) for key in keys[1:]))
    position, visible = (
        torch.arange(frames, device=device)[:, None],
        layers.visible_frames(frames, frames, None, device),
    )
    ceiling, rows = timing.measure_ceiling(device, dtype), []

    def time(impl: str, q, k, v, *scales):
        return attention.attend_new_frames(q, k, v, *scales, position, visible, impl=impl)

    def space(impl: str, q, k, v, *scales):
        return attention.attend_within(q, k, v, *scales, impl=impl)

    for axis, attend, names in (
        ("time", time, get_args(backend.TimeImpl)),
        ("space", space, get_args(backend.SpaceImpl)),
    ):
        ways = {"SDPA with transposes": partial(baselines.transposed_attention, axis, position)}
        ways |= {
            name: partial(attend, name)
            for name in names
            if name != "auto" and (gpu or name != "triton")
        }
        if gpu:
            ways |= {
                f"SDPA {b}": baselines.with_backend(b, ways["SDPA with transposes"])
                for b in ("flash", "cudnn")
            }
        steps = {name: _both_ways(way, inputs, mode) for name, way in ways.items()}
        expected, working = None, {}
        for name, step in steps.items():
            try:
                out = step()[0]
            except RuntimeError as error:
                if not name.startswith("SDPA "):
                    raise
                console.print(f"{name} does not run over {axis}: {str(error).splitlines()[0]}")
                continue
            expected = out if expected is None else expected
            baselines.check_same(
                out, expected, f"attention over {axis}", tolerance=2e-2 if gpu else 1e-4
            )
            working[name] = step
        queries, seen = (frames, (frames + 1) / 2) if axis == "time" else (places, places)
        rest = batch * frames * places // queries
        work = Work(*counts.attention(rest, queries, seen, heads, dim, packed.element_size()))
        case = f"{axis}, {batch} x {frames} x {places} x {heads} x {dim}, {dtype}".replace(
            "torch.", ""
        )
        rows += with_peaks(compare(case, working, cfg.repeats, 0, work, ceiling), working, device)
    return [
        {key: value for key, value in row.items() if key != "first"} for row in rows
    ]  # all were called before


def _both_ways(way: Callable, inputs: tuple, mode: str) -> Callable:
    """Attention and its gradients, compiled as one where a training step would be."""

    def forward_and_backward(leaves):
        def loss(leaves):
            y = way(*leaves)
            return y.float().square().sum(), y

        (_, y), grads = tree.value_and_grad(loss)(leaves)
        return y, grads

    function = (
        forward_and_backward
        if mode == "off"
        else compilation.with_traced_gradients(torch.compile(forward_and_backward, dynamic=False))
    )
    return partial(function, list(inputs))


def step_suite(cfg, device: torch.device) -> list[dict]:
    """A training step of the tokenizer against an nn.Module's with the same weights, and one of the dynamics model."""
    rows, mode = [], backend.pick_compile(cfg.compile, device)
    for preset in cfg.presets or (("small", "coinrun") if device.type == "cuda" else ("demo",)):
        shape = cfg.shape[:2] or SHAPES[device.type][preset]
        with fresh_cache():  # so that the first call's time is that of a cold compilation
            rows += _tokenizer_step(cfg, preset, shape, mode, device)
        torch.compiler.reset()
    return rows


def _tokenizer_step(
    cfg, preset: str, shape: tuple[int, int], mode: str, device: torch.device
) -> list[dict]:
    model = replace(tokenizer.PRESETS[preset], quantizer=QuantizerConfig(codes=1024))
    optim = OptimConfig(warmup=1, ema=0.99)
    chosen = cfg.backend.resolve(device, mode != "off")
    spec = tokenizer.spec(model)
    params = tree.init(spec, random.key(0, device))
    video = random.randint(
        random.key(1, device), (*shape, model.height, model.width, 3), 0, 256
    ).to(torch.uint8)
    run = RunConfig(compile=mode, optim=optim, device=str(device), backend=chosen)

    def functional(run: RunConfig) -> Callable:
        def loss(params, batch, key, step, microbatch):
            return tokenizer.loss(params, batch, model, microbatch, backend=run.backend)

        step = make_step(Objective(loss, summarise=tokenizer.summarise), spec, run)
        state = init_state(spec, random.key(0, device), optim, {})
        held = [state._replace(params=tree.map(torch.clone, params))]

        def once() -> Tensor:
            held[0], metrics = step(held[0], video, random.key(2, device))
            return metrics["loss"]

        return once

    ways = {"nn.Module": partial(baselines.module_step(params, model, run, device), video)}
    names = ("off",) if mode == "off" else ("step", "split") if cfg.split else ("step",)
    ways |= {f"functional, {name}": functional(replace(run, compile=name)) for name in names}
    if device.type == "cuda":
        triton = replace(chosen, space="triton", time="triton")
        ways["functional, step, Triton attention"] = functional(replace(run, backend=triton))
    case = f"tokenizer {preset}, {shape[0]} x {shape[1]} frames, compile {mode}"
    work = Work(counts.tokenizer_step(model, *shape), counts.state_bytes(spec))
    ceiling = timing.measure_ceiling(device, DTYPES[model.encoder.dtype])
    tolerance = 2e-2 if device.type == "cuda" or model.encoder.dtype == "bfloat16" else 1e-3
    agree = partial(baselines.check_same, what="the losses", tolerance=tolerance)
    rows = compare(case, ways, cfg.repeats, shape[0] * shape[1], work, ceiling, agree)
    return with_peaks(rows, ways, device)


SUITES = {
    "data": data_suite,
    "lfq": lfq_suite,
    "attention": attention_suite,
    "generate": generate_suite,
    "step": step_suite,
    "play": play_suite,
}
