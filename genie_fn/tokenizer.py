"""The video tokenizer: a causal autoencoder with a discrete bottleneck, a grid of N ids per coded frame.

Two architectures behind one interface. `st_vivit`: Genie (arXiv 2402.15391), section 2.1 and Appendix F.2, a
space-time transformer on patches. `magvit2`: Yu et al. 2023 (arXiv 2310.05737), a causal 3D convolutional network from
blueprints, which may also compress time. In both, a grid of ids and what is decoded from it depend on nothing later
than its own frame, or group of frames where time is compressed; this lets a world decode frame by frame from a cache.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from tyro.conf import Suppress

from genie_fn import layers, metrics, quantize, tree
from genie_fn.errors import UserError
from genie_fn.layers import STConfig
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.nets import blueprint
from genie_fn.nets.blueprint import Blueprints
from genie_fn.quantize import Quantized, QuantizerConfig
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import Tree


def _residual(inputs: int, repeats: int = 1, outputs: int = 0) -> tuple[str, dict]:
    return "video-residual", {
        "in_channels": inputs,
        "out_channels": outputs or inputs,
        "n_rep": repeats,
    }


def _down(channels: int, time: int, space: int = 2) -> tuple[str, dict]:
    return "spacetime_downsample", {
        "in_channels": channels,
        "time_factor": time,
        "space_factor": space,
    }


def _up(channels: int, time: int, space: int = 2) -> tuple[str, dict]:
    return "depth2spacetime_upsample", {
        "in_channels": channels,
        "time_factor": time,
        "space_factor": space,
    }


def _adaptive(channels: int, condition: int) -> tuple[str, dict]:
    return "adaptive_group_norm", {"num_channels": channels, "dim_cond": condition}


def magvit2_encoder(
    bits: int = 18,
    dim: int = 128,
    repeats: tuple[int, ...] = (4, 3, 4, 7),
    times: tuple[int, ...] = (1, 2, 2),
) -> tuple:
    """The blueprint of MAGVIT-2's encoder: residual stages of width 1, 2, 2, 4 · dim, down-samplings in between.

    `times` are the factors that these divide the frame rate by; all ones codes every frame.
    """
    a, b, c, d = repeats
    return (
        ("causal-conv3d", {"in_channels": 3, "out_channels": dim}),
        _residual(dim, a),
        _down(dim, times[0]),
        _residual(dim, 1, 2 * dim),
        _residual(2 * dim, b),
        _down(2 * dim, times[1]),
        _residual(2 * dim, c),
        _down(2 * dim, times[2]),
        _residual(2 * dim, 1, 4 * dim),
        _residual(4 * dim, d),
        ("group_norm", {"num_channels": 4 * dim}),
        "silu",
        ("causal-conv3d", {"in_channels": 4 * dim, "out_channels": bits, "kernel_size": 1}),
    )


def magvit2_decoder(
    bits: int = 18,
    dim: int = 128,
    repeats: tuple[int, ...] = (4, 4, 3, 4, 3),
    times: tuple[int, ...] = (2, 2, 1),
) -> tuple:
    """The blueprint of MAGVIT-2's decoder, with adaptive group norms on the codes."""
    a, b, c, d, e = repeats
    return (
        ("causal-conv3d", {"in_channels": bits, "out_channels": 4 * dim}),
        _residual(4 * dim, a),
        _adaptive(4 * dim, bits),
        _residual(4 * dim, b),
        _up(4 * dim, times[0]),
        _adaptive(4 * dim, bits),
        _residual(4 * dim, 1, 2 * dim),
        _residual(2 * dim, c),
        _up(2 * dim, times[1]),
        _adaptive(2 * dim, bits),
        _residual(2 * dim, d),
        _up(2 * dim, times[2]),
        _adaptive(2 * dim, bits),
        _residual(2 * dim, 1, dim),
        _residual(dim, e),
        ("group_norm", {"num_channels": dim}),
        "silu",
        ("causal-conv3d", {"in_channels": dim, "out_channels": 3}),
    )


MAGVIT2_ENC_DESC, MAGVIT2_DEC_DESC = magvit2_encoder(), magvit2_decoder()


@dataclass(frozen=True)
class TokenizerConfig:
    """Frames of height × width RGB pixels become a grid of ids."""

    height: Suppress[int] = 64
    width: Suppress[int] = 64
    """The data's; not flags."""
    patch: int = 8
    encoder: STConfig = field(default_factory=STConfig)
    decoder: STConfig = field(default_factory=STConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    arch: Suppress[str] = "st_vivit"
    """`st_vivit`, of `patch`, `encoder` and `decoder`, or `magvit2`, of `blueprints`."""
    blueprints: Suppress[Blueprints] = field(default_factory=Blueprints)

    def __post_init__(self):
        if self.arch == "magvit2":
            self._check_blueprints()
        elif self.arch != "st_vivit":
            raise UserError(f"a tokenizer's architecture is st_vivit or magvit2, not {self.arch!r}")
        if self.height % self.scale or self.width % self.scale:
            raise UserError(
                f"{self.height}x{self.width} frames cannot be cut into {self.scale}x{self.scale} patches: "
                "choose a --cfg.model.patch (or a blueprint) that divides both sides"
            )

    def _check_blueprints(self) -> None:
        both, width = (self.blueprints.encoder, self.blueprints.decoder), self.quantizer.width
        if not all(both):
            raise UserError(
                "the architecture magvit2 needs the blueprints of an encoder and of a decoder: give both"
            )
        if blueprint.conditions(both[0]) or blueprint.conditions(both[1]) - {width}:
            raise UserError(
                f"layers are conditioned on the codes, of width {width}, and only in the decoder: "
                "change the has_ext layers of the blueprints"
            )
        if blueprint.multiplies_time(both[0]) or blueprint.divides_time(both[1]):
            raise UserError(
                "an encoder that multiplies the frame rate, or a decoder that divides it, would see later frames: "
                "divide in the encoder and multiply in the decoder"
            )
        (pixels, latent), (codes, made) = (blueprint.channels(b) for b in both)
        if (pixels, latent, codes, made) != (3, width, width, 3):
            raise UserError(
                f"a tokenizer's blueprints lead from 3 channels to the quantizer's {width} and back, "
                f"not from {pixels} to {latent} and from {codes} to {made}: change their first and last layers"
            )
        down, up = (blueprint.growth(b) for b in both)
        if any(d * u != 1 or u.denominator != 1 for d, u in zip(down, up, strict=True)):
            raise UserError(
                f"the encoder multiplies (time, space) by ({down[0]}, {down[1]}), the decoder by ({up[0]}, {up[1]}): "
                "it has to bring back what the encoder divides"
            )

    @property
    def scale(self) -> int:
        """Pixels per side of a token."""
        return (
            self.patch
            if self.arch == "st_vivit"
            else int(blueprint.growth(self.blueprints.decoder)[1])
        )

    @property
    def time_factor(self) -> int:
        """Frames per grid of ids: 1 where every frame has a grid of its own."""
        return 1 if self.arch == "st_vivit" else int(blueprint.growth(self.blueprints.decoder)[0])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of ids per coded frame."""
        return self.height // self.scale, self.width // self.scale

    @property
    def tokens(self) -> int:
        """Ids per coded frame, N."""
        return self.grid[0] * self.grid[1]


def _st_vivit(patch: int, stack: STConfig, quantizer: QuantizerConfig) -> TokenizerConfig:
    return TokenizerConfig(patch=patch, encoder=stack, decoder=stack, quantizer=quantizer)


def _magvit2(
    encoder: tuple, decoder: tuple, quantizer: QuantizerConfig, dtype: str = "bfloat16"
) -> TokenizerConfig:
    nets = Blueprints(encoder, decoder, dtype)
    return TokenizerConfig(arch="magvit2", blueprints=nets, quantizer=quantizer)


def _small_magvit2_encoder() -> tuple:
    return (
        ("space_downsample", {"in_channels": 3, "out_channels": 64, "factor": 4}),
        ("image-residual", {"in_channels": 64}),
        ("spacetime_downsample", {"in_channels": 64, "out_channels": 96, "time_factor": 1}),
        ("video-residual", {"in_channels": 96, "n_rep": 2}),
        ("proj_out", {"in_channels": 96, "out_channels": 18, "kernel_size": 1}),
    )


def _small_magvit2_decoder() -> tuple:
    return (
        ("causal-conv3d", {"in_channels": 18, "out_channels": 96}),
        _adaptive(96, 18),
        ("video-residual", {"in_channels": 96, "n_rep": 2}),
        ("depth2space_upsample", {"in_channels": 96, "out_channels": 64, "space_factor": 2}),
        _adaptive(64, 18),
        ("image-residual", {"in_channels": 64}),
        ("group_norm", {"num_channels": 64}),
        "silu",
        ("depth2space_upsample", {"in_channels": 64, "out_channels": 3, "space_factor": 4}),
    )


_OPEN_GENIE_LFQ = QuantizerConfig(codes=2**18, commit=0.25, entropy=0.1, diversity=1.0)
_EVERY_FRAME = (1, 1, 1)

PRESETS = {
    "demo": _st_vivit(
        8, STConfig(2, 128, 4), QuantizerConfig("vq", 1024, latent_dim=16, commit=0.25)
    ),
    "small": _st_vivit(4, STConfig(4, 384, 6, dtype="bfloat16"), QuantizerConfig()),
    "coinrun": _st_vivit(
        4, STConfig(8, 512, 8, dtype="bfloat16"), QuantizerConfig("vq", 1024, latent_dim=32)
    ),
    "magvit2-demo": _magvit2(
        _small_magvit2_encoder(),
        _small_magvit2_decoder(),
        QuantizerConfig(codes=2**18),
        dtype="float32",
    ),
    "magvit2-coinrun": _magvit2(MAGVIT2_ENC_DESC, MAGVIT2_DEC_DESC, _OPEN_GENIE_LFQ),
    "magvit2-framewise": _magvit2(
        magvit2_encoder(times=_EVERY_FRAME), magvit2_decoder(times=_EVERY_FRAME), _OPEN_GENIE_LFQ
    ),
}
"""The models of train_tokenizer.py's presets; `coinrun` is the paper's Appendix F.2."""


def spec(cfg: TokenizerConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`."""
    if cfg.arch == "magvit2":
        encoder, decoder = (
            blueprint.spec(b) for b in (cfg.blueprints.encoder, cfg.blueprints.decoder)
        )
    else:
        pixels, latent = 3 * cfg.patch**2, cfg.quantizer.width
        encoder = layers.grid_spec(cfg.encoder, pixels, latent, cfg.tokens)
        decoder = layers.grid_spec(cfg.decoder, latent, pixels, cfg.tokens)
    return {"encoder": encoder, "quantizer": quantize.spec(cfg.quantizer), "decoder": decoder}


def encode(
    params: Tree, video_BTHWC: Tensor, cfg: TokenizerConfig, *, backend: Backend = AUTO
) -> Tensor:
    """Video in [-1, 1] → latents (B, T', N, K), before quantisation; T' = T / time_factor, or 1 + (T-1) / it."""
    if cfg.arch == "magvit2":
        latents, _ = blueprint.apply(
            params["encoder"],
            video_BTHWC.to(layers.DTYPES[cfg.blueprints.dtype]),
            cfg.blueprints.encoder,
            first_frame_alone=blueprint.codes_first_frame_alone(
                video_BTHWC.shape[1], cfg.time_factor
            ),
            backend=backend,
        )
        return latents.float().flatten(2, 3)
    return layers.grid_transformer(
        params["encoder"], layers.patchify(video_BTHWC, cfg.patch), cfg.encoder, backend=backend
    )[0]


def decode(
    params: Tree,
    codes_BTNK: Tensor,
    cfg: TokenizerConfig,
    frames: int | None = None,
    *,
    backend: Backend = AUTO,
) -> Tensor:
    """Codes → video (B, T, H, W, 3) in about [-1, 1]; `frames` is T, by default T' · time_factor."""
    alone = frames is not None and blueprint.codes_first_frame_alone(frames, cfg.time_factor)
    return _decode(params, codes_BTNK, None, cfg, backend, first_frame_alone=alone)[0]


def decode_next(
    params: Tree,
    codes_BTNK: Tensor,
    cache: Tree | None,
    cfg: TokenizerConfig,
    backend: Backend = AUTO,
) -> tuple[Tensor, Tree | None]:
    """`decode` of the frames after those in the cache, at a time_factor of 1; also returns the extended cache."""
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
        codes_BTHWK = codes_BTNK.unflatten(2, cfg.grid)
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
    pixels, cache = layers.grid_transformer(
        params["decoder"], codes_BTNK, cfg.decoder, cache, backend=backend
    )
    return layers.unpatchify(pixels, cfg.patch, cfg.height), cache


def empty_cache(cfg: TokenizerConfig, batch: int, device=None) -> Tree:
    """The decoder's cache before any frame, for `batch` sessions."""
    if cfg.arch == "st_vivit":
        return layers.empty_cache(cfg.decoder, batch, cfg.tokens, device)
    params = tree.map(
        lambda s: torch.empty(s.shape, device="meta"), {"decoder": spec(cfg)["decoder"]}
    )
    codes = torch.empty((batch, 1, cfg.tokens, cfg.quantizer.width), device="meta")
    return tree.map(
        lambda x: torch.zeros_like(x, device=device or "cpu"),
        decode_next(params, codes, None, cfg)[1],
    )


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


def last_weight(params: Tree, cfg: TokenizerConfig) -> Tensor:
    """The weight of the decoder's last layer, against whose gradients losses are balanced."""
    last = (
        params["decoder"]["head"] if cfg.arch == "st_vivit" else [*params["decoder"].values()][-1]
    )
    if "w" not in last:
        raise UserError(
            "an adaptive weight needs a decoder that ends in a convolution or up-sampling: end it so"
        )
    return last["w"]


def statistics(
    params: Tree,
    video_BTHWC: Tensor,
    cfg: TokenizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> dict[str, Tensor]:
    """The statistics of uint8 video, by name, whose averages over the whole batch `loss` uses: the quantiser's."""
    if not quantize.has_statistics(cfg.quantizer):
        return {}
    z_BTNK = encode(params, layers.to_float(video_BTHWC), cfg, backend=backend)
    q = quantize.quantize(params["quantizer"], z_BTNK, cfg.quantizer, microbatch, backend=backend)
    return quantize.statistics(q, cfg.quantizer, microbatch, backend=backend)


def summarise(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reported metrics, from the scores of `loss` averaged over a batch: with PSNR and use of the codes."""
    return quantize.summarise(scores) | {"psnr": metrics.psnr(scores["mse"])}


def loss(
    params: Tree,
    video_BTHWC: Tensor,
    cfg: TokenizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> tuple[Tensor, tuple[dict, Quantized]]:
    """Squared error of the reconstruction plus the quantiser's loss, on uint8 video.

    Returns the scalar loss and (metrics, quantised latents).
    """
    video = layers.to_float(video_BTHWC)
    made, q = reconstruct(params, video, cfg, microbatch, backend=backend)
    mse = (made - video).square().mean()
    return mse + q.loss, ({"mse": mse} | q.metrics, q)
