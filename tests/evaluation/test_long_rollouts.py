"""Long rollouts: of a world that goes on, and of worlds that become uniform or stop following."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genie_fn import data, random
from genie_fn.evaluation import long_rollouts
from genie_fn.evaluation.clips import Clips
from genie_fn.evaluation.long_rollouts import Start
from genie_fn.maskgit import SampleConfig
from genie_fn.world import Frame

SIDE = 32
CLIPS = 3
SPEED = torch.tensor([2, -2])
"""Pixels to the right per frame under each action."""
CODES = torch.tensor([[0, 1, 1, 0]] * 20)
SHIFT = torch.stack((SPEED[CODES], torch.zeros_like(CODES)), -1)
PICTURES = random.randint(random.key(0), (CLIPS, SIDE, SIDE, 3), 0, 256).to(torch.uint8)


def moved(pictures, by_B):
    shifted = [x.roll(int(by), 1) for x, by in zip(pictures, by_B, strict=True)]
    return torch.stack(shifted)


def world(monkeypatch, fades_at=10**6, still_at=10**6):
    """A world whose state is (time, position): pictures that move under actions, until they fade or
    stand still."""

    def step(model, state, action_B, key, sample, programs=None):
        time, position = state
        speed = SPEED[action_B] if time + 1 < still_at else torch.zeros_like(action_B)
        position = position + speed
        pixels = moved(PICTURES, position)
        ids = torch.arange(16).repeat(CLIPS, 1)
        if time + 1 >= fades_at:
            pixels, ids = torch.full_like(pixels, 128), torch.zeros_like(ids)
        return (time + 1, position), Frame(pixels, ids, None, None)

    def encode(model, frames, recorded):
        ids = torch.arange(16).repeat(*frames.shape[:2], 1)
        return Clips(frames, recorded, ids[..., None].float(), ids)

    start = (0, torch.zeros(CLIPS, dtype=torch.int64))
    monkeypatch.setattr(long_rollouts.worlds, "step", step)
    monkeypatch.setattr(long_rollouts.worlds, "start", lambda *arguments: (start, None))
    monkeypatch.setattr(long_rollouts, "encode", encode)

    def encoded(params, video, cfg, backend):
        return None, torch.arange(16).repeat(len(video), 1, 1)

    monkeypatch.setattr(
        long_rollouts.reconstruction, "decode", lambda world, ids: ids[..., None, None]
    )
    monkeypatch.setattr(long_rollouts.tokenizer, "tokenize", encoded)
    cfg = SimpleNamespace(actions=2, sizes=(4, 4))
    return SimpleNamespace(
        lam=None,
        dynamics=SimpleNamespace(cfg=cfg),
        tokenizer=SimpleNamespace(params=None, cfg=None, backend=None),
    )


def evaluated(model, frames=60, length=21):
    recorded = CODES.flatten()[: length - 1].repeat(CLIPS, 1)
    position = torch.cat((torch.zeros(CLIPS, 1), SPEED[recorded].cumsum(1)), 1)
    video = torch.stack([moved(PICTURES, x) for x in position.T], 1)
    sample = SampleConfig(steps=1)
    return long_rollouts.evaluate(
        model, Start(video, recorded), CODES, SHIFT, frames, random.key(1), sample
    )


def test_a_world_that_goes_on(monkeypatch):
    found = evaluated(world(monkeypatch))
    assert found.times == [10, 50, 60] and found.starts == CLIPS
    assert found.psnr == [100, None, None]  # the clips are over
    assert found.edges == pytest.approx([1, 1, 1], abs=1e-3)
    assert found.perplexity == [16, 16, 16] and found.recorded_perplexity == 16
    assert found.kept == [1, 1, 1] and found.recorded_kept == 1
    assert found.followed == [1, 1, 1] and found.dissolved is None


def test_a_world_that_becomes_uniform_has_dissolved(monkeypatch):
    found = evaluated(world(monkeypatch, fades_at=30))
    assert found.dissolved == 50 and found.edges[1:] == [0, 0] and found.perplexity == [16, 1, 1]
    assert found.kept == [1, 0.25, 0.25]  # a quarter of the first digits, and of the second, are 0


def test_a_world_that_stops_following(monkeypatch):
    found = evaluated(world(monkeypatch, still_at=40))
    assert found.followed == [1, 0, 0] and found.dissolved is None


def test_actions_go_on_with_those_of_other_clips():
    own = torch.full((2, 3), 7)
    codes = torch.arange(8).reshape(2, 4)
    actions = long_rollouts.continued(own, codes, 9)
    assert actions.tolist() == [[7, 7, 7, 0, 1, 2, 3, 4, 5], [7, 7, 7, 4, 5, 6, 7, 0, 1]]
    assert long_rollouts.continued(own, codes, 2).tolist() == [[7, 7], [7, 7]]


def test_starts_are_of_the_longest_clips_that_there_are(tmp_path):
    store = data.create(tmp_path / "s", {}, SIDE, SIDE, 2)
    frames = np.zeros((70, SIDE, SIDE, 3), np.uint8)
    for level in range(3):
        zeros = np.zeros(70)
        recording = data.Recording(
            level, frames, zeros.astype(np.uint8), zeros, zeros.astype(bool), "test"
        )
        store = data.append_segments(store, [recording])
    assert long_rollouts.find_starts(store, "test", 200, 3, 0).frames.shape[:2] == (3, 51)
    assert long_rollouts.find_starts(store, "test", 20, 3, 0).frames.shape[:2] == (3, 21)
