"""The tokenizer's losses beside squared error: of a discriminator, and of VGG16's features.

Hinge loss and adaptive weight: Esser et al. 2021 (VQGAN, arXiv 2012.09841). Gradient penalty on
real frames: Mescheder et al. 2018 (R1, arXiv 1801.04406). Perceptual loss: Johnson et al. 2016
(arXiv 1603.08155).

One scalar trains both sides in one backward pass. The generator's terms use detached parameters of
the discriminator, and the discriminator's terms use detached reconstructions, so each parameter
receives the gradient of its own loss only.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tyro.conf import Suppress

from genie_fn import random, tree
from genie_fn.errors import UserError
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.nets import discriminator, vgg
from genie_fn.nets.blueprint import Blueprint
from genie_fn.nets.discriminator import DiscriminatorConfig
from genie_fn.runtime.console import console
from genie_fn.tree import Tree


@dataclass(frozen=True)
class AdversarialConfig:
    """Weights of the terms; a term of weight 0 is not computed."""

    gan: float = 0.0
    perceptual: float = 0.0
    vgg: str = ""
    """torchvision's vgg16-397923af.pth, from download.pytorch.org/models; without this file there
    is no perceptual term."""
    features: Suppress[tuple[str, ...]] = (
        "features.6",
        "features.13",
        "features.18",
        "features.25",
    )
    """The layers of VGG16 whose outputs are compared, by torchvision's names."""
    frames: int = 4
    """The number of frames of each clip that these terms use, drawn anew each step."""
    start: int = 0
    """The step from which on the discriminator's logits train the tokenizer; the discriminator
    trains from step 0."""
    adaptive: bool = True
    """Scale the generator's term so that its gradient at the last layer is as large as that of the
    other terms."""
    penalty: float = 1.0
    """Weight of the squared gradient of the logits with respect to the real frames."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self):
        if self.gan < 0 or self.perceptual < 0 or self.penalty < 0 or self.frames < 1:
            raise UserError(
                "--cfg.adversarial: gan, perceptual and penalty must be at least 0, "
                "frames at least 1"
            )


class Networks(NamedTuple):
    """The networks of the terms, beside the discriminator's parameters, which are trained."""

    discriminator: Blueprint
    vgg: Tree
    """The result of `load_vgg`."""


class Reconstruction(NamedTuple):
    """What the terms need to know of a reconstruction of frames in [-1, 1]."""

    real_MHWC: Tensor
    fake_MHWC: Tensor
    loss: Tensor
    """The tokenizer's squared error."""
    last_weight: Tensor
    """The weight of the tokenizer's last layer, for `adaptive_weight`."""


def check_size(cfg: AdversarialConfig, height: int, width: int) -> None:
    """Raise UserError if frames are too small for the networks of the terms."""
    if cfg.perceptual and cfg.vgg:
        vgg.check_size(height, width, cfg.features)


def load_vgg(cfg: AdversarialConfig, device: torch.device | str = "cpu") -> Tree:
    """VGG16's parameters, or {} without the perceptual term.

    Prints a note if that term is on but its file is missing from the configuration.
    """
    if not cfg.perceptual:
        return {}
    if not cfg.vgg:
        console.print("no --cfg.adversarial.vgg: training without the perceptual term")
        return {}
    return vgg.load(cfg.vgg, device)


def perceptual_loss(
    params: Tree, real_MHWC: Tensor, fake_MHWC: Tensor, names: tuple[str, ...]
) -> Tensor:
    """Mean squared difference of VGG16's features, averaged over the named layers."""
    real = vgg.features(params, real_MHWC, names)
    fake = vgg.features(params, fake_MHWC, names)
    errors = [(a - b).square().mean() for a, b in zip(real, fake, strict=True)]
    return torch.stack(errors).mean()


def sample_frames(
    key: Tensor, frames: int, *videos_BTHWC: Tensor, first: int | Tensor = 0
) -> list[Tensor]:
    """The same `frames` random frames of each clip of several videos, (B·frames, H, W, 3) each.

    `first` is the index of the first of these clips in the whole batch.
    """
    batch, length = videos_BTHWC[0].shape[:2]
    order_BT = random.uniform(key, (batch, length), row=first).argsort(1)[:, :frames]
    rows = torch.arange(batch, device=key.device)[:, None]
    return [video[rows, order_BT].flatten(0, 1) for video in videos_BTHWC]


def gradient_penalty(params: Tree, real_MHWC: Tensor, net: Blueprint) -> Tensor:
    """The squared norm of the gradient of each real frame's mean logit by its pixels, averaged.

    Differentiable with respect to `params`.
    """

    def total(frames: Tensor) -> tuple[Tensor, tuple]:
        return discriminator.logits(params, frames, net).mean((1, 2)).sum(), ()

    _, gradient = tree.value_and_grad(total, differentiable=True)(real_MHWC)
    return gradient.square().sum((1, 2, 3)).mean()


def adaptive_weight(
    reconstruction: Tensor,
    generator: Tensor,
    last_weight: Tensor,
    microbatch: Microbatch = WHOLE_BATCH,
) -> Tensor:
    """|∂ reconstruction / ∂ w| / |∂ generator / ∂ w|, at most 10⁴ (VQGAN, equation 7).

    Both are losses, and w is `last_weight`.
    """
    own = slopes(reconstruction, generator, last_weight)
    a, b = (microbatch.mean(name, slope).norm() for name, slope in own.items())
    return (a / (b + 1e-4)).clamp(max=1e4).detach()


def slopes(reconstruction: Tensor, generator: Tensor, last_weight: Tensor) -> dict[str, Tensor]:
    """The gradients of both losses with respect to one weight, by the names of the statistics.

    The losses can be differentiated again.
    """
    return {
        "reconstruction_slope": _slope(reconstruction, last_weight),
        "generator_slope": _slope(generator, last_weight),
    }


def _slope(loss: Tensor, weight: Tensor) -> Tensor:
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]


def has_statistics(cfg: AdversarialConfig) -> bool:
    """Whether `losses` depends on averages over the whole batch: see `statistics`."""
    return cfg.gan > 0 and cfg.adaptive


def statistics(
    params: Tree, networks: Networks, reconstruction: Reconstruction, cfg: AdversarialConfig
) -> dict[str, Tensor]:
    """The statistics, by name, whose averages over the whole batch `losses` uses.

    `params` are the discriminator's; `reconstruction.last_weight` must require a gradient.
    """
    if not has_statistics(cfg):
        return {}
    perceptual, _ = _perceptual_term(networks, reconstruction, cfg)
    generator = _generator_loss(params, networks.discriminator, reconstruction.fake_MHWC)
    other_losses = reconstruction.loss + perceptual
    return slopes(other_losses, generator, reconstruction.last_weight)


def losses(
    params: Tree,
    networks: Networks,
    reconstruction: Reconstruction,
    step: Tensor,
    cfg: AdversarialConfig,
    microbatch: Microbatch = WHOLE_BATCH,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all terms, to add to the tokenizer's loss, and the value of each.

    `params` are the discriminator's.
    """
    total, metrics = _perceptual_term(networks, reconstruction, cfg)
    if cfg.gan:
        so_far = reconstruction._replace(loss=reconstruction.loss + total)
        terms, gan_metrics = _gan_losses(
            params, networks.discriminator, so_far, step, cfg, microbatch
        )
        for term in terms:
            total = total + term
        metrics |= gan_metrics
    return total, metrics


def _perceptual_term(
    networks: Networks, reconstruction: Reconstruction, cfg: AdversarialConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted perceptual loss, 0 without VGG16, and its value as a metric."""
    nothing = reconstruction.loss.new_zeros(())
    if not cfg.perceptual or not networks.vgg:
        return nothing, {}
    real, fake = reconstruction.real_MHWC, reconstruction.fake_MHWC
    value = perceptual_loss(networks.vgg, real, fake, cfg.features)
    return nothing + cfg.perceptual * value, {"perceptual": value}


def _generator_loss(params: Tree, net: Blueprint, fake_MHWC: Tensor) -> Tensor:
    frozen = tree.map(Tensor.detach, params)
    return -discriminator.logits(frozen, fake_MHWC, net).mean()


def _gan_losses(
    params: Tree,
    net: Blueprint,
    reconstruction: Reconstruction,
    step: Tensor,
    cfg: AdversarialConfig,
    microbatch: Microbatch,
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The weighted terms: of the generator, the discriminator's hinge loss, its gradient penalty.

    `reconstruction.loss` is the sum of all other losses of the tokenizer.
    """
    real, fake, other_losses, last_weight = reconstruction
    active = (step >= cfg.start).float()
    generator = _generator_loss(params, net, fake)
    weight = torch.ones_like(active)
    if cfg.adaptive:
        weight = adaptive_weight(other_losses, generator, last_weight, microbatch)
    both = torch.cat((real, fake.detach()))
    real_logits, fake_logits = discriminator.logits(params, both, net).chunk(2)
    hinge = F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    penalty = torch.zeros_like(active)
    if cfg.penalty:
        penalty = gradient_penalty(params, real, net)
    terms = (active * cfg.gan * weight * generator, hinge, cfg.penalty * penalty)
    return terms, {
        "generator": generator,
        "discriminator": hinge,
        "penalty": penalty,
        "gan_weight": weight,
    }
