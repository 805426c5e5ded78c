"""Sessions: joined states equal the original ones bit for bit; what is kept, and what is shared."""

import numpy as np
import pytest
import torch

from genie_fn import dynamics, random, tokenizer, tree, world
from genie_fn.dynamics import DynamicsConfig
from genie_fn.layers import Cache, STConfig
from genie_fn.maskgit import SampleConfig
from genie_fn.nets.blueprint import Blueprints
from genie_fn.play import session
from genie_fn.play.session import ActionRecord, Moment
from genie_fn.quantize import QuantizerConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.world import Stage, World

SAMPLE = SampleConfig(steps=2)
NONE = np.zeros(4, np.uint8)


def convolutional(world_model):
    """The same with a decoder whose state is no cache of keys and values."""
    codes = QuantizerConfig("lfq", 16)
    down = (
        "causal-conv3d",
        {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": (1, 16, 16)},
    )
    up = ("depth2space_upsample", {"in_channels": 4, "out_channels": 3, "space_factor": 16})
    nets = (down,), (("causal-conv3d", {"in_channels": 4, "out_channels": 4, "kernel_size": 3}), up)
    cfg = TokenizerConfig(32, 32, 16, quantizer=codes, arch="magvit2", blueprints=Blueprints(*nets))
    return world_model._replace(tokenizer=Stage(cfg, tree.init(tokenizer.spec(cfg), random.key(8))))


def windowless(world_model, window):
    cfg = DynamicsConfig(16, 4, 5, stack=STConfig(layers=2, dim=32, heads=2, window=window))
    return World(
        world_model.tokenizer, Stage(cfg, tree.init(dynamics.spec(cfg), random.key(3))), None
    )


WORLDS = {
    "st_vivit": lambda world_model: world_model,
    "magvit2": convolutional,
    "window of 1": lambda d: windowless(d, 1),
}
WORLDS["another window"] = lambda world_model: windowless(world_model, 7)


def states_of(world_model, clip, frames):
    """The state after each frame of a short play, the start included."""
    with torch.no_grad():
        state, _ = world.reset(world_model, clip[:1, :1])
        states = [state]
        for t in range(frames):
            states.append(
                world.step(world_model, states[-1], torch.tensor([t % 3]), random.key(t), SAMPLE)[0]
            )
    return states


def equal(a, b):
    same_kind = tree.pytree.tree_structure(a) == tree.pytree.tree_structure(b)
    return same_kind and all(
        torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True)
    )


def moment(state):
    return Moment(
        np.zeros((2, 2, 3), "u1"),
        NONE,
        NONE,
        NONE,
        session.added(state),
        ActionRecord(0, None, 1.0, 2, False),
    )


def begun(first):
    return session.started(first._replace(record=None), 0, np.zeros((2, 2, 3), "u1"))


@pytest.mark.parametrize("name", WORLDS)
def test_a_rebuilt_state_is_the_state_before_and_past_the_window(world_model, clip, name):
    """The window holds 4 frames: the first states are not full, the last are without the start."""
    states = states_of(WORLDS[name](world_model), clip, 9)
    play = begun(moment(states[0]))
    for state in states[1:]:
        play = session.extended(play, moment(state))
    for at, state in enumerate(states):
        assert equal(session.state(session.moved(play, at)), state)


@torch.no_grad()
def test_the_state_after_the_latest_frame_is_the_one_that_is_joined(world_model):
    size = world_model.tokenizer.cfg
    black = np.zeros((size.height, size.width, 3), np.uint8)
    now = session.begin(world_model, black, 0)
    for action in (0, 1, 0, 1, 1, 0):
        now = session.advance(world_model, now, action, SampleConfig(steps=2))
        joined = session.moved(now, now.at)
        assert now.latest_state is not None and joined.latest_state is None
        assert equal(session.state(now), session.state(joined))
        layouts = zip(
            tree.leaves(session.state(now)), tree.leaves(session.state(joined)), strict=True
        )
        assert all(a.stride() == b.stride() for a, b in layouts)
    assert session.amended(now, ms=1.0).latest_state is now.latest_state


def test_a_piece_does_not_hold_the_cache_that_it_comes_from(world_model, clip):
    state = states_of(world_model, clip, 1)[-1]
    piece = session.added(state).dynamics.cache
    assert piece.k_LB1NGE.untyped_storage().nbytes() == state.dynamics.cache.k_LBSNGE.nbytes / 3
    assert 0 < begun(moment(state)).present.size < sum(x.nbytes for x in tree.leaves(state))


def fake(t, size=10, frames=3):
    """A moment with a state of a cache of `frames` frames, in which frame t is filled with t."""
    k = torch.full((1, 1, frames, size, 1, 1), float(t))
    return moment(Cache(k, k, torch.tensor(t)))


def played(count, keep=session.MAX_MOMENTS, **options):
    play = begun(fake(0, **options))
    for t in range(1, count):
        play = session.extended(play, fake(t, **options), keep)
    return play


def test_the_oldest_frames_are_dropped_and_the_rest_can_be_continued():
    play = played(20, keep=6)
    assert (play.at, play.newest, play.first, len(play.moments)) == (19, 19, 14, 6)
    assert play.oldest == 16, "a state takes three frames"
    assert session.moved(play, 0).at == 16 and session.moved(play, 99).at == 19
    state = session.state(session.moved(play, 0))
    assert state.k_LBSNGE[0, 0, :, 0, 0, 0].tolist() == [14, 15, 16] and state.seen == 16
    assert len(play.records) == 13, "frames 1 to 13, which are no longer kept"


def test_memory_is_bounded_but_what_the_present_needs_is_kept(monkeypatch):
    one = begun(fake(0, size=1000)).present.size
    monkeypatch.setattr(session, "MAX_BYTES", 8 * one)
    assert len(played(20, size=1000).moments) == 8
    monkeypatch.setattr(session, "MAX_BYTES", 1)
    play = played(20, size=1000)
    assert len(play.moments) == 4 and play.oldest == 18


def test_an_act_in_the_past_drops_what_came_later_and_a_branch_keeps_it():
    play = played(6)
    back = session.moved(play, 2)
    assert back.newest == 5 and back.moments is play.moments, "going back copies nothing"
    other = session.extended(back, fake(3))
    assert (other.at, other.newest) == (3, 3) and play.newest == 5
    assert all(a is b for a, b in zip(other.moments[:3], play.moments[:3], strict=True)), (
        "branches share their frames"
    )


def test_records_are_kept_for_as_many_frames_as_a_recording_holds(monkeypatch):
    monkeypatch.setattr(session, "MAX_RECORDS", 10)
    assert len(played(40, keep=4).records) == 10


def test_one_action_is_one_frame_of_the_world(world_model, clip):
    """Sessions are reproducible, bounded by `keep`, and keep the prompt's ids."""
    image, actions = clip[0, 0].numpy(), [0, 3, 1, 4, 2, 2]
    with torch.no_grad():
        now = session.begin(world_model, image, seed=5)
        state, prompt = world.reset(world_model, clip[:1, :1])
        assert np.array_equal(now.present.pixels, prompt.pixels[0, 0])
        assert np.array_equal(now.present.ids, prompt.ids[0, 0]) and now.start is image
        for t, action in enumerate(actions, 1):
            now = session.advance(world_model, now, action, SAMPLE, keep=1)
            key = random.fold_in(random.key(5), t)
            state, frame = world.step(world_model, state, torch.tensor([action]), key, SAMPLE)
            assert np.array_equal(now.present.pixels, frame.pixels[0])
            record = ActionRecord(
                action, None, 1.0, 2, False, session.frame_hash(now.present.pixels)
            )
            assert now.present.record == record
    assert now.at == 6 and len(now.moments) == session.window(now.present.added) + 1
    assert [record.action for record in now.records] == actions[: now.first - 1] == [0, 3]


def test_an_amended_session_differs_in_its_present_moment_only():
    play = session.moved(played(4), 2)
    changed = session.amended(play, psnr=3.0, game=np.zeros((2, 2, 3), "u1"))
    assert changed.present.psnr == 3.0 and changed.present.size == play.present.size + 12
    assert changed.moments[:2] == play.moments[:2] and changed.moments[3] is play.moments[3]
    assert play.present.psnr is None
