"""Work counted by hand: FLOPs of matrix products, and the least number of bytes transferred.

A multiplication and an addition are two FLOPs. Causal attention over T frames counts (T + 1) / 2
keys for each query.
"""

from genie_fn import dynamics, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.layers import STConfig
from genie_fn.tokenizer import TokenizerConfig

TRAINING = 3  # the backward pass has two matrix products for each of the forward pass


def stack(cfg: STConfig, frames: int, places: int) -> float:
    """FLOPs of the ST-transformer per token.

    A block has two attentions of four projections each, their scores and weighted sums, and an MLP.
    """
    projections = 2 * 2 * 4 * cfg.dim**2
    scores = 2 * 2 * cfg.dim * (places + (frames + 1) / 2)
    mlp = 2 * 2 * cfg.mlp * cfg.dim**2
    return cfg.layers * (projections + scores + mlp)


def tokenizer_step(cfg: TokenizerConfig, batch: int, frames: int) -> float:
    """FLOPs of a training step of an st_vivit tokenizer."""
    pixels = 3 * cfg.patch**2
    latent = cfg.quantizer.width
    ends = sum(2 * side.dim * (pixels + latent) for side in (cfg.encoder, cfg.decoder))
    codebook = (
        2 * 2 * cfg.quantizer.book_codes * cfg.quantizer.dim if cfg.quantizer.kind == "vq" else 0
    )
    inside = sum(stack(side, frames, cfg.tokens) for side in (cfg.encoder, cfg.decoder))
    return TRAINING * batch * frames * cfg.tokens * (inside + ends + codebook)


def dynamics_step(cfg: DynamicsConfig, batch: int, frames: int) -> float:
    """FLOPs of a training step of the dynamics model."""
    places = cfg.tokens + (cfg.action_mode == "prepend")
    ends = cfg.tokens * _ends(cfg)
    return TRAINING * batch * frames * (places * stack(cfg.stack, frames, places) + ends)


def _ends(cfg: DynamicsConfig) -> float:
    """FLOPs per token of the output layer, of the neighbourhood's map and of the pointer's."""
    places = cfg.neighbourhood**2
    pointed = places if cfg.pointer else 0
    return 2 * cfg.stack.dim * (sum(cfg.sizes) + places * cfg.neighbour_dim + pointed)


def state_bytes(spec: tree.Tree) -> float:
    """Bytes that a training step transfers at least.

    Parameters, two moments and the average are read and written, gradients are written and read.
    """
    return tree.count(spec) * 4 * (2 * 4 + 2)


def frame(cfg: DynamicsConfig, steps: int) -> float:
    """FLOPs of one cached frame: `steps` passes over its tokens, and one to extend the cache."""
    places = cfg.tokens + (cfg.action_mode == "prepend")
    passes = (steps + 1) * places * stack(cfg.stack, 2 * cfg.stack.window - 1, places)
    return passes + steps * cfg.tokens * _ends(cfg)


def frame_bytes(cfg: DynamicsConfig, steps: int) -> float:
    """Bytes of one cached frame: every pass reads the parameters and the cache."""
    width = 2 if cfg.stack.dtype == "bfloat16" else 4
    places = cfg.tokens + (cfg.action_mode == "prepend")
    cache = 2 * cfg.stack.layers * (cfg.stack.window - 1) * places * cfg.stack.dim * width
    return (steps + 1) * (tree.count(dynamics.spec(cfg)) * 4 + cache)


def attention(
    batch: int, queries: int, keys: float, heads: int, head_dim: int, width: int
) -> tuple[float, float]:
    """FLOPs and bytes of attention, forward and backward.

    The passes have 2 and 5 matrix products. They transfer 4 tensors, then 5 inputs and 3 outputs.
    """
    product = 2 * batch * heads * queries * keys * head_dim
    return 7 * product, 12 * batch * queries * heads * head_dim * width
