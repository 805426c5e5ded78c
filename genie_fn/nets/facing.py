"""One bit of a latent action, for views that follow the agent: which way round it is drawn.

In side-scrolling games the pressed direction turns the agent's picture round and keeps it so, while the picture's
change from one frame to the next depends more on the speed there already was. So this bit is learned from the agent's
looks in the middle of the view: the decoder is shown the frame before with the middle averaged with its mirror image,
in which left and right are lost, and draws what is asymmetric in the next frames. What the surroundings give away it
can guess; which way the agent looks it cannot, so the bit tells it.

The encoder is odd by construction, z(mirror image) = -z, and so are the two codes, b and -b: mirroring a video swaps
them, and neither can die out.
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
    """Two small perceptrons over a square in the middle of the view."""

    side: int = 0
    """Pixels of the square; its middle columns, half of them, hold the agent. 0: no such bit."""
    hidden: int = 128
    latent: int = 6
    hold: int = 2
    """Frames that a bit has to explain, their mean: the agent's looks last, the scenery behind it passes."""
    commit: float = 0.1
    lean: float = 0.15
    """Weight of telling a video from its mirror image by the bit, which play that goes mostly one way makes possible:
    otherwise each kind of agent settles for itself which of the codes is left."""

    def __post_init__(self):
        if self.side < 0 or self.side % 4 or self.hold < 1:
            raise UserError(
                f"--cfg.model.facing.side is a multiple of 4 and .hold at least 1, not {self.side} and {self.hold}"
            )


class Facing(NamedTuple):
    """What the encoder says of T-1 transitions."""

    codes_BTK: Tensor
    """b or -b; the gradient goes straight through to the encoder."""
    bits_BT: Tensor
    """0 or 1, int64."""
    loss: Tensor


def spec(cfg: FacingConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`."""
    pixels, middle = 3 * cfg.side**2, 3 * cfg.side**2 // 2
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
    """Half the difference to the mirror image."""
    return (x_BTHWC - x_BTHWC.flip(3)) / 2


def hide(square_BTHWC: Tensor) -> Tensor:
    """The squares with their middle averaged with its mirror image."""
    quarter = square_BTHWC.shape[3] // 4
    return square_BTHWC - F.pad(odd(middle(square_BTHWC)), (0, 0, quarter, quarter))


def encode(params: Tree, video_BTHWC: Tensor, cfg: FacingConfig) -> Tensor:
    """Video in [-1, 1] → (B, T-1, K) per transition, from the frame after it: its sign changes with a mirror image."""

    def latent(x_BTHWC: Tensor) -> Tensor:
        return layers.linear(
            params["latent"], torch.tanh(layers.linear(params["look"], x_BTHWC.flatten(2)))
        )

    after = square(video_BTHWC[:, 1:], cfg)
    return (latent(after) - latent(after.flip(3))) / 2


def quantize(params: Tree, z_BTK: Tensor, cfg: FacingConfig) -> Facing:
    """The nearer one of the codes b and -b, which is pulled to z, and z (by `commit`) to it."""
    bits = (z_BTK @ params["code"] > 0).long()
    codes = (2.0 * bits - 1)[..., None] * params["code"]
    loss = (codes - z_BTK.detach()).square().mean() + cfg.commit * (
        z_BTK - codes.detach()
    ).square().mean()
    return Facing(z_BTK + (codes - z_BTK).detach(), bits, loss)


def infer(params: Tree, video_BTHWC: Tensor, cfg: FacingConfig) -> Tensor:
    """Video in [-1, 1] → bits (B, T-1), int64."""
    return quantize(params, encode(params, video_BTHWC, cfg), cfg).bits_BT


def draw(params: Tree, past_BTHWC: Tensor, codes_BTK: Tensor, cfg: FacingConfig) -> Tensor:
    """What is asymmetric in the middle after each frame, given its code: (B, T, side, side / 2, 3)."""
    past = layers.linear(params["past"], hide(square(past_BTHWC, cfg)).flatten(2))
    hidden = F.silu(past + layers.linear(params["modulate"], codes_BTK))
    drawn = layers.linear(params["draw"], hidden) + layers.linear(params["shift"], codes_BTK)
    return odd(drawn.unflatten(2, (cfg.side, cfg.side // 2, 3)))


def targets(video_BTHWC: Tensor, cfg: FacingConfig) -> Tensor:
    """What `draw` is to give: the mean over the `hold` frames after each, as far as the clip has them."""
    after = odd(middle(square(video_BTHWC[:, 1:], cfg)))
    spans = after.unfold(1, min(cfg.hold, after.shape[1]), 1)
    return spans.mean(-1)


def loss(
    params: Tree, video_BTHWC: Tensor, cfg: FacingConfig, microbatch: Microbatch = WHOLE_BATCH
) -> tuple[Tensor, tuple[dict, Tensor]]:
    """Squared error relative to the target's contrast, so that pale and vivid agents count alike, plus the code's loss.

    Every other clip is mirrored, so that neither direction is the rule. Returns the loss and (metrics, bits (B, T-1)).
    """
    place_B = torch.arange(len(video_BTHWC), device=video_BTHWC.device) + microbatch.first_clip(
        len(video_BTHWC)
    )
    swap = place_B % 2 == 1
    video = torch.where(swap[:, None, None, None, None], video_BTHWC.flip(3), video_BTHWC)
    found, wanted = quantize(params, encode(params, video, cfg), cfg), targets(video, cfg)
    frames = wanted.shape[1]
    error = (
        (draw(params, video[:, :frames], found.codes_BTK[:, :frames], cfg) - wanted)
        .square()
        .mean((2, 3, 4))
    )
    contrast = wanted.square().mean((2, 3, 4))
    relative = (error * (contrast + 0.01).rsqrt()).mean()
    lean = F.softplus(
        -(encode(params, video_BTHWC, cfg) @ params["code"]) / params["code"].square().sum()
    ).mean()
    metrics = {
        "facing_error": error.mean()
        / microbatch.mean("facing_contrast", contrast.mean()).clamp(min=1e-6)
    }
    return 3 * relative + found.loss + cfg.lean * lean, (metrics, found.bits_BT ^ swap[:, None])
