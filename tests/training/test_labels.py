"""Labelled transitions: which ones are used, by which steps, and what the codes learn from them."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import train_lam
from genie_fn import bundle, data, lam, metrics, quantize, random, tree
from genie_fn.data.clips import spread_clips
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.nets.flow import FlowConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.training import checkpoint, labels, options
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import TrainState, init_state
from genie_fn.tree import Tree

LENGTH = 30
MODEL = LamConfig(
    arch="motion",
    flow=FlowConfig(reduce=1, radius=1, cell=8, hidden=16),
    quantizer=QuantizerConfig(kind="vq", codes=2, latent_dim=4, sphere=True),
)
STACK = STConfig(layers=1, dim=16, heads=2, window=3)
ST_VIVIT = LamConfig(16, 16, 8, STACK, STACK, QuantizerConfig(kind="vq", codes=2, latent_dim=4))
CPU = torch.device("cpu")


def make(root: Path, names=("LEFT", "RIGHT"), change: Callable | None = None) -> data.Store:
    """The upper half of the picture moves at random; the lower half, hardly visible, by the action.

    `change(offset, actions)` returns the actions that are stored for a level at an offset.
    """
    rng = np.random.default_rng(0)
    recordings: list[data.Recording] = []
    for level in (*range(8), 8):
        upper = rng.integers(0, 256, (8, 16, 3))
        lower = 128 + rng.integers(-16, 17, (8, 16, 3))
        noise, actions = rng.integers(0, 2, (2, LENGTH))
        frames = np.empty((LENGTH, 16, 16, 3), np.uint8)
        for t in range(LENGTH):
            frames[t] = np.concatenate((upper, lower))
            frames[t, 15, 0] = (113 + t, 120 + level, 128)  # no two frames are alike
            upper = np.roll(upper, 2 * noise[t] - 1, 1)
            lower = np.roll(lower, 2 * actions[t] - 1, 1)
        offset = len(recordings) * data.padded_length(LENGTH)
        stored = actions if change is None else change(offset, actions.copy())
        none = np.zeros(LENGTH)
        recordings.append(data.Recording(level, frames, stored, none, none.astype(bool)))
    return data.append_segments(data.create(root, {}, 16, 16, len(names), names), recordings)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> data.Store:
    return make(tmp_path_factory.mktemp("labels") / "data")


def config(store: data.Store, out: Path | str = "unused", **options) -> train_lam.Config:
    defaults = {"model": MODEL, "steps": 6, "batch_size": 8, "num_frames": 4, "labels": 40}
    optim = OptimConfig(lr=1e-2, schedule="constant", warmup=0)
    return train_lam.Config(
        data=str(store.root), out=str(out), compile="off", optim=optim, **defaults | options
    )


def read(store: data.Store, num_frames: int = 2, **options) -> labels.Labelled:
    cfg = config(store, **options)
    return labels.read(store, cfg, cfg.labels, num_frames, CPU)


# Which transitions


@pytest.mark.parametrize("num_frames", [2, 4])
def test_labelled_transitions_are_distinct_and_of_the_train_split(store, num_frames):
    clips = read(store, num_frames, labels=100).clips
    assert clips.frames.shape == (100, num_frames, 16, 16, 3) and clips.actions.shape == (100, 1)
    assert len({frames.numpy().tobytes() for frames in clips.frames}) == 100
    starts = data.clip_starts(store, "train", num_frames)
    every = data.read_clips(store, starts, num_frames)
    last = {
        frames.tobytes(): actions[-1]
        for frames, actions in zip(every.frames, every.actions, strict=True)
    }
    for frames, actions in zip(clips.frames, clips.actions, strict=True):
        assert last[frames.numpy().tobytes()] == actions.item()


def test_the_seed_chooses_them(store):
    first, again, other = (read(store, seed=seed).clips.frames for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_has_no_labels_or_too_few_is_refused(store, tmp_path):
    with pytest.raises(UserError, match="has 232 transitions with 2 frames.*choose at most 232"):
        read(store, labels=233)
    assert len(read(store, labels=232).clips.actions) == 232
    unlabelled = make(tmp_path / "unlabelled", names=())
    with pytest.raises(UserError, match="no recorded actions, which --cfg.labels needs"):
        train_lam.main(config(unlabelled, tmp_path / "run"))
    unnamed = make(tmp_path / "unnamed", names=("a", "b"))
    with pytest.raises(UserError, match="those of the dataset are a, b: pass --cfg.no-flip"):
        train_lam.main(config(unnamed, tmp_path / "run", flip=True))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--cfg.labels is -1, but must be at least 0"):
        config(store, labels=-1)


# What a step uses


def test_a_step_uses_labelled_transitions_only_and_flips_every_second_one(store):
    plain, flipped = read(store), read(store, flip=True)
    key, step = random.key(7), torch.tensor(4)
    batch, turned = (labels.draw(x, key, step, 8, WHOLE_BATCH) for x in (plain, flipped))
    known = [x.numpy().tobytes() for x in plain.clips.frames]
    rows = [known.index(frames.numpy().tobytes()) for frames in batch.frames]
    assert torch.equal(batch.actions, plain.clips.actions[rows])
    assert torch.equal(turned.frames[1::2], batch.frames[1::2].flip(-2))
    assert torch.equal(turned.actions[1::2], 1 - batch.actions[1::2])
    assert torch.equal(turned.frames[::2], batch.frames[::2])
    assert torch.equal(turned.actions[::2], batch.actions[::2])
    other = labels.draw(plain, random.key(8), step, 8, WHOLE_BATCH)
    assert not torch.equal(other.frames, batch.frames)


def test_microbatches_divide_the_labelled_transitions_of_a_step(store):
    labelled = read(store, flip=True)
    key, step = random.key(7), torch.tensor(5)
    whole = labels.draw(labelled, key, step, 8, WHOLE_BATCH)
    parts = [labels.draw(labelled, key, step, 2, Microbatch(torch.tensor(i), 4)) for i in range(4)]
    assert torch.equal(torch.cat([part.frames for part in parts]), whole.frames)
    assert torch.equal(torch.cat([part.actions for part in parts]), whole.actions)


# Training


class Run:
    """A latent action model that is trained step by step, on pairs of frames without actions."""

    def __init__(self, store: data.Store, **options):
        cfg = config(store, **options)
        self.cfg = replace(cfg, device="cpu", model=replace(cfg.model, height=16, width=16))
        self.spec = lam.spec(self.cfg.model) | {"labels": lam.label_spec(self.cfg.model, 2)}
        self.labelled = labels.read(store, self.cfg, self.cfg.labels, 2, CPU)
        self.step = make_step(train_lam.objective(self.cfg, self.labelled), self.spec, self.cfg)
        starts = data.clip_starts(store, "train", 2)
        self.frames = torch.from_numpy(data.read_clips(store, starts, 2).frames)

    def start(self) -> TrainState:
        use = quantize.initial_use(self.cfg.model.quantizer)
        return init_state(self.spec, random.key(0), self.cfg.optim, use)

    def train(self, state: TrainState, steps: int) -> TrainState:
        size = self.cfg.batch_size
        for _ in range(steps):
            rows = data.clip_offsets(np.arange(len(self.frames)), 0, int(state.step), size)
            state, _ = self.step(state, Unlabelled(self.frames[rows]), random.key(0))
        return state


class Unlabelled(NamedTuple):
    """A batch whose recorded actions cannot be used, since there are none."""

    frames: torch.Tensor


def same(a: Tree, b: Tree) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


@pytest.mark.parametrize("model", [MODEL, ST_VIVIT], ids=["motion", "st_vivit"])
def test_only_labels_and_frames_decide_what_is_learnt(store, tmp_path, model):
    """With all other actions replaced, training is the same; with one of the labels replaced, not."""
    run = Run(store, model=model)
    starts = data.clip_starts(store, "train", 2)
    used = spread_clips(store, starts, run.cfg.labels, run.cfg.seed)

    def others(offset: int, actions: np.ndarray) -> np.ndarray:
        return np.where(np.isin(offset + np.arange(LENGTH), used), actions, 1 - actions)

    def one(offset: int, actions: np.ndarray) -> np.ndarray:
        return np.where(offset + np.arange(LENGTH) == used[0], 1 - actions, actions)

    expected = run.train(run.start(), 4).params
    for change, is_same in ((others, True), (one, False)):
        changed = Run(make(tmp_path / change.__name__, change=change), model=model)
        assert same(expected, changed.train(changed.start(), 4).params) == is_same


def test_a_run_that_is_continued_uses_the_same_ones(store):
    first, second = Run(store, flip=True), Run(store, flip=True)
    whole = first.train(first.start(), 5)
    assert same(whole, second.train(first.train(first.start(), 2), 3))
    saved = json.loads(json.dumps(asdict(first.cfg)))
    changed = options.differences(saved, replace(first.cfg, labels=0))
    assert r"--cfg.labels 0 (was 40)" in str(options.misfit("runs/x", changed))


def test_accumulated_microbatches_give_the_same_step(store):
    whole, parts = (Run(store, flip=True, accumulate=count) for count in (1, 4))
    results = [tree.leaves(run.train(run.start(), 1).params) for run in (whole, parts)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", [MODEL, ST_VIVIT], ids=["motion", "st_vivit"])
def test_the_gradient_of_labels_reaches_the_encoder_and_the_classifier(store, model):
    run = Run(store, model=model)
    params = run.start().params
    few = run.labelled.clips
    (_, scores), grads = tree.value_and_grad(lam.label_loss)(
        params, few.frames, few.actions[:, 0], run.cfg.model
    )
    used = {path.split("/")[0] for path, x in tree.paths(grads).items() if x.abs().max() > 0}
    assert used == {"encoder", "labels"} and 0 <= scores["label_accuracy"] <= 1
    _, grads = tree.value_and_grad(lam.loss)(params, few.frames, run.cfg.model)
    assert all(x.abs().max() == 0 for x in tree.leaves(grads["labels"]))


def test_labels_decide_what_codes_mean(store):
    """Without labels the two codes are the motion of the upper half, which actions do not move."""
    starts = data.clip_starts(store, "val", 2)
    frames, recorded = map(torch.from_numpy, data.read_clips(store, starts, 2))
    found = []
    for weight in (0.0, 1.0):
        run = Run(store, label_weight=weight)
        params = run.train(run.start(), 100).params
        codes = lam.infer_actions(params, frames, run.cfg.model)
        found.append(metrics.mutual_information(codes, recorded))
    assert found[0] < 0.2 and found[1] > 0.6


def test_the_classifier_is_no_part_of_the_model(store, tmp_path):
    run = tmp_path / "lam"
    train_lam.main(config(store, run, steps=1, num_frames=2))
    assert "labels" in checkpoint.load(run, stage="lam").state["params"]
    assert "labels" not in bundle.load_stage(run, "lam")[0].params
