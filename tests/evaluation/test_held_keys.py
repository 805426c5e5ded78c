"""Held keys: the starts are of the real game, and the score counts how the image moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("procgen")

import generate_dataset  # noqa: E402
from genie_fn import data, random
from genie_fn.data import games
from genie_fn.evaluation import held_keys, rollouts
from genie_fn.maskgit import SampleConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("held"))
    cfg = generate_dataset.Config(
        root=root, num_levels=8, steps_per_level=120, frame_skip=3, workers=1
    )
    generate_dataset.main(cfg)
    return data.open_store(root)


@pytest.fixture(scope="module")
def starts(store):
    return held_keys.find_starts(store, "train", 3, seed=0)


def scrolled(by: int) -> torch.Tensor:
    """An image that moves by so many pixels to the right in each frame: (FRAMES + 1, 64, 64, 3)."""
    picture = random.randint(random.key(0), (64, 64, 3), 0, 256).to(torch.uint8)
    return torch.stack([picture.roll(by * t, 1) for t in range(held_keys.FRAMES + 1)])


@pytest.mark.parametrize("by", [-2, 0, 3])
def test_the_agent_moves_against_the_image(by):
    assert held_keys.agent_displacement(scrolled(by)) == -by * held_keys.FRAMES


def test_starts_are_recorded_frames_from_which_the_real_agent_moves_both_ways(store, starts):
    frames, (left, right) = starts
    assert frames.shape == (2, 3, held_keys.FRAMES + 1, 64, 64, 3)
    assert (left <= -held_keys.MIN_DISPLACEMENT).all()
    assert (right >= held_keys.MIN_DISPLACEMENT).all()
    assert torch.equal(frames[0, :, 0], frames[1, :, 0])
    assert not torch.equal(frames[0, :, 1:], frames[1, :, 1:])
    recorded = data.read_clips(store, data.clip_starts(store, "train", 1), 1).frames[:, 0]
    for first in frames[0, :, 0].numpy():
        assert (recorded == first).all((1, 2, 3)).any()


@pytest.mark.parametrize("other", [{"meta": {"import": {}}}, {"action_names": ("left", "right")}])
def test_other_data_has_no_starts(store, other):
    assert held_keys.find_starts(replace(store, **other), "train", 3, 0) is None


def test_the_score_counts_correct_directions(starts):
    right, still, left = scrolled(-1), scrolled(0), scrolled(1)
    generated = torch.stack((torch.stack((left, still, right)), torch.stack((right, right, left))))
    found = held_keys.score(starts, generated)
    assert (found.starts, found.correct, found.separated) == (3, 1, 2)
    assert found.generated == {"LEFT": [-10, 0, 10], "RIGHT": [10, 10, -10]}
    assert found.share == 0.3333
    real = held_keys.score(starts, starts.frames)
    assert real.correct == 3 and real.generated == real.recorded


def test_rollouts_are_under_the_world_s_action_for_each_key(starts, monkeypatch):
    """Which action reaches which half of the rollouts, each from its own first frame."""

    def free_running(_, codes, ids, actions, key, sample):
        return (codes + actions[:, :, None, None, None]).to(torch.uint8)

    monkeypatch.setattr(held_keys, "tokenize", lambda _, first: (first, first))
    monkeypatch.setattr(rollouts, "free_running", free_running)
    key_actions = {"LEFT": 3, "RIGHT": 1}
    generated = held_keys.hold(None, starts, key_actions, random.key(0), SampleConfig())
    assert generated.shape == starts.frames.shape
    assert torch.equal(generated[:, :, 0], starts.frames[:, :, 0])
    assert torch.equal(generated[0, :, 5], starts.frames[0, :, 0] + 3)
    assert torch.equal(generated[1, :, 5], starts.frames[1, :, 0] + 1)


def test_a_skipping_game_holds_its_action_to_the_end_of_an_episode():
    collection = {"env": "coinrun", "distribution_mode": "easy"}
    one, three = (
        games.open_game(11, {"collection": collection | {"frame_skip": n}}) for n in (1, 3)
    )
    for action in np.random.default_rng(0).choice([7, 8, 8], 300):
        first = []
        while len(first) < 3 and not (first and first[-1].ended):
            first.append(one.step(int(action)))
        whole = three.step(int(action))
        assert np.array_equal(whole.frame, first[-1].frame) and whole.ended == first[-1].ended
        assert whole.reward == sum(step.reward for step in first)
        if whole.ended:
            break
    assert whole.ended, "nothing ended: the test sees no end of an episode"
    one.close()
    three.close()
