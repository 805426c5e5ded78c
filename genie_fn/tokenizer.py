"""The video tokenizer: a causal autoencoder with a discrete bottleneck, N ids per coded frame.

It has two architectures. `st_vivit`: Genie (arXiv 2402.15391), section 2.1 and Appendix F.2, a
space-time transformer on patches. `magvit2`: Yu et al. 2023 (arXiv 2310.05737), a causal 3D
convolutional network built from blueprints, which may also compress time. In both, a grid of ids
and its decoded frame (or group of frames) do not depend on later frames, so that a world can decode
frame by frame from a cache.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from tyro.conf import Suppress

from genie_fn import layers, metrics, quantize, tree
from genie_fn.errors import UserError
from genie_fn.layers import DtypeName, STConfig
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.nets import blueprint, designs
from genie_fn.nets.blueprint import Blueprints
from genie_fn.nets.designs import (
    MAGVIT2_DEC_DESC,
    MAGVIT2_ENC_DESC,
    Description,
    magvit2_decoder,
    magvit2_encoder,
)
from genie_fn.quantize import Quantized, QuantizerConfig
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import ParamSpec, Tree


@dataclass(frozen=True)
class TokenizerConfig:
    """Frames of height × width RGB pixels become a grid of ids."""

    height: Suppress[int] = 64
    width: Suppress[int] = 64
    """These two are not flags; the data determine them."""
    patch: int = 8
    """Pixels per side of a patch (`st_vivit`)."""
    encoder: STConfig = field(default_factory=STConfig)
    decoder: STConfig = field(default_factory=STConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    arch: Suppress[Literal["st_vivit", "magvit2"]] = "st_vivit"
    """`st_vivit` consists of `patch`, `encoder` and `decoder`; `magvit2` of `blueprints`."""
    blueprints: Suppress[Blueprints] = field(default_factory=Blueprints)

    def __post_init__(self):
        layers.check_patch(self.patch)
        advice = "choose a --cfg.model.patch that divides both sides"
        if self.arch == "magvit2":
            self._check_blueprints()
            advice = "use frames whose sides are multiples of it, or another --cfg.preset"
        layers.check_divisible(self.height, self.width, self.scale, advice)

    def _check_blueprints(self) -> None:
        encoder = self.blueprints.encoder
        decoder = self.blueprints.decoder
        width = self.quantizer.width
        if not encoder or not decoder:
            raise UserError(
                "the architecture magvit2 needs the blueprints of an encoder and of a decoder: "
                "give both"
            )
        if blueprint.conditions(encoder) or blueprint.conditions(decoder) - {width}:
            raise UserError(
                f"layers are conditioned on the codes, of width {width}, and only in the decoder: "
                "change the has_ext layers of the blueprints"
            )
        if blueprint.multiplies_time(encoder) or blueprint.divides_time(decoder):
            raise UserError(
                "an encoder that multiplies the frame rate, or a decoder that divides it, would "
                "see later frames: divide in the encoder and multiply in the decoder"
            )
        pixels, latent = blueprint.channels(encoder)
        codes, output = blueprint.channels(decoder)
        if (pixels, latent, codes, output) != (3, width, width, 3):
            raise UserError(
                f"a tokenizer's blueprints lead from 3 channels to the quantizer's {width} and "
                f"back, not from {pixels} to {latent} and from {codes} to {output}: change their "
                "first and last layers"
            )
        down = blueprint.growth(encoder)
        up = blueprint.growth(decoder)
        if any(d * u != 1 or u.denominator != 1 for d, u in zip(down, up, strict=True)):
            raise UserError(
                f"the encoder multiplies (time, space) by ({down[0]}, {down[1]}), the decoder by "
                f"({up[0]}, {up[1]}): the decoder must multiply by what the encoder divides by"
            )

    @property
    def scale(self) -> int:
        """Pixels per side of a token."""
        if self.arch == "st_vivit":
            return self.patch
        return int(blueprint.growth(self.blueprints.decoder)[1])

    @property
    def time_factor(self) -> int:
        """Frames per grid of ids: 1 if every frame has its own grid."""
        if self.arch == "st_vivit":
            return 1
        return int(blueprint.growth(self.blueprints.decoder)[0])

    @property
    def framewise(self) -> bool:
        """Whether the ids of a frame depend on that frame alone."""
        return self.arch == "st_vivit" and self.encoder.window == 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of ids per coded frame."""
        return self.height // self.scale, self.width // self.scale

    @property
    def tokens(self) -> int:
        """Ids per coded frame, N."""
        return self.grid[0] * self.grid[1]


def _st_vivit(
    patch: int, stack: STConfig, quantizer: QuantizerConfig, *, framewise: bool = False
) -> TokenizerConfig:
    """The same stack as encoder and decoder; with `framewise` the encoder sees each frame alone."""
    encoder = replace(stack, window=1) if framewise else stack
    return TokenizerConfig(patch=patch, encoder=encoder, decoder=stack, quantizer=quantizer)


def _magvit2(
    encoder: Description,
    decoder: Description,
    quantizer: QuantizerConfig,
    dtype: DtypeName = "bfloat16",
) -> TokenizerConfig:
    nets = Blueprints(encoder, decoder, dtype)
    return TokenizerConfig(arch="magvit2", blueprints=nets, quantizer=quantizer)


_OPEN_GENIE_LFQ = QuantizerConfig(codes=2**18, commit=0.25, entropy=0.1, diversity=1.0)
_EVERY_FRAME = (1, 1, 1)

PRESETS = {
    "demo": _st_vivit(
        8,
        STConfig(2, 128, 4, window=4),
        QuantizerConfig(
            "vq", 1024**3, latent_dim=24, books=3, commit=0.25, use_rate=0.1, from_inputs=True
        ),
        framewise=True,
    ),
    "small": _st_vivit(4, STConfig(4, 384, 6, dtype="bfloat16"), QuantizerConfig()),
    "coinrun": _st_vivit(
        4, STConfig(8, 512, 8, dtype="bfloat16"), QuantizerConfig("vq", 1024, latent_dim=32)
    ),
    "magvit2-demo": _magvit2(
        designs.small_magvit2_encoder(),
        designs.small_magvit2_decoder(),
        QuantizerConfig(codes=2**18),
        dtype="float32",
    ),
    "magvit2-coinrun": _magvit2(MAGVIT2_ENC_DESC, MAGVIT2_DEC_DESC, _OPEN_GENIE_LFQ),
    "magvit2-framewise": _magvit2(
        magvit2_encoder(times=_EVERY_FRAME), magvit2_decoder(times=_EVERY_FRAME), _OPEN_GENIE_LFQ
    ),
}
"""The models of train_tokenizer.py's presets; `coinrun` is the paper's Appendix F.2."""


def fitted_patch(patch: int, height: int, width: int) -> int:
    """The side of a patch, of those that divide both sides of a frame, that is nearest to `patch` by
    ratio; of two that are equally near the smaller one."""
    common = math.gcd(height, width)
    sides = [side for side in range(1, common + 1) if common % side == 0]
    return min(sides, key=lambda side: max(side / patch, patch / side))


def spec(cfg: TokenizerConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`."""
    if cfg.arch == "magvit2":
        encoder = blueprint.spec(cfg.blueprints.encoder)
        decoder = blueprint.spec(cfg.blueprints.decoder)
    else:
        pixels = 3 * cfg.patch**2
        latent = cfg.quantizer.width
        encoder = layers.grid_spec(cfg.encoder, pixels, latent, cfg.tokens)
        decoder = layers.grid_spec(cfg.decoder, latent, pixels, cfg.tokens)
    return {"encoder": encoder, "quantizer": quantize.spec(cfg.quantizer), "decoder": decoder}


def check_clips(cfg: TokenizerConfig, frames: int) -> None:
    """Raise UserError unless the model can be trained on clips of so many frames, of its size."""
    blueprint.codes_first_frame_alone(frames, cfg.time_factor)
    if cfg.arch == "magvit2":
        blueprint.check_grid(cfg.blueprints.encoder, cfg.height, cfg.width, 1, "the encoder")
        blueprint.check_grid(cfg.blueprints.decoder, *cfg.grid, cfg.scale, "the decoder")


# Encoder and decoder


def encode(
    params: Tree, video_BTHWC: Tensor, cfg: TokenizerConfig, *, backend: Backend = AUTO
) -> Tensor:
    """Video in [-1, 1] → latents (B, T', N, K), before quantisation.

    T' is T / time_factor, or 1 + (T-1) / time_factor if the first frame is coded alone.
    """
    if cfg.arch == "magvit2":
        frames = video_BTHWC.shape[1]
        latents_BTHWK, _ = blueprint.apply(
            params["encoder"],
            video_BTHWC.to(layers.DTYPES[cfg.blueprints.dtype]),
            cfg.blueprints.encoder,
            first_frame_alone=blueprint.codes_first_frame_alone(frames, cfg.time_factor),
            backend=backend,
        )
        return latents_BTHWK.float().flatten(2, 3)
    patches_BTNP = layers.patchify(video_BTHWC, cfg.patch)
    latents_BTNK, _ = layers.grid_transformer(
        params["encoder"], patches_BTNP, cfg.encoder, backend=backend
    )
    return latents_BTNK


def decode(
    params: Tree,
    codes_BTNK: Tensor,
    cfg: TokenizerConfig,
    frames: int | None = None,
    *,
    backend: Backend = AUTO,
) -> Tensor:
    """Codes → video (B, T, H, W, 3), about in [-1, 1]; T is `frames`, or T' · time_factor."""
    alone = frames is not None and blueprint.codes_first_frame_alone(frames, cfg.time_factor)
    video, _ = _decode(params, codes_BTNK, None, cfg, backend, first_frame_alone=alone)
    return video


def decode_next(
    params: Tree,
    codes_BTNK: Tensor,
    cache: Tree | None,
    cfg: TokenizerConfig,
    backend: Backend = AUTO,
) -> tuple[Tensor, Tree | None]:
    """`decode` of the frames after those in the cache, and the extended cache.

    The tokenizer's time_factor must be 1.
    """
    return _decode(params, codes_BTNK, cache, cfg, backend, first_frame_alone=False)


def _decode(
    params: Tree,
    codes_BTNK: Tensor,
    cache: Tree | None,
    cfg: TokenizerConfig,
    backend: Backend,
    *,
    first_frame_alone: bool,
) -> tuple[Tensor, Tree | None]:
    if cfg.arch == "magvit2":
        codes_BTHWK = codes_BTNK.reshape(*codes_BTNK.shape[:2], *cfg.grid, -1)
        video, cache = blueprint.apply(
            params["decoder"],
            codes_BTHWK.to(layers.DTYPES[cfg.blueprints.dtype]),
            cfg.blueprints.decoder,
            first_frame_alone=first_frame_alone,
            condition=codes_BTHWK,
            cache=cache,
            backend=backend,
        )
        return video.float(), cache
    pixels_BTNP, cache = layers.grid_transformer(
        params["decoder"], codes_BTNK, cfg.decoder, cache, backend=backend
    )
    return layers.unpatchify(pixels_BTNP, cfg.patch, cfg.height), cache


def empty_cache(cfg: TokenizerConfig, batch: int, device: torch.device | str | None = None) -> Tree:
    """The decoder's cache before any frame, for `batch` sessions."""
    if cfg.arch == "st_vivit":
        return layers.empty_cache(cfg.decoder, batch, cfg.tokens, device)

    def without_values(leaf: ParamSpec) -> Tensor:
        return torch.empty(leaf.shape, device="meta")

    def zeros(leaf: Tensor) -> Tensor:
        return torch.zeros_like(leaf, device=device or "cpu")

    # The shapes are those of the cache after a frame.
    params = {"decoder": tree.map(without_values, spec(cfg)["decoder"])}
    codes = torch.empty((batch, 1, cfg.tokens, cfg.quantizer.width), device="meta")
    _, cache = decode_next(params, codes, None, cfg)
    return tree.map(zeros, cache)


def last_weight(params: Tree, cfg: TokenizerConfig) -> Tensor:
    """The weight of the decoder's last layer, at whose gradients losses are balanced."""
    decoder = params["decoder"]
    last = decoder["head"] if cfg.arch == "st_vivit" else list(decoder.values())[-1]
    if "w" not in last:
        raise UserError(
            "an adaptive weight needs a decoder that ends in a convolution or upsampling: "
            "change the last layer of the blueprint"
        )
    return last["w"]


# Ids


def tokenize(
    params: Tree, video_BTHWC: Tensor, cfg: TokenizerConfig, *, backend: Backend = AUTO
) -> tuple[Tensor, Tensor]:
    """uint8 video → codes (B, T', N, K) and ids (B, T', N)."""
    z_BTNK = encode(params, layers.to_float(video_BTHWC), cfg, backend=backend)
    q = quantize.quantize(params["quantizer"], z_BTNK, cfg.quantizer, backend=backend)
    return q.codes, q.ids


def detokenize(
    params: Tree,
    ids_BTN: Tensor,
    cfg: TokenizerConfig,
    frames: int | None = None,
    *,
    backend: Backend = AUTO,
) -> Tensor:
    """ids → uint8 video of `frames` frames, by default T' · time_factor."""
    codes_BTNK = quantize.lookup(params["quantizer"], ids_BTN, cfg.quantizer)
    return layers.to_uint8(decode(params, codes_BTNK, cfg, frames, backend=backend))


# Training


def reconstruct(
    params: Tree,
    video_BTHWC: Tensor,
    cfg: TokenizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> tuple[Tensor, Quantized]:
    """Video in [-1, 1] → its reconstruction and the quantised latents."""
    z_BTNK = encode(params, video_BTHWC, cfg, backend=backend)
    q = quantize.quantize(params["quantizer"], z_BTNK, cfg.quantizer, microbatch, backend=backend)
    return decode(params, q.codes, cfg, video_BTHWC.shape[1], backend=backend), q


def statistics(
    params: Tree,
    video_BTHWC: Tensor,
    cfg: TokenizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> dict[str, Tensor]:
    """The statistics of uint8 video, by name, whose averages over the whole batch `loss` uses."""
    if not quantize.has_statistics(cfg.quantizer):
        return {}
    z_BTNK = encode(params, layers.to_float(video_BTHWC), cfg, backend=backend)
    q = quantize.quantize(params["quantizer"], z_BTNK, cfg.quantizer, microbatch, backend=backend)
    return quantize.statistics(q, cfg.quantizer, microbatch, backend=backend)


def summarise(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reported metrics, from a batch's average scores of `loss`: with PSNR and use of codes."""
    return quantize.summarise(scores) | {"psnr": metrics.psnr(scores["mse"])}


def loss(
    params: Tree,
    video_BTHWC: Tensor,
    cfg: TokenizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> tuple[Tensor, tuple[dict[str, Tensor], Quantized]]:
    """Squared error of the reconstruction plus the quantiser's loss, on uint8 video.

    Returns the scalar loss and (metrics, quantised latents).
    """
    video = layers.to_float(video_BTHWC)
    reconstruction, q = reconstruct(params, video, cfg, microbatch, backend=backend)
    mse = (reconstruction - video).square().mean()
    return mse + q.loss, ({"mse": mse} | q.metrics, q)
