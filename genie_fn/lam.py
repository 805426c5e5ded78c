"""The latent action model: which of A discrete actions led from each frame to the next, learned without labels.

Genie (arXiv 2402.15391), section 2.1.1: the encoder sees frames 1..t+1 and names action t; the decoder sees frames
1..t and action t, and predicts frame t+1, so that the few bits of the action must carry what changed. Two departures,
both against collapse: the models also read the difference to the frame before, in which motion is easy to see, and
errors count more where the picture truly changes.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from tyro.conf import Suppress

from genie_fn import layers, metrics, quantize
from genie_fn.errors import UserError
from genie_fn.layers import STConfig
from genie_fn.quantize import Quantized, QuantizerConfig
from genie_fn.tree import Tree


@dataclass(frozen=True)
class LamConfig:
    """`quantizer.codes` is the number of latent actions, A."""

    height: Suppress[int] = 64
    width: Suppress[int] = 64
    """The data's; not flags."""
    patch: int = 16
    encoder: STConfig = field(default_factory=STConfig)
    decoder: STConfig = field(default_factory=STConfig)
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(kind="vq", codes=6))
    motion: float = 0.9
    """Share of the error's weight that follows |x_{t+1} - x_t|; the rest is uniform (0 is the paper's loss)."""

    def __post_init__(self):
        if self.height % self.patch or self.width % self.patch:
            raise UserError(
                f"{self.height}x{self.width} frames cannot be cut into {self.patch}x{self.patch} patches: "
                "choose a --cfg.model.patch that divides both sides"
            )
        if not 0 <= self.motion <= 1:
            raise UserError(f"--cfg.model.motion is a share between 0 and 1, not {self.motion}")

    @property
    def actions(self) -> int:
        """The number of latent actions, A."""
        return self.quantizer.codes


def spec(cfg: LamConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`."""
    pixels, latent, tokens = 3 * cfg.patch**2, cfg.quantizer.dim, (cfg.height // cfg.patch) * (cfg.width // cfg.patch)
    return {
        "encoder": layers.grid_spec(cfg.encoder, 2 * pixels, latent, tokens),
        "quantizer": quantize.spec(cfg.quantizer),
        "action": layers.linear_spec(latent, cfg.decoder.dim),
        # A small last layer: the prediction, a change to the last frame, begins near no change.
        "decoder": layers.grid_spec(cfg.decoder, 2 * pixels, pixels, tokens, scale=0.1),
    }


def _patches(video_BTHWC: Tensor, cfg: LamConfig) -> Tensor:
    """Patches of every frame and of its difference to the frame before (zero for the first)."""
    difference = torch.diff(video_BTHWC, dim=1, prepend=video_BTHWC[:, :1])
    return layers.patchify(torch.cat((video_BTHWC, difference), dim=-1), cfg.patch)


def encode(params: Tree, video_BTHWC: Tensor, cfg: LamConfig) -> Tensor:
    """Video in [-1, 1] → one latent per transition, (B, T-1, K), before quantisation: the mean over the grid."""
    z_BTNK, _ = layers.grid_transformer(params["encoder"], _patches(video_BTHWC, cfg), cfg.encoder)
    return z_BTNK[:, 1:].mean(2)


def infer_actions(params: Tree, video_BTHWC: Tensor, cfg: LamConfig) -> Tensor:
    """uint8 video of T >= 2 frames → latent actions (B, T-1); action t depends on frames <= t+1 alone."""
    z = encode(params, layers.to_float(video_BTHWC), cfg)
    return quantize.quantize(params["quantizer"], z, cfg.quantizer).ids


def decode(params: Tree, video_BTHWC: Tensor, codes_BTK: Tensor, cfg: LamConfig) -> Tensor:
    """Predict the frame after each frame of a video in [-1, 1], given the action's code there: (B, T, H, W, 3)."""
    action = layers.linear(params["action"], codes_BTK)[:, :, None]
    change, _ = layers.grid_transformer(params["decoder"], _patches(video_BTHWC, cfg), cfg.decoder, condition=action)
    return video_BTHWC + layers.unpatchify(change, cfg.patch, cfg.height)


def loss(params: Tree, video_BTHWC: Tensor, cfg: LamConfig) -> tuple[Tensor, tuple[dict, Quantized]]:
    """Motion-weighted squared error of the predicted next frames plus the quantiser's loss, on uint8 video.

    Returns the scalar loss and (metrics, quantised latents); `psnr` is unweighted.
    """
    video = layers.to_float(video_BTHWC)
    past, target = video[:, :-1], video[:, 1:]
    q = quantize.quantize(params["quantizer"], encode(params, video, cfg), cfg.quantizer)
    error = (decode(params, past, q.codes, cfg) - target).square()
    moved = (target - past).abs().mean(-1, keepdim=True)
    weight = (1 - cfg.motion) + cfg.motion * moved / moved.mean().clamp(min=1e-6)
    weighted, mse = (weight * error).mean(), error.mean()
    scores = {"mse": mse, "weighted_mse": weighted, "psnr": metrics.psnr(mse)}
    return weighted + q.loss, (scores | q.metrics, q)
