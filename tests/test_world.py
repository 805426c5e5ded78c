"""The assembled world: sessions are pure, branch, and do not see each other."""

from dataclasses import replace

import pytest
import torch

from genie_fn import bundle, random, tokenizer, tree, world
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.maskgit import PLAY, SampleConfig

SAMPLE = SampleConfig(steps=3)


@pytest.fixture
def session(world_model, clip):
    return world.reset(world_model, clip[:, :1])[0]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def test_the_prompt_comes_back_as_the_tokenizer_sees_it(world_model, clip):
    actions = world.infer_actions(world_model, clip[:, :3])
    assert actions.shape == (2, 2)
    _, prompt = world.reset(world_model, clip[:, :3], actions)
    _, ids = tokenizer.tokenize(
        world_model.tokenizer.params, clip[:, :3], world_model.tokenizer.cfg
    )
    decoded = tokenizer.detokenize(world_model.tokenizer.params, ids, world_model.tokenizer.cfg)
    assert torch.equal(prompt.ids, ids) and torch.equal(prompt.pixels, decoded)


def test_a_step_is_pure_so_sessions_branch_and_replay(world_model, session):
    kept = tree.map(torch.clone, session)
    left, right = torch.tensor([0, 0]), torch.tensor([1, 1])
    _, first = world.step(world_model, session, left, random.key(0), SAMPLE)
    assert equal(session, kept)
    _, other = world.step(world_model, session, right, random.key(0), SAMPLE)
    _, again = world.step(world_model, session, left, random.key(0), SAMPLE)
    assert equal(first, again)
    assert not torch.equal(first.probability, other.probability)
    _, chance = world.step(world_model, session, left, random.key(1), SAMPLE)
    assert not torch.equal(first.ids, chance.ids)


def test_a_rollout_is_its_steps(world_model, clip, session):
    actions = torch.tensor([[0, 3, 4, 1, 2], [1, 2, 0, 0, 4]])
    frames = world.rollout(world_model, clip[:, :1], actions, random.key(7), SAMPLE)
    assert frames.shape == (2, 5, 32, 32, 3) and frames.dtype == torch.uint8
    for t in range(5):  # more frames than the window of 4 holds
        session, frame = world.step(
            world_model, session, actions[:, t], random.fold_in(random.key(7), t), SAMPLE
        )
        assert torch.equal(frame.pixels, frames[:, t])


def test_a_frame_shows_what_its_ids_decode_to(world_model, clip):
    actions = torch.zeros((2, 3), dtype=torch.int64)
    state, _ = world.reset(world_model, clip[:, :1])
    _, ids = tokenizer.tokenize(
        world_model.tokenizer.params, clip[:, :1], world_model.tokenizer.cfg
    )
    for t in range(3):
        state, frame = world.step(
            world_model, state, actions[:, t], random.fold_in(random.key(0), t), SAMPLE
        )
        assert ((frame.probability > 0) & (frame.probability <= 1)).all()
        ids = torch.cat((ids, frame.ids[:, None]), 1)
    decoded = tokenizer.detokenize(world_model.tokenizer.params, ids, world_model.tokenizer.cfg)[
        :, -1
    ]
    assert (
        decoded.int() - frame.pixels.int()
    ).abs().max() <= 1  # the cached decoder rounds as it may


def test_a_prompt_of_several_frames_needs_the_actions_between_them(world_model, clip):
    """The memory of an action between prompt frames reaches the frames after."""
    key, next_action = random.key(0), torch.tensor([[1], [1]])
    prompts = [torch.cat((torch.full((2, 2), a), next_action), 1) for a in (0, 3)]
    a, b = (world.reset(world_model, clip[:, :3], actions[:, :2])[0] for actions in prompts)
    one, two = (world.step(world_model, s, next_action[:, 0], key, SAMPLE)[1] for s in (a, b))
    assert not torch.equal(one.probability, two.probability)


def test_a_world_of_recorded_actions_infers_none(world_model, clip):
    with pytest.raises(UserError, match="pass the actions themselves"):
        world.infer_actions(world_model._replace(lam=None), clip)


def test_frames_of_another_size_are_refused(world_model):
    with pytest.raises(UserError, match="32x32 frames, but these are 64x64"):
        bundle.check_resolution(world_model.tokenizer, 64, 64, "here")
    bundle.check_resolution(world_model.tokenizer, 32, 32, "here")
    bundle.check_resolution(None, 64, 64, "here")


@pytest.mark.slow
def test_compiled_programs_give_the_same_session(world_model, clip):
    actions = torch.tensor([[0, 3, 4], [1, 2, 0]])
    sample = replace(SAMPLE, temperature=0.0)
    eager = world.rollout(world_model, clip[:, :1], actions, random.key(7), sample)
    fast = world.rollout(world_model, clip[:, :1], actions, random.key(7), sample, world.compiled())
    assert (eager.int() - fast.int()).abs().max() <= 1


def test_worlds_are_played_with_guidance_unless_it_is_chosen():
    plain = DynamicsConfig()
    distilled = replace(plain, distilled=1.0)
    assert world.play_sample(PLAY, plain) == replace(PLAY, guidance=1.0)
    assert world.play_sample(PLAY, distilled) == replace(PLAY, guidance=0.0)
    for chosen in (0.0, 2.5):
        sample = SampleConfig(guidance=chosen)
        assert world.play_sample(sample, plain) == world.play_sample(sample, distilled) == sample
