"""Held-out clips as a world sees them: frames, actions and tokens."""

from typing import NamedTuple

import torch
from torch import Tensor

from genie_fn import tokenizer
from genie_fn import world as worlds
from genie_fn.world import World


class Clips(NamedTuple):
    """B clips of T frames, each encoded once by every model, for all that is measured on it."""

    frames: Tensor
    """(B, T, H, W, 3) uint8."""
    actions: Tensor
    """(B, T-1): inferred by the latent action model, or recorded, as the world is conditioned."""
    codes: Tensor
    """(B, T, N, K), the quantised latents."""
    ids: Tensor
    """(B, T, N)."""


def encode(world: World, frames: Tensor, recorded: Tensor) -> Clips:
    """Clips of these frames and recorded actions (B, T-1)."""
    codes, ids = tokenize(world, frames)
    return Clips(frames, conditioning(world, frames, recorded), codes, ids)


def tokenize(world: World, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, T, N, K) and ids (B, T, N) of uint8 frames, a few clips at a time."""
    model = world.tokenizer
    tokens = [
        tokenizer.tokenize(model.params, chunk, model.cfg, backend=model.backend)
        for (chunk,) in worlds.chunks(frames)
    ]
    codes, ids = zip(*tokens, strict=True)
    return torch.cat(codes), torch.cat(ids)


def conditioning(world: World, frames: Tensor, recorded: Tensor) -> Tensor:
    """The actions (B, T-1) that a world is conditioned on: inferred ones, or the recorded ones."""
    if world.lam is None:
        return recorded
    return infer_actions(world, frames)


def infer_actions(world: World, frames: Tensor) -> Tensor:
    """The latent actions (B, T-1) between uint8 frames, a few clips at a time."""
    return torch.cat([worlds.infer_actions(world, clips) for (clips,) in worlds.chunks(frames)])


def from_frame(world: World, clips: Clips, start: int, recorded: Tensor) -> Clips:
    """The same clips from frame `start` on.

    They are encoded anew unless `start` is 0: the tokens and actions of a clip depend on the frame
    that it starts with, because the encoders are causal in time.
    """
    if start == 0:
        return clips
    return encode(world, clips.frames[:, start:], recorded[:, start:])
