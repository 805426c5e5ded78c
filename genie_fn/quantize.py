"""Quantisers: lookup-free (LFQ) and vector (VQ). Vectors become codes and integer ids, with the losses that train both.

LFQ: Yu et al. 2023 (arXiv 2310.05737), section 3.1. VQ: van den Oord et al. 2017 (arXiv 1711.00937). What a kind has to
say for itself stands in `KINDS`; docs/how-to/quantiser.md adds a third.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers, metrics, random
from genie_fn.errors import UserError
from genie_fn.kernels import lfq as lookup_free
from genie_fn.microbatch import WHOLE_BATCH, CodebookUpdate, Microbatch
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import ParamSpec, Tree


@dataclass(frozen=True)
class QuantizerConfig:
    """A codebook of `codes` entries: `lfq` (one bit per channel) or `vq` (learned vectors)."""

    kind: str = "lfq"
    codes: int = 1024
    latent_dim: int = 32
    """Width of VQ's vectors; LFQ's is log2(codes)."""
    books: int = 1
    """LFQ: the bits are cut into so many codebooks, each with entropies of its own; an id names one code of each."""
    input_dim: int = 0
    """Width of what is quantised, if not the quantiser's own: linear maps lead to it and back."""
    bias: bool = True
    """Of those maps."""
    commit: float = 0.1
    entropy: float = 0.02
    diversity: float = 1.0
    """Weight of the codebook's entropy against the per-sample entropy (LFQ)."""
    temperature: float = 1.0
    """Of the soft assignment whose entropies LFQ optimises."""
    frac_sample: float = 1.0
    """The share of the latents, evenly spread, that LFQ's entropies are computed on."""
    reset_below: float = 0.1
    """VQ codes used less than this share of uniform use are moved onto inputs."""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(
                f"--cfg.model.quantizer.kind is {' or '.join(KINDS)}, not {self.kind!r}"
            )
        if self.codes < 2 or self.temperature <= 0:
            raise UserError(
                "a quantizer needs at least 2 codes and a temperature above 0: "
                f"change --cfg.model.quantizer.codes {self.codes} or .temperature {self.temperature}"
            )
        KINDS[self.kind].check(self)
        if self.books < 1 or self.books > 1 and (self.kind != "lfq" or self.dim % self.books):
            raise UserError(
                f"{self.books} codebooks need lfq and equal shares of its {self.dim} bits: "
                "change --cfg.model.quantizer.books"
            )
        if not 0 < self.frac_sample <= 1:
            raise UserError(
                f"--cfg.model.quantizer.frac-sample is above 0 and at most 1, not {self.frac_sample}"
            )

    @property
    def dim(self) -> int:
        """Channels of a code, K."""
        return KINDS[self.kind].dim(self)

    @property
    def width(self) -> int:
        """Channels of what is quantised, and of what comes out."""
        return self.input_dim or self.dim


class Kind(NamedTuple):
    """What a kind of quantiser is. Its functions get the quantiser's parameters, but for the maps in and out."""

    dim: Callable[[QuantizerConfig], int]
    """Channels of a code, K."""
    quantize: Callable[[Tree, Tensor, QuantizerConfig, Microbatch, Backend], "Quantized"]
    """(params, z (..., K), cfg, microbatch, backend) → codes, ids and losses."""
    lookup: Callable[[Tree, Tensor, QuantizerConfig], Tensor]
    """(params, ids (...), cfg) → codes (..., K)."""
    check: Callable[[QuantizerConfig], None] = lambda cfg: None
    """Raises UserError where the options do not fit together."""
    spec: Callable[[QuantizerConfig], Tree] = lambda cfg: {}
    """Its own parameters."""
    statistics: (
        Callable[[Tensor, QuantizerConfig, Microbatch, Backend], dict[str, Tensor]] | None
    ) = None
    """(z (..., K), cfg, microbatch, backend) → the statistics, by name, whose averages over the
    whole batch `quantize` uses."""
    restarts: bool = False
    """Whether it has a `codebook` whose dead codes are moved."""


class Quantized(NamedTuple):
    """What `quantize` returns for z (..., width)."""

    codes: Tensor
    """(..., width), ready for a decoder; their gradient goes straight through to z."""
    ids: Tensor
    """(...), int64."""
    loss: Tensor
    metrics: dict[str, Tensor]
    z: Tensor
    """What was rounded, (..., K), detached."""
    use_V: Tensor
    """Each code's share of what was chosen."""


def spec(cfg: QuantizerConfig) -> Tree:
    """VQ has its codebook (V, K), LFQ has none; both have their maps where the widths differ."""
    book = KINDS[cfg.kind].spec(cfg)
    if not cfg.input_dim:
        return book
    pair = {"in": (cfg.input_dim, cfg.dim), "out": (cfg.dim, cfg.input_dim)}
    return book | {name: layers.linear_spec(*sizes, bias=cfg.bias) for name, sizes in pair.items()}


def quantize(
    params: Tree,
    z: Tensor,
    cfg: QuantizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> Quantized:
    """z (..., width), which begins with the axis of the clips → codes, ids and losses, all in float32."""
    z = layers.linear(params["in"], z.float()) if cfg.input_dim else z
    q = KINDS[cfg.kind].quantize(params, z, cfg, microbatch, backend)
    return q._replace(codes=layers.linear(params["out"], q.codes)) if cfg.input_dim else q


def has_statistics(cfg: QuantizerConfig) -> bool:
    """Whether the loss depends on averages over the whole batch: see `statistics`."""
    return KINDS[cfg.kind].statistics is not None


def statistics(
    q: Quantized,
    cfg: QuantizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> dict[str, Tensor]:
    """The statistics of what was quantised, by name, that `quantize` took from `microbatch.mean`."""
    measure = KINDS[cfg.kind].statistics
    return measure(q.z, cfg, microbatch, backend) if measure else {}


def lookup(params: Tree, ids: Tensor, cfg: QuantizerConfig) -> Tensor:
    """The codes (..., width) of ids (...): the inverse of quantisation."""
    codes = KINDS[cfg.kind].lookup(params, ids, cfg)
    return layers.linear(params["out"], codes) if cfg.input_dim else codes


def lfq(
    z: Tensor,
    cfg: QuantizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> Quantized:
    """Signs of z (sign(0) = -1), ids Σ 2^k [z_k > 0], and the loss

    commit · |z - code|² + entropy · (mean per-sample entropy - diversity · entropy of the mean),

    the entropies averaged over the codebooks.
    """
    r = lookup_free.quantize(
        z.flatten(0, -2), **_lfq_options(z, cfg, backend), microbatch=microbatch
    )
    loss = cfg.commit * r.commit + cfg.entropy * (r.sample_entropy - cfg.diversity * r.code_entropy)
    metrics = {
        "commit": r.commit,
        "sample_entropy": r.sample_entropy,
        "code_entropy": r.code_entropy,
    }
    return _quantized(
        z.float(), r.codes_MK.reshape(z.shape), r.ids_M.reshape(z.shape[:-1]), loss, metrics, cfg
    )


def lfq_statistics(
    z: Tensor, cfg: QuantizerConfig, microbatch: Microbatch, backend: Backend
) -> dict[str, Tensor]:
    """LFQ's statistic of the whole batch: how probable each code is on average."""
    options = _lfq_options(z, cfg, backend)
    average = lookup_free.code_probabilities(z.flatten(0, -2), **options, microbatch=microbatch)
    return {"code_probabilities": average}


def _lfq_options(z: Tensor, cfg: QuantizerConfig, backend: Backend) -> dict[str, Any]:
    return {
        "books": cfg.books,
        "temperature": cfg.temperature,
        "share": cfg.frac_sample,
        "impl": backend.lfq,
        "clips": len(z) if z.dim() > 2 else 1,
    }


def _quantized(
    z: Tensor, codes: Tensor, ids: Tensor, loss: Tensor, metrics: dict, cfg: QuantizerConfig
) -> Quantized:
    use_V = code_use(ids, cfg.codes)
    return Quantized(codes, ids, loss, metrics | {"use": use_V}, z.detach(), use_V)


def vq(codebook_VK: Tensor, z: Tensor, cfg: QuantizerConfig) -> Quantized:
    """The nearest codebook vector; the codebook is pulled to its inputs, the inputs (by `commit`) to their codes."""
    z = z.float()
    flat_MK = z.flatten(0, -2)
    distance_MV = codebook_VK.square().sum(-1) - 2 * flat_MK @ codebook_VK.T
    ids = distance_MV.argmin(-1).reshape(z.shape[:-1])
    # A product, not a gather: a gather's gradient adds up in any order, and runs would not repeat.
    codes = F.one_hot(ids, cfg.codes).to(z.dtype) @ codebook_VK
    commit = (z - codes.detach()).square().mean()
    loss = cfg.commit * commit + (codes - z.detach()).square().mean()
    return _quantized(z, z + (codes - z).detach(), ids, loss, {"commit": commit}, cfg)


def initial_use(cfg: QuantizerConfig, device=None) -> Tree:
    """What a training state keeps for a quantiser: VQ's moving share of use per code, uniform at first."""
    return (
        {"use": torch.full((cfg.codes,), 1 / cfg.codes, device=device)}
        if KINDS[cfg.kind].restarts
        else {}
    )


def codebook_update(cfg: QuantizerConfig, model: str = "") -> CodebookUpdate | None:
    """What a training step does to a model's codebook; `model` is its place in the parameters, if not the top.

    It follows the use of VQ's codes (a moving average) and restarts the dead ones. LFQ needs neither.
    """
    if not KINDS[cfg.kind].restarts:
        return None

    def collect(q: Quantized, key: Tensor, microbatch: Microbatch) -> Tree:
        return {
            "use": q.use_V / microbatch.count,
            "picks": pick_inputs(q.z, key, cfg.codes, microbatch),
        }

    def apply(params: Tree, stats: Tree, sums: Tree) -> tuple[Tree, Tree]:
        use_V = stats["use"] + 0.02 * (sums["use"] - stats["use"])
        own = params[model] if model else params
        codebook, use_V = reset_dead_codes(own["quantizer"]["codebook"], use_V, sums["picks"], cfg)
        own = own | {"quantizer": own["quantizer"] | {"codebook": codebook}}
        return params | {model: own} if model else own, {"use": use_V}

    return CodebookUpdate(collect, apply)


def pick_inputs(z: Tensor, key: Tensor, count: int, microbatch: Microbatch = WHOLE_BATCH) -> Tensor:
    """So many random rows (count, K) of all of a batch's z (..., K); those in another microbatch are 0."""
    flat_MK = z.float().flatten(0, -2)
    rows = len(flat_MK)
    row_V = random.randint(key, (count,), 0, rows * microbatch.count) - microbatch.first_clip(rows)
    here_V = (row_V >= 0) & (row_V < rows)
    return torch.where(here_V[:, None], flat_MK[row_V.clamp(0, rows - 1)], 0.0)


def reset_dead_codes(codebook_VK: Tensor, use_V: Tensor, picks_VK: Tensor, cfg: QuantizerConfig):
    """Move the codes whose share of use is under `reset_below` / V onto random inputs of this batch.

    Returns the new codebook and use: a moved code starts again at uniform use, so that it has time to be chosen.
    """
    dead_V = use_V < cfg.reset_below / cfg.codes
    return torch.where(dead_V[:, None], picks_VK, codebook_VK), torch.where(
        dead_V, 1.0 / cfg.codes, use_V
    )


def summarise(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reported metrics: `codes_used` and `perplexity` in place of the shares of `use` of the codes."""
    rest = {name: value for name, value in scores.items() if name != "use"}
    return rest | metrics.code_usage(scores["use"])


def code_use(ids: Tensor, codes: int) -> Tensor:
    """The share of each code in ids (...): float32 (V,)."""
    ones = torch.ones(ids.numel(), device=ids.device)
    return torch.zeros(codes, device=ids.device).scatter_add(0, ids.flatten(), ones) / ids.numel()


def _check_bits(cfg: QuantizerConfig) -> None:
    if cfg.codes.bit_count() != 1:
        raise UserError(
            f"lfq needs a power of two of codes, not {cfg.codes}: take {1 << cfg.codes.bit_length()}"
        )


KINDS = {
    "lfq": Kind(
        dim=lambda cfg: cfg.codes.bit_length() - 1,
        quantize=lambda params, z, cfg, microbatch, backend: lfq(
            z, cfg, microbatch, backend=backend
        ),
        lookup=lambda params, ids, cfg: lookup_free.codes_of(ids, cfg.dim),
        check=_check_bits,
        statistics=lfq_statistics,
    ),
    "vq": Kind(
        dim=lambda cfg: cfg.latent_dim,
        quantize=lambda params, z, cfg, microbatch, backend: vq(params["codebook"], z, cfg),
        lookup=lambda params, ids, cfg: params["codebook"][ids],
        spec=lambda cfg: {
            "codebook": ParamSpec((cfg.codes, cfg.dim), std=1.0, decay=False, whole=True)
        },
        restarts=True,
    ),
}
"""By the names that `QuantizerConfig.kind` takes."""
