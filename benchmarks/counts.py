"""Work counted by hand: FLOPs of matrix products (a multiplication and an addition are two), and bytes at least moved.

N tokens per frame, T frames, width D, MLP width F; attention over time counts what causality leaves, (T + 1) / 2 keys.
"""

from genie_fn import dynamics, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.layers import STConfig
from genie_fn.tokenizer import TokenizerConfig

TRAINING = 3  # a backward pass has two products for each of the forward pass


def stack(cfg: STConfig, frames: int, places: int) -> float:
    """FLOPs per token of the ST-transformer: four projections in two attentions, the attentions, and the MLP."""
    projections = 2 * 2 * 4 * cfg.dim**2
    scores = 2 * 2 * cfg.dim * (places + (frames + 1) / 2)
    return cfg.layers * (projections + scores + 2 * 2 * cfg.mlp * cfg.dim**2)


def tokenizer_step(cfg: TokenizerConfig, batch: int, frames: int) -> float:
    """FLOPs of a training step of an st_vivit tokenizer."""
    pixels, latent = 3 * cfg.patch**2, cfg.quantizer.width
    ends = sum(2 * side.dim * (pixels + latent) for side in (cfg.encoder, cfg.decoder))
    codebook = 2 * 2 * cfg.quantizer.codes * latent if cfg.quantizer.kind == "vq" else 0
    inside = sum(stack(side, frames, cfg.tokens) for side in (cfg.encoder, cfg.decoder))
    return TRAINING * batch * frames * cfg.tokens * (inside + ends + codebook)


def dynamics_step(cfg: DynamicsConfig, batch: int, frames: int) -> float:
    """FLOPs of a training step of the dynamics model."""
    places = cfg.tokens + (cfg.action_mode == "prepend")
    head = 2 * cfg.stack.dim * sum(cfg.sizes) * cfg.tokens
    return TRAINING * batch * frames * (places * stack(cfg.stack, frames, places) + head)


def state_bytes(spec: tree.Tree) -> float:
    """Bytes that a step moves at least: parameters, two moments and average, read and written, and gradients."""
    return tree.count(spec) * 4 * (2 * 4 + 2)


def frame(cfg: DynamicsConfig, steps: int) -> float:
    """FLOPs of one cached frame: `steps` passes over its tokens and one more that extends the cache."""
    places = cfg.tokens + (cfg.action_mode == "prepend")
    passes = (steps + 1) * places * stack(cfg.stack, 2 * cfg.stack.window - 1, places)
    return passes + steps * 2 * cfg.stack.dim * sum(cfg.sizes) * cfg.tokens


def frame_bytes(cfg: DynamicsConfig, steps: int) -> float:
    """Bytes of one cached frame: parameters and the cache, read in every pass."""
    width = 2 if cfg.stack.dtype == "bfloat16" else 4
    places = cfg.tokens + (cfg.action_mode == "prepend")
    cache = 2 * cfg.stack.layers * (cfg.stack.window - 1) * places * cfg.stack.dim * width
    return (steps + 1) * (tree.count(dynamics.spec(cfg)) * 4 + cache)


def attention(
    batch: int, queries: int, keys: float, heads: int, head_dim: int, width: int
) -> tuple[float, float]:
    """FLOPs and bytes of attention forward and backward: 2 and 5 products; 4 tensors, then 5 in and 3 out."""
    product = 2 * batch * heads * queries * keys * head_dim
    return 7 * product, 12 * batch * queries * heads * head_dim * width
