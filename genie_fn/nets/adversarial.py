"""What a tokenizer can be trained with beside squared error: a discriminator of single frames, and VGG16's features.

Hinge loss and adaptive weight: Esser et al. 2021 (VQGAN, arXiv 2012.09841). Gradient penalty on real frames: Mescheder
et al. 2018 (R1, arXiv 1801.04406). Perceptual loss: Johnson et al. 2016 (arXiv 1603.08155).

One scalar trains both sides in one backward pass: the generator's terms see the discriminator's parameters detached,
the discriminator's terms see the generated frames detached, so that each parameter gets its own loss's gradient alone.
"""

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from tyro.conf import Suppress

from genie_fn import random, tree
from genie_fn.errors import UserError
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.nets import blueprint
from genie_fn.nets.blueprint import Blueprint
from genie_fn.nets.conv import Pass
from genie_fn.tree import Tree

VGG_MEAN, VGG_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """A convolutional network from a frame to a map of logits, above 0 where it looks real."""

    dim: int = 64
    mults: Suppress[tuple[int, ...]] = (1, 2, 4)
    """Width of each stage, in multiples of `dim`."""
    down: Suppress[tuple[int, ...]] = (1, 2, 2)
    """By how much each stage divides the sides of its input."""
    groups: int = 8
    act: str = "leaky"
    blur: bool = True
    """Down-sample by blurring and leaving out; otherwise by space to depth."""
    attention: bool = True
    """Let the places of a frame attend to each other in the last stage."""
    heads: int = 4
    head_dim: int = 32

    def __post_init__(self):
        if len(self.mults) != len(self.down) or not self.mults:
            raise UserError(
                f"a discriminator's mults {self.mults} and down {self.down} name the same stages: make them fit"
            )


@dataclass(frozen=True)
class AdversarialConfig:
    """Weights of the terms; a term of weight 0 is not computed."""

    gan: float = 0.0
    perceptual: float = 0.0
    vgg: str = ""
    """torchvision's vgg16-397923af.pth, from download.pytorch.org/models; without it the perceptual term is off."""
    features: Suppress[tuple[str, ...]] = (
        "features.6",
        "features.13",
        "features.18",
        "features.25",
    )
    """The layers of VGG16 that are compared, by torchvision's names."""
    frames: int = 4
    """Frames of each clip that these terms look at, drawn anew each step."""
    start: int = 0
    """The step from which on the discriminator's judgement counts for the tokenizer; it learns from the first."""
    adaptive: bool = True
    """Scale the generator's term so that its gradient at the last layer is as large as the other terms' there."""
    penalty: float = 1.0
    """Weight of the squared gradient of the logits by the real frames."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self):
        if self.gan < 0 or self.perceptual < 0 or self.penalty < 0 or self.frames < 1:
            raise UserError(
                "--cfg.adversarial: gan, perceptual and penalty are at least 0, frames at least 1"
            )


def discriminator(cfg: DiscriminatorConfig) -> Blueprint:
    """The discriminator as a blueprint: residual stages, optional attention, one logit per place."""
    widths = [cfg.dim * m for m in cfg.mults]
    layers = [
        ("causal-conv3d", {"in_channels": 3, "out_channels": widths[0], "kernel_size": (1, 3)})
    ]
    for inputs, outputs, down in zip([widths[0], *widths], widths, cfg.down, strict=False):
        options = {
            "in_channels": inputs,
            "out_channels": outputs,
            "num_groups": cfg.groups,
            "act_fn": cfg.act,
        }
        pooled = {"downsample": (1, down), "use_blur": True} if cfg.blur else {}
        layers.append(("image-residual", options | pooled))
        if not cfg.blur and down > 1:
            layers.append(("space_downsample", {"in_channels": outputs, "factor": down}))
    if cfg.attention:
        sizes = {"n_embd": widths[-1], "n_head": cfg.heads, "d_head": cfg.head_dim}
        layers.append(
            ("space_attn", sizes | {"impl": "reference"})
        )  # the gradient penalty derives it twice
    layers += [("group_norm", {"num_channels": widths[-1], "num_groups": cfg.groups}), "leaky_relu"]
    layers.append(
        ("causal-conv3d", {"in_channels": widths[-1], "out_channels": 1, "kernel_size": (1, 3)})
    )
    return blueprint.parse(layers)


def discriminate(params: Tree, frames_MHWC: Tensor, net: Blueprint) -> Tensor:
    """Frames in [-1, 1] → logits (M, h, w); `net` is the `discriminator`'s blueprint."""
    return blueprint.apply(params, frames_MHWC[:, None], net, Pass(False))[:, 0, ..., 0]


VGG16 = tuple(kind for count in (2, 2, 3, 3, 3) for kind in (*("conv", "relu") * count, "pool"))


def load_vgg(cfg: AdversarialConfig, device: torch.device | str = "cpu") -> Tree:
    """VGG16's convolutions from a file of torchvision's format, {"features.0": {"w", "b"}, …}; {} if none is wanted.

    Without a file the perceptual term is off, which is said. Raises UserError if the file is not what it should be.
    """
    if not cfg.perceptual:
        return {}
    if not cfg.vgg:
        print("no --cfg.adversarial.vgg: training without the perceptual term", file=sys.stderr)
        return {}
    try:
        state = torch.load(cfg.vgg, map_location=device, weights_only=True)
        names = [f"features.{i}" for i, kind in enumerate(VGG16) if kind == "conv"]
        params = {
            name: {"w": state[f"{name}.weight"], "b": state[f"{name}.bias"]} for name in names
        }
        vgg_features(params, torch.zeros((1, 32, 32, 3), device=device), cfg.features)
    except FileNotFoundError:
        raise UserError(
            f"there is no file {cfg.vgg}: give --cfg.adversarial.vgg torchvision's vgg16 weights"
        ) from None
    except Exception as error:  # whatever a file of another kind leads to
        raise UserError(
            f"{cfg.vgg} does not hold torchvision's vgg16 ({type(error).__name__}): "
            "download vgg16-397923af.pth from download.pytorch.org/models"
        ) from error
    return params


def vgg_features(params: Tree, frames_MHWC: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    """The outputs of the named layers (torchvision's numbering) on frames in [-1, 1], normalised as VGG16 expects."""
    mean, std = (frames_MHWC.new_tensor(values) for values in (VGG_MEAN, VGG_STD))
    x, found = (((frames_MHWC + 1) / 2 - mean) / std).permute(0, 3, 1, 2), []
    last = max(int(name.split(".")[1]) for name in names)
    for i, kind in enumerate(VGG16[: last + 1]):
        if kind == "conv":
            p = params[f"features.{i}"]
            x = F.conv2d(x, p["w"].to(x.dtype), p["b"].to(x.dtype), padding=1)
        else:
            x = x.relu() if kind == "relu" else F.max_pool2d(x, 2)
        if f"features.{i}" in names:
            found.append(x)
    return found


def perceptual(
    params: Tree, real_MHWC: Tensor, fake_MHWC: Tensor, names: tuple[str, ...]
) -> Tensor:
    """Mean squared difference of VGG16's features, averaged over the named layers."""
    pairs = zip(*(vgg_features(params, x, names) for x in (real_MHWC, fake_MHWC)), strict=True)
    return torch.stack([(a - b).square().mean() for a, b in pairs]).mean()


def pick_frames(
    key: Tensor, frames: int, *videos_BTHWC: Tensor, first: int | Tensor = 0
) -> list[Tensor]:
    """The same `frames` random frames of each clip of several videos, (B·frames, H, W, 3) each.

    `first` is the place of the first of these clips in the whole batch.
    """
    batch, length = videos_BTHWC[0].shape[:2]
    order_BT = random.uniform(key, (batch, length), row=first).argsort(1)[:, :frames]
    rows = torch.arange(batch, device=key.device)[:, None]
    return [video[rows, order_BT].flatten(0, 1) for video in videos_BTHWC]


def gradient_penalty(params: Tree, real_MHWC: Tensor, net: Blueprint) -> Tensor:
    """The squared norm of the gradient of each real frame's logit by its pixels, averaged; differentiable by params."""

    def total(frames: Tensor) -> tuple[Tensor, tuple]:
        return discriminate(params, frames, net).mean((1, 2)).sum(), ()

    _, slope = tree.value_and_grad(total, differentiable=True)(real_MHWC)
    return slope.square().sum((1, 2, 3)).mean()


def adaptive_weight(
    reconstruction: Tensor, generator: Tensor, last: Tensor, microbatch: Microbatch = WHOLE_BATCH
) -> Tensor:
    """|∂ reconstruction / ∂ last| / |∂ generator / ∂ last|, at most 10⁴ (VQGAN, equation 7; `last` is a weight)."""
    a = microbatch.mean("reconstruction_slope", slope(reconstruction, last)).norm()
    b = microbatch.mean("generator_slope", slope(generator, last)).norm()
    return (a / (b + 1e-4)).clamp(max=1e4).detach()


def slope(loss: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a loss by one weight; the loss can be derived again."""
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]


def losses(
    params: Tree,
    net: Blueprint,
    vgg: Tree,
    real_MHWC: Tensor,
    fake_MHWC: Tensor,
    reconstruction: Tensor,
    last: Tensor,
    step: Tensor,
    cfg: AdversarialConfig,
    microbatch: Microbatch = WHOLE_BATCH,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All terms on frames in [-1, 1], as one scalar to add to the tokenizer's loss, and their values.

    `params` and `net` are the discriminator's, `vgg` those of `load_vgg` or empty; `reconstruction` is the tokenizer's
    squared error and `last` the weight of its last layer, for the adaptive weight.
    """
    total, metrics = reconstruction.new_zeros(()), {}
    if cfg.perceptual and vgg:
        metrics["perceptual"] = perceptual(vgg, real_MHWC, fake_MHWC, cfg.features)
        total = total + cfg.perceptual * metrics["perceptual"]
    if cfg.gan:
        on = (step >= cfg.start).float()
        generator = -discriminate(tree.map(Tensor.detach, params), fake_MHWC, net).mean()
        whole = reconstruction + total
        weight = (
            adaptive_weight(whole, generator, last, microbatch)
            if cfg.adaptive
            else torch.ones_like(on)
        )
        real, fake = discriminate(params, torch.cat((real_MHWC, fake_MHWC.detach())), net).chunk(2)
        hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        penalty = gradient_penalty(params, real_MHWC, net) if cfg.penalty else torch.zeros_like(on)
        total = total + on * cfg.gan * weight * generator + hinge + cfg.penalty * penalty
        metrics |= {
            "generator": generator,
            "discriminator": hinge,
            "penalty": penalty,
            "gan_weight": weight,
        }
    return total, metrics
