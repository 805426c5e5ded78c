"""Held keys: the moments are the real game's, and the score counts what the picture did."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("procgen")

import generate_dataset  # noqa: E402
from genie_fn import data, random, world
from genie_fn.data import procgen
from genie_fn.dynamics import SampleConfig
from genie_fn.evaluation import held_keys


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("held"))
    cfg = generate_dataset.Config(
        root=root, num_levels=8, steps_per_level=120, frame_skip=3, workers=1
    )
    generate_dataset.main(cfg)
    return data.open_store(root)


@pytest.fixture(scope="module")
def moments(store):
    return held_keys.moments(store, "train", 3, seed=0)


def scrolled(by: int) -> torch.Tensor:
    """A picture that moves by so many pixels to the right in each frame: (HELD + 1, 64, 64, 3)."""
    picture = random.randint(random.key(0), (64, 64, 3), 0, 256).to(torch.uint8)
    return torch.stack([picture.roll(by * t, 1) for t in range(held_keys.HELD + 1)])


@pytest.mark.parametrize("by", [-2, 0, 3])
def test_the_agent_goes_against_the_picture(by):
    assert held_keys.gone(scrolled(by)) == -by * held_keys.HELD


def test_moments_are_recorded_frames_from_which_the_real_agent_goes_both_ways(store, moments):
    frames, gone = moments
    assert frames.shape == (2, 3, held_keys.HELD + 1, 64, 64, 3)
    assert (gone[0] <= -held_keys.FREE).all() and (gone[1] >= held_keys.FREE).all()
    assert torch.equal(frames[0, :, 0], frames[1, :, 0]) and not torch.equal(
        frames[0, :, 1:], frames[1, :, 1:]
    )
    recorded = data.read_clips(store, data.clip_starts(store, "train", 1), 1).frames[:, 0]
    for first in frames[0, :, 0].numpy():
        assert (recorded == first).all((1, 2, 3)).any()


@pytest.mark.parametrize("other", [{"meta": {"import": {}}}, {"action_names": ("left", "right")}])
def test_other_data_has_no_moments(store, other):
    assert held_keys.moments(replace(store, **other), "train", 3, 0) is None


def test_the_score_counts_who_obeys(moments):
    right, still, left = scrolled(-1), scrolled(0), scrolled(1)
    dreamed = torch.stack((torch.stack((left, still, right)), torch.stack((right, right, left))))
    found = held_keys.score(moments, dreamed)
    assert (found["starts"], found["right_way"], found["apart"]) == (3, 1, 2)
    assert (
        found["dreamed"] == {"LEFT": [-10, 0, 10], "RIGHT": [10, 10, -10]}
        and found["share"] == 0.3333
    )
    real = held_keys.score(moments, moments.frames)
    assert real["right_way"] == 3 and real["dreamed"] == real["real"]


def test_the_world_dreams_on_under_what_it_takes_for_the_keys(moments, monkeypatch):
    """Which action reaches which half of the dreams, each from its own first frame."""

    def rollout(_, prompt, actions, key, sample):
        return (prompt + actions[:, :, None, None, None]).to(torch.uint8)

    monkeypatch.setattr(world, "rollout", rollout)
    dreamed = held_keys.hold(None, moments, {"LEFT": 3, "RIGHT": 1}, random.key(0), SampleConfig())
    assert dreamed.shape == moments.frames.shape and torch.equal(
        dreamed[:, :, 0], moments.frames[:, :, 0]
    )
    assert torch.equal(dreamed[0, :, 5], moments.frames[0, :, 0] + 3)
    assert torch.equal(dreamed[1, :, 5], moments.frames[1, :, 0] + 1)


def test_a_skipping_game_holds_its_action_to_the_end_of_an_episode():
    collection = {"env": "coinrun", "distribution_mode": "easy"}
    one, three = (
        procgen.open_game(11, {"collection": collection | {"frame_skip": n}}) for n in (1, 3)
    )
    for action in np.random.default_rng(0).choice([7, 8, 8], 300):
        first = []
        while len(first) < 3 and not (first and first[-1].ended):
            first.append(procgen.step(one, int(action)))
        whole = procgen.step(three, int(action))
        assert np.array_equal(whole.frame, first[-1].frame) and whole.ended == first[-1].ended
        assert whole.reward == sum(step.reward for step in first)
        if whole.ended:
            break
    assert whole.ended, "nothing ended: the test sees no end of an episode"
    procgen.close(one)
    procgen.close(three)
