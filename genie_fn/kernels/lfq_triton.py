"""Lookup-free quantisation as Triton kernels: two for what one row decides, two for the average over all rows.

The average assignment of M rows to the 2^K codes of a book is BᵀA / M, A and B being the code probabilities of the two
halves of the bits (see lfq.py). Here no probability is written to memory: a program owns a tile of BᵀA, walks over
tokens, makes both factors from the bits' logits and multiplies them. Tokens are also split between programs, whose
partial sums torch adds: no atomic additions, so runs repeat. The way back makes the factors once more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = tl.constexpr(16)  # a tile of the bits of half a book; the last column is spare
TOKENS = 32  # rows of a step
CODES = (
    32,
    64,
)  # at most, along the two sides of a tile: larger ones run out of registers on some GPU
PROGRAMS = 1024  # wanted, so that a GPU is filled
ROUND_TILE = 2048  # bits that a program rounds


@triton.jit
def _bits(z, zm, zk, rows, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tile of z as float32, its rows and columns, and which of its elements exist."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    here = (m < rows)[:, None] & (k < K)[None, :]
    return (
        tl.load(z + m[:, None] * zm + k[None, :] * zk, mask=here, other=0.0).to(tl.float32),
        m,
        k,
        here,
    )


@triton.jit
def _round(
    z, times, codes, ids, sums, zm, zk, rows, scale,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, TIMES: tl.constexpr,
):  # fmt: skip
    x, m, k, here = _bits(z, zm, zk, rows, K, BLOCK_M, BLOCK_K)
    code = tl.where(x > 0, 1.0, -1.0)
    tl.store(codes + m[:, None] * K + k[None, :], code, mask=here)
    value = tl.where(here & (x > 0), tl.full((1, 1), 1, tl.int64) << k[None, :].to(tl.int64), 0)
    tl.store(ids + m, tl.sum(value, 1), mask=m < rows)
    s = tl.abs(x * scale)
    e = tl.exp(-s)
    entropy = tl.log(1 + e) + s * e / (1 + e)  # of a bit: softplus(s) - s σ(s), the same for -s
    if TIMES:
        entropy *= tl.load(times + m, mask=m < rows, other=0).to(tl.float32)[:, None]
    off = x - code
    tl.store(sums + tl.program_id(0) * 2, tl.sum(tl.sum(tl.where(here, off * off, 0.0), 1), 0))
    tl.store(sums + tl.program_id(0) * 2 + 1, tl.sum(tl.sum(tl.where(here, entropy, 0.0), 1), 0))


@triton.jit
def _round_backward(
    z, times, dcodes, dsums, dz, zm, zk, cm, ck, rows, scale,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, TIMES: tl.constexpr,
):  # fmt: skip
    x, m, k, here = _bits(z, zm, zk, rows, K, BLOCK_M, BLOCK_K)
    s = x * scale
    e = tl.exp(-tl.abs(s))
    slope = -s * e / ((1 + e) * (1 + e)) * scale
    if TIMES:
        slope *= tl.load(times + m, mask=m < rows, other=0).to(tl.float32)[:, None]
    dx = tl.load(dcodes + m[:, None] * cm + k[None, :] * ck, mask=here, other=0.0)
    dx += 2 * tl.load(dsums) * (x - tl.where(x > 0, 1.0, -1.0)) + tl.load(dsums + 1) * slope
    tl.store(dz + m[:, None] * K + k[None, :], dx.to(dz.dtype.element_ty), mask=here)


@triton.jit
def _logits(z, zt, zk, t, tokens, scale, FIRST: tl.constexpr, BITS: tl.constexpr):
    """Logits (rows, COLUMNS) of half a book, 0 where there is none, and -Σ_k log(1 + exp(-|s_k|)) of each row.

    That is the log probability of a row's nearest code; -inf, so that every probability is 0, for a row that is none.
    """
    k = tl.arange(0, COLUMNS)
    here = (t < tokens)[:, None] & (k < BITS)[None, :]
    s = scale * tl.load(z + t[:, None] * zt + (FIRST + k)[None, :] * zk, mask=here, other=0.0).to(
        tl.float32
    )
    best = tl.sum(tl.where((k < BITS)[None, :], -tl.log(1 + tl.exp(-tl.abs(s))), 0.0), 1)
    return s, tl.where(t < tokens, best, float("-inf"))


@triton.jit
def _probabilities(s, best, codes):
    """(rows, codes): log p = best - Σ of |s_k| over the bits that are not the nearest code's; nothing cancels."""
    one = ((codes[None, :] >> tl.arange(0, COLUMNS)[:, None]) & 1).to(tl.float32)
    log_p = tl.dot(tl.minimum(s, 0.0), one, input_precision="tf32x3")
    log_p = tl.dot(tl.maximum(s, 0.0), one - 1, log_p, input_precision="tf32x3")
    return tl.exp(best[:, None] + log_p)


@triton.jit
def _sum_codes(
    z, out, zt, zk, tokens, steps, scale,
    LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """One tile of one book's BᵀA over `steps` steps of tokens. Programs: tiles × splits of the tokens × books."""
    split, book = tl.program_id(1), tl.program_id(2)
    wide = ((1 << LOW) + BLOCK_A - 1) // BLOCK_A
    a = tl.program_id(0) % wide * BLOCK_A + tl.arange(0, BLOCK_A)
    b = tl.program_id(0) // wide * BLOCK_B + tl.arange(0, BLOCK_B)
    z += book * (LOW + HIGH) * zk
    total = tl.zeros((BLOCK_B, BLOCK_A), tl.float32)
    for step in range(split * steps, (split + 1) * steps):
        t = (step * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
        s_a, best_a = _logits(z, zt, zk, t, tokens, scale, 0, LOW)
        s_b, best_b = _logits(z, zt, zk, t, tokens, scale, LOW, HIGH)
        p_a, p_b = _probabilities(s_a, best_a, a), _probabilities(s_b, best_b, b)
        total = tl.dot(tl.trans(p_b), p_a, total, input_precision="tf32x3")
    out += (split.to(tl.int64) * tl.num_programs(2) + book) << (LOW + HIGH)
    inside = (b < (1 << HIGH))[:, None] & (a < (1 << LOW))[None, :]
    tl.store(out + (b[:, None] << LOW) + a[None, :], total, mask=inside)


@triton.jit
def _sum_codes_backward(
    z, g, dz, zt, zk, dt, tokens, scale,
    WIDTH: tl.constexpr, FIRST: tl.constexpr, BITS: tl.constexpr, OTHER: tl.constexpr, OTHER_BITS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_OTHER: tl.constexpr,
):  # fmt: skip
    """Gradients by the logits of half a book, for some tokens, from g, the gradient by the sum BᵀA.

    The probability p_c of an own code has the gradient (g · the other half's probabilities)_c, and log p_c has the
    slope (bit k of c) - σ(s_k) by s_k; the spare column of `sums` holds what σ(s_k) is multiplied by.
    """
    book = tl.program_id(1)
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.arange(0, COLUMNS)
    z += book * WIDTH * zk
    g += book.to(tl.int64) << WIDTH
    s, best = _logits(z, zt, zk, t, tokens, scale, FIRST, BITS)
    s_other, best_other = _logits(z, zt, zk, t, tokens, scale, OTHER, OTHER_BITS)
    sums = tl.zeros((BLOCK_T, COLUMNS), tl.float32)
    for first in range(0, 1 << BITS, BLOCK_OWN):
        own = first + tl.arange(0, BLOCK_OWN)
        dp = tl.zeros((BLOCK_T, BLOCK_OWN), tl.float32)
        for first_other in range(0, 1 << OTHER_BITS, BLOCK_OTHER):
            other = first_other + tl.arange(0, BLOCK_OTHER)
            inside = (other < (1 << OTHER_BITS))[:, None] & (own < (1 << BITS))[None, :]
            tile = tl.load(
                g + (other[:, None] << OTHER) + (own[None, :] << FIRST), mask=inside, other=0.0
            )
            dp = tl.dot(
                _probabilities(s_other, best_other, other), tile, dp, input_precision="tf32x3"
            )
        dp *= _probabilities(s, best, own)
        bit = tl.where((k == COLUMNS - 1)[None, :], 1, (own[:, None] >> k[None, :]) & 1).to(
            tl.float32
        )
        sums = tl.dot(dp, bit, sums, input_precision="tf32x3")
    whole = tl.sum(tl.where((k == COLUMNS - 1)[None, :], sums, 0.0), 1)
    e = tl.exp(-tl.abs(s))
    ds = sums - tl.where(s > 0, 1.0, e) / (1 + e) * whole[:, None]
    here = (t < tokens)[:, None] & (k < BITS)[None, :]
    at = dz + t[:, None] * dt + (book * WIDTH + FIRST + k)[None, :]
    tl.store(at, (scale * ds).to(dz.dtype.element_ty), mask=here)


def round_tiling(bits: int) -> dict[str, int]:
    """How z (M, bits) is cut."""
    block = triton.next_power_of_2(bits)
    return {"K": bits, "BLOCK_K": block, "BLOCK_M": max(ROUND_TILE // block, 1)}


def sum_tiling(width: int) -> dict[str, int]:
    """How a book of so many bits is cut into halves, and those into tiles."""
    low, high = width // 2, width - width // 2
    return {
        "LOW": low,
        "HIGH": high,
        "BLOCK_T": TOKENS,
        "BLOCK_A": _side(low, 1),
        "BLOCK_B": _side(high, 0),
    }


def gradient_tilings(width: int) -> list[dict[str, int]]:
    """The same for the way back, once for each half that has bits."""
    low, high = (
        (0, width // 2),
        (width // 2, width - width // 2),
    )  # each half's first bit, and its bits
    names = ("FIRST", "BITS", "OTHER", "OTHER_BITS", "BLOCK_T", "BLOCK_OWN", "BLOCK_OTHER", "WIDTH")
    pairs = [(own, other) for own, other in ((low, high), (high, low)) if own[1]]
    return [
        dict(zip(names, (*a, *b, TOKENS, _side(a[1], 1), _side(b[1], 0), width), strict=True))
        for a, b in pairs
    ]


def _side(bits: int, side: int) -> int:
    """Codes along a tile's side, of half a book of so many bits; tl.dot wants at least 16."""
    return min(CODES[side], max(16, 1 << bits))


@torch.library.custom_op("genie_fn::lfq_round", mutates_args=())
def round_bits(z: Tensor, times: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """z (M, K) → codes ±1, float32, whose gradient goes straight through; ids (M,), int64; and two sums, float32 (2,).

    Those run over all bits: of (z - code)², and of the entropies, in nats, of bits with the logits scale · z, row m
    counted times[m] times.
    """
    cut = round_tiling(z.shape[1])
    codes = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    ids = torch.empty(len(z), dtype=torch.int64, device=z.device)
    programs = triton.cdiv(len(z), cut["BLOCK_M"])
    sums = torch.empty((programs, 2), dtype=torch.float32, device=z.device)
    _round[(programs,)](
        z, times, codes, ids, sums, *z.stride(), len(z), scale, **cut, TIMES=times is not None
    )
    return codes, ids, sums.sum(0)


@round_bits.register_fake
def _(z, times, scale):
    codes = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    return codes, z.new_empty(len(z), dtype=torch.int64), z.new_empty(2, dtype=torch.float32)


@torch.library.custom_op("genie_fn::lfq_round_backward", mutates_args=())
def round_bits_backward(
    dcodes: Tensor, dsums: Tensor, z: Tensor, times: Tensor | None, scale: float
) -> Tensor:
    """The gradient by z."""
    dz, cut = torch.empty(z.shape, dtype=z.dtype, device=z.device), round_tiling(z.shape[1])
    tensors, strides = (z, times, dcodes, dsums.contiguous(), dz), (*z.stride(), *dcodes.stride())
    programs = triton.cdiv(len(z), cut["BLOCK_M"])
    _round_backward[(programs,)](*tensors, *strides, len(z), scale, **cut, TIMES=times is not None)
    return dz


@round_bits_backward.register_fake
def _(dcodes, dsums, z, times, scale):
    return torch.empty(z.shape, dtype=z.dtype, device=z.device)


def _keep_round(ctx, inputs, output):
    z, times, ctx.scale = inputs
    ctx.save_for_backward(z, times)


def _derive_round(ctx, dcodes, dids, dsums):
    return round_bits_backward(dcodes, dsums, *ctx.saved_tensors, ctx.scale), None, None


round_bits.register_autograd(_derive_round, setup_context=_keep_round)


@torch.library.custom_op("genie_fn::lfq_sum_codes", mutates_args=())
def sum_codes(z: Tensor, books: int, scale: float) -> Tensor:
    """z (M, K) → BᵀA of every book, float32 (books, 2^⌈K'/2⌉, 2^⌊K'/2⌋), the sum of the rows' code probabilities.

    K' = K / books bits have the logits scale · z; A's are the first ⌊K'/2⌋ of them.
    """
    cut = sum_tiling(z.shape[1] // books)
    shape = 1 << cut["HIGH"], 1 << cut["LOW"]
    tiles, steps = (
        triton.cdiv(shape[0], cut["BLOCK_B"]) * triton.cdiv(shape[1], cut["BLOCK_A"]),
        triton.cdiv(len(z), TOKENS),
    )
    each = triton.cdiv(steps, max(1, PROGRAMS // (tiles * books)))
    splits = triton.cdiv(steps, each)
    out = torch.empty((splits, books, *shape), dtype=torch.float32, device=z.device)
    _sum_codes[(tiles, splits, books)](z, out, *z.stride(), len(z), each, scale, **cut)
    return out.sum(0)


@sum_codes.register_fake
def _(z, books, scale):
    width = z.shape[1] // books
    shape = (books, 1 << (width - width // 2), 1 << width // 2)
    return torch.empty(shape, dtype=torch.float32, device=z.device)


@torch.library.custom_op("genie_fn::lfq_sum_codes_backward", mutates_args=())
def sum_codes_backward(g: Tensor, z: Tensor, scale: float) -> Tensor:
    """The gradient by z (M, K) from g, the gradient by the sums (books, 2^⌈K'/2⌉, 2^⌊K'/2⌋)."""
    # A row's probabilities add up to 1 whatever z is: a constant in g adds nothing but rounding errors, large ones.
    g, books = (g - g.mean((1, 2), keepdim=True)).contiguous(), len(g)
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    for cut in gradient_tilings(z.shape[1] // books):
        grid, strides = (triton.cdiv(len(z), TOKENS), books), (*z.stride(), z.shape[1])
        _sum_codes_backward[grid](z, g, dz, *strides, len(z), scale, **cut)
    return dz


@sum_codes_backward.register_fake
def _(g, z, scale):
    return torch.empty(z.shape, dtype=z.dtype, device=z.device)


def _keep_sum(ctx, inputs, output):
    z, _, ctx.scale = inputs
    ctx.save_for_backward(z)


def _derive_sum(ctx, g):
    return sum_codes_backward(g, *ctx.saved_tensors, ctx.scale), None, None


sum_codes.register_autograd(_derive_sum, setup_context=_keep_sum)
