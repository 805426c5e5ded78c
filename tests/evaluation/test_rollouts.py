"""Rollouts and their scores, on two worlds made by hand: one copies the action into the frame, one ignores it."""

import pytest
import torch

from genie_fn import dynamics, metrics, random, tokenizer, tree, world
from genie_fn.dynamics import DynamicsConfig, SampleConfig
from genie_fn.evaluation import rollouts
from genie_fn.layers import STConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.world import Stage, World

ACTIONS, FRAMES = 3, 6
STACK = STConfig(layers=1, dim=16, heads=2, window=4)
CODER = TokenizerConfig(
    32, 32, 16, encoder=STACK, decoder=STACK, quantizer=QuantizerConfig("vq", 16, latent_dim=8)
)
MODEL = DynamicsConfig(codes=16, tokens=4, actions=ACTIONS, stack=STACK)
SAMPLE = SampleConfig(steps=2)


def made(obeys: bool) -> World:
    """Every token of a frame is the number of the action that led to it; or, if the world does not obey, any number."""
    params = tree.map(torch.zeros_like, tree.init(dynamics.spec(MODEL), random.key(0)))
    params["stack"]["norm"] += 1
    params["head"]["w"] += 4 * torch.eye(16)  # code i where direction i is on
    if obeys:
        params["action"] += torch.eye(ACTIONS + 1, 16)
    else:
        params["action"][:, :ACTIONS] += 1
    coder = tree.init(tokenizer.spec(CODER), random.key(1))
    coder["decoder"]["head"]["w"] *= 3  # codes that look different
    return World(Stage(CODER, coder), Stage(MODEL, params), None)


def clips(dream: World, count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """What happens in the world that obeys: frames and actions."""
    actions = random.randint(random.key(2), (count, FRAMES - 1), 0, ACTIONS)
    ids = torch.cat((torch.zeros(count, 1, dtype=torch.int64), actions), 1)[..., None].expand(
        -1, -1, 4
    )
    return tokenizer.detokenize(dream.tokenizer.params, ids, CODER), actions


@pytest.mark.parametrize("prompt", [1, 2])
def test_a_world_that_copies_its_actions_obeys(prompt):
    dream = made(obeys=True)
    frames, actions = clips(dream)
    dreams = rollouts.dream_all(dream, frames, actions, prompt, random.key(3), SAMPLE)
    assert all(video.shape == frames[:, prompt:].shape for video in dreams.values())
    scores = rollouts.score(frames[:, prompt:], dreams, random.key(4))["all"]
    for wrong in ("random", "shuffled"):
        assert min(scores["delta"][wrong]["low"]) > 3
    assert scores["psnr"]["one_go"]["average"][0] > scores["psnr"]["random"]["average"][2]


def test_a_world_that_ignores_its_actions_is_not_said_to_obey():
    dream = made(obeys=False)
    frames, actions = clips(dream)
    dreams = rollouts.dream_all(dream, frames, actions, 1, random.key(3), SAMPLE)
    assert torch.equal(dreams["own"], dreams["shuffled"]) and torch.equal(
        dreams["own"], dreams["random"]
    )
    again = rollouts.dream_all(dream, frames, actions, 1, random.key(5), SAMPLE)
    assert not torch.equal(
        dreams["own"], again["random"]
    )  # it does dream different frames with other random numbers
    scores = rollouts.score(frames[:, 1:], dreams | {"random": again["random"]}, random.key(4))[
        "all"
    ]["delta"]
    assert scores["shuffled"]["mean"] == scores["shuffled"]["low"] == [0] * (FRAMES - 1)
    holds = [
        low <= 0 <= high
        for low, high in zip(scores["random"]["low"], scores["random"]["high"], strict=True)
    ]
    assert sum(holds) >= FRAMES - 2  # at 95% each


def test_actions_between_prompt_frames_are_always_the_own_ones(monkeypatch):
    dream = made(obeys=True)
    frames, actions = clips(dream, 8)
    seen = []
    monkeypatch.setattr(
        world, "rollout", lambda d, first, given, *rest: seen.append(given) or frames[:, 3:]
    )
    rollouts.dream_all(dream, frames, actions, 3, random.key(3), SAMPLE)
    own, shuffled, chance = seen
    assert torch.equal(own, actions) and torch.equal(shuffled[:, 2:], actions.roll(1, 0)[:, 2:])
    assert torch.equal(shuffled[:, :2], actions[:, :2]) and torch.equal(
        chance[:, :2], actions[:, :2]
    )
    assert not torch.equal(chance[:, 2:], actions[:, 2:])


def test_brief_leaves_out_two_ways_and_changes_no_other():
    dream = made(obeys=True)
    frames, actions = clips(dream, 4)
    all_ways, fewer = (
        rollouts.dream_all(dream, frames, actions, 1, random.key(3), SAMPLE, x)
        for x in (False, True)
    )
    assert all_ways.keys() - fewer.keys() == {"one_go", "true_past"}
    assert all(torch.equal(all_ways[way], fewer[way]) for way in fewer)


def test_the_true_past_is_what_later_frames_are_dreamed_from():
    dream = made(obeys=True)
    frames, actions = clips(dream, 4)
    first = rollouts.true_past(dream, 1, random.key(3), frames, actions, SAMPLE)
    free = world.rollout(dream, frames[:, :1], actions, random.key(3), SAMPLE)
    assert torch.equal(first[:, 0], free[:, 0])  # nothing but the prompt lies before the first
    other = torch.cat((frames[:, :2], 255 - frames[:, 2:3], frames[:, 3:]), 1)
    changed = rollouts.true_past(dream, 1, random.key(3), other, actions, SAMPLE)
    assert torch.equal(first[:, :2], changed[:, :2]) and not torch.equal(first[:, 2], changed[:, 2])


def test_batches_of_clips_have_random_numbers_of_their_own():
    x = torch.zeros(20, 1)
    drawn = rollouts.batched(lambda key, part: random.uniform(key, part.shape), random.key(0), x)
    assert drawn.shape == x.shape and len(drawn.unique()) == 20


def test_moving_clips_are_those_whose_last_frame_is_a_bad_guess():
    copied = torch.tensor(
        [[50.0, 50, 50, 30], [50, 50, 50, 20], [10, 10, 10, 40], [10, 10, 10, 50]]
    )
    assert rollouts.moving(copied).tolist() == [True, True, False, False]


def test_scores_are_means_with_intervals_by_frame_and_over_them():
    real = random.randint(random.key(0), (6, 4, 32, 32, 3), 0, 256).to(torch.uint8)
    noisy = (
        (real.int() + random.randint(random.key(1), real.shape, -30, 31))
        .clamp(0, 255)
        .to(torch.uint8)
    )
    dreams = {name: noisy for name in ("own", "random", "shuffled")} | {
        "copy_last": real.roll(1, 0)
    }
    scores = rollouts.score(real, dreams, random.key(2))
    expected = metrics.frame_psnr(real, noisy)
    own = scores["all"]["psnr"]["own"]
    assert own["mean"] == pytest.approx(expected.mean(0).tolist(), abs=1e-4)
    assert own["average"][0] == pytest.approx(expected.mean().item(), abs=1e-4)
    assert own["average"][1] < own["average"][0] < own["average"][2]
    assert scores["all"]["delta"]["random"]["mean"] == [0.0] * 4
    assert scores["moving"]["ssim"]["own"]["mean"] != scores["all"]["ssim"]["own"]["mean"]
