"""The stride at which latent actions say the most: `--cfg.stride auto` of train_lam.py.

A small latent action model is trained for a few steps at each of several strides. The measure is
the *cost of shuffling*: the PSNR of held-out frames predicted with their inferred actions, minus the
PSNR with the same actions shuffled across all transitions, in dB. Both are of the squared error over
all held-out transitions, so the cost is a ratio of two errors on the same frames. That makes it
comparable between strides, although the frames of a longer stride differ more.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from genie_fn import data, lam, quantize, random
from genie_fn.errors import UserError
from genie_fn.evaluation import latent_actions
from genie_fn.evaluation.latent_actions import Predictions
from genie_fn.lam import LamConfig
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.runtime.console import console
from genie_fn.runtime.progress import Progress
from genie_fn.training import inputs, processes, setup, sharding
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import LAM_PRESETS
from genie_fn.training.step import Objective, Step, TrainState, init_state
from genie_fn.tree import Tree

STRIDES = (1, 2, 4, 8)
"""The strides that are compared."""
STEPS = 150
"""Training steps at each stride, unless the time ends before."""
SECONDS = 600.0
"""The time for the steps at all strides together."""
BATCH = 12
"""Clips per step, as the demo has."""
FRAMES = 5
"""Frames of these clips, at most."""
CLIPS = 64
"""Held-out clips, at most."""
TOLERANCE = 0.1
"""By how much less than the largest cost that of the chosen stride may be, as a share."""
LEAST = 0.05
"""The largest cost below which the actions say nothing, in dB."""


class Trial(NamedTuple):
    """How well the model of a stride predicts held-out frames."""

    stride: int
    predictions: Predictions

    @property
    def cost(self) -> float:
        """What shuffling costs, in dB."""
        return self.predictions.cost


class _Candidate(NamedTuple):
    """A stride and what is trained at it."""

    stride: int
    batches: Iterable
    held_out: Tensor
    step: Step
    state: TrainState


def choose(cfg: RunConfig, model: LamConfig, store: data.Store) -> int:
    """The stride for a run of `cfg` with a latent action model, on a store; it is printed.

    A stride at which the dataset has no clip of the run's length is left out. Raises UserError
    where shuffling costs nothing at any stride.
    """
    small = trial_model(model, store)
    trials = compare(_settings(cfg), small, fitting(store, cfg, STRIDES))
    table = Table("stride", "PSNR", "with shuffled actions", "shuffling costs")
    for trial in trials:
        quality = trial.predictions
        shown = (f"{x:.2f} dB" for x in (quality.inferred, quality.shuffled, trial.cost))
        table.add_row(str(trial.stride), *shown)
    console.print(table)
    chosen = pick(trials)
    inputs.say(
        f"stride {chosen}: the smallest at which shuffling the actions of a short run costs nearly "
        "the most"
    )
    return chosen


def pick(trials: Sequence[Trial]) -> int:
    """The smallest stride whose cost is within the tolerance of the largest.

    Raises UserError if that is almost nothing.
    """
    most = max(trial.cost for trial in trials)
    if most < LEAST:
        raise UserError(
            f"--cfg.stride auto finds no stride at which short runs learn actions (shuffling them "
            f"costs {max(most, 0):.2f} dB at most): give a number, such as --cfg.stride 2"
        )
    return min(trial.stride for trial in trials if trial.cost >= (1 - TOLERANCE) * most)


def trial_model(cfg: LamConfig, store: data.Store) -> LamConfig:
    """A model that learns within a few steps: the run's own, or else the demo's.

    Only models from motion do. Frames are cropped to whole cells.
    """
    model = cfg if cfg.arch == "motion" else lam.PRESETS["demo"]
    side = model.flow.side
    if min(store.height, store.width) < side:
        raise UserError(
            f"--cfg.stride auto needs frames of {side}x{side} pixels or more, and these are "
            f"{store.height}x{store.width}: give a number, such as --cfg.stride 2"
        )
    height = store.height // side * side
    return replace(model, height=height, width=store.width // side * side)


def _settings(cfg: RunConfig) -> RunConfig:
    """How every trial is trained: eagerly, since compiling would take longer than it saves."""
    count = processes.count()
    return replace(
        cfg,
        steps=STEPS,
        batch_size=-(-BATCH // count) * count,
        num_frames=min(cfg.num_frames, FRAMES),
        optim=replace(LAM_PRESETS["demo"], warmup=10, ema=0.0),
        compile="off",
        accumulate=1,
        sharding="replicated",
    )


def fitting(store: data.Store, cfg: RunConfig, strides: Sequence[int]) -> list[data.Store]:
    """The store with each stride at which both splits have clips of the run's length.

    Raises UserError if there is none.
    """
    found = []
    for stride in strides:
        strided = replace(store, stride=stride)
        try:
            for split in ("train", "val"):
                setup.clip_reader(strided, split, cfg).check()
        except data.DamagedClips:
            raise
        except UserError:
            if stride == min(strides):
                raise
        else:
            found.append(strided)
    return found


def compare(cfg: RunConfig, model: LamConfig, stores: Sequence[data.Store]) -> list[Trial]:
    """Train the model with each store's stride, equally many steps of `cfg`, and measure it.

    The strides take turns, so that they have had as many steps whenever the time ends.
    """
    backend = AUTO.resolve(cfg.device, compiled=False)
    candidates = [_candidate(cfg, model, store, backend) for store in stores]
    states = [candidate.state for candidate in candidates]
    batches = [iter(candidate.batches) for candidate in candidates]
    key = random.key(cfg.seed, cfg.device)
    end = time.monotonic() + SECONDS
    with Progress() as progress:
        names = ", ".join(str(candidate.stride) for candidate in candidates)
        for _ in progress.track(range(cfg.steps), f"comparing strides {names}, step"):
            for i, candidate in enumerate(candidates):
                states[i], _ = candidate.step(states[i], next(batches[i]), key)
            if processes.is_any(time.monotonic() > end):
                break
    return [
        Trial(
            candidate.stride,
            latent_actions.shuffling(state.params, candidate.held_out, model, key, backend),
        )
        for candidate, state in zip(candidates, states, strict=True)
    ]


def _candidate(cfg: RunConfig, model: LamConfig, store: data.Store, backend: Backend) -> _Candidate:
    device = torch.device(cfg.device)
    spec = lam.spec(model)
    stats = quantize.initial_use(model.quantizer, device)
    layout = sharding.layout(cfg.sharding)
    state = init_state(spec, random.key(cfg.seed, device), cfg.optim, stats, layout=layout)
    step = setup.with_flips(make_step(_objective(model, backend), spec, cfg), cfg)
    frames = setup.held_out(store, cfg, CLIPS, device).frames
    return _Candidate(
        store.stride, setup.batches(store, cfg, 0, device), _cropped(frames, model), step, state
    )


def _objective(model: LamConfig, backend: Backend) -> Objective:
    def loss(params: Tree, batch: Any, key, step, microbatch):
        frames = _cropped(batch.frames, model)
        return lam.loss(params, frames, model, microbatch, backend=backend)

    return Objective(loss, None, lam.summarise, quantize.codebook_update(model.quantizer))


def _cropped(frames: Tensor, model: LamConfig) -> Tensor:
    """The upper left part of frames (..., H, W, 3), of the model's size."""
    return frames[..., : model.height, : model.width, :]
