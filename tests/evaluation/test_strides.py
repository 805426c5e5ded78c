"""The stride that is found in short runs, and what the later stages make of it."""

from dataclasses import replace

import numpy as np
import pytest

import train_dynamics
import train_lam
import train_tokenizer
from genie_fn import data
from genie_fn.errors import UserError
from genie_fn.evaluation import strides
from genie_fn.evaluation.latent_actions import Predictions
from genie_fn.evaluation.strides import Trial
from genie_fn.lam import LamConfig
from genie_fn.training import inputs
from tests.evaluation.examples import MOTION_MODEL, SIDE


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> data.Store:
    """A texture that moves by two pixels to either side in every second frame; the others are grey."""
    root = tmp_path_factory.mktemp("strides") / "data"
    store = data.create(root, {}, SIDE, SIDE, 0)
    rng = np.random.default_rng(0)
    for level in range(10):
        texture = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        place = np.cumsum(rng.choice([-2, 2], 40))
        frames = np.full((80, SIDE, SIDE, 3), 128, np.uint8)
        frames[::2] = [np.roll(texture, x, 1) for x in place]
        nothing = np.zeros(80)
        store = data.append_segments(
            store, [data.Recording(level, frames, nothing, nothing, nothing)]
        )
    return store


def config(store, out, **options) -> train_lam.Config:
    return train_lam.Config(
        data=str(store.root),
        out=str(out),
        model=MOTION_MODEL,
        steps=1,
        batch_size=2,
        num_frames=3,
        compile="off",
        stride="auto",
        **options,
    )


def test_the_stride_is_the_one_at_which_motion_shows(store, tmp_path, monkeypatch, capsys):
    """And it is stored with the run, whose continuation does not search again."""
    monkeypatch.setattr(strides, "STEPS", 20)
    monkeypatch.setattr(strides, "STRIDES", (1, 2))
    cfg = config(store, tmp_path / "lam")
    train_lam.main(cfg)
    record = inputs.read(tmp_path / "lam")
    assert record is not None and record.stride == 2
    assert "shuffling costs" in (printed := capsys.readouterr().err) and "stride 2" in printed
    monkeypatch.setattr(strides, "choose", None)
    train_lam.main(replace(cfg, steps=2, resume=True))
    assert inputs.read(tmp_path / "lam").stride == 2
    assert "--cfg.stride" not in capsys.readouterr().err


def test_the_smallest_of_nearly_equal_strides_is_picked():
    def trial(stride: int, inferred: float, shuffled: float) -> Trial:
        return Trial(stride, Predictions(inferred, shuffled, 0.0))

    trials = [trial(1, 20, 19), trial(2, 20, 18.1), trial(4, 15, 13), trial(8, 12, 11)]
    assert strides.pick(trials) == 2
    assert strides.pick([*trials, trial(16, 15, 12)]) == 16
    with pytest.raises(UserError, match="give a number"):
        strides.pick([trial(1, 20, 19.99), trial(2, 20, 20.5)])


def test_strides_without_clips_are_left_out_and_other_models_are_tried_by_the_demos(
    store, tmp_path
):
    cfg = config(store, tmp_path)
    assert [s.stride for s in strides.fitting(store, cfg, (1, 8, 39, 40))] == [1, 8, 39]
    with pytest.raises(UserError, match="no train clip of 81 frames"):
        strides.fitting(store, replace(cfg, num_frames=81), (1, 2))
    assert strides.trial_model(MOTION_MODEL, store) == MOTION_MODEL
    other = strides.trial_model(LamConfig(), replace(store, height=30, width=45))
    assert other.arch == "motion" and (other.height, other.width) == (24, 40)
    with pytest.raises(UserError, match="8x8 pixels or more"):
        strides.trial_model(LamConfig(), replace(store, height=4))


def test_a_tokenizer_has_no_actions_to_compare():
    with pytest.raises(UserError, match="give a number"):
        train_tokenizer.Config(stride="auto")


def test_dynamics_follow_the_earlier_stages_by_default():
    for preset in train_dynamics.PRESETS.values():
        assert preset().stride == "auto"
