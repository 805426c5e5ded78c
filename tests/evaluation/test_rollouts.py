"""Rollouts and scores of two handmade worlds: one copies actions into frames, one ignores them."""

import pytest
import torch

from genie_fn import dynamics, metrics, random, tokenizer, tree, world
from genie_fn.dynamics import DynamicsConfig
from genie_fn.evaluation import clips, rollouts
from genie_fn.evaluation.clips import Clips
from genie_fn.layers import STConfig
from genie_fn.maskgit import SampleConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.world import Stage, World

ACTIONS, FRAMES = 3, 6
STACK = STConfig(layers=1, dim=16, heads=2, window=4)
TOKENIZER = TokenizerConfig(
    32, 32, 16, encoder=STACK, decoder=STACK, quantizer=QuantizerConfig("vq", 16, latent_dim=8)
)
MODEL = DynamicsConfig(codes=16, tokens=4, actions=ACTIONS, stack=STACK)
SAMPLE = SampleConfig(steps=2)


def handmade(controllable: bool) -> World:
    """Every token of a frame is the number of the action that led to it.

    If the world is not controllable, it is any number.
    """
    params = tree.map(torch.zeros_like, tree.init(dynamics.spec(MODEL), random.key(0)))
    params["stack"]["norm"] += 1
    params["head"]["w"] += 4 * torch.eye(16)  # code i where direction i is on
    if controllable:
        params["action"] += torch.eye(ACTIONS + 1, 16)
    else:
        params["action"][:, :ACTIONS] += 1
    decoder = tree.init(tokenizer.spec(TOKENIZER), random.key(1))
    decoder["decoder"]["head"]["w"] *= 3  # codes that look different
    return World(Stage(TOKENIZER, decoder), Stage(MODEL, params), None)


def held_out(model: World, count: int = 24) -> Clips:
    """What happens in the controllable world: frames and actions."""
    actions = random.randint(random.key(2), (count, FRAMES - 1), 0, ACTIONS)
    first = torch.zeros(count, 1, dtype=torch.int64)
    ids = torch.cat((first, actions), 1)[..., None].expand(-1, -1, 4)
    frames = tokenizer.detokenize(model.tokenizer.params, ids, TOKENIZER)
    return clips.encode(model, frames, actions)


@pytest.mark.parametrize("prompt", [1, 2])
def test_a_world_that_copies_its_actions_is_controllable(prompt):
    model = handmade(controllable=True)
    shown = held_out(model)
    videos = rollouts.generate_all(model, shown, prompt, random.key(3), SAMPLE)
    future = shown.frames[:, prompt:]
    assert all(video.shape == future.shape for video in videos.values())
    scores = rollouts.score(future, videos, torch.arange(len(future)), random.key(4)).all
    for other in ("random", "shuffled"):
        assert min(scores.delta[other].low) > 3
    assert scores.psnr["joint"].average[0] > scores.psnr["random"].average[2]


def test_a_world_that_ignores_its_actions_is_not_controllable():
    model = handmade(controllable=False)
    shown = held_out(model)
    videos = rollouts.generate_all(model, shown, 1, random.key(3), SAMPLE)
    assert torch.equal(videos["own_actions"], videos["shuffled"])
    assert torch.equal(videos["own_actions"], videos["random"])
    second = rollouts.generate_all(model, shown, 1, random.key(5), SAMPLE)
    # With other random numbers it generates other frames.
    assert not torch.equal(videos["own_actions"], second["random"])
    mixed = videos | {"random": second["random"]}
    level = torch.arange(len(shown.frames))
    delta = rollouts.score(shown.frames[:, 1:], mixed, level, random.key(4)).all.delta
    assert delta["shuffled"].mean == delta["shuffled"].low == [0] * (FRAMES - 1)
    contains_0 = [
        low <= 0 <= high
        for low, high in zip(delta["random"].low, delta["random"].high, strict=True)
    ]
    assert sum(contains_0) >= FRAMES - 2  # at 95% each


def test_actions_between_prompt_frames_are_always_the_clip_s_own():
    model = handmade(controllable=True)
    actions = held_out(model, 8).actions
    sequences = rollouts.action_sequences(actions, 3, random.key(3))
    own, shuffled, uniform = sequences.values()
    assert torch.equal(own, actions)
    assert torch.equal(shuffled[:, 2:], own.roll(1, 0)[:, 2:])
    assert torch.equal(shuffled[:, :2], own[:, :2]) and torch.equal(uniform[:, :2], own[:, :2])
    assert not torch.equal(uniform[:, 2:], own[:, 2:])


def test_a_free_running_rollout_is_that_of_the_world():
    model = handmade(controllable=True)
    shown = held_out(model, 4)
    codes, ids = shown.codes[:, :2], shown.ids[:, :2]
    found = rollouts.free_running(model, codes, ids, shown.actions, random.key(3), SAMPLE)
    key = random.fold_in(random.key(3), 0)
    expected = world.rollout(model, shown.frames[:, :2], shown.actions, key, SAMPLE)
    assert torch.equal(found, expected)


def test_a_displaced_copy_predicts_a_picture_that_moves_steadily():
    picture = random.randint(random.key(0), (40, 80, 3), 0, 256).to(torch.uint8)
    video = torch.stack([picture[:, 2 * t : 2 * t + 40] for t in range(5)])[None]
    found = rollouts.baselines(video)
    assert torch.equal(found["copy_last"], video[:, :1].expand(-1, 4, -1, -1, -1))
    for t in range(1, 5):
        moved = found["copy_displaced"][:, t - 1]
        assert torch.equal(moved[:, :, : 40 - 2 * t], video[:, t, :, : 40 - 2 * t])


def test_leaving_out_two_methods_changes_no_other():
    model = handmade(controllable=True)
    shown = held_out(model, 4)
    every, fewer = (
        rollouts.generate_all(model, shown, 1, random.key(3), SAMPLE, extra)
        for extra in (True, False)
    )
    assert every.keys() - fewer.keys() == {"joint", "teacher_forcing"}
    assert all(torch.equal(every[method], fewer[method]) for method in fewer)


def test_teacher_forcing_generates_later_frames_from_recorded_ones():
    model = handmade(controllable=True)
    shown = held_out(model, 4)
    first = rollouts.teacher_forcing(model, shown, 1, random.key(3), SAMPLE)
    codes, ids = shown.codes[:, :1], shown.ids[:, :1]
    free = rollouts.free_running(model, codes, ids, shown.actions, random.key(3), SAMPLE)
    assert torch.equal(first[:, 0], free[:, 0])  # nothing but the prompt precedes the first
    frames = shown.frames.clone()
    frames[:, 2] = 255 - frames[:, 2]
    other = clips.encode(model, frames, shown.actions)
    changed = rollouts.teacher_forcing(model, other, 1, random.key(3), SAMPLE)
    assert torch.equal(first[:, :2], changed[:, :2]) and not torch.equal(first[:, 2], changed[:, 2])


def test_batches_of_clips_have_random_numbers_of_their_own():
    x = torch.zeros(20, 1)
    drawn = rollouts.batched(lambda key, part: random.uniform(key, part.shape), random.key(0), x)
    assert drawn.shape == x.shape and len(drawn.unique()) == 20


def test_random_actions_are_those_that_occur():
    model = handmade(controllable=True)
    actions = held_out(model, 8).actions % 2 * 2
    uniform = rollouts.action_sequences(actions, 1, random.key(3))["random"]
    assert set(uniform.flatten().tolist()) == {0, 2}


def test_moving_clips_are_those_in_which_the_picture_moves_furthest():
    picture = random.randint(random.key(0), (32, 32, 3), 0, 256).to(torch.uint8)

    def clip(speed, first=0):
        return torch.stack([picture.roll(max(t - first, 0) * speed, 1) for t in range(7)])

    frames = torch.stack((clip(0), clip(1), clip(3), clip(2)))
    assert rollouts.moving_half(frames).tolist() == [False, True, True, True]
    assert rollouts.moving_half(frames[[0, 0, 0, 1, 2]]).tolist() == [False] * 3 + [True] * 2
    assert rollouts.moving_half(frames[[0, 0, 0, 1]]).all()
    assert rollouts.moving_half(frames[[0, 0]]).all()
    late = clip(4, first=4)  # it moves after the frames that count
    found = rollouts.moving_half(torch.stack((late, clip(1), clip(2))))
    assert found.tolist() == [False, True, True]


def test_edges_are_relative_to_those_of_the_recorded_frames():
    real = random.randint(random.key(0), (4, 5, 32, 32, 3), 0, 256).to(torch.uint8)
    half = (real // 2 + 64).to(torch.uint8)
    videos = dict.fromkeys(("own_actions", "random", "shuffled", "copy_last"), real)
    videos["own_actions"] = half
    edges = rollouts.score(real, videos, torch.arange(4), random.key(2)).all.edges
    assert edges["random"].average == [1.0, 1.0, 1.0]
    assert edges["own_actions"].average[0] == pytest.approx(0.5, abs=0.01)


def test_displaced_frames_are_right_where_aligned():
    """Crops of large pictures: a generated camera that stands 3 pixels further right and one higher up."""
    large = random.randint(random.key(0), (4, 5, 80, 80, 3), 0, 256).to(torch.uint8)
    real = large[..., 8:72, 8:72, :]
    videos = dict.fromkeys(("own_actions", "random", "shuffled", "copy_last"), real)
    videos["own_actions"] = large[..., 7:71, 11:75, :]
    videos["random"] = real.flip(0)
    scores = rollouts.score(real, videos, torch.arange(4), random.key(2)).all
    assert scores.psnr["own_actions"].average[0] < 9
    assert scores.aligned["own_actions"].average == [100, 100, 100]
    assert scores.position_error["own_actions"].average[0] == pytest.approx(10**0.5, abs=1e-3)
    assert scores.aligned["shuffled"].average[0] == 100
    assert scores.position_error["shuffled"].average[0] == 0
    assert scores.aligned["random"].average[0] < 9


def test_scores_are_means_with_intervals_by_frame_and_over_them():
    real = random.randint(random.key(0), (6, 4, 32, 32, 3), 0, 256).to(torch.uint8)
    noisy = (
        (real.int() + random.randint(random.key(1), real.shape, -30, 31))
        .clamp(0, 255)
        .to(torch.uint8)
    )
    videos = {name: noisy for name in ("own_actions", "random", "shuffled")}
    videos["copy_last"] = real.roll(1, 0)
    scores = rollouts.score(real, videos, torch.arange(6), random.key(2))
    expected = metrics.frame_psnr(real, noisy)
    own = scores.all.psnr["own_actions"]
    assert own.mean == pytest.approx(expected.mean(0).tolist(), abs=1e-4)
    assert own.average[0] == pytest.approx(expected.mean().item(), abs=1e-4)
    assert own.average[1] < own.average[0] < own.average[2]
    assert scores.all.delta["random"].mean == [0.0] * 4
    assert scores.moving.ssim["own_actions"].mean != scores.all.ssim["own_actions"].mean
