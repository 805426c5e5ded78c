"""A convolutional discriminator of single frames, built from a blueprint."""

from dataclasses import dataclass

from torch import Tensor
from tyro.conf import Suppress

from genie_fn.errors import UserError
from genie_fn.nets import blueprint
from genie_fn.nets.blueprint import Blueprint
from genie_fn.nets.residual import ActivationName
from genie_fn.runtime.backend import Backend
from genie_fn.tree import Tree


@dataclass(frozen=True)
class DiscriminatorConfig:
    """A network from a frame to a grid of logits, which are positive where the frame looks real."""

    dim: int = 64
    mults: Suppress[tuple[int, ...]] = (1, 2, 4)
    """Width of each stage, in multiples of `dim`."""
    down: Suppress[tuple[int, ...]] = (1, 2, 2)
    """The factor by which each stage divides the sides of its input."""
    groups: int = 8
    act: ActivationName = "leaky"
    blur: bool = True
    """Downsample with a triangular filter; otherwise by space to depth."""
    attention: bool = True
    """Let the places of a frame attend to each other in the last stage."""
    heads: int = 4
    head_dim: int = 32

    def __post_init__(self):
        if len(self.mults) != len(self.down) or not self.mults:
            raise UserError(
                f"a discriminator's mults {self.mults} and down {self.down} differ in length "
                "or are empty: give one value of each per stage"
            )


def network(cfg: DiscriminatorConfig) -> Blueprint:
    """The blueprint: residual stages, optional attention, one logit per place."""
    widths = [cfg.dim * mult for mult in cfg.mults]
    entries = [_conv(3, widths[0])]
    for inputs, outputs, factor in zip([widths[0], *widths], widths, cfg.down, strict=False):
        entries += _stage(inputs, outputs, factor, cfg)
    if cfg.attention:
        options = {"n_embd": widths[-1], "n_head": cfg.heads, "d_head": cfg.head_dim}
        entries.append(("space_attn", options))
    entries.append(("group_norm", {"num_channels": widths[-1], "num_groups": cfg.groups}))
    entries.append(("leaky_relu", {}))
    entries.append(_conv(widths[-1], 1))
    return blueprint.parse(entries)


def _conv(inputs: int, outputs: int) -> tuple[str, dict]:
    options = {"in_channels": inputs, "out_channels": outputs, "kernel_size": (1, 3)}
    return "causal-conv3d", options


def _stage(
    inputs: int, outputs: int, factor: int, cfg: DiscriminatorConfig
) -> list[tuple[str, dict]]:
    """A residual layer that also downsamples, or is followed by a layer that does."""
    options = {
        "in_channels": inputs,
        "out_channels": outputs,
        "num_groups": cfg.groups,
        "act_fn": cfg.act,
    }
    if cfg.blur:
        return [("image-residual", options | {"downsample": (1, factor), "use_blur": True})]
    entries = [("image-residual", options)]
    if factor > 1:
        entries.append(("space_downsample", {"in_channels": outputs, "factor": factor}))
    return entries


def logits(params: Tree, frames_MHWC: Tensor, net: Blueprint) -> Tensor:
    """Frames in [-1, 1] → logits (M, h, w); `net` is the blueprint of `network`."""
    # The gradient penalty needs a second derivative, which only the reference attention has.
    backend = Backend(space="reference")
    y, _ = blueprint.apply(params, frames_MHWC[:, None], net, backend=backend)
    return y[:, 0, ..., 0]
