"""Causal attention over the time axis as a Triton kernel: QK-norm, rotary positions, softmax.

Sequences over time are short (T <= 64), and there are hundreds of thousands of them, one for each
place and head. A flash-attention kernel would use a tile of 64 or 128 rows for each. Here one
program handles several places of a head at once and masks the products between different places.
All tensors (B, T, N, G, E) are read and written by their strides, without transposes or copies. The
backward pass recomputes the weights in one program, without atomic additions, so runs repeat.

`visible_TS` can be any mask. Without norm scales and angles the kernel is plain attention, which
decodes a frame from a cache of S > T key frames.
"""

# ruff: noqa: PLR0913 a kernel takes every tensor, stride and size as an argument of its own
# The types of Triton's language are not those of Python:
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from genie_fn.kernels.common import TYPES

EPS = tl.constexpr(1e-6)


@triton.jit
def _load_halves(base, offset, stride_e, mask, HALF: tl.constexpr, BLOCK_H: tl.constexpr):
    """The two halves of the channels of each row, (rows, BLOCK_H) float32 each."""
    h = tl.arange(0, BLOCK_H)
    inside = mask[:, None] & (h < HALF)[None, :]
    at = base + offset[:, None] + h[None, :] * stride_e
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + HALF * stride_e, mask=inside, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _store_halves(base, offset, stride_e, mask, a, b, HALF: tl.constexpr, BLOCK_H: tl.constexpr):
    h = tl.arange(0, BLOCK_H)
    inside = mask[:, None] & (h < HALF)[None, :]
    at = base + offset[:, None] + h[None, :] * stride_e
    tl.store(at, a.to(base.dtype.element_ty), mask=inside)
    tl.store(at + HALF * stride_e, b.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _table(base, row, mask, HALF: tl.constexpr, BLOCK_H: tl.constexpr):
    h = tl.arange(0, BLOCK_H)
    return tl.load(
        base + row[:, None] * HALF + h[None, :], mask=mask[:, None] & (h < HALF)[None, :], other=0.0
    )


@triton.jit
def _scales(base, HALF: tl.constexpr, BLOCK_H: tl.constexpr):
    h = tl.arange(0, BLOCK_H)
    return tl.load(base + h, mask=h < HALF, other=0.0), tl.load(
        base + HALF + h, mask=h < HALF, other=0.0
    )


@triton.jit
def _norm_rotate(a, b, scale_a, scale_b, cos, sin, HALF: tl.constexpr):
    """RMS norm over both halves, the scales, and the rotation of each pair.

    Also returns 1 / rms for the backward pass.
    """
    r = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + EPS)[:, None]
    a = a * r * scale_a[None, :]
    b = b * r * scale_b[None, :]
    return a * cos - b * sin, a * sin + b * cos, r


@triton.jit
def _norm_rotate_backward(da, db, a, b, scale_a, scale_b, cos, sin, r, HALF: tl.constexpr):
    """Gradients of the raw halves, and each row's summand of the gradients of the scales."""
    da, db = da * cos + db * sin, db * cos - da * sin
    na = a * r
    nb = b * r
    ga = da * scale_a[None, :]
    gb = db * scale_b[None, :]
    mean = ((tl.sum(ga * na, 1) + tl.sum(gb * nb, 1)) / (2 * HALF))[:, None]
    return r * (ga - na * mean), r * (gb - nb * mean), da * na, db * nb


@triton.jit
def _rows(first, length, frames, places, stride_t, stride_n, BLOCK: tl.constexpr):
    """The frame and place of each row of a tile, whether it exists, and its offset in memory."""
    i = tl.arange(0, BLOCK)
    frame = i % frames
    place = first + i // frames
    return frame, place, (i < length) & (place < places), frame * stride_t + place * stride_n


@triton.jit
def _weights(
    qa, qb, ka, kb, visible, t, s, n, m, exists_q, exists_k, frames_k, scale, TYPE: tl.constexpr
):
    """Softmax weights (rows, columns), zero between different places."""
    scores = tl.dot(qa.to(TYPE), tl.trans(ka.to(TYPE)), input_precision="ieee")
    scores = tl.dot(qb.to(TYPE), tl.trans(kb.to(TYPE)), scores, input_precision="ieee") * scale
    both = exists_q[:, None] & exists_k[None, :] & (n[:, None] == m[None, :])
    seen = tl.load(visible + t[:, None] * frames_k + s[None, :], mask=both, other=0)
    scores = tl.where(both & (seen != 0), scores, -1e30)
    p = tl.exp(scores - tl.max(scores, 1)[:, None])
    p = tl.where(both & (seen != 0), p, 0.0)
    return p / tl.maximum(tl.sum(p, 1), 1e-30)[:, None]


@triton.jit
def _forward(
    q, k, v, visible, q_scale, k_scale, cos, sin, out,
    qb_, qt, qn, qg, qe, kb_, kt, kn, kg, ke, vb_, vt, vn, vg, ve, ob, ot, on, og, oe,
    frames_q, frames_k, places, heads, scale,
    HALF: tl.constexpr, BLOCK_H: tl.constexpr, PLACES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    FUSED: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    first = tl.program_id(0) * PLACES
    t, n, exists_q, at_q = _rows(first, PLACES * frames_q, frames_q, places, qt, qn, BLOCK_Q)
    s, m, exists_k, at_k = _rows(first, PLACES * frames_k, frames_k, places, kt, kn, BLOCK_K)
    qa, qb = _load_halves(q + batch * qb_ + head * qg, at_q, qe, exists_q, HALF, BLOCK_H)
    ka, kb = _load_halves(k + batch * kb_ + head * kg, at_k, ke, exists_k, HALF, BLOCK_H)
    if FUSED:
        sa, sb = _scales(q_scale, HALF, BLOCK_H)
        cos_q = _table(cos, t, exists_q, HALF, BLOCK_H)
        sin_q = _table(sin, t, exists_q, HALF, BLOCK_H)
        qa, qb, _ = _norm_rotate(qa, qb, sa, sb, cos_q, sin_q, HALF)
        sa, sb = _scales(k_scale, HALF, BLOCK_H)
        cos_k = _table(cos, s, exists_k, HALF, BLOCK_H)
        sin_k = _table(sin, s, exists_k, HALF, BLOCK_H)
        ka, kb, _ = _norm_rotate(ka, kb, sa, sb, cos_k, sin_k, HALF)
    p = _weights(qa, qb, ka, kb, visible, t, s, n, m, exists_q, exists_k, frames_k, scale, TYPE)
    p = p.to(TYPE)
    va, vb = _load_halves(v + batch * vb_ + head * vg, s * vt + m * vn, ve, exists_k, HALF, BLOCK_H)
    ya = tl.dot(p, va.to(TYPE), input_precision="ieee")
    yb = tl.dot(p, vb.to(TYPE), input_precision="ieee")
    _store_halves(
        out + batch * ob + head * og, t * ot + n * on, oe, exists_q, ya, yb, HALF, BLOCK_H
    )


@triton.jit
def _backward(
    q, k, v, visible, q_scale, k_scale, cos, sin, dy, dq, dk, dv, dscale,
    qb_, qt, qn, qg, qe, kb_, kt, kn, kg, ke, vb_, vt, vn, vg, ve, yb_, yt, yn, yg, ye,
    ob, ot, on, og, oe, cb, ct, cn, cg, ce,
    frames_q, frames_k, places, heads, scale,
    HALF: tl.constexpr, BLOCK_H: tl.constexpr, PLACES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    FUSED: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    first = tl.program_id(0) * PLACES
    t, n, exists_q, at_q = _rows(first, PLACES * frames_q, frames_q, places, qt, qn, BLOCK_Q)
    s, m, exists_k, at_k = _rows(first, PLACES * frames_k, frames_k, places, kt, kn, BLOCK_K)
    raw_qa, raw_qb = _load_halves(q + batch * qb_ + head * qg, at_q, qe, exists_q, HALF, BLOCK_H)
    raw_ka, raw_kb = _load_halves(k + batch * kb_ + head * kg, at_k, ke, exists_k, HALF, BLOCK_H)
    qa = raw_qa
    qb = raw_qb
    ka = raw_ka
    kb = raw_kb
    if FUSED:
        qsa, qsb = _scales(q_scale, HALF, BLOCK_H)
        ksa, ksb = _scales(k_scale, HALF, BLOCK_H)
        cos_q = _table(cos, t, exists_q, HALF, BLOCK_H)
        sin_q = _table(sin, t, exists_q, HALF, BLOCK_H)
        cos_k = _table(cos, s, exists_k, HALF, BLOCK_H)
        sin_k = _table(sin, s, exists_k, HALF, BLOCK_H)
        qa, qb, rq = _norm_rotate(raw_qa, raw_qb, qsa, qsb, cos_q, sin_q, HALF)
        ka, kb, rk = _norm_rotate(raw_ka, raw_kb, ksa, ksb, cos_k, sin_k, HALF)
    p = _weights(qa, qb, ka, kb, visible, t, s, n, m, exists_q, exists_k, frames_k, scale, TYPE)
    va, vb = _load_halves(v + batch * vb_ + head * vg, s * vt + m * vn, ve, exists_k, HALF, BLOCK_H)
    ya, yb = _load_halves(
        dy + batch * yb_ + head * yg, t * yt + n * yn, ye, exists_q, HALF, BLOCK_H
    )
    ya = ya.to(TYPE)
    yb = yb.to(TYPE)
    pt = tl.trans(p.to(TYPE))
    dva = tl.dot(pt, ya, input_precision="ieee")
    dvb = tl.dot(pt, yb, input_precision="ieee")
    _store_halves(
        dv + batch * cb + head * cg, s * ct + m * cn, ce, exists_k, dva, dvb, HALF, BLOCK_H
    )
    dp = tl.dot(ya, tl.trans(va.to(TYPE)), input_precision="ieee")
    dp = tl.dot(yb, tl.trans(vb.to(TYPE)), dp, input_precision="ieee")
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(TYPE)
    dst = tl.trans(ds)
    dqa = tl.dot(ds, ka.to(TYPE), input_precision="ieee")
    dqb = tl.dot(ds, kb.to(TYPE), input_precision="ieee")
    dka = tl.dot(dst, qa.to(TYPE), input_precision="ieee")
    dkb = tl.dot(dst, qb.to(TYPE), input_precision="ieee")
    if FUSED:
        dqa, dqb, gqa, gqb = _norm_rotate_backward(
            dqa, dqb, raw_qa, raw_qb, qsa, qsb, cos_q, sin_q, rq, HALF
        )
        dka, dkb, gka, gkb = _norm_rotate_backward(
            dka, dkb, raw_ka, raw_kb, ksa, ksb, cos_k, sin_k, rk, HALF
        )
        h = tl.arange(0, BLOCK_H)
        row = dscale + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 4 * HALF + h
        tl.store(row, tl.sum(gqa, 0), mask=h < HALF)
        tl.store(row + HALF, tl.sum(gqb, 0), mask=h < HALF)
        tl.store(row + 2 * HALF, tl.sum(gka, 0), mask=h < HALF)
        tl.store(row + 3 * HALF, tl.sum(gkb, 0), mask=h < HALF)
    _store_halves(
        dq + batch * ob + head * og, t * ot + n * on, oe, exists_q, dqa, dqb, HALF, BLOCK_H
    )
    _store_halves(
        dk + batch * cb + head * cg, s * ct + m * cn, ce, exists_k, dka, dkb, HALF, BLOCK_H
    )


def tiling(frames_q: int, frames_k: int, head_dim: int) -> dict[str, int]:
    """The constants of a problem: places per program, and the padded sides of its tiles.

    The padded sides are powers of two of at least 16.
    """
    places = max(1, 64 // max(frames_q, frames_k))
    half = head_dim // 2
    sizes = {"BLOCK_Q": places * frames_q, "BLOCK_K": places * frames_k, "BLOCK_H": half}
    padded = {name: max(16, triton.next_power_of_2(size)) for name, size in sizes.items()}
    return {"PLACES": places, "HALF": half} | padded


def _launch(
    kernel, tensors: list[Tensor | None], strided: list[Tensor], scale: float, fused: bool
) -> None:
    q, k, *_ = strided
    batch, frames_q, places, heads, head_dim = q.shape
    constants = tiling(frames_q, k.shape[1], head_dim)
    grid = (triton.cdiv(places, constants["PLACES"]), batch * heads)
    strides = [stride for tensor in strided for stride in tensor.stride()]
    sizes = (frames_q, k.shape[1], places, heads, scale)
    constants |= {"FUSED": fused, "TYPE": TYPES[q.dtype]}
    kernel[grid](*tensors, *strides, *sizes, **constants, num_warps=4)


@torch.library.custom_op("genie_fn::attend_time", mutates_args=())
def attend_time(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> Tensor:
    """Attention of q (B, T, N, G, E) to k and v (B, S, N, G, E).

    Query frame t attends to the key frames s where `visible` (T, S) int8 is not 0. With the scales
    (E,), and cos and sin (T, E/2), all float32, q and k are first normalised and rotated (then S =
    T). The result has the shape and type of q, and is contiguous.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tensors = [q, k, v, visible, q_scale, k_scale, cos, sin, out]
    _launch(_forward, tensors, [q, k, v, out], q.shape[-1] ** -0.5, q_scale is not None)
    return out


@attend_time.register_fake
def _(q, k, v, visible, q_scale, k_scale, cos, sin):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@torch.library.custom_op("genie_fn::attend_time_backward", mutates_args=())
def attend_time_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the two scales, (2, E) float32 (zeros without scales)."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    batch, frames, places, heads, head_dim = q.shape
    programs = triton.cdiv(places, tiling(frames, k.shape[1], head_dim)["PLACES"]) * batch * heads
    fused = q_scale is not None
    rows = programs if fused else 1
    dscale = torch.zeros((rows, 2, head_dim), dtype=torch.float32, device=q.device)
    tensors = [q, k, v, visible, q_scale, k_scale, cos, sin, dy, dq, dk, dv, dscale]
    _launch(_backward, tensors, [q, k, v, dy, dq, dk], head_dim**-0.5, fused)
    return dq, dk, dv, dscale.sum(0)


@attend_time_backward.register_fake
def _(dy, q, k, v, visible, q_scale, k_scale, cos, sin):
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return dq, dk, dv, torch.empty((2, q.shape[-1]), dtype=torch.float32, device=q.device)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _derive(ctx, dy):
    dq, dk, dv, dscale = attend_time_backward(dy, *ctx.saved_tensors)
    scales = dscale.unbind(0) if ctx.saved_tensors[4] is not None else (None, None)
    return dq, dk, dv, None, *scales, None, None


attend_time.register_autograd(_derive, setup_context=_keep)
