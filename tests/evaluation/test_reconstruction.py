"""Reconstruction and prediction, against the functions that they are made of."""

import math

import pytest
import torch

from genie_fn import dynamics, metrics, random, tokenizer, world
from genie_fn.evaluation import clips, prediction, reconstruction


@pytest.fixture
def held_out(world_model, clip):
    frames = clip.repeat(9, 1, 1, 1, 1)  # more clips than are computed at a time
    return clips.encode(world_model, frames, torch.zeros(len(frames), 6, dtype=torch.int64))


def test_every_clip_is_encoded_once(world_model, clip, held_out):
    codes, ids = tokenizer.tokenize(
        world_model.tokenizer.params, held_out.frames, world_model.tokenizer.cfg
    )
    assert torch.equal(held_out.ids, ids) and torch.equal(held_out.codes, codes)
    assert torch.equal(held_out.actions, world.infer_actions(world_model, held_out.frames))
    recorded = torch.ones(18, 6, dtype=torch.int64)
    assert clips.from_frame(world_model, held_out, 0, recorded) is held_out
    later = clips.from_frame(world_model, held_out, 2, recorded)
    assert torch.equal(later.frames, held_out.frames[:, 2:]) and later.ids.shape[1] == 5
    assert torch.equal(clips.conditioning(world_model._replace(lam=None), clip, recorded), recorded)


def test_reconstruction_counts_codes_and_compares_frames(world_model, held_out):
    scores, decoded = reconstruction.evaluate(world_model, held_out)
    frames, ids = held_out.frames, held_out.ids
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    assert scores.psnr == pytest.approx(metrics.frame_psnr(frames, decoded).mean().item())
    assert scores.ssim == pytest.approx(metrics.frame_ssim(frames, decoded).mean().item())
    assert scores.codes_used == len(set(ids.flatten().tolist())) <= scores.codes == 16
    assert math.log(scores.perplexity) == pytest.approx(scores.unigram_entropy)
    assert 1 <= scores.perplexity <= scores.codes_used + 1e-6


def test_prediction_is_the_loss_of_training(world_model, held_out):
    key = random.key(7)
    found = prediction.evaluate(world_model, held_out, key)
    model, ids = world_model.dynamics, held_out.ids
    mask = dynamics.sample_mask(key, *ids.shape[:2], model.cfg)
    expected, _ = dynamics.loss(model.params, ids, held_out.actions, mask, model.cfg)
    assert found.cross_entropy == pytest.approx(expected.item()) and 0 <= found.accuracy <= 1
