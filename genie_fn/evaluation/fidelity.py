"""What a world's parts reach on their own: the tokenizer's pictures and codes, the dynamics' guesses."""

import math

import torch
from torch import Tensor

from genie_fn import dynamics, metrics, tokenizer, world
from genie_fn.world import World


def reconstruction(dream: World, frames: Tensor) -> tuple[dict, Tensor, Tensor]:
    """How well the tokenizer alone keeps the frames, and how many of its codes it uses; with ids and frames made."""
    coder, codes = dream.tokenizer, dream.tokenizer.cfg.quantizer.codes

    def tokenize(few: Tensor) -> Tensor:
        return tokenizer.tokenize(coder.params, few, coder.cfg, backend=coder.backend)[1]

    def detokenize(few: Tensor) -> Tensor:
        return tokenizer.detokenize(coder.params, few, coder.cfg, backend=coder.backend)

    ids = torch.cat([tokenize(few) for (few,) in world.chunks(frames)])
    again = torch.cat([detokenize(few) for (few,) in world.chunks(ids)])
    entropy = metrics.entropy(ids, codes)
    scores = {"psnr": metrics.frame_psnr(frames, again).mean().item()}
    scores |= {"ssim": metrics.frame_ssim(frames, again).mean().item(), "codes": codes}
    scores |= {
        "codes_used": len(ids.unique()),
        "unigram_entropy": entropy,
        "perplexity": math.exp(entropy),
    }
    return scores, ids, again


def prediction(dream: World, ids: Tensor, actions: Tensor, key: Tensor) -> dict:
    """The dynamics' cross-entropy in nats per hidden token, under the masks of training."""
    model = dream.dynamics
    mask = dynamics.sample_mask(key, *ids.shape[:2], model.cfg)
    total: dict[str, float] = {}
    for few, acts, hidden in world.chunks(ids, actions, mask):
        _, (scores, _) = dynamics.loss(
            model.params, few, acts, hidden, model.cfg, backend=model.backend
        )
        share = (hidden.sum() / mask.sum()).item()
        total = {
            name: total.get(name, 0.0) + share * value.item() for name, value in scores.items()
        }
    return total
