"""The video tokenizer: a causal space-time autoencoder with a discrete bottleneck, one grid of N ids per frame.

ST-ViViT: Genie (arXiv 2402.15391), section 2.1.2 and Appendix F.2. Frame t's ids depend on frames <= t alone, and so
do its decoded pixels, which is what lets a world decode frame by frame from a cache.
"""

from dataclasses import dataclass, field

from torch import Tensor
from tyro.conf import Suppress

from genie_fn import layers, metrics, quantize
from genie_fn.errors import UserError
from genie_fn.layers import Cache, STConfig
from genie_fn.quantize import Quantized, QuantizerConfig
from genie_fn.tree import Tree


@dataclass(frozen=True)
class TokenizerConfig:
    """Frames of height × width RGB pixels become (height / patch) · (width / patch) ids."""

    height: Suppress[int] = 64
    width: Suppress[int] = 64
    """The data's; not flags."""
    patch: int = 8
    encoder: STConfig = field(default_factory=STConfig)
    decoder: STConfig = field(default_factory=STConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self):
        if self.height % self.patch or self.width % self.patch:
            raise UserError(
                f"{self.height}x{self.width} frames cannot be cut into {self.patch}x{self.patch} patches: "
                "choose a --cfg.model.patch that divides both sides"
            )

    @property
    def tokens(self) -> int:
        """Ids per frame, N."""
        return (self.height // self.patch) * (self.width // self.patch)


def spec(cfg: TokenizerConfig) -> Tree:
    """The parameters, as a tree of `ParamSpec`."""
    pixels, latent = 3 * cfg.patch**2, cfg.quantizer.dim
    return {
        "encoder": layers.grid_spec(cfg.encoder, pixels, latent, cfg.tokens),
        "quantizer": quantize.spec(cfg.quantizer),
        "decoder": layers.grid_spec(cfg.decoder, latent, pixels, cfg.tokens),
    }


def encode(params: Tree, video_BTHWC: Tensor, cfg: TokenizerConfig) -> Tensor:
    """Video in [-1, 1] → latents (B, T, N, K), before quantisation."""
    return layers.grid_transformer(params["encoder"], layers.patchify(video_BTHWC, cfg.patch), cfg.encoder)[0]


def decode(params: Tree, codes_BTNK: Tensor, cfg: TokenizerConfig) -> Tensor:
    """Codes → video (B, T, H, W, 3) in about [-1, 1]."""
    return decode_next(params, codes_BTNK, None, cfg)[0]


def decode_next(
    params: Tree, codes_BTNK: Tensor, cache: Cache | None, cfg: TokenizerConfig
) -> tuple[Tensor, Cache | None]:
    """`decode` of the frames that follow those in the cache; also returns the extended cache."""
    pixels, cache = layers.grid_transformer(params["decoder"], codes_BTNK, cfg.decoder, cache)
    return layers.unpatchify(pixels, cfg.patch, cfg.height), cache


def tokenize(params: Tree, video_BTHWC: Tensor, cfg: TokenizerConfig) -> tuple[Tensor, Tensor]:
    """uint8 video → codes (B, T, N, K) and ids (B, T, N)."""
    q = quantize.quantize(params["quantizer"], encode(params, layers.to_float(video_BTHWC), cfg), cfg.quantizer)
    return q.codes, q.ids


def detokenize(params: Tree, ids_BTN: Tensor, cfg: TokenizerConfig) -> Tensor:
    """ids → uint8 video."""
    return layers.to_uint8(decode(params, quantize.lookup(params["quantizer"], ids_BTN, cfg.quantizer), cfg))


def loss(params: Tree, video_BTHWC: Tensor, cfg: TokenizerConfig) -> tuple[Tensor, tuple[dict, Quantized]]:
    """Squared error of the reconstruction plus the quantiser's loss, on uint8 video.

    Returns the scalar loss and (metrics, quantised latents).
    """
    video = layers.to_float(video_BTHWC)
    q = quantize.quantize(params["quantizer"], encode(params, video, cfg), cfg.quantizer)
    mse = (decode(params, q.codes, cfg) - video).square().mean()
    return mse + q.loss, ({"mse": mse, "psnr": metrics.psnr(mse)} | q.metrics, q)
