"""The facing bit of a latent action: its symmetry, the decoder's inputs, and that it is learned."""

from dataclasses import replace

import pytest
import torch

from genie_fn import lam, layers, quantize, random, tree
from genie_fn.errors import UserError
from genie_fn.nets import facing
from genie_fn.nets.facing import FacingConfig
from genie_fn.training import optim
from genie_fn.training.optim import OptimConfig

CFG = FacingConfig(side=8, hidden=16, latent=4)


@pytest.fixture(scope="module")
def params():
    return tree.init(facing.spec(CFG), random.key(5))


@pytest.fixture
def video(clip):
    return layers.to_float(clip)


def test_a_flipped_video_has_the_opposite_bit(params, video):
    z, flipped = (facing.encode(params, v, CFG) for v in (video, video.flip(3)))
    torch.testing.assert_close(z, -flipped)
    bits = [facing.infer(params, v, CFG) for v in (video, video.flip(3))]
    assert torch.equal(bits[0], 1 - bits[1])


def test_the_two_codes_are_opposite_and_the_gradient_goes_through(params, video):
    z = facing.encode(params, video, CFG).requires_grad_()
    quantized = facing.quantize(params, z, CFG)
    sign = 2.0 * quantized.bits_BT - 1
    torch.testing.assert_close(quantized.codes_BTK, sign[..., None] * params["code"])
    nearer = (z - quantized.codes_BTK).norm(dim=-1) <= (z + quantized.codes_BTK).norm(dim=-1)
    assert nearer.all()
    assert torch.equal(torch.autograd.grad(quantized.codes_BTK.sum(), z)[0], torch.ones_like(z))


def test_the_bit_is_a_function_of_its_next_frame(params, video):
    leaf = video.clone().requires_grad_()
    z = facing.encode(params, leaf, CFG)
    seen = torch.autograd.grad(z[:, 2].square().sum(), leaf)[0].abs().amax((0, 2, 3, 4)) > 0
    assert seen.tolist() == [False, False, False, True, False, False, False]


def test_the_decoder_cannot_see_the_direction_of_the_agent(params, video):
    """Neither frames after its own, nor the left and right of the middle."""
    codes = random.normal(random.key(1), (*video.shape[:2], CFG.latent))
    flipped = video.clone()
    columns = slice((32 - 4) // 2, (32 + 4) // 2)
    flipped[:, :, :, columns] = flipped[:, :, :, columns].flip(3)
    assert not torch.allclose(video, flipped)
    drawn = facing.draw(params, video, codes, CFG)
    torch.testing.assert_close(drawn, facing.draw(params, flipped, codes, CFG))
    torch.testing.assert_close(drawn, -drawn.flip(3))
    shape = (2, 7, 8, 4, 3)
    assert drawn.shape == shape and not torch.allclose(
        drawn, facing.draw(params, video.roll(1, 3), codes, CFG)
    )
    later = torch.cat((video[:, :3], -video[:, 3:]), 1)
    torch.testing.assert_close(drawn[:, :3], facing.draw(params, later, codes, CFG)[:, :3])
    assert not torch.allclose(drawn, facing.draw(params, video, -codes, CFG))


def test_targets_are_means_over_the_next_frames(video):
    expected = facing.targets(video, CFG)
    middle = video[:, :, 12:20, 14:18]
    odd = (middle - middle.flip(3)) / 2
    torch.testing.assert_close(expected, (odd[:, 1:-1] + odd[:, 2:]) / 2)
    assert facing.targets(video[:, :2], CFG).shape == (2, 1, 8, 4, 3), "two frames are enough"


def test_the_bits_of_the_loss_are_those_of_the_video(params, video):
    """Although it flips every other clip."""
    _, (_, bits) = facing.loss(params, video, CFG)
    assert torch.equal(bits, facing.infer(params, video, CFG))


def agents(key, turns_BT):
    """Clips of noise behind an agent in the middle, with a bright pixel on the side it faces."""
    noise = random.normal(random.fold_in(key, 1), (*turns_BT.shape, 16, 16, 3)) * 0.3
    side = torch.where(turns_BT == 1, 8, 7)
    columns = torch.arange(16) == side[..., None]
    noise[:, :, 7:9] = torch.where(columns[:, :, None, :, None], 1.0, -0.5)
    return noise.clamp(-1, 1)


def two_kinds(key, count, right):
    """Clips (count, 4, 16, 16, 3) and the directions that their agents face.

    Every other agent is blue, with its bright pixel behind it.
    """
    turns = random.bernoulli(key, right, (count, 1)).expand(-1, 4).long()
    video = agents(key, turns)
    video[1::2] = agents(key, 1 - turns[1::2])
    video[1::2, :, 7:9, :, 0] = -1.0
    return video, turns


def trained(cfg, clips):
    """The parameters after 120 steps on `clips(key)`."""
    params, grad = tree.init(facing.spec(cfg), random.key(0)), tree.value_and_grad(facing.loss)
    optimizer = OptimConfig(weight_decay=0.0)
    state, decay, rate = (
        optim.adamw_init(params),
        tree.map(lambda s: False, facing.spec(cfg)),
        torch.tensor(5e-3),
    )
    for step in range(120):
        _, grads = grad(params, clips(random.fold_in(random.key(7), step)), cfg)
        params, state = optim.adamw(
            grads, state, params, torch.tensor(step), rate, decay, optimizer
        )
    return params


def test_it_learns_the_direction_of_an_agent():
    """From clips with as many agents that look left as right."""

    def clips(key):
        return agents(key, random.bernoulli(key, 0.5, (16, 1)).expand(-1, 4).long())

    turns = random.bernoulli(random.key(9), 0.5, (64, 4)).long()
    bits = facing.infer(trained(CFG, clips), agents(random.key(9), turns), CFG)
    agree = (bits == turns[:, 1:]).float().mean()
    assert max(agree, 1 - agree) > 0.95


@pytest.mark.parametrize("lean, shared", [(0.0, False), (0.5, True)])
def test_agents_of_all_appearances_agree_on_what_is_right(lean, shared):
    """The front of an agent shows only where agents mostly move in one direction, and only the
    loss `lean` uses that."""
    cfg = replace(CFG, lean=lean)
    params = trained(cfg, lambda key: two_kinds(key, 32, 0.8)[0])
    video, turns = two_kinds(random.key(9), 64, 0.5)
    right = (facing.infer(params, video, cfg) == turns[:, 1:]).float()
    kinds = right[::2].mean(), right[1::2].mean()
    assert min(kinds) > 0.95 if shared else abs(kinds[0] - kinds[1]) > 0.9


def test_bad_configs_are_a_sentence(lam_cfg):
    for bad in ({"side": 6}, {"side": -4}, {"side": 8, "hold": 0}):
        with pytest.raises(UserError):
            FacingConfig(**bad)
    with pytest.raises(UserError, match="more than the 32x32 frames"):
        lam.LamConfig(32, 32, 16, facing=FacingConfig(side=36))


def test_a_still_picture_has_a_finite_gradient(params):
    still = torch.zeros(2, 3, 16, 16, 3)
    (loss, _), grads = tree.value_and_grad(facing.loss)(params, still, CFG)
    assert loss.isfinite() and all(g.isfinite().all() for g in tree.leaves(grads))


def test_quantizer_counts_are_the_scenes(lam_cfg, clip):
    """The codebook's update follows the scene's codes, while the ids are the actions."""
    cfg = replace(lam_cfg, facing=CFG)
    params = tree.init(lam.spec(cfg), random.key(0))
    _, (metrics, q) = lam.loss(params, clip, cfg)
    assert cfg.actions == 10 and q.use_V.shape == (5,)
    assert torch.equal(q.use_V, quantize.code_use(q.ids // 2, 5))
    assert (metrics["use"] > 0).sum() == len(q.ids.unique())
    assert torch.equal(lam.lookup(params, q.ids, cfg), params["quantizer"]["codebook"][q.ids // 2])
