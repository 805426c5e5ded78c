"""Latent actions from motion: displacements as they are defined, mirror images, and what is learned."""

import pytest
import torch

from genie_fn import lam, layers, metrics, quantize, random, tree
from genie_fn.lam import LamConfig
from genie_fn.nets import flow
from genie_fn.nets.flow import FlowConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import Objective, init_state

FLOW = FlowConfig(reduce=2, radius=2, cell=4, hidden=16)
PAIRED = QuantizerConfig(kind="vq", codes=5, latent_dim=4, sphere=True, pairs=2)
CFG = LamConfig(16, 32, arch="motion", flow=FLOW, quantizer=PAIRED, motion=0.5)


def texture(seed, *shape):
    return random.normal(random.key(seed), shape)


def test_a_candidate_shows_what_was_displaced():
    frames = texture(0, 2, 8, 12, 3)
    found = flow.candidates(frames, 2, side=4, step=1).unflatten(2, (5, 5))
    for dy, dx in ((0, 0), (-2, 1), (1, -2)):
        shifted = flow.cells(frames.roll((-dy, -dx), (1, 2)), 4)
        y = (texture(1, 1, 8, 12, 1) * 0).bool()
        y[:, 2:-2, 2:-2] = True  # beyond its border a frame repeats its outermost pixels instead
        inside = flow.cells(y.expand(1, 8, 12, 3), 4)
        difference = (found[:, :, dy + 2, dx + 2] - shifted).abs()
        assert difference[inside.expand_as(difference)].max() == 0


def test_beyond_its_border_a_frame_repeats_its_outermost_pixels():
    frames = texture(0, 1, 8, 8, 3)
    far_right = flow.candidates(frames, 8, side=8).unflatten(2, (17, 17))[0, 0, 8, 16]
    assert torch.equal(far_right.reshape(8, 8, 3), frames[0, :, -1:].expand(8, 8, 3))


def test_the_cost_is_lowest_at_the_displacement():
    before = texture(0, 1, 16, 16, 3)
    video = torch.stack((before, before.roll((1, -2), (1, 2))), 1)
    cost = flow.costs(flow.transitions(video, FLOW)).mean(1).reshape(5, 5)
    row, column = divmod(int(cost.argmin()), 5)
    assert (row - 2, column - 2) == (-1, 2)


def test_at_full_resolution_frames_are_predicted_as_at_the_reduced_one():
    params = tree.init(lam.spec(CFG), random.key(0))
    params["decoder"]["move"]["w"] = texture(1, 16, FLOW.displacements)
    params["decoder"]["paint"]["w"] = texture(2, 16, FLOW.values)
    video = texture(3, 2, 2, 16, 32, 3)
    codes = texture(4, 2, 4)
    small = flow.reduced(video, FLOW)
    expected = flow.reconstruct(params["decoder"], flow.transitions(small, FLOW), codes, FLOW)
    predicted = flow.predict(params["decoder"], video[:, 0], codes, FLOW)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(flow.reduced(predicted, FLOW)[inside], expected[inside])


def test_a_border_that_no_cell_covers_is_left_as_it_is():
    params = tree.init(lam.spec(CFG), random.key(0))
    params["decoder"]["move"]["w"] = texture(1, 16, FLOW.displacements)
    params["decoder"]["paint"]["w"] = texture(2, 16, FLOW.values)
    frames = texture(3, 2, 16 + 6, 32 + 2, 3)
    codes = texture(4, 2, 4)
    predicted = flow.predict(params["decoder"], frames, codes, FLOW)
    middle = (slice(None), slice(3, -3), slice(1, -1))
    whole_cells = flow.predict(params["decoder"], frames[middle], codes, FLOW)
    assert torch.equal(predicted[middle], whole_cells)
    assert not torch.equal(predicted[middle], frames[middle])
    outside = torch.ones(frames.shape[:3], dtype=torch.bool)
    outside[middle] = False
    assert torch.equal(predicted[outside], frames[outside])
    assert torch.equal(flow.reduced(frames, FLOW), flow.reduced(frames[middle], FLOW))


def test_a_flipped_video_has_the_mirror_images_of_the_codes():
    params = tree.init(lam.spec(CFG), random.key(0))
    video = random.randint(random.key(1), (8, 3, 16, 32, 3), 0, 256).to(torch.uint8)
    actions = lam.infer_actions(params, video, CFG)
    mirror_image = torch.tensor([1, 0, 3, 2, 4])
    assert torch.equal(lam.infer_actions(params, video.flip(-2), CFG), mirror_image[actions])
    assert len(actions.unique()) > 2


def test_the_codes_of_a_pair_differ_in_the_second_half_of_their_channels():
    params = quantize.spec(PAIRED)
    codebook = tree.init(params, random.key(0))
    codes = quantize.lookup(codebook, torch.arange(5), PAIRED)
    torch.testing.assert_close(codes[0], codes[1] * torch.tensor([1, 1, -1, -1]))
    assert (codes[4, 2:] == 0).all() and (codes[4, :2] != 0).all()
    torch.testing.assert_close(codes.norm(dim=-1), torch.full((5,), 2.0))


MOVES = ((0, 2), (0, -2), (2, 0), (0, 0))


def moving(seed):
    """Clips of two frames whose texture moves in one of MOVES, and which one; uint8."""
    image = random.randint(random.fold_in(random.key(9), seed), (16, 16, 32, 3), 0, 256)
    image = image.float().unflatten(1, (8, 2)).mean(2).repeat_interleave(2, 1)
    move = random.randint(random.fold_in(random.key(8), seed), (16,), 0, len(MOVES))
    after = torch.stack(
        [x.roll(MOVES[m], (0, 1)) for x, m in zip(image, move.tolist(), strict=True)]
    )
    return torch.stack((image, after), 1).to(torch.uint8), move


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_it_learns_which_way_things_move(pool):
    cfg = LamConfig(
        16,
        32,
        arch="motion",
        flow=FlowConfig(reduce=1, radius=2, cell=4, hidden=16, pool=pool, paint=False),
        quantizer=QuantizerConfig(kind="vq", codes=6, latent_dim=4, sphere=True, reset_below=0.2),
        motion=0.5,
    )
    update = quantize.codebook_update(cfg.quantizer)

    def loss(params, batch, key, step, microbatch):
        return lam.loss(params, batch, cfg, microbatch)

    run = RunConfig(
        steps=60, compile="off", optim=OptimConfig(lr=5e-3, warmup=5, schedule="constant")
    )
    step = make_step(Objective(loss, summarise=lam.summarise, update=update), lam.spec(cfg), run)
    state = init_state(lam.spec(cfg), random.key(0), run.optim, quantize.initial_use(cfg.quantizer))
    for i in range(run.steps):
        state, _ = step(state, moving(i)[0], random.key(3))
    video, move = moving(1000)
    actions = lam.infer_actions(state.params, video, cfg)[:, 0]
    assert metrics.information(metrics.contingency(move, actions, 4, 6)) > 0.9
    video = layers.to_float(video)
    codes = lam.lookup(state.params, actions, cfg)[:, None]
    error = (lam.decode(state.params, video[:, :1], codes, cfg) - video[:, 1:]).square().mean()
    assert error < 0.5 * (video[:, 1:] - video[:, :1]).square().mean()
