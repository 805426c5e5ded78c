"""Group norms over video (B, T, H, W, C), frame by frame: a mean over time would see the future."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genie_fn.layers import linear, linear_spec, norm_spec
from genie_fn.nets.causal import Context, condition_per_frame
from genie_fn.nets.layer import Layer
from genie_fn.tree import ParamSpec, Tree

EPS = 1e-6


def group_norm_spec(channels: int) -> Tree:
    """Scale and shift per channel."""
    return {"scale": norm_spec(channels), "shift": ParamSpec((channels,), "zeros", decay=False)}


def group_norm(params: Tree, x_BTHWC: Tensor, groups: int) -> Tensor:
    """Group norm (Wu & He 2018) of each frame by itself, computed in float32."""
    normalised = _normalise(x_BTHWC, groups)
    return (normalised * params["scale"] + params["shift"]).to(x_BTHWC.dtype)


def _normalise(x_BTHWC: Tensor, groups: int) -> Tensor:
    x = x_BTHWC.float().unflatten(-1, (groups, -1))
    variance, mean = torch.var_mean(x, dim=(2, 3, 5), keepdim=True, correction=0)
    return ((x - mean) * torch.rsqrt(variance + EPS)).flatten(-2)


def adaptive_group_norm_spec(channels: int, condition: int) -> Tree:
    """A linear map of the condition to a change of scale and a shift.

    Its initial weights have full size. With a tenth of it, the decoder of a latent action model
    never learned to use its action.
    """
    return linear_spec(condition, 2 * channels, bias=True)


def adaptive_group_norm(
    params: Tree,
    x_BTHWC: Tensor,
    condition: Tensor | None,
    groups: int,
    *,
    first_frame_alone: bool = False,
) -> Tensor:
    """Group norm whose scale and shift at frame t follow the condition of frame t's own code."""
    frames = x_BTHWC.shape[1]
    condition_BTK = condition_per_frame(condition, frames, first_frame_alone).float()
    scale, shift = linear(params, condition_BTK)[:, :, None, None].chunk(2, -1)
    return (_normalise(x_BTHWC, groups) * (1 + scale) + shift).to(x_BTHWC.dtype)


def check_groups(groups: int, channels: int) -> None:
    """Raise ValueError if the channels cannot be divided into equal groups."""
    if channels % groups:
        raise ValueError(
            f"{channels} channels cannot be divided into num_groups={groups} equal groups"
        )


@dataclass(frozen=True)
class GroupNorm(Layer):
    """Group norm, frame by frame."""

    num_channels: int
    num_groups: int = 8

    def __post_init__(self):
        check_groups(self.num_groups, self.num_channels)

    @property
    def inputs(self) -> int:
        return self.num_channels

    def spec(self) -> Tree:
        return group_norm_spec(self.num_channels)

    def apply(self, params, x, cache, context: Context):
        return group_norm(params, x, self.num_groups), {}


@dataclass(frozen=True)
class AdaptiveGroupNorm(GroupNorm):
    """Group norm whose scale and shift follow the external condition of the same frame."""

    dim_cond: int = 18
    has_ext: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.has_ext:
            raise ValueError("has_ext=False removes its condition: use group_norm instead")

    @property
    def condition(self) -> int:
        return self.dim_cond

    def spec(self) -> Tree:
        return adaptive_group_norm_spec(self.num_channels, self.dim_cond)

    def apply(self, params, x, cache, context: Context):
        condition, alone = context.condition, context.first_frame_alone
        y = adaptive_group_norm(params, x, condition, self.num_groups, first_frame_alone=alone)
        return y, {}
