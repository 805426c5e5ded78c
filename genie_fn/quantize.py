"""Quantisers: lookup-free (LFQ) and vector (VQ). They map vectors to codes and integer ids.

Their losses train the codes and what is quantised. LFQ: Yu et al. 2023 (arXiv 2310.05737), section
3.1. VQ: van den Oord et al. 2017 (arXiv 1711.00937). `KINDS` holds the functions of each kind;
docs/how-to/quantiser.md adds another one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers, metrics, random
from genie_fn.errors import UserError
from genie_fn.kernels import lfq as lookup_free
from genie_fn.microbatch import WHOLE_BATCH, CodebookUpdate, Microbatch
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import ParamSpec, Tree

KindName = Literal["lfq", "vq"]


@dataclass(frozen=True)
class QuantizerConfig:
    """A codebook of `codes` entries: `lfq` (one bit per channel) or `vq` (learned vectors)."""

    kind: KindName = "lfq"
    """`lfq`: one bit per channel; `vq`: learned vectors."""
    codes: int = 1024
    """The number of ids. With several codebooks it is the product of their sizes."""
    latent_dim: int = 32
    """Width of the codes of VQ. LFQ's is log2(codes)."""
    books: int = 1
    """The number of codebooks into which the channels are divided; an id names one code of each, so
    that `codes` is the product of their sizes. LFQ: each has its own entropies. VQ: each has the same
    number of codes, and a dynamics model predicts each with a softmax of its own, if the number is a
    power of two."""
    input_dim: int = 0
    """Width of what is quantised, if it differs from that of the codes: then a linear layer comes
    before the quantiser and one after it. 0: the same width."""
    bias: bool = True
    """Whether these linear layers have a bias."""
    commit: float = 0.1
    """Weight of the squared distance between what is quantised and its code."""
    entropy: float = 0.02
    """Weight of the entropies in LFQ's loss."""
    diversity: float = 1.0
    """Weight of the codebook's entropy relative to the per-sample entropy (LFQ)."""
    temperature: float = 1.0
    """Temperature of the soft assignment whose entropies LFQ optimises."""
    frac_sample: float = 1.0
    """The share of the latents, evenly spread, from which LFQ's entropies are computed."""
    sphere: bool = False
    """VQ: what is quantised and the codes are scaled to the length sqrt(K), so that only their
    directions count."""
    pairs: int = 0
    """VQ: the first 2 x `pairs` codes are pairs of mirror images: the second half of the channels
    has opposite signs in the two. In the other codes it is then 0. 0: no such constraint."""
    reset_below: float = 0.1
    """VQ: codes whose share of use is below this multiple of uniform use are moved onto inputs."""
    use_rate: float = 0.02
    """VQ: the weight of a batch in the moving average of each code's share of use. With 0.02 an unused
    code is moved after 114 steps, with 0.1 after 22."""
    from_inputs: bool = False
    """VQ: shares of use begin at 0, so that the first step moves all codes onto inputs whose share in
    its batch is below reset_below / (use_rate V), where V counts the codes of all codebooks.
    Otherwise they begin at 1/V, and unused codes are moved for the first time when their share has
    decreased."""

    def __post_init__(self):
        if self.codes < 2 or self.temperature <= 0:
            raise UserError(
                "a quantizer needs at least 2 codes and a temperature above 0: change "
                f"--cfg.model.quantizer.codes {self.codes} or .temperature {self.temperature}"
            )
        if self.latent_dim < 1 or self.input_dim < 0:
            raise UserError(
                "--cfg.model.quantizer.latent-dim must be at least 1 and .input-dim at least 0, "
                f"not {self.latent_dim} and {self.input_dim}"
            )
        if self.books < 1 or self.dim % self.books:
            raise UserError(
                f"{self.books} codebooks cannot have equal shares of {self.dim} channels: "
                "change --cfg.model.quantizer.books"
            )
        KINDS[self.kind].check(self)
        if self.kind != "vq" and (self.pairs or self.sphere):
            raise UserError(
                f"pairs of codes and codes on a sphere are of vq, not of {self.kind}: add "
                "--cfg.model.quantizer.pairs 0 --cfg.model.quantizer.no-sphere"
            )
        if self.pairs and self.books > 1:
            raise UserError(
                "pairs of codes need a single codebook: set --cfg.model.quantizer.pairs 0 or .books 1"
            )
        if self.pairs and self.input_dim:
            raise UserError(
                "linear layers around the quantizer would break the symmetry of pairs: set one of "
                "--cfg.model.quantizer.pairs and --cfg.model.quantizer.input-dim to 0"
            )
        if not 0 <= 2 * self.pairs <= self.codes or self.pairs and self.latent_dim % 2:
            raise UserError(
                f"{self.pairs} pairs need twice as many codes and an even --cfg.model.quantizer."
                f"latent-dim, not {self.codes} codes of width {self.latent_dim}: change one of them"
            )
        if not 0 < self.use_rate <= 1:
            raise UserError(
                f"--cfg.model.quantizer.use-rate must be above 0 and at most 1, not {self.use_rate}"
            )
        if not 0 < self.frac_sample <= 1:
            raise UserError(
                "--cfg.model.quantizer.frac-sample must be above 0 and at most 1, "
                f"not {self.frac_sample}"
            )

    @property
    def use_flag(self) -> str:
        """The flag that, raised, spreads the use over more codes."""
        name = "entropy" if self.kind == "lfq" else "reset-below"
        return f"--cfg.model.quantizer.{name}"

    @property
    def dim(self) -> int:
        """Channels of a code, K."""
        return KINDS[self.kind].dim(self)

    @property
    def width(self) -> int:
        """Channels of the quantiser's input and output."""
        return self.input_dim or self.dim

    @property
    def book_codes(self) -> int:
        """The codes of each codebook."""
        return round(self.codes ** (1 / self.books))

    @property
    def entries(self) -> int:
        """The codes of all codebooks together."""
        return self.books * self.book_codes


class Quantized(NamedTuple):
    """The result of `quantize` for z (..., width)."""

    codes: Tensor
    """(..., width), for a decoder; their gradient goes straight through to z."""
    ids: Tensor
    """(...), int64."""
    loss: Tensor
    metrics: dict[str, Tensor]
    z: Tensor
    """The quantised vectors, (..., K), detached."""
    use_V: Tensor
    """Each code's share of the ids; of VQ with several codebooks, each entry's share of the choices
    of all codebooks."""


def _no_check(cfg: QuantizerConfig) -> None:
    """All options fit together."""


def _no_spec(cfg: QuantizerConfig) -> Tree:
    """No parameters."""
    return {}


class Kind(NamedTuple):
    """The functions of a kind of quantiser.

    `params` are the quantiser's parameters without the linear layers before and after it.
    """

    dim: Callable[[QuantizerConfig], int]
    """Channels of a code, K."""
    quantize: Callable[[Tree, Tensor, QuantizerConfig, Microbatch, Backend], Quantized]
    """(params, z (..., K), cfg, microbatch, backend) → codes, ids and losses."""
    lookup: Callable[[Tree, Tensor, QuantizerConfig], Tensor]
    """(params, ids (...), cfg) → codes (..., K)."""
    check: Callable[[QuantizerConfig], None] = _no_check
    """Raises UserError if options do not fit together."""
    spec: Callable[[QuantizerConfig], Tree] = _no_spec
    """The kind's own parameters."""
    statistics: (
        Callable[[Tensor, QuantizerConfig, Microbatch, Backend], dict[str, Tensor]] | None
    ) = None
    """(z (..., K), cfg, microbatch, backend) → the statistics, by name, whose averages over the
    whole batch `quantize` uses."""
    restarts: bool = False
    """Whether it has a `codebook` whose dead codes are moved."""


def spec(cfg: QuantizerConfig) -> Tree:
    """The kind's own parameters (VQ's codebook), and linear layers if `input_dim` is set."""
    params = KINDS[cfg.kind].spec(cfg)
    if not cfg.input_dim:
        return params
    return params | {
        "in": layers.linear_spec(cfg.input_dim, cfg.dim, bias=cfg.bias),
        "out": layers.linear_spec(cfg.dim, cfg.input_dim, bias=cfg.bias),
    }


def quantize(
    params: Tree,
    z: Tensor,
    cfg: QuantizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> Quantized:
    """z (..., width), whose first axis is that of clips → codes, ids and losses in float32."""
    if not cfg.input_dim:
        return KINDS[cfg.kind].quantize(params, z, cfg, microbatch, backend)
    z = layers.linear(params["in"], z.float())
    q = KINDS[cfg.kind].quantize(params, z, cfg, microbatch, backend)
    return q._replace(codes=layers.linear(params["out"], q.codes))


def unquantized(params: Tree, z: Tensor, cfg: QuantizerConfig) -> Tensor:
    """z (..., width) as `quantize` compares it with the codes, where `Quantized.codes` has these."""
    z = z.float()
    if cfg.input_dim:
        z = layers.linear(params["in"], z)
    z = torch.cat(_parts(z, cfg), -1)
    return layers.linear(params["out"], z) if cfg.input_dim else z


def lookup(params: Tree, ids: Tensor, cfg: QuantizerConfig) -> Tensor:
    """The codes (..., width) of ids (...): the inverse of quantisation."""
    codes = KINDS[cfg.kind].lookup(params, ids, cfg)
    return layers.linear(params["out"], codes) if cfg.input_dim else codes


def factor_codes(
    params: Tree,
    cfg: QuantizerConfig,
    sizes: Sequence[int],
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """How the codes of each factor of an id differ: (V_i, K_i) for a factor of V_i values.

    An id is Σ digit_i · Π_{j<i} V_j, and the product of `sizes` is `cfg.codes`. The other digits are
    0. Every channel has the mean 0 and the variance 1 over the values; those that do not depend on
    the factor are left out.
    """
    vectors: list[Tensor] = []
    base = 1
    for size in sizes:
        ids = torch.arange(size, device=device) * base
        codes_VK = lookup(params, ids, cfg).float()
        deviation_K = codes_VK.std(0, correction=0)
        varies_K = deviation_K > 1e-6 * deviation_K.max()
        centred_VK = codes_VK - codes_VK.mean(0)
        vectors.append((centred_VK / deviation_K)[:, varies_K])
        base *= size
    return vectors


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
    """The statistics, by name, whose averages over the whole batch `quantize` uses."""
    measure = KINDS[cfg.kind].statistics
    return measure(q.z, cfg, microbatch, backend) if measure else {}


def summarise(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reported metrics: `codes_used` and `perplexity` replace the codes' shares of `use`."""
    rest = {name: value for name, value in scores.items() if name != "use"}
    return rest | metrics.code_usage(scores["use"])


def code_use(ids: Tensor, codes: int) -> Tensor:
    """The share of each code in ids (...): float32 (V,)."""
    ones = torch.ones(ids.numel(), device=ids.device)
    counts_V = torch.zeros(codes, device=ids.device).scatter_add(0, ids.flatten(), ones)
    return counts_V / ids.numel()


def _quantized(
    z: Tensor,
    codes: Tensor,
    ids: Tensor,
    loss: Tensor,
    scores: dict[str, Tensor],
    use_V: Tensor,
) -> Quantized:
    """The result of a kind. The codes' shares of use are a score, too, of several codebooks (B, V)."""
    return Quantized(codes, ids, loss, {"use": use_V} | scores, z.detach(), use_V)


# Lookup-free quantisation


def lfq(
    z: Tensor,
    cfg: QuantizerConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    *,
    backend: Backend = AUTO,
) -> Quantized:
    """Signs of z (sign(0) = -1), ids Σ 2^k [z_k > 0], and the loss

    commit · |z - code|² + entropy · (mean per-sample entropy - diversity · entropy of the mean),

    where the entropies are averaged over the codebooks.
    """
    options = _lfq_options(z, cfg, backend)
    r = lookup_free.quantize(z.flatten(0, -2), options, microbatch)
    loss = cfg.commit * r.commit + cfg.entropy * (r.sample_entropy - cfg.diversity * r.code_entropy)
    scores = {
        "commit": r.commit,
        "sample_entropy": r.sample_entropy,
        "code_entropy": r.code_entropy,
    }
    codes = r.codes_MK.reshape(z.shape)
    ids = r.ids_M.reshape(z.shape[:-1])
    return _quantized(z.float(), codes, ids, loss, scores, code_use(ids, cfg.codes))


def _lfq_options(z: Tensor, cfg: QuantizerConfig, backend: Backend) -> lookup_free.Options:
    clips = len(z) if z.dim() > 2 else 1
    return lookup_free.Options(cfg.books, cfg.temperature, cfg.frac_sample, clips, backend.lfq)


def _lfq_dim(cfg: QuantizerConfig) -> int:
    return cfg.codes.bit_length() - 1


def _lfq_quantize(
    params: Tree, z: Tensor, cfg: QuantizerConfig, microbatch: Microbatch, backend: Backend
) -> Quantized:
    return lfq(z, cfg, microbatch, backend=backend)


def _lfq_lookup(params: Tree, ids: Tensor, cfg: QuantizerConfig) -> Tensor:
    return lookup_free.codes_of(ids, cfg.dim)


def _lfq_check(cfg: QuantizerConfig) -> None:
    if cfg.codes.bit_count() != 1:
        raise UserError(
            f"lfq needs a power of two of codes, not {cfg.codes}: "
            f"choose {1 << cfg.codes.bit_length()}"
        )


def _lfq_statistics(
    z: Tensor, cfg: QuantizerConfig, microbatch: Microbatch, backend: Backend
) -> dict[str, Tensor]:
    """The average probability of each code."""
    options = _lfq_options(z, cfg, backend)
    average = lookup_free.code_probabilities(z.flatten(0, -2), options, microbatch)
    return {"code_probabilities": average}


# Vector quantisation


def vq(codebook_VK: Tensor, z: Tensor, cfg: QuantizerConfig) -> Quantized:
    """The nearest vectors of the codebook, with van den Oord's two losses.

    The loss moves the codebook towards its inputs and, with the weight `commit`, the inputs towards
    their codes. With several codebooks, each quantises its share of the channels (product
    quantisation: Jégou et al. 2011, section II): the rows of `codebook_VK` are the S codes of the
    first, then those of the second, and so on, and ids are Σ digit_b · S^b.
    """
    parts = _parts(z.float(), cfg)
    books_BVK = _entries(codebook_VK, cfg).chunk(cfg.books)
    digits: list[Tensor] = []
    codes: list[Tensor] = []
    for part, book_VK in zip(parts, books_BVK, strict=True):
        flat_MK = part.flatten(0, -2)
        distance_MV = torch.addmm(book_VK.square().sum(-1), flat_MK, book_VK.T, alpha=-2)
        digit = distance_MV.argmin(-1).reshape(z.shape[:-1])
        codes.append(F.embedding(digit, book_VK))
        digits.append(digit)
    z, chosen = torch.cat(parts, -1), torch.cat(codes, -1)
    commit = (z - chosen.detach()).square().mean()
    loss = cfg.commit * commit + (chosen - z.detach()).square().mean()
    ids = torch.stack([digit * cfg.book_codes**i for i, digit in enumerate(digits)]).sum(0)
    entry = torch.stack([digit + i * cfg.book_codes for i, digit in enumerate(digits)])
    use_V = code_use(entry, cfg.entries)
    straight_through = z + (chosen - z).detach()
    scores = {"commit": commit, "use": cfg.books * use_V.reshape(cfg.books, -1)}
    return _quantized(z, straight_through, ids, loss, scores, use_V)


def _parts(z: Tensor, cfg: QuantizerConfig) -> list[Tensor]:
    """What each codebook of VQ quantises of z (..., K), scaled as configured."""
    parts = z.chunk(cfg.books, -1)
    return [_on_sphere(part) if cfg.sphere else part for part in parts]


def _entries(codebook_VK: Tensor, cfg: QuantizerConfig) -> Tensor:
    """The codes, from the parameters: paired and scaled as configured."""
    if cfg.pairs:
        first, second = codebook_VK.chunk(2, -1)
        paired = 2 * cfg.pairs
        first_of_pair = first[:paired:2].repeat_interleave(2, 0)
        second_of_pair = second[:paired:2].repeat_interleave(2, 0)
        sign_V1 = second.new_tensor([1.0, -1.0]).repeat(cfg.pairs)[:, None]
        first = torch.cat((first_of_pair, first[paired:]))
        second = torch.cat((sign_V1 * second_of_pair, torch.zeros_like(second[paired:])))
        codebook_VK = torch.cat((first, second), -1)
    return _on_sphere(codebook_VK) if cfg.sphere else codebook_VK


def _on_sphere(x: Tensor) -> Tensor:
    """Vectors (..., K) scaled to the length sqrt(K); tiny ones stay short, for their gradients."""
    return F.normalize(x, dim=-1, eps=1e-3) * x.shape[-1] ** 0.5


def _vq_dim(cfg: QuantizerConfig) -> int:
    return cfg.latent_dim


def _vq_quantize(
    params: Tree, z: Tensor, cfg: QuantizerConfig, microbatch: Microbatch, backend: Backend
) -> Quantized:
    return vq(params["codebook"], z, cfg)


def _vq_lookup(params: Tree, ids: Tensor, cfg: QuantizerConfig) -> Tensor:
    entries_VK = _entries(params["codebook"], cfg)
    codes: list[Tensor] = []
    for book in range(cfg.books):
        digit = ids // cfg.book_codes**book
        if book < cfg.books - 1:
            digit = digit % cfg.book_codes
        codes.append(entries_VK[book * cfg.book_codes + digit])
    return torch.cat(codes, -1)


def _vq_spec(cfg: QuantizerConfig) -> Tree:
    shape = (cfg.entries, cfg.dim // cfg.books)
    return {"codebook": ParamSpec(shape, std=1.0, decay=False, whole=True)}


def _vq_check(cfg: QuantizerConfig) -> None:
    if cfg.books > 1 and (cfg.book_codes**cfg.books != cfg.codes or cfg.book_codes < 2):
        size = max(cfg.book_codes, 2)
        raise UserError(
            f"{cfg.codes} codes cannot be divided into {cfg.books} codebooks of equal size: set "
            f"--cfg.model.quantizer.codes {size**cfg.books} for {size} in each, or change .books"
        )


# Restarts of dead codes


def initial_use(cfg: QuantizerConfig, device: torch.device | str | None = None) -> Tree:
    """A quantiser's part of the training state: VQ's share of use per code, at first uniform.

    With `from_inputs` it is 0, so that the first step moves every code that it hardly uses.
    """
    if not KINDS[cfg.kind].restarts:
        return {}
    share = 0.0 if cfg.from_inputs else 1 / cfg.entries
    return {"use": torch.full((cfg.entries,), share, device=device)}


def codebook_update(cfg: QuantizerConfig, model: str = "") -> CodebookUpdate | None:
    """How a training step updates a codebook beside the optimizer; None if it does not.

    It tracks the use of the codes of VQ as a moving average and moves dead codes. `model` is the
    key of the model in the parameters, "" if they are its own.
    """
    if not KINDS[cfg.kind].restarts:
        return None

    def collect(q: Quantized, key: Tensor, microbatch: Microbatch) -> Tree:
        picks_VK = _own_channels(pick_inputs(q.z, key, cfg.entries, microbatch), cfg)
        return {"use": q.use_V / microbatch.count, "picks": picks_VK}

    def apply(params: Tree, stats: Tree, sums: Tree) -> tuple[Tree, Tree]:
        use_V = stats["use"] + cfg.use_rate * (sums["use"] - stats["use"])
        own = params[model] if model else params
        codebook, use_V = reset_dead_codes(own["quantizer"]["codebook"], use_V, sums["picks"], cfg)
        own = own | {"quantizer": own["quantizer"] | {"codebook": codebook}}
        return params | {model: own} if model else own, {"use": use_V}

    return CodebookUpdate(collect, apply)


def pick_inputs(z: Tensor, key: Tensor, count: int, microbatch: Microbatch = WHOLE_BATCH) -> Tensor:
    """`count` random rows, (count, K), of the whole batch's z (..., K).

    Rows in other microbatches are 0, so that the sum over all microbatches has every row.
    """
    flat_MK = z.float().flatten(0, -2)
    rows = len(flat_MK)
    first = microbatch.first_clip(rows)
    row_V = random.randint(key, (count,), 0, rows * microbatch.count) - first
    here_V = (row_V >= 0) & (row_V < rows)
    return torch.where(here_V[:, None], flat_MK[row_V.clamp(0, rows - 1)], 0.0)


def _own_channels(picks_VK: Tensor, cfg: QuantizerConfig) -> Tensor:
    """Of an input for each entry of the codebooks, the channels of its codebook."""
    by_book = picks_VK.chunk(cfg.books)
    return torch.cat([picks.chunk(cfg.books, -1)[book] for book, picks in enumerate(by_book)])


def reset_dead_codes(
    codebook_VK: Tensor, use_V: Tensor, picks_VK: Tensor, cfg: QuantizerConfig
) -> tuple[Tensor, Tensor]:
    """Move codes whose share of use is below `reset_below` / V onto random inputs of this batch.

    V counts the codes of all codebooks.

    Returns the new codebook and use. A moved code starts with uniform use, so that it has time to
    be chosen. Mirror images share their parameters, so they are moved together, by their mean use.
    """
    dead_V = _by_pair(use_V, cfg) < cfg.reset_below / cfg.entries
    codebook = torch.where(dead_V[:, None], picks_VK, codebook_VK)
    return codebook, torch.where(dead_V, 1.0 / cfg.entries, use_V)


def _by_pair(use_V: Tensor, cfg: QuantizerConfig) -> Tensor:
    """The share of use of each code; of the codes of a pair, the mean over both."""
    paired = use_V[: 2 * cfg.pairs].reshape(-1, 2)
    return torch.cat((paired.mean(1).repeat_interleave(2), use_V[2 * cfg.pairs :]))


KINDS: dict[str, Kind] = {
    "lfq": Kind(
        dim=_lfq_dim,
        quantize=_lfq_quantize,
        lookup=_lfq_lookup,
        check=_lfq_check,
        statistics=_lfq_statistics,
    ),
    "vq": Kind(
        dim=_vq_dim,
        quantize=_vq_quantize,
        lookup=_vq_lookup,
        check=_vq_check,
        spec=_vq_spec,
        restarts=True,
    ),
}
"""The kinds by the names of `QuantizerConfig.kind`."""
