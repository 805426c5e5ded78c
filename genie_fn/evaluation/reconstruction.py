"""Quality of the tokenizer alone: reconstructed frames and use of the codebook."""

import math

import torch
from torch import Tensor

from genie_fn import metrics, tokenizer
from genie_fn import world as worlds
from genie_fn.evaluation.clips import Clips
from genie_fn.evaluation.record import Reconstruction
from genie_fn.world import World


def decode(world: World, ids: Tensor) -> Tensor:
    """The frames (B, T, H, W, 3) uint8 that the tokenizer decodes from ids."""
    model = world.tokenizer
    frames = [
        tokenizer.detokenize(model.params, chunk, model.cfg, backend=model.backend)
        for (chunk,) in worlds.chunks(ids)
    ]
    return torch.cat(frames)


def evaluate(world: World, clips: Clips) -> tuple[Reconstruction, Tensor]:
    """Scores of the reconstructed frames and of the codes, and the reconstructed frames."""
    codes = world.tokenizer.cfg.quantizer.codes
    decoded = decode(world, clips.ids)
    entropy = metrics.entropy(clips.ids)
    scores = Reconstruction(
        psnr=metrics.frame_psnr(clips.frames, decoded).mean().item(),
        ssim=metrics.frame_ssim(clips.frames, decoded).mean().item(),
        edges=metrics.edge_ratio(decoded, clips.frames),
        codes=codes,
        codes_used=len(clips.ids.unique()),
        unigram_entropy=entropy,
        perplexity=math.exp(entropy),
    )
    return scores, decoded
