"""The suite `step`: the tokenizer's training step against that of an nn.Module."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from benchmarks import baselines, counts, timing
from benchmarks.timing import Work
from genie_fn import random, tokenizer, tree
from genie_fn.layers import DTYPES
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime import backend
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import Objective, init_state
from genie_fn.tree import Tree

SHAPES = {
    "cpu": {"demo": (16, 4), "small": (2, 4), "coinrun": (1, 4)},
    "cuda": {"demo": (48, 16), "small": (48, 16), "coinrun": (48, 16)},
}
"""Clips and frames of a batch."""
CompileMode = Literal["off", "step"]


def step_suite(cfg, device: torch.device) -> list[dict]:
    """The rows of every preset."""
    can_compile = backend.pick_compile(cfg.compile, device) != "off"
    mode = cfg.compile if can_compile else "off"
    presets = cfg.presets or (("small", "coinrun") if device.type == "cuda" else ("demo",))
    rows = []
    for preset in presets:
        clips, frames = cfg.shape or SHAPES[device.type][preset]
        with fresh_cache():  # so that the first call measures a cold compilation
            rows += _tokenizer_step(cfg, preset, (clips, frames), mode, device)
        torch.compiler.reset()
    return rows


def _tokenizer_step(
    cfg, preset: str, shape: tuple[int, int], mode: CompileMode, device: torch.device
) -> list[dict]:
    clips, frames = shape
    model = replace(tokenizer.PRESETS[preset], quantizer=QuantizerConfig(codes=1024))
    spec = tokenizer.spec(model)
    params = tree.init(spec, random.key(0, device))
    pixels = (clips, frames, model.height, model.width, 3)
    video = random.randint(random.key(1, device), pixels, 0, 256).to(torch.uint8)
    run = RunConfig(
        compile=mode,
        optim=OptimConfig(warmup=1, ema=0.99),
        device=str(device),
        backend=cfg.backend.resolve(device, mode != "off"),
    )
    module_step = baselines.module_step(params, model, run, device)
    variants: dict[str, Callable] = {"nn.Module": partial(module_step, video)}
    for name, variant in _variants(run, cfg.split, device).items():
        variants[name] = _functional_step(variant, model, params, video)
    case = f"tokenizer {preset}, {clips} x {frames} frames, compile {mode}"
    work = Work(counts.tokenizer_step(model, clips, frames), counts.state_bytes(spec))
    ceiling = timing.measure_ceiling(device, DTYPES[model.encoder.dtype])
    rounded = device.type == "cuda" or model.encoder.dtype == "bfloat16"
    tolerance = 2e-2 if rounded else 1e-3
    agree = partial(baselines.check_same, what="the losses", tolerance=tolerance)
    rows = timing.compare(case, variants, cfg.repeats, clips * frames, work, ceiling, agree)
    return timing.with_peaks(rows, variants, device)


def _variants(run: RunConfig, split: bool, device: torch.device) -> dict[str, RunConfig]:
    """The configurations of the functional step, by name."""
    modes = [run.compile]
    if split and run.compile != "off":
        modes.append("split")
    variants = {f"functional, {mode}": replace(run, compile=mode) for mode in modes}
    if device.type == "cuda":
        triton = replace(run.backend, space="triton", time="triton")
        variants["functional, step, Triton attention"] = replace(run, backend=triton)
    return variants


def _functional_step(
    run: RunConfig, model: TokenizerConfig, params: Tree, video: Tensor
) -> Callable:
    """genie_fn's training step from these parameters; every call is the next step."""

    def loss(params, batch, key, step, microbatch):
        return tokenizer.loss(params, batch, model, microbatch, backend=run.backend)

    spec = tokenizer.spec(model)
    step = make_step(Objective(loss, summarise=tokenizer.summarise), spec, run)
    state = init_state(spec, random.key(0, video.device), run.optim, {})
    current = [state._replace(params=tree.map(torch.clone, params))]

    def next_step() -> Tensor:
        current[0], metrics = step(current[0], video, random.key(2, video.device))
        return metrics["loss"]

    return next_step
