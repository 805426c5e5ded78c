"""A world as a Gymnasium environment: it is one, it repeats, and its frames are the world's."""

import sys
import warnings

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from genie_fn import bundle, data, world
from genie_fn.errors import UserError
from genie_fn.maskgit import SampleConfig
from genie_fn.play import gym_env as module
from genie_fn.play.gym_env import WorldEnv

SAMPLE = SampleConfig(2)


@pytest.fixture(scope="module")
def starts():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture
def env(world_model, starts):
    return WorldEnv(world_model, starts, horizon=6, sample=SAMPLE, render_mode="rgb_array")


@pytest.fixture(scope="module")
def store(tmp_path_factory, starts):
    """Three held-out frames."""
    root = tmp_path_factory.mktemp("store")
    made = data.create(root, {}, 32, 32, 5)
    zeros = np.zeros(3, np.uint8)
    recording = data.Recording(9, starts[:3], zeros, zeros.astype("f4"), zeros == 0, split="test")
    made = data.reserve(made, data.padded_length(3))
    data.commit(made, [data.write_segment(made, 0, recording)])
    return root


def play(env, seed, actions=(0, 3, 1, 4, 2, 2)):
    frames = [env.reset(seed=seed)[0]]
    return np.stack(frames + [env.step(action)[0] for action in actions])


def test_gymnasium_finds_nothing_to_complain_about(world_model, store, monkeypatch):
    """By its registered name, as a user makes it, so that all of its render modes are checked."""

    def load(run, device, **dataset):
        return bundle.with_dataset(bundle.Bundle(world_model, run), *dataset.values())

    monkeypatch.setattr(bundle, "load", load)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name = "genie_fn.play.gym_env:genie_fn/World-v0"
        made = gymnasium.make(
            name, run="there", root=str(store), starts=3, horizon=4, sample=SAMPLE
        )
        check_env(made.unwrapped)
        made.reset(seed=0)
        for _ in range(4):
            observation, reward, terminated, truncated, _ = made.step(made.action_space.sample())
        made.close()
    assert observation.shape == (32, 32, 3) and (reward, terminated, truncated) == (
        0.0,
        False,
        True,
    )


def test_the_same_seed_and_actions_give_the_same_frames(env, world_model, starts):
    first = play(env, 7)
    assert np.array_equal(first, play(env, 7))
    assert np.array_equal(first, play(WorldEnv(world_model, starts, sample=SAMPLE), 7))
    assert not np.array_equal(first[0], first[1])
    others = [play(env, seed) for seed in range(6)]
    assert len({frames[0].tobytes() for frames in others}) > 1, (
        "every seed starts from the same frame"
    )


def test_seeds_decide_what_is_sampled_not_only_where_it_starts(world_model, starts):
    env = WorldEnv(world_model, starts[:1], sample=SAMPLE)
    first, second = play(env, 0), play(env, 1)
    assert np.array_equal(first[0], second[0]) and not np.array_equal(first, second)
    env.reset(seed=0)
    again = play(env, None)  # the next episode of the same generator
    assert not np.array_equal(first, again)


def test_the_frames_are_the_worlds(env, world_model, starts):
    observation, info = env.reset(seed=3)
    _, prompt = world.reset(world_model, torch.from_numpy(starts[info["start"]])[None, None])
    assert np.array_equal(observation, prompt.pixels[0, 0].numpy())
    observation = env.step(2)[0]
    assert observation.dtype == np.uint8 and np.array_equal(env.render(), observation)


def test_actions_matter(env):
    actions = np.array([play(env, 2, [action] * 6) for action in range(5)])
    assert any(not np.array_equal(actions[0], other) for other in actions[1:])


@pytest.mark.parametrize(
    "action",
    [np.array(3), np.int64(3), np.uint8(3), np.array(3, np.int32), torch.tensor(3)],
    ids=repr,
)
def test_whatever_integer_an_agent_returns_is_an_action(env, action):
    assert np.array_equal(play(env, 1, [action]), play(env, 1, [3]))


def test_an_option_chooses_the_start_frame(env, world_model, starts):
    for start in (4, np.int64(4), torch.tensor(4)):
        observation, info = env.reset(seed=0, options={"start": start, "unknown": 1})
        _, prompt = world.reset(world_model, torch.from_numpy(starts[4])[None, None])
        assert info == {"start": 4}
        assert np.array_equal(observation, prompt.pixels[0, 0].numpy())
    for start in (5, -1, "first", None):
        with pytest.raises(UserError, match="no start frame"):
            env.reset(options={"start": start})


def test_environments_in_a_vector_play_as_they_do_alone(world_model, starts):
    def make():
        return WorldEnv(world_model, starts, horizon=2, sample=SAMPLE)

    vector = gymnasium.vector.SyncVectorEnv([make, make])
    first, info = vector.reset(seed=[0, 1], options={"start": 2})
    assert info["start"].tolist() == [2, 2]
    assert np.array_equal(first[0], first[1])
    second = vector.step(np.array([1, 4]))[0]
    alone = make()
    alone.reset(seed=1, options={"start": 2})
    assert np.array_equal(second[1], alone.step(4)[0])
    assert vector.step(np.array([0, 0]))[3].tolist() == [True, True]
    vector.close()


def test_an_episode_is_truncated_at_its_horizon(env):
    env.reset(seed=0)
    assert [env.step(0)[1:4] for _ in range(6)] == [(0.0, False, False)] * 5 + [(0.0, False, True)]
    env.reset()
    assert env.step(0)[3] is False


def test_nothing_is_rendered_unasked(world_model, starts):
    env = WorldEnv(world_model, starts, sample=SAMPLE)
    env.reset(seed=0)
    assert env.render() is None


def test_what_is_refused(env, world_model, starts):
    with pytest.raises(gymnasium.error.ResetNeeded):
        WorldEnv(world_model, starts).step(0)
    env.reset(seed=0)
    for action in (5, -1, 1.0, None, "1", np.array([1]), torch.tensor([1]), torch.tensor(1.0)):
        with pytest.raises(UserError, match="no action"):
            env.step(action)
    for wrong in (starts[:0], starts[:, :16], starts.astype("f4")):
        with pytest.raises(UserError, match=r"uint8 frame of \(32, 32, 3\)"):
            WorldEnv(world_model, wrong)
    with pytest.raises(UserError, match="at least 1 step"):
        WorldEnv(world_model, starts, horizon=0)


def test_a_missing_gymnasium_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(UserError, match="pip install gymnasium"):
        __import__(module.__name__)
