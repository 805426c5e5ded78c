"""The names by which blueprints refer to layers: those of Open-Genie.

Each names a frozen dataclass whose fields are the layer's options; see genie_fn/nets/layer.py.
"""

from genie_fn.nets.attention import SpaceAttention, SpaceTimeAttention, TimeAttention
from genie_fn.nets.conv import CausalConv, CausalConvTranspose, ProjOut
from genie_fn.nets.layer import Layer
from genie_fn.nets.norms import AdaptiveGroupNorm, GroupNorm
from genie_fn.nets.resampling import (
    BlurPool,
    SpaceDownsample,
    SpaceTimeDownsample,
    SpaceTimeUpsample,
    SpaceUpsample,
    TimeUpsample,
)
from genie_fn.nets.residual import GELU, ImageResidual, LeakyReLU, ReLU, Residual, SiLU

REGISTRY: dict[str, type[Layer]] = {
    "space_attn": SpaceAttention,
    "time_attn": TimeAttention,
    "space-time_attn": SpaceTimeAttention,
    "blur_pool": BlurPool,
    "space_downsample": SpaceDownsample,
    "spacetime_downsample": SpaceTimeDownsample,
    "image-residual": ImageResidual,
    "video-residual": Residual,
    "causal-conv3d": CausalConv,
    "causal-conv3d-transpose": CausalConvTranspose,
    "depth2space_upsample": SpaceUpsample,
    "depth2time_upsample": TimeUpsample,
    "depth2spacetime_upsample": SpaceTimeUpsample,
    "group_norm": GroupNorm,
    "adaptive_group_norm": AdaptiveGroupNorm,
    "proj_out": ProjOut,
    "gelu": GELU,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "silu": SiLU,
}

ALIASES = {
    "causal": "causal-conv3d",
    "residual": "video-residual",
    "spacetime_upsample": "depth2spacetime_upsample",
}
