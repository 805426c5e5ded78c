"""Lookup-free quantisation (Yu et al. 2023, arXiv 2310.05737, section 3.1): codes, ids, entropies.

The argument `impl` names the implementation; the input never decides it:

- "reference": torch operations, against which the other is tested;
- "triton": for a GPU, genie_fn/kernels/lfq_triton.py, which writes no probabilities to memory.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn.errors import UserError
from genie_fn.kernels import require_triton
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.runtime.backend import LfqImpl

GOLDEN_RATIO = 0.6180339887498949
TRITON_BITS = 30
"""The most bits of a codebook for which the Triton kernels can number the codes, in 32 bits."""


class Rounded(NamedTuple):
    """The result of `quantize` for z (M, K); all float32 except the ids."""

    codes_MK: Tensor
    """Signs ±1 (sign(0) = -1); their gradient goes straight through to z."""
    ids_M: Tensor
    """Σ 2^k [z_k > 0], int64."""
    commit: Tensor
    """Mean of (z - code)²."""
    sample_entropy: Tensor
    """Mean over samples and codebooks of the entropy of one sample's soft assignment, in nats."""
    code_entropy: Tensor
    """Mean over codebooks of the entropy of the samples' average assignment, in nats."""


class Options(NamedTuple):
    """How z (M, K) is quantised: all that `quantize` and `code_probabilities` have in common."""

    books: int = 1
    """The number of codebooks into which the K bits are divided, each with its own entropies."""
    temperature: float = 1.0
    """Temperature of the soft assignment."""
    share: float = 1.0
    """The share of the rows, evenly spread, from which the entropies are computed."""
    clips: int = 1
    """The number of clips of whose rows z consists."""
    impl: LfqImpl = "reference"


DEFAULT = Options()


def quantize(
    z_MK: Tensor, options: Options = DEFAULT, microbatch: Microbatch = WHOLE_BATCH
) -> Rounded:
    """Round z (M, K), float32 or a shorter type, and compute the terms of LFQ's loss.

    The rows are those of a microbatch; the code entropy is that of the whole batch's average
    assignment.
    """
    rows_S = _sampled_rows(z_MK, options, microbatch)
    if options.impl == "triton":
        return _quantize_triton(z_MK, options, rows_S, microbatch)
    z_MK = z_MK.float()
    positive = z_MK > 0
    codes = positive.to(z_MK.dtype) * 2 - 1
    ids = (positive * _bit_values(z_MK.shape[1], z_MK.device)).sum(-1)
    sampled_SK = z_MK if rows_S is None else z_MK[rows_S]
    samples, averages = zip(*_assignments(sampled_SK, options), strict=True)
    average_XBA = microbatch.mean("code_probabilities", torch.stack(averages))
    return Rounded(
        codes_MK=z_MK + (codes - z_MK).detach(),
        ids_M=ids,
        commit=(z_MK - codes).square().mean(),
        sample_entropy=torch.stack(samples).mean(),
        code_entropy=torch.stack([_entropy(average_BA) for average_BA in average_XBA]).mean(),
    )


def _assignments(sampled_SK: Tensor, options: Options) -> list[tuple[Tensor, Tensor]]:
    """The `_soft_assignment` of each codebook."""
    books_SK = sampled_SK.chunk(options.books, -1)
    return [_soft_assignment(book_SK, options.temperature) for book_SK in books_SK]


def _quantize_triton(
    z_MK: Tensor, options: Options, rows_S: Tensor | None, microbatch: Microbatch
) -> Rounded:
    width = z_MK.shape[1] // options.books
    if width > TRITON_BITS:
        raise UserError(
            f"the impl triton takes at most {TRITON_BITS} bits in a codebook, not {width}: "
            "raise --cfg.model.quantizer.books"
        )
    require_triton()
    from genie_fn.kernels import lfq_triton

    sampled_SK = z_MK
    times_M = None  # how often each row is sampled; None: once
    if rows_S is not None:
        sampled_SK = z_MK[rows_S]
        zeros = torch.zeros(len(z_MK), dtype=rows_S.dtype, device=z_MK.device)
        times_M = zeros.scatter_add(0, rows_S, torch.ones_like(rows_S))
    codes, ids, (commit, sample) = lfq_triton.round_bits(z_MK, times_M, 4 / options.temperature)
    average_XBA = _average_triton(sampled_SK, options)
    average_XBA = microbatch.mean("code_probabilities", average_XBA)
    return Rounded(
        codes_MK=codes,
        ids_M=ids,
        commit=commit / z_MK.numel(),
        sample_entropy=sample / (len(sampled_SK) * options.books),
        code_entropy=_entropy(average_XBA) / options.books,
    )


def _sampled_rows(z_MK: Tensor, options: Options, microbatch: Microbatch) -> Tensor | None:
    """The `spread_rows` of z (M, K); None: all rows."""
    first = microbatch.first_clip(options.clips)
    return spread_rows(len(z_MK), options.share, z_MK.device, options.clips, first)


def spread_rows(
    rows: int, share: float, device: torch.device, clips: int = 1, first: int | Tensor = 0
) -> Tensor | None:
    """The indices (S,) of a `share` of the rows, spread over all frames and places; None: all.

    They differ from clip to clip, and a few may occur twice: steps of the golden ratio, modulo the
    rows of a clip, which continue from one clip to the next. `first` is the index of the first of
    these clips in the whole batch.
    """
    rows //= clips
    count = max(1, round(share * rows))
    if count == rows:
        return None
    step_S = torch.arange(clips * count, device=device)
    row_S = ((step_S + first * count).double() * GOLDEN_RATIO % 1 * rows).long()
    return row_S + step_S // count * rows


def code_probabilities(
    z_MK: Tensor, options: Options = DEFAULT, microbatch: Microbatch = WHOLE_BATCH
) -> Tensor:
    """The average probability of every code, (books, B, A), over the rows that `quantize` samples.

    It is the statistic `code_probabilities`, whose average over all microbatches `quantize` uses.
    """
    rows_S = _sampled_rows(z_MK, options, microbatch)
    sampled_SK = z_MK if rows_S is None else z_MK[rows_S]
    if options.impl == "triton":
        return _average_triton(sampled_SK, options)
    return torch.stack([average for _, average in _assignments(sampled_SK.float(), options)])


def _average_triton(sampled_SK: Tensor, options: Options) -> Tensor:
    """The average probability of every code, (books, B, A)."""
    require_triton()
    from genie_fn.kernels import lfq_triton

    total_XBA = lfq_triton.sum_codes(sampled_SK, options.books, 4 / options.temperature)
    return total_XBA / len(sampled_SK)


def entropies(z_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Exact entropies, in nats, of the soft assignment of z (M, K) to all 2^K codes c in {-1, 1}^K.

    Returns the mean per-sample entropy and the entropy of the average assignment. The assignment
    softmax_c(2 z·c / τ) is a product of K Bernoulli distributions with logits s_k = 4 z_k / τ, so
    the first is a sum of K binary entropies. Divide the bits into two halves, whose code
    probabilities are A and B: then the average over M samples of all 2^K codes is the matrix
    product BᵀA / M, which needs memory M · 2^(K/2), not M · 2^K.
    """
    sample, average_BA = _soft_assignment(z_MK, temperature)
    return sample, _entropy(average_BA)


def _soft_assignment(z_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean per-sample entropy and average probability (B, A) of each code: see `entropies`."""
    s_MK = 4.0 / temperature * z_MK
    sample = (F.softplus(s_MK) - s_MK * s_MK.sigmoid()).sum(-1).mean()
    half = z_MK.shape[1] // 2
    a = _code_probabilities(s_MK[:, :half])
    b = _code_probabilities(s_MK[:, half:])
    return sample, b.T @ a / len(z_MK)


def _code_probabilities(s_MK: Tensor) -> Tensor:
    """Probabilities (M, 2^K) of codes c of K independent bits with logits s: softmax_c(s·c / 2)."""
    codes_VK = codes_of(torch.arange(2 ** s_MK.shape[1], device=s_MK.device), s_MK.shape[1])
    return (s_MK @ (codes_VK.T / 2)).softmax(-1)


def _entropy(p: Tensor) -> Tensor:
    """Σ -p log p. Its slope at 0 is infinite, so p is clamped."""
    return torch.special.entr(p.clamp(min=torch.finfo(torch.float32).tiny)).sum()


def codes_of(ids: Tensor, dim: int) -> Tensor:
    """ids (...) → codes (..., K) of ±1: bit k of an id is the sign of channel k."""
    bits = (ids[..., None] // _bit_values(dim, ids.device)) % 2
    return bits.to(torch.float32) * 2 - 1


def _bit_values(dim: int, device: torch.device) -> Tensor:
    return 2 ** torch.arange(dim, device=device)
