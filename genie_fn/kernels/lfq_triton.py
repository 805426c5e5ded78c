"""Lookup-free quantisation as Triton kernels: two per row, two for the average over all rows.

The average assignment of M rows to the 2^K codes of a codebook is BᵀA / M, where A and B are the
code probabilities of the two halves of the bits (see lfq.py). These kernels write no probability to
memory: a program owns a tile of BᵀA, iterates over tokens, computes both factors from the logits of
the bits and multiplies them. Tokens are also divided between programs, whose partial sums torch
adds, without atomic additions, so runs repeat. The backward pass recomputes the factors.
"""

# ruff: noqa: PLR0913 a kernel takes every tensor, stride and size as an argument of its own
# The types of Triton's language are not those of Python:
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = tl.constexpr(16)  # of a tile of the bits of half a codebook; the last one is spare
TOKENS = 32  # rows of a step
CODES = (32, 64)  # the longest sides of a tile: larger tiles exceed the registers of some GPUs
PROGRAMS = 1024  # the number that fills a GPU
ROUND_TILE = 2048  # bits that a program rounds


@triton.jit
def _bits(z, zm, zk, rows, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tile of z as float32, its rows and columns, and which of its elements exist."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    inside = (m < rows)[:, None] & (k < K)[None, :]
    tile = tl.load(z + m[:, None] * zm + k[None, :] * zk, mask=inside, other=0.0).to(tl.float32)
    return tile, m, k, inside


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
    """Logits (rows, COLUMNS) of half a codebook, padded with 0, and the log probability of each
    row's nearest code.

    The latter is -Σ_k log(1 + exp(-|s_k|)). It is -inf in rows of padding, where every probability
    is then 0.
    """
    k = tl.arange(0, COLUMNS)
    inside = (t < tokens)[:, None] & (k < BITS)[None, :]
    z = z + t[:, None] * zt + (FIRST + k)[None, :] * zk
    s = scale * tl.load(z, mask=inside, other=0.0).to(tl.float32)
    best = tl.sum(tl.where((k < BITS)[None, :], -tl.log(1 + tl.exp(-tl.abs(s))), 0.0), 1)
    return s, tl.where(t < tokens, best, float("-inf"))


@triton.jit
def _probabilities(s, best, codes):
    """(rows, codes): log p = best - Σ |s_k| over the bits that differ from the nearest code's.

    All terms have the same sign, so nothing cancels.
    """
    bit = ((codes[None, :] >> tl.arange(0, COLUMNS)[:, None]) & 1).to(tl.float32)
    log_p = tl.dot(tl.minimum(s, 0.0), bit, input_precision="tf32x3")
    log_p = tl.dot(tl.maximum(s, 0.0), bit - 1, log_p, input_precision="tf32x3")
    return tl.exp(best[:, None] + log_p)


@triton.jit
def _sum_codes(
    z, out, zt, zk, tokens, steps, scale,
    LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """One tile of a codebook's BᵀA over `steps` steps of tokens.

    Programs: tiles × splits of the tokens × codebooks.
    """
    split = tl.program_id(1)
    book = tl.program_id(2)
    columns = ((1 << LOW) + BLOCK_A - 1) // BLOCK_A
    a = tl.program_id(0) % columns * BLOCK_A + tl.arange(0, BLOCK_A)
    b = tl.program_id(0) // columns * BLOCK_B + tl.arange(0, BLOCK_B)
    z += book * (LOW + HIGH) * zk
    total = tl.zeros((BLOCK_B, BLOCK_A), tl.float32)
    for step in range(split * steps, (split + 1) * steps):
        t = (step * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
        s_a, best_a = _logits(z, zt, zk, t, tokens, scale, 0, LOW)
        s_b, best_b = _logits(z, zt, zk, t, tokens, scale, LOW, HIGH)
        p_a = _probabilities(s_a, best_a, a)
        p_b = _probabilities(s_b, best_b, b)
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
    """Gradients of the logits of half a codebook, for some tokens, from g, the gradient of BᵀA.

    The gradient of the probability p_c of a code of this half is (g · the other half's
    probabilities)_c, and the derivative of log p_c by s_k is (bit k of c) - σ(s_k). The spare
    column of `sums` holds the factor of σ(s_k).
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
            at = g + (other[:, None] << OTHER) + (own[None, :] << FIRST)
            tile = tl.load(at, mask=inside, other=0.0)
            p_other = _probabilities(s_other, best_other, other)
            dp = tl.dot(p_other, tile, dp, input_precision="tf32x3")
        dp *= _probabilities(s, best, own)
        bit = tl.where((k == COLUMNS - 1)[None, :], 1, (own[:, None] >> k[None, :]) & 1)
        sums = tl.dot(dp, bit.to(tl.float32), sums, input_precision="tf32x3")
    total = tl.sum(tl.where((k == COLUMNS - 1)[None, :], sums, 0.0), 1)
    e = tl.exp(-tl.abs(s))
    ds = sums - tl.where(s > 0, 1.0, e) / (1 + e) * total[:, None]
    inside_z = (t < tokens)[:, None] & (k < BITS)[None, :]
    out = dz + t[:, None] * dt + (book * WIDTH + FIRST + k)[None, :]
    tl.store(out, (scale * ds).to(dz.dtype.element_ty), mask=inside_z)


def round_tiling(bits: int) -> dict[str, int]:
    """The constants of the kernels per row, on z (M, bits)."""
    block = triton.next_power_of_2(bits)
    return {"K": bits, "BLOCK_K": block, "BLOCK_M": max(ROUND_TILE // block, 1)}


def sum_tiling(width: int) -> dict[str, int]:
    """The constants of `_sum_codes`: halves of a codebook of `width` bits, and sides of a tile."""
    low = width // 2
    high = width - low
    return {
        "LOW": low,
        "HIGH": high,
        "BLOCK_T": TOKENS,
        "BLOCK_A": _side(low, 1),
        "BLOCK_B": _side(high, 0),
    }


def gradient_tilings(width: int) -> list[dict[str, int]]:
    """The constants of the backward pass, for each half that has bits."""
    half = width // 2
    low = (0, half)  # the first bit, and the number of bits
    high = (half, width - half)
    tilings = []
    for (first, bits), (other, other_bits) in ((low, high), (high, low)):
        if bits:
            tiling = {"FIRST": first, "BITS": bits, "OTHER": other, "OTHER_BITS": other_bits}
            tiling |= {"BLOCK_OWN": _side(bits, 1), "BLOCK_OTHER": _side(other_bits, 0)}
            tilings.append(tiling | {"BLOCK_T": TOKENS, "WIDTH": width})
    return tilings


def _side(bits: int, side: int) -> int:
    """The codes along a side of a tile of half a codebook; tl.dot takes at least 16."""
    return min(CODES[side], max(16, 1 << bits))


@torch.library.custom_op("genie_fn::lfq_round", mutates_args=())
def round_bits(z: Tensor, times: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """z (M, K) → codes ±1 float32, ids (M,) int64 and two sums, (2,) float32.

    The gradient of the codes is passed straight through to z. The sums run over all bits. The first
    is of (z - code)², the second of the entropies, in nats, of bits with the logits scale · z,
    where row m counts times[m] times.
    """
    constants = round_tiling(z.shape[1])
    codes = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    ids = torch.empty(len(z), dtype=torch.int64, device=z.device)
    programs = triton.cdiv(len(z), constants["BLOCK_M"])
    sums = torch.empty((programs, 2), dtype=torch.float32, device=z.device)
    constants["TIMES"] = times is not None
    _round[(programs,)](z, times, codes, ids, sums, *z.stride(), len(z), scale, **constants)
    return codes, ids, sums.sum(0)


@round_bits.register_fake
def _(z, times, scale):
    codes = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    return codes, z.new_empty(len(z), dtype=torch.int64), z.new_empty(2, dtype=torch.float32)


@torch.library.custom_op("genie_fn::lfq_round_backward", mutates_args=())
def round_bits_backward(
    dcodes: Tensor, dsums: Tensor, z: Tensor, times: Tensor | None, scale: float
) -> Tensor:
    """The gradient of z."""
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    constants = round_tiling(z.shape[1]) | {"TIMES": times is not None}
    tensors = (z, times, dcodes, dsums.contiguous(), dz)
    strides = (*z.stride(), *dcodes.stride())
    programs = triton.cdiv(len(z), constants["BLOCK_M"])
    _round_backward[(programs,)](*tensors, *strides, len(z), scale, **constants)
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
    """z (M, K) → BᵀA of every codebook, the sum over rows of their code probabilities.

    Float32 (books, 2^⌈K'/2⌉, 2^⌊K'/2⌋). The K' = K / books bits of a codebook have the logits
    scale · z; the first ⌊K'/2⌋ of them belong to A.
    """
    constants = sum_tiling(z.shape[1] // books)
    rows, columns = 1 << constants["HIGH"], 1 << constants["LOW"]
    tiles = triton.cdiv(rows, constants["BLOCK_B"]) * triton.cdiv(columns, constants["BLOCK_A"])
    steps = triton.cdiv(len(z), TOKENS)
    each = triton.cdiv(steps, max(1, PROGRAMS // (tiles * books)))
    splits = triton.cdiv(steps, each)
    out = torch.empty((splits, books, rows, columns), dtype=torch.float32, device=z.device)
    _sum_codes[(tiles, splits, books)](z, out, *z.stride(), len(z), each, scale, **constants)
    return out.sum(0)


@sum_codes.register_fake
def _(z, books, scale):
    width = z.shape[1] // books
    shape = (books, 1 << (width - width // 2), 1 << width // 2)
    return torch.empty(shape, dtype=torch.float32, device=z.device)


@torch.library.custom_op("genie_fn::lfq_sum_codes_backward", mutates_args=())
def sum_codes_backward(g: Tensor, z: Tensor, scale: float) -> Tensor:
    """The gradient of z (M, K) from g, the gradient of the sums (books, 2^⌈K'/2⌉, 2^⌊K'/2⌋)."""
    # The probabilities of a row add up to 1 for any z, so a constant in g adds only rounding
    # errors, large ones.
    books = len(g)
    g = (g - g.mean((1, 2), keepdim=True)).contiguous()
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    grid = (triton.cdiv(len(z), TOKENS), books)
    strides = (*z.stride(), z.shape[1])
    for constants in gradient_tilings(z.shape[1] // books):
        _sum_codes_backward[grid](z, g, dz, *strides, len(z), scale, **constants)
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
