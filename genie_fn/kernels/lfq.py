"""Lookup-free quantisation (Yu et al. 2023, arXiv 2310.05737, section 3.1): codes, ids, and what its loss is made of.

`impl` names the implementation, never guessed from the input:
- "reference": torch operations, which the other is tested against, and the one for a CPU;
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


class Rounded(NamedTuple):
    """What `quantize` returns for z (M, K): all float32, but for the ids."""

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


def quantize(
    z_MK: Tensor,
    *,
    books: int = 1,
    temperature: float = 1.0,
    share: float = 1.0,
    impl: LfqImpl = "reference",
    clips: int = 1,
    microbatch: Microbatch = WHOLE_BATCH,
) -> Rounded:
    """Round z (M, K), float32 or a shorter type. A `share` of the rows, evenly spread, is what the entropies see.

    The K bits are cut into `books` codebooks, each with entropies of its own. The rows are those of so many `clips`, a
    microbatch; the code entropy is that of the whole batch's average assignment.
    """
    rows_S = _spread(len(z_MK), share, z_MK.device, clips, microbatch.first_clip(clips))
    if impl == "triton":
        return _quantize_triton(z_MK, books, temperature, rows_S, microbatch)
    z_MK = z_MK.float()
    positive = z_MK > 0
    codes = positive.to(z_MK.dtype) * 2 - 1
    ids = (positive * _bit_values(z_MK.shape[1], z_MK.device)).sum(-1)
    seen_SK = z_MK if rows_S is None else z_MK[rows_S]
    pairs = [_soft_assignment(book_SK, temperature) for book_SK in seen_SK.chunk(books, -1)]
    samples, averages = zip(*pairs, strict=True)
    average_XBA = microbatch.mean("code_probabilities", torch.stack(averages))
    sample = torch.stack(samples).mean()
    code = torch.stack([_entropy(average_BA) for average_BA in average_XBA]).mean()
    return Rounded(
        z_MK + (codes - z_MK).detach(), ids, (z_MK - codes).square().mean(), sample, code
    )


def _quantize_triton(
    z_MK: Tensor, books: int, temperature: float, rows_S: Tensor | None, microbatch: Microbatch
) -> Rounded:
    if (width := z_MK.shape[1] // books) > 30:  # the kernels number the codes of a book in 32 bits
        raise UserError(
            f"the impl triton takes at most 30 bits in a codebook, not {width}: take more codebooks"
        )
    require_triton()
    from genie_fn.kernels import lfq_triton

    seen_SK, times_M = z_MK, None
    if rows_S is not None:
        seen_SK, once = z_MK[rows_S], torch.ones_like(rows_S)
        times_M = torch.zeros(len(z_MK), dtype=rows_S.dtype, device=z_MK.device).scatter_add(
            0, rows_S, once
        )
    codes, ids, (commit, sample) = lfq_triton.round_bits(z_MK, times_M, 4 / temperature)
    average_XBA = _average_triton(seen_SK, books, temperature)
    average_XBA = microbatch.mean("code_probabilities", average_XBA)
    sample, code = sample / (len(seen_SK) * books), _entropy(average_XBA) / books
    return Rounded(codes, ids, commit / z_MK.numel(), sample, code)


def _spread(
    rows: int, share: float, device: torch.device, clips: int = 1, first: int | Tensor = 0
) -> Tensor | None:
    """Which are a share of the rows, spread over all frames and places, others in each clip, a few perhaps twice.

    None if all. Steps of the golden ratio, modulo a clip's rows, that go on from clip to clip, from the `first` on.
    """
    rows //= clips
    count = max(1, round(share * rows))
    if count == rows:
        return None
    step_S = torch.arange(clips * count, device=device)
    row_S = ((step_S + first * count).double() * 0.6180339887498949 % 1 * rows).long()
    return row_S + step_S // count * rows


def code_probabilities(
    z_MK: Tensor,
    *,
    books: int = 1,
    temperature: float = 1.0,
    share: float = 1.0,
    impl: str = "reference",
    clips: int = 1,
    microbatch: Microbatch = WHOLE_BATCH,
) -> Tensor:
    """The average probability of every code, (books, B, A), over the same rows as in `quantize`, with its arguments.

    It is the statistic `code_probabilities` whose average over all microbatches `quantize` uses.
    """
    rows_S = _spread(len(z_MK), share, z_MK.device, clips, microbatch.first_clip(clips))
    seen_SK = z_MK if rows_S is None else z_MK[rows_S]
    if impl == "triton":
        return _average_triton(seen_SK, books, temperature)
    chunks = seen_SK.float().chunk(books, -1)
    return torch.stack([_soft_assignment(book_SK, temperature)[1] for book_SK in chunks])


def _average_triton(seen_SK: Tensor, books: int, temperature: float) -> Tensor:
    require_triton()
    from genie_fn.kernels import lfq_triton

    return lfq_triton.sum_codes(seen_SK, books, 4 / temperature) / len(seen_SK)


def entropies(z_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Exact entropies, in nats, of the soft assignment softmax_c(2 z·c / τ) over all 2^K codes c in {-1, 1}^K.

    Returns the mean per-sample entropy and the entropy of the average assignment. The softmax is a product of K
    Bernoullis with logits s_k = 4 z_k / τ, so the first is a sum of K binary entropies; and with the bits cut into two
    halves, whose code probabilities are A and B, the average over M samples of all 2^K codes is the matrix product
    BᵀA / M: memory M · 2^(K/2), not M · 2^K.
    """
    sample, average_BA = _soft_assignment(z_MK, temperature)
    return sample, _entropy(average_BA)


def _soft_assignment(z_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The mean per-sample entropy, and the average probability (B, A) of every code: see `entropies`."""
    s_MK = 4.0 / temperature * z_MK
    sample = (F.softplus(s_MK) - s_MK * s_MK.sigmoid()).sum(-1).mean()
    half = z_MK.shape[1] // 2
    a = _code_probabilities(s_MK[:, :half])
    b = _code_probabilities(s_MK[:, half:])
    return sample, b.T @ a / len(z_MK)


def _code_probabilities(s_MK: Tensor) -> Tensor:
    """Probabilities (M, 2^K) of the codes c of K independent bits of logits s: softmax_c(s·c / 2)."""
    codes_VK = codes_of(torch.arange(2 ** s_MK.shape[1], device=s_MK.device), s_MK.shape[1])
    return (s_MK @ (codes_VK.T / 2)).softmax(-1)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(
        p.clamp(min=torch.finfo(torch.float32).tiny)
    ).sum()  # p log p's slope at 0 is infinite


def codes_of(ids: Tensor, dim: int) -> Tensor:
    """ids (...) → codes (..., K) of ±1, bit k of the id being the sign of channel k."""
    bits = (ids[..., None] // _bit_values(dim, ids.device)) % 2
    return bits.to(torch.float32) * 2 - 1


def _bit_values(dim: int, device: torch.device) -> Tensor:
    return 2 ** torch.arange(dim, device=device)
