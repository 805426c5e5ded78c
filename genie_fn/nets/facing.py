"""One bit of a latent action: the direction that the agent faces, for views that follow it.

In side-scrolling games a pressed direction key decides the direction in which the agent is drawn,
while the change between two frames depends more on the agent's speed. So this bit is learned from
the agent's appearance in the middle of the view. The decoder receives the frame before, with the
middle averaged with its horizontal flip, which removes left and right, and predicts the asymmetric
part of the next frames. The surroundings do not show the agent's direction, so the bit has to.

The encoder is odd by construction, z(flipped) = -z, and so are the two codes, b and -b. Flipping a
video swaps them, so neither can die out.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers
from genie_fn.errors import UserError
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.tree import ParamSpec, Tree


@dataclass(frozen=True)
class FacingConfig:
    """Two small multilayer perceptrons on a square in the middle of the view."""

    side: int = 0
    """Side of the square in pixels; the middle half of its columns shows the agent. 0: off."""
    hidden: int = 128
    latent: int = 6
    hold: int = 2
    """The number of frames whose mean a bit predicts: unlike the background, the agent stays."""
    commit: float = 0.1
    """Weight of the commitment loss."""
    lean: float = 0.15
    """Weight of classifying a video against its horizontal flip by the bit, which is possible where
    agents mostly move in one direction. Without it, each kind of agent chooses its own code for
    left."""

    def __post_init__(self):
        if self.side < 0 or self.side % 4 or self.hold < 1:
            raise UserError(
                "--cfg.model.facing.side must be a multiple of 4 and .hold at least 1, "
                f"not {self.side} and {self.hold}"
            )


class Facing(NamedTuple):
    """The quantised latents of T-1 transitions."""

    codes_BTK: Tensor
    """b or -b; a straight-through estimator passes the gradient to the encoder."""
    bits_BT: Tensor
    """0 or 1, int64."""
    loss: Tensor


def spec(cfg: FacingConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`."""
    pixels = 3 * cfg.side**2
    middle = pixels // 2
    return {
        "look": layers.linear_spec(pixels, cfg.hidden),
        "latent": layers.linear_spec(cfg.hidden, cfg.latent),
        "code": ParamSpec((cfg.latent,), std=0.3, decay=False),
        "past": layers.linear_spec(pixels, cfg.hidden),
        "modulate": layers.linear_spec(cfg.latent, cfg.hidden),
        "draw": layers.linear_spec(cfg.hidden, middle, scale=0.3),
        "shift": layers.linear_spec(cfg.latent, middle, scale=0.3),
    }


def square(video_BTHWC: Tensor, cfg: FacingConfig) -> Tensor:
    """The square in the middle of every frame, (B, T, side, side, 3)."""
    top, left = ((n - cfg.side) // 2 for n in video_BTHWC.shape[2:4])
    return video_BTHWC[:, :, top : top + cfg.side, left : left + cfg.side]


def middle(square_BTHWC: Tensor) -> Tensor:
    """The middle columns, half of them."""
    quarter = square_BTHWC.shape[3] // 4
    return square_BTHWC[:, :, :, quarter:-quarter]


def odd(x_BTHWC: Tensor) -> Tensor:
    """The asymmetric part: half the difference from the horizontal flip."""
    return (x_BTHWC - x_BTHWC.flip(3)) / 2


def hide(square_BTHWC: Tensor) -> Tensor:
    """The squares with the middle averaged with its horizontal flip."""
    quarter = square_BTHWC.shape[3] // 4
    return square_BTHWC - F.pad(odd(middle(square_BTHWC)), (0, 0, quarter, quarter))


def encode(params: Tree, video_BTHWC: Tensor, cfg: FacingConfig) -> Tensor:
    """Video in [-1, 1] → (B, T-1, K) per transition, from the frame after it."""

    def latent(x_BTHWC: Tensor) -> Tensor:
        hidden = torch.tanh(layers.linear(params["look"], x_BTHWC.flatten(2)))
        return layers.linear(params["latent"], hidden)

    after = square(video_BTHWC[:, 1:], cfg)
    return (latent(after) - latent(after.flip(3))) / 2


def quantize(params: Tree, z_BTK: Tensor, cfg: FacingConfig) -> Facing:
    """The nearer of the codes b and -b. The loss pulls it and z together."""
    bits = (z_BTK @ params["code"] > 0).long()
    codes = (2.0 * bits - 1)[..., None] * params["code"]
    codebook_loss = (codes - z_BTK.detach()).square().mean()
    commitment = (z_BTK - codes.detach()).square().mean()
    loss = codebook_loss + cfg.commit * commitment
    return Facing(z_BTK + (codes - z_BTK).detach(), bits, loss)


def infer(params: Tree, video_BTHWC: Tensor, cfg: FacingConfig) -> Tensor:
    """Video in [-1, 1] → bits (B, T-1), int64."""
    return quantize(params, encode(params, video_BTHWC, cfg), cfg).bits_BT


def draw(params: Tree, past_BTHWC: Tensor, codes_BTK: Tensor, cfg: FacingConfig) -> Tensor:
    """The asymmetric part of the middle after each frame, (B, T, side, side / 2, 3)."""
    past = layers.linear(params["past"], hide(square(past_BTHWC, cfg)).flatten(2))
    hidden = F.silu(past + layers.linear(params["modulate"], codes_BTK))
    drawn = layers.linear(params["draw"], hidden) + layers.linear(params["shift"], codes_BTK)
    return odd(drawn.unflatten(2, (cfg.side, cfg.side // 2, 3)))


def targets(video_BTHWC: Tensor, cfg: FacingConfig) -> Tensor:
    """The targets of `draw`: means over the `hold` frames after each frame."""
    after = odd(middle(square(video_BTHWC[:, 1:], cfg)))
    spans = after.unfold(1, min(cfg.hold, after.shape[1]), 1)
    return spans.mean(-1)


def _flip_every_second(video_BTHWC: Tensor, microbatch: Microbatch) -> tuple[Tensor, Tensor]:
    """The video with every second clip of the whole batch flipped, and which clips these are,
    (B,)."""
    clips = len(video_BTHWC)
    index_B = torch.arange(clips, device=video_BTHWC.device) + microbatch.first_clip(clips)
    flipped_B = index_B % 2 == 1
    chosen = flipped_B[:, None, None, None, None]
    return torch.where(chosen, video_BTHWC.flip(3), video_BTHWC), flipped_B


def _contrast(targets_BTHWC: Tensor) -> Tensor:
    """The mean square of each transition's target, (B, T')."""
    return targets_BTHWC.square().mean((2, 3, 4))


def statistics(
    video_BTHWC: Tensor, cfg: FacingConfig, microbatch: Microbatch = WHOLE_BATCH
) -> dict[str, Tensor]:
    """The statistic of video in [-1, 1], by name, whose average over the whole batch `loss`
    uses."""
    video, _ = _flip_every_second(video_BTHWC, microbatch)
    return {"facing_contrast": _contrast(targets(video, cfg)).mean()}


def loss(
    params: Tree, video_BTHWC: Tensor, cfg: FacingConfig, microbatch: Microbatch = WHOLE_BATCH
) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
    """Squared error of `draw` relative to the target's contrast, plus the losses of the code.

    Dividing by the contrast makes pale and vivid agents count equally. Every other clip is flipped
    horizontally, so that both directions are equally frequent. Returns the loss and (metrics, bits
    (B, T-1)).
    """
    video, flipped_B = _flip_every_second(video_BTHWC, microbatch)
    facing = quantize(params, encode(params, video, cfg), cfg)
    target = targets(video, cfg)
    frames = target.shape[1]
    predicted = draw(params, video[:, :frames], facing.codes_BTK[:, :frames], cfg)
    error = (predicted - target).square().mean((2, 3, 4))
    contrast = _contrast(target)
    relative = (error * (contrast + 0.01).rsqrt()).mean()
    code = params["code"]
    lean = F.softplus(-(encode(params, video_BTHWC, cfg) @ code) / code.square().sum()).mean()
    mean_contrast = microbatch.mean("facing_contrast", contrast.mean())
    metrics = {"facing_error": error.mean() / mean_contrast.clamp(min=1e-6)}
    total = 3 * relative + facing.loss + cfg.lean * lean
    return total, (metrics, facing.bits_BT ^ flipped_B[:, None])
