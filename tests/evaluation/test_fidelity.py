"""What the parts reach on their own, against the functions that they are made of."""

import math

import pytest
import torch

from genie_fn import dynamics, metrics, random, tokenizer
from genie_fn.evaluation import fidelity


def test_reconstruction_counts_codes_and_compares_frames(dream, clip):
    clip = clip.repeat(9, 1, 1, 1, 1)
    scores, ids, again = fidelity.reconstruction(dream, clip)
    assert torch.equal(
        ids, tokenizer.tokenize(dream.tokenizer.params, clip, dream.tokenizer.cfg)[1]
    )
    assert again.shape == clip.shape and again.dtype == torch.uint8
    assert scores["psnr"] == pytest.approx(metrics.frame_psnr(clip, again).mean().item())
    assert scores["codes_used"] == len(set(ids.flatten().tolist())) <= scores["codes"] == 16
    assert math.log(scores["perplexity"]) == pytest.approx(scores["unigram_entropy"])
    assert 1 <= scores["perplexity"] <= scores["codes_used"] + 1e-6


def test_prediction_is_the_loss_of_training(dream, clip):
    _, ids, _ = fidelity.reconstruction(dream, clip)
    ids = ids.repeat(9, 1, 1)  # more clips than are computed at a time
    actions, key = torch.zeros(len(ids), clip.shape[1] - 1, dtype=torch.int64), random.key(7)
    found = fidelity.prediction(dream, ids, actions, key)
    model = dream.dynamics
    mask = dynamics.sample_mask(key, *ids.shape[:2], model.cfg)
    expected, _ = dynamics.loss(model.params, ids, actions, mask, model.cfg)
    assert found["cross_entropy"] == pytest.approx(expected.item()) and 0 <= found["accuracy"] <= 1
