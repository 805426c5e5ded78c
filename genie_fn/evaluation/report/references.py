"""Published results that an evaluation of CoinRun is shown beside."""

from typing import Literal, NamedTuple

from genie_fn.evaluation.report import headlines
from genie_fn.evaluation.report.headlines import Read

REDUX = "GenieRedux, arXiv 2409.06445"


class Reference(NamedTuple):
    """A published number, and how to read ours of the same protocol."""

    what: str
    published: str
    source: str
    read: Read
    digits: int = 2
    unit: str = " dB"
    actions: Literal["latent", "recorded", "any"] = "any"
    """The kind of worlds that the number belongs to."""


TOKENIZER_PSNR = headlines.TOKENIZER_PSNR.read
PSNR_1 = headlines.score("psnr", "own_actions", "average", "all")
PSNR_4 = headlines.score("psnr", "own_actions", "average", "all", 4)
SSIM_1 = headlines.score("ssim", "own_actions", "average", "all")
DELTA = headlines.score("delta", "random", 4, "all")

REFERENCES = (
    Reference("tokenizer, PSNR; random agent", "38.25 dB", f"{REDUX}, table 1", TOKENIZER_PSNR),
    Reference("tokenizer, PSNR; trained agent", "40.62 dB", f"{REDUX}, table 3", TOKENIZER_PSNR),
    Reference(
        "tokenizer, SSIM; random agent",
        "0.96",
        f"{REDUX}, table 1",
        lambda e: [e.reconstruction.ssim],
        3,
        "",
    ),
    Reference(
        "tokenizer, SSIM; trained agent",
        "0.97",
        f"{REDUX}, table 3",
        lambda e: [e.reconstruction.ssim],
        3,
        "",
    ),
    Reference(
        "1 → 10 frames, latent actions, PSNR; random agent",
        "25.51 dB",
        f"{REDUX}, table 1",
        PSNR_1,
        actions="latent",
    ),
    Reference(
        "1 → 10 frames, latent actions, PSNR; trained agent",
        "31.97 dB",
        f"{REDUX}, table 3",
        PSNR_1,
        actions="latent",
    ),
    Reference(
        "1 → 10 frames, latent actions, SSIM; random, trained agent",
        "0.77, 0.90",
        f"{REDUX}, tables 1, 3",
        SSIM_1,
        3,
        "",
        "latent",
    ),
    Reference(
        "1 → 10 frames, recorded actions, PSNR; trained agent",
        "34.44 dB",
        f"{REDUX}, table 3",
        PSNR_1,
        actions="recorded",
    ),
    Reference(
        "4 → 10 frames, recorded actions, PSNR; trained agent",
        "38.31 dB",
        f"{REDUX}, table 3",
        PSNR_4,
        actions="recorded",
    ),
    Reference(
        "Δ_t PSNR, recorded actions; random data, trained agent",
        "0.70 dB, 1.89 dB",
        REDUX,
        DELTA,
        actions="recorded",
    ),
    Reference(
        "Δ₄ PSNR, latent actions, on CoinRun",
        "none published",
        "defined in Genie, arXiv 2402.15391, section 3",
        DELTA,
        actions="latent",
    ),
)
