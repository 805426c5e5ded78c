"""The tokenizer: causality, the decoder's cache, the interface's shapes, and its loss."""

from dataclasses import replace

import pytest
import torch

from genie_fn import layers, quantize, random, tokenizer, tree
from genie_fn.errors import UserError
from genie_fn.nets.blueprint import Blueprints
from genie_fn.tokenizer import TokenizerConfig

LATER = slice(3, None)


@pytest.fixture
def other(clip):
    """The clip with other frames from frame 3 on."""
    return torch.cat((clip[:, :3], 255 - clip[:, LATER]), 1)


def test_latents_and_ids_do_not_see_later_frames(tokenizer_params, tokenizer_cfg, clip, other):
    a, b = (
        tokenizer.encode(tokenizer_params, layers.to_float(v), tokenizer_cfg) for v in (clip, other)
    )
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3], b[:, 3], atol=1e-3), "the perturbation reached nothing"
    (_, a), (_, b) = (tokenizer.tokenize(tokenizer_params, v, tokenizer_cfg) for v in (clip, other))
    assert torch.equal(a[:, :3], b[:, :3])


def test_pixels_do_not_see_later_codes(tokenizer_params, tokenizer_cfg):
    codes = random.normal(random.key(0), (2, 7, 4, 4))
    changed = torch.cat((codes[:, :3], -codes[:, LATER]), 1)
    a, b = (tokenizer.decode(tokenizer_params, c, tokenizer_cfg) for c in (codes, changed))
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3], b[:, 3], atol=1e-3), "the perturbation reached nothing"


def test_reconstruction_does_not_see_later_frames(tokenizer_params, tokenizer_cfg, clip, other):
    def reconstruct(video):
        return tokenizer.decode(
            tokenizer_params,
            tokenizer.tokenize(tokenizer_params, video, tokenizer_cfg)[0],
            tokenizer_cfg,
        )

    assert torch.equal(reconstruct(clip)[:, :3], reconstruct(other)[:, :3])


def test_decoding_frame_by_frame_equals_decoding_the_whole_video(
    tokenizer_params, tokenizer_cfg, clip
):
    """Seven frames through a window of four: past the window too."""
    codes, _ = tokenizer.tokenize(tokenizer_params, clip, tokenizer_cfg)
    whole = tokenizer.decode(tokenizer_params, codes, tokenizer_cfg)
    cache, frames = layers.empty_cache(tokenizer_cfg.decoder, len(clip), tokenizer_cfg.tokens), []
    for t in range(codes.shape[1]):
        frame, cache = tokenizer.decode_next(
            tokenizer_params, codes[:, t : t + 1], cache, tokenizer_cfg
        )
        frames.append(frame)
    torch.testing.assert_close(torch.cat(frames, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lfq", "vq"])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_shapes_and_ids_to_pixels(tokenizer_cfg, kind, size):
    height, width = size
    quantizer = quantize.QuantizerConfig(kind=kind, codes=8, latent_dim=5)
    cfg = TokenizerConfig(
        height, width, 16, tokenizer_cfg.encoder, tokenizer_cfg.decoder, quantizer
    )
    params = tree.init(tokenizer.spec(cfg), random.key(0))
    video = random.randint(random.key(1), (1, 2, height, width, 3), 0, 256).to(torch.uint8)
    codes, ids = tokenizer.tokenize(params, video, cfg)
    assert cfg.tokens == height * width // 256
    assert ids.shape == (1, 2, cfg.tokens) and codes.shape == (1, 2, cfg.tokens, quantizer.dim)
    assert ids.min() >= 0 and ids.max() < 8
    pixels = tokenizer.detokenize(params, ids, cfg)
    assert pixels.shape == video.shape and pixels.dtype == torch.uint8
    decoded = layers.to_uint8(tokenizer.decode(params, codes, cfg))
    assert (pixels.int() - decoded.int()).abs().max() <= 1, "ids do not lead back to their codes"


def test_a_single_frame_is_a_video(tokenizer_params, tokenizer_cfg, clip):
    _, alone = tokenizer.tokenize(tokenizer_params, clip[:1, :1], tokenizer_cfg)
    _, whole = tokenizer.tokenize(tokenizer_params, clip, tokenizer_cfg)
    assert torch.equal(alone, whole[:1, :1])


def test_the_ids_of_a_framewise_tokenizer_depend_on_their_frame_alone(tokenizer_cfg, clip):
    assert not tokenizer_cfg.framewise
    assert tokenizer.PRESETS["demo"].framewise
    assert not tokenizer.PRESETS["magvit2-demo"].framewise
    cfg = replace(tokenizer_cfg, encoder=replace(tokenizer_cfg.encoder, window=1))
    params = tree.init(tokenizer.spec(cfg), random.key(0))
    _, ids = tokenizer.tokenize(params, clip, cfg)
    alone = [tokenizer.tokenize(params, frame, cfg)[1] for frame in clip.split(1, dim=1)]
    assert cfg.framewise
    assert torch.equal(ids, torch.cat(alone, 1))


def test_the_loss_is_error_plus_quantiser(tokenizer_params, tokenizer_cfg, clip):
    loss, (metrics, q) = tokenizer.loss(tokenizer_params, clip, tokenizer_cfg)
    codes, ids = tokenizer.tokenize(tokenizer_params, clip, tokenizer_cfg)
    mse = (
        (tokenizer.decode(tokenizer_params, codes, tokenizer_cfg) - layers.to_float(clip))
        .square()
        .mean()
    )
    torch.testing.assert_close(metrics["mse"], mse)
    torch.testing.assert_close(loss, mse + q.loss)
    assert torch.equal(q.ids, ids)
    torch.testing.assert_close(
        metrics["use"].flatten() * ids.numel(), torch.bincount(ids.flatten(), minlength=16).float()
    )


@pytest.mark.parametrize("kind", ["lfq", "vq"])
def test_every_parameter_is_trained(tokenizer_cfg, clip, kind):
    """A zero gradient means a cut path: the bottleneck's, most often."""
    quantizer = quantize.QuantizerConfig(kind=kind, codes=8, latent_dim=5)
    cfg = TokenizerConfig(32, 32, 16, tokenizer_cfg.encoder, tokenizer_cfg.decoder, quantizer)
    params = tree.init(tokenizer.spec(cfg), random.key(0))
    _, grads = tree.value_and_grad(tokenizer.loss)(params, clip, cfg)
    for path, gradient in tree.paths(grads).items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, path


def test_the_squared_error_reaches_the_encoder_through_the_codes(tokenizer_cfg, clip):
    quantizer = quantize.QuantizerConfig(codes=16, commit=0.0, entropy=0.0)
    cfg = TokenizerConfig(32, 32, 16, tokenizer_cfg.encoder, tokenizer_cfg.decoder, quantizer)
    params = tree.init(tokenizer.spec(cfg), random.key(0))
    _, grads = tree.value_and_grad(tokenizer.loss)(params, clip, cfg)
    assert grads["encoder"]["embed"]["w"].abs().max() > 0


def test_a_patch_that_does_not_divide_the_frame_is_refused():
    with pytest.raises(UserError, match="patch"):
        TokenizerConfig(64, 60, 8)


def nets(encoder, decoder):
    blueprints = Blueprints(encoder, decoder)
    return TokenizerConfig(
        arch="magvit2", blueprints=blueprints, quantizer=quantize.QuantizerConfig(codes=16)
    )


FIRST = ("causal", {"in_channels": 3, "out_channels": 4})
LAST = ("causal", {"in_channels": 4, "out_channels": 3})


def test_networks_that_could_see_later_frames_are_refused():
    """Twice as slow and twice as fast again is the frame rate that it was, but frames of a pair see each other."""
    slower = ("spacetime_downsample", {"in_channels": 4, "space_factor": 1})
    faster = ("depth2time_upsample", {"in_channels": 4})
    assert nets((FIRST, slower), (faster, LAST)).time_factor == 2
    for encoder, decoder in (
        ((FIRST, slower, faster), (LAST,)),
        ((FIRST,), (slower, faster, LAST)),
    ):
        with pytest.raises(UserError, match="would see later frames"):
            nets(encoder, decoder)


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        ((), (), "needs the blueprints"),
        (
            (FIRST, ("adaptive_group_norm", {"num_channels": 4, "num_groups": 2, "dim_cond": 4})),
            (LAST,),
            "only in the",
        ),
        (
            (FIRST,),
            (("adaptive_group_norm", {"num_channels": 4, "num_groups": 2}), LAST),
            "of width 4",
        ),
        ((FIRST, LAST), (LAST,), "lead from 3 channels"),
        ((FIRST, ("space_downsample", {"in_channels": 4})), (LAST,), "must multiply"),
    ],
)
def test_networks_that_do_not_fit_are_refused(encoder, decoder, message):
    with pytest.raises(UserError, match=message):
        nets(encoder, decoder)


def test_the_last_weight_is_the_last_layers():
    cfg = nets((FIRST,), (("causal", {"in_channels": 4, "out_channels": 4}), "silu", LAST))
    params = tree.init(tokenizer.spec(cfg), random.key(0))
    assert tokenizer.last_weight(params, cfg) is params["decoder"]["02_causal-conv3d"]["w"]
    with pytest.raises(UserError, match="ends in a convolution"):
        odd = nets((FIRST,), (LAST, "silu"))
        tokenizer.last_weight(tree.init(tokenizer.spec(odd), random.key(0)), odd)


def test_clips_fit_the_frames_that_are_coded_together():
    cfg = tokenizer.PRESETS["magvit2-coinrun"]  # four frames together
    for frames, advice in ((3, "1 or 4"), (6, "4 or 5"), (7, "4 or 5")):
        with pytest.raises(UserError, match=f"give it {advice}, in training with --cfg.num-frames"):
            tokenizer.check_clips(cfg, frames)
    for frames in (1, 4, 5, 8):
        tokenizer.check_clips(cfg, frames)
    tokenizer.check_clips(tokenizer.PRESETS["demo"], 1)


@pytest.mark.parametrize("patch", [0, -1, 128])
def test_a_patch_is_at_most_a_frame(patch):
    with pytest.raises(UserError, match="--cfg.model.patch"):
        replace(tokenizer.PRESETS["demo"], patch=patch)


def test_sides_that_no_flag_can_change_are_the_frames():
    """Blueprints decide the size of a patch; --cfg.model.patch does not."""
    with pytest.raises(UserError, match="use frames whose sides are multiples of it"):
        replace(tokenizer.PRESETS["magvit2-demo"], height=20, width=20)


@pytest.mark.parametrize(
    ("patch", "height", "width", "fitted"),
    [
        (8, 64, 64, 8),
        (8, 128, 128, 8),
        (8, 96, 64, 8),
        (8, 90, 160, 10),
        (4, 90, 160, 5),
        (8, 9, 7, 1),
    ],
)
def test_a_patch_is_fitted_to_frames(patch, height, width, fitted):
    assert tokenizer.fitted_patch(patch, height, width) == fitted
