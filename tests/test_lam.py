"""The latent action model: what an action may depend on, and that the decoder sees the next frame through it alone."""

from dataclasses import replace

import pytest
import torch

from genie_fn import lam, layers, quantize, random, tree
from genie_fn.errors import UserError
from genie_fn.nets.blueprint import Blueprints
from genie_fn.nets.flow import FlowConfig


@pytest.fixture(scope="module", params=["st_vivit", "blueprint", "motion"])
def lam_cfg(request, lam_cfg):
    """All architectures."""
    if request.param == "st_vivit":
        return lam_cfg
    if request.param == "motion":
        flow = FlowConfig(reduce=1, radius=2, cell=8, hidden=16)
        return replace(lam_cfg, arch="motion", flow=flow)
    nets = Blueprints(
        lam.latent_act_encoder(16, 2, 8, 1), lam.latent_act_decoder(16, 2, 8, 1, condition=8)
    )
    return replace(lam_cfg, patch=8, arch="blueprint", blueprints=nets)


@pytest.fixture(scope="module")
def lam_params(lam_cfg):
    return tree.init(lam.spec(lam_cfg), random.key(2))


@pytest.fixture
def video(clip):
    return layers.to_float(clip)


def codes_like(video, cfg, key=0):
    return random.normal(random.key(key), (*video.shape[:2], cfg.quantizer.dim))


@pytest.mark.parametrize("t", [0, 2, 4])
def test_action_t_does_not_see_frames_after_t_plus_1(lam_params, lam_cfg, clip, video, t):
    changed = torch.cat((clip[:, : t + 2], 255 - clip[:, t + 2 :]), 1)
    a, b = (lam.encode(lam_params, layers.to_float(v), lam_cfg) for v in (clip, changed))
    assert a.shape == (2, 6, lam_cfg.quantizer.dim)
    assert torch.equal(a[:, : t + 1], b[:, : t + 1])
    assert not torch.allclose(a[:, t + 1], b[:, t + 1], atol=1e-4), (
        "the perturbation reached nothing"
    )
    actions = [lam.infer_actions(lam_params, v, lam_cfg)[:, : t + 1] for v in (clip, changed)]
    assert torch.equal(*actions)


def test_action_t_sees_frame_t_plus_1(lam_params, lam_cfg, video):
    leaf = video.clone().requires_grad_()
    z = lam.encode(lam_params, leaf, lam_cfg)
    gradient = torch.autograd.grad(z[:, 2].sum(), leaf)[0].abs().amax((0, 2, 3, 4))
    seen = slice(2, 4) if lam_cfg.arch == "motion" else slice(4)  # its codes have no history
    assert (gradient[seen] > 0).all() and (gradient[4:] == 0).all()


def test_a_prediction_sees_no_later_frame_and_no_later_action(lam_params, lam_cfg, video):
    """The decoder's only news of frame t+1 is action t: any other path makes the actions meaningless."""
    past, codes = video.clone().requires_grad_(), codes_like(video, lam_cfg).requires_grad_()
    prediction = lam.decode(lam_params, past, codes, lam_cfg)
    assert prediction.shape == past.shape
    for t in (0, 3, 5):
        to_past, to_codes = torch.autograd.grad(
            prediction[:, t].square().sum(), (past, codes), retain_graph=True
        )
        assert (to_past[:, t + 1 :] == 0).all(), "a prediction sees its own target"
        assert (to_codes[:, t + 1 :] == 0).all(), "a prediction sees a later action"
        assert to_past[:, t].abs().max() > 0 and to_codes[:, t].abs().max() > 0


def test_without_history_a_prediction_sees_one_frame(lam_params, lam_cfg, video):
    past, codes, cfg = (
        video.clone().requires_grad_(),
        codes_like(video, lam_cfg),
        replace(lam_cfg, history=False),
    )
    prediction = lam.decode(lam_params, past, codes, cfg)
    assert prediction.shape == video.shape
    gradient = torch.autograd.grad(prediction[:, 3].sum(), past)[0].abs().amax((0, 2, 3, 4))
    assert gradient[3] > 0 and (gradient[:3] == 0).all() and (gradient[4:] == 0).all()
    first = lam.decode(lam_params, video[:, :1], codes[:, :1], lam_cfg)
    assert torch.allclose(prediction[:, :1], first, atol=1e-5), (
        "the first frame has no history anyway"
    )


def test_the_loss_predicts_from_past_frames_only(lam_params, lam_cfg, clip, video):
    """The prediction inside the loss is that of `decode` on frames 1..T-1, against frames 2..T."""
    _, (metrics, q) = lam.loss(lam_params, clip, lam_cfg)
    assert torch.equal(q.ids, lam.infer_actions(lam_params, clip, lam_cfg))
    prediction = lam.decode(lam_params, video[:, :-1], q.codes, lam_cfg)
    torch.testing.assert_close(metrics["mse"], (prediction - video[:, 1:]).square().mean())


def test_without_motion_weight_the_loss_is_the_papers(lam_params, lam_cfg, clip):
    cfg = replace(lam_cfg, motion=0.0)
    loss, (metrics, q) = lam.loss(lam_params, clip, cfg)
    torch.testing.assert_close(metrics["weighted_mse"], metrics["mse"])
    torch.testing.assert_close(loss, metrics["mse"] + q.loss)


def test_motion_weight_counts_what_moves(lam_params, lam_cfg, clip):
    """Half the picture stands still: with all weight on motion its error does not count; the mean weight stays 1."""
    still = clip.clone()
    still[:, :, :, :16] = still[:, :1, :, :16]
    cfg = replace(lam_cfg, motion=1.0)
    _, (metrics, q) = lam.loss(lam_params, still, cfg)
    video = layers.to_float(still)
    past, target = video[:, :-1], video[:, 1:]
    error = (lam.decode(lam_params, past, q.codes, cfg) - target).square()
    moved = (target - past).abs().mean(-1, keepdim=True)
    assert (moved[:, :, :, :16] == 0).all()
    expected = (error * moved).mean() / moved.mean()
    torch.testing.assert_close(metrics["weighted_mse"], expected)


def test_a_still_video_has_a_finite_loss_and_gradient(lam_params, lam_cfg, clip):
    still = clip[:, :1].expand(-1, 3, -1, -1, -1)
    (loss, _), grads = tree.value_and_grad(lam.loss)(lam_params, still, lam_cfg)
    assert loss.isfinite() and all(g.isfinite().all() for g in tree.leaves(grads))


def test_different_actions_predict_different_frames(lam_params, lam_cfg, video):
    codebook = lam_params["quantizer"]["codebook"]
    futures = torch.stack(
        [
            lam.decode(lam_params, video[:1, :1], codebook[a].expand(1, 1, -1), lam_cfg).flatten()
            for a in range(lam_cfg.quantizer.codes)
        ]
    )
    distances = torch.cdist(futures, futures) + torch.eye(lam_cfg.quantizer.codes) * 1e9
    assert distances.min() > 1e-3


@pytest.mark.parametrize("kind", ["lfq", "vq"])
def test_every_parameter_is_trained(lam_cfg, clip, kind):
    codes = 256 if kind == "lfq" else 4  # a width of 8 both times
    cfg = replace(lam_cfg, quantizer=quantize.QuantizerConfig(kind=kind, codes=codes, latent_dim=8))
    params = tree.init(lam.spec(cfg), random.key(0))
    _, grads = tree.value_and_grad(lam.loss)(params, clip, cfg)
    for path, gradient in tree.paths(grads).items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, path


def test_two_frames_are_enough(lam_params, lam_cfg, clip):
    actions = lam.infer_actions(lam_params, clip[:1, :2], lam_cfg)
    assert actions.shape == (1, 1) and 0 <= actions.item() < lam_cfg.actions == 5
    assert torch.equal(actions, lam.infer_actions(lam_params, clip, lam_cfg)[:1, :1])


def test_bad_configurations_are_refused(lam_cfg):
    side = {"flow": FlowConfig(cell=64)} if lam_cfg.arch == "motion" else {"patch": 12}
    for bad in (side, {"motion": 1.5}, {"motion": -0.1}):
        with pytest.raises(UserError):
            replace(lam_cfg, **bad)


def test_networks_that_change_the_frame_rate_or_ignore_the_action_are_refused():
    enc, dec = lam.latent_act_encoder(16, 2, 8, 1), lam.latent_act_decoder(16, 2, 8, 1, condition=8)
    there_and_back = (
        ("spacetime_downsample", {"in_channels": 16, "space_factor": 1}),
        ("depth2time_upsample", {"in_channels": 16}),
    )
    quantizer = quantize.QuantizerConfig(kind="vq", codes=4, latent_dim=8)
    for encoder, decoder, message in (
        (enc + there_and_back, dec, "keeps the frame rate"),
        (enc, there_and_back + dec, "keeps the frame rate"),
        (enc, enc[::2], "need a condition of the width of an action's code, 8"),
        (enc, lam.latent_act_decoder(16, 2, 8, 1, condition=5), "need a condition"),
        ((), (), "needs the blueprints"),
    ):
        with pytest.raises(UserError, match=message):
            lam.LamConfig(
                32,
                32,
                8,
                quantizer=quantizer,
                arch="blueprint",
                blueprints=Blueprints(encoder, decoder),
            )


@pytest.mark.parametrize("preset", ["demo", "conv-demo", "coinrun", "open-genie-demo"])
def test_an_action_needs_two_frames(preset):
    lam.check_clips(lam.PRESETS[preset], 2)
    with pytest.raises(UserError, match="at least 2, not 1: raise --cfg.num-frames"):
        lam.check_clips(lam.PRESETS[preset], 1)


def test_frames_that_are_too_small_are_told_the_least_size():
    cfg = replace(lam.PRESETS["conv-demo"], height=16, width=16)
    with pytest.raises(UserError, match="2x2 patches, and the encoder needs one of 4x4.* 32x32 pi"):
        lam.check_clips(cfg, 2)
    cfg = replace(cfg, height=32, width=32)
    lam.check_clips(cfg, 2)
    params = tree.init(lam.spec(cfg), random.key(0))
    assert lam.infer_actions(params, torch.zeros((1, 2, 32, 32, 3), dtype=torch.uint8), cfg).shape


@pytest.mark.parametrize("patch", [0, -1])
def test_a_patch_has_pixels(patch):
    with pytest.raises(UserError, match="--cfg.model.patch"):
        replace(lam.PRESETS["demo"], patch=patch)
