"""Attention within each frame as Triton kernels, with QK-norm.

FlashAttention (Dao et al. 2022, arXiv 2205.14135; 2023, arXiv 2307.08691) without a mask: the
softmax is updated tile by tile of keys, so no scores are written to memory. Queries and keys are
normalised where they are read, so their normalised values are not written either. All tensors
(B, T, N, G, E) are read by their strides, so the three views of one product need no copies.

The backward pass recomputes the weights from the log-sum-exp of the scores. Each program writes its
own rows, and its own row of partial sums for the norm's scales. There are no atomic additions, so
runs repeat bit for bit. One kernel computes all gradients of a frame that fits into one tile.
Larger frames take one kernel for queries, and another for keys and values.

Not torch.nn.attention.flex_attention, which can modify scores, but not normalise queries and keys
where it reads them.
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
LOG2_E = 1.4426950408889634  # the hardware computes powers of two


@triton.jit
def _program(tokens, frames, heads, BLOCK: tl.constexpr):
    """The rows of this program, the index of their sequence, and its batch, frame and head.

    A sequence is one head of one frame; the programs of one sequence are neighbours.
    """
    tiles = tl.cdiv(tokens, BLOCK)
    row = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    return row, sequence, sequence // heads // frames, sequence // heads % frames, sequence % heads


@triton.jit
def _inside(row, tokens, E: tl.constexpr, BLOCK_E: tl.constexpr):
    return (row < tokens)[:, None] & (tl.arange(0, BLOCK_E) < E)[None, :]


@triton.jit
def _load(base, row, stride_n, stride_e, tokens, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """Rows of E channels, padded with zeros to BLOCK_E and from row `tokens` on."""
    at = base + row[:, None] * stride_n + tl.arange(0, BLOCK_E)[None, :] * stride_e
    return tl.load(at, mask=_inside(row, tokens, E, BLOCK_E), other=0.0)


@triton.jit
def _load_scale(base, E: tl.constexpr, BLOCK_E: tl.constexpr, NORM: tl.constexpr):
    e = tl.arange(0, BLOCK_E)
    scale = tl.zeros((BLOCK_E,), tl.float32)
    if NORM:
        scale = tl.load(base + e, mask=e < E, other=0.0)
    return scale


@triton.jit
def _normed(x, scale, E: tl.constexpr, NORM: tl.constexpr, TYPE: tl.constexpr):
    """x / rms(x) · scale of each row, if there is a norm, in the type of the matrix products."""
    if NORM:
        x = x.to(tl.float32)
        x = x * tl.rsqrt(tl.sum(x * x, 1) / E + EPS)[:, None] * scale[None, :]
    return x.to(TYPE)


@triton.jit
def _store_gradient(
    dx, x, stride_n, stride_e, scale, out, partial, row, sequence, tokens, heads,
    E: tl.constexpr, BLOCK_E: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """From gradients of normalised rows, write those of the raw rows at x, and partial sums of the
    scale's gradient.

    Rows and scale are read again, with an eviction hint that stops the compiler from keeping the
    first copy: the loop in between needs the registers.
    """
    if NORM:
        e = tl.arange(0, BLOCK_E)
        at = x + row[:, None] * stride_n + e[None, :] * stride_e
        x = tl.load(
            at, mask=_inside(row, tokens, E, BLOCK_E), other=0.0, eviction_policy="evict_first"
        ).to(tl.float32)
        scale = tl.load(scale + e, mask=e < E, other=0.0, eviction_policy="evict_last")
        r = tl.rsqrt(tl.sum(x * x, 1) / E + EPS)[:, None]
        x = x * r
        tl.store(partial + tl.program_id(0).to(tl.int64) * E + e, tl.sum(dx * x, 0), mask=e < E)
        dx = dx * scale[None, :]
        dx = r * (dx - x * (tl.sum(dx * x, 1) / E)[:, None])
    _store(dx, out, row, sequence, tokens, heads, E, BLOCK_E)


@triton.jit
def _store(x, out, row, sequence, tokens, heads, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """Write rows of a sequence into a contiguous (B, T, N, G, E)."""
    first = (sequence // heads * tokens * heads + sequence % heads) * E
    at = out + first + row[:, None] * (heads * E) + tl.arange(0, BLOCK_E)[None, :]
    tl.store(at, x.to(out.dtype.element_ty), mask=_inside(row, tokens, E, BLOCK_E))


@triton.jit
def _forward(
    q, k, v, q_scale, k_scale, out, lse,
    qb, qt, qn, qg, qe, kb, kt, kn, kg, ke, vb, vt, vn, vg, ve, tokens, frames, heads, scale_log2,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    EVEN: tl.constexpr, NORM: tl.constexpr, TYPE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    row, sequence, b, t, g = _program(tokens, frames, heads, BLOCK)
    k_scale = _load_scale(k_scale, E, BLOCK_E, NORM)
    qi = _load(q + b * qb + t * qt + g * qg, row, qn, qe, tokens, E, BLOCK_E)
    qi = _normed(qi, _load_scale(q_scale, E, BLOCK_E, NORM), E, NORM, TYPE)
    k = k + b * kb + t * kt + g * kg
    v = v + b * vb + t * vt + g * vg
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    y = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    for first in range(0, STEP if WHOLE else tokens, STEP):
        key = first + tl.arange(0, STEP)
        kj = _normed(_load(k, key, kn, ke, tokens, E, BLOCK_E), k_scale, E, NORM, TYPE)
        vj = _load(v, key, vn, ve, tokens, E, BLOCK_E).to(TYPE)
        s = tl.dot(qi, tl.trans(kj), input_precision="ieee")
        if not EVEN:
            s = tl.where((key < tokens)[None, :], s, -float("inf"))
        # The maximum is finite, because every tile has at least one key.
        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
        p = tl.exp2(s * scale_log2 - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        y = tl.dot(p.to(TYPE), vj, y * shrink[:, None], input_precision="ieee")
        top = new_top
    _store(y / total[:, None], out, row, sequence, tokens, heads, E, BLOCK_E)
    tl.store(lse + sequence * tokens + row, top + tl.log2(total), mask=row < tokens)


@triton.jit
def _backward_queries(
    q, k, v, q_scale, k_scale, y, lse, delta, dy, dq, dk, dv, dq_scale, dk_scale,
    qb, qt, qn, qg, qe, kb, kt, kn, kg, ke, vb, vt, vn, vg, ve, yb, yt, yn, yg, ye, tokens, frames, heads, scale,
    scale_log2,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    EVEN: tl.constexpr, NORM: tl.constexpr, TYPE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """dq, and for the other kernel `delta`, each row's dy · y.

    If the tile holds the `WHOLE` frame, also dk and dv.
    """
    row, sequence, b, t, g = _program(tokens, frames, heads, BLOCK)
    qs = _load_scale(q_scale, E, BLOCK_E, NORM)
    ks = _load_scale(k_scale, E, BLOCK_E, NORM)
    q = q + b * qb + t * qt + g * qg
    dy = dy + b * yb + t * yt + g * yg
    k = k + b * kb + t * kt + g * kg
    v = v + b * vb + t * vt + g * vg
    qi = _normed(_load(q, row, qn, qe, tokens, E, BLOCK_E), qs, E, NORM, TYPE)
    dyi = _load(dy, row, yn, ye, tokens, E, BLOCK_E)
    y = y + (sequence // heads * tokens * heads + g) * E
    yi = _load(y, row, heads * E, 1, tokens, E, BLOCK_E)
    deltai = tl.sum(dyi.to(tl.float32) * yi.to(tl.float32), 1)
    lsei = tl.load(lse + sequence * tokens + row, mask=row < tokens, other=0.0)
    dyi = dyi.to(TYPE)
    dqi = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    for first in range(0, STEP if WHOLE else tokens, STEP):
        key = first + tl.arange(0, STEP)
        kj = _normed(_load(k, key, kn, ke, tokens, E, BLOCK_E), ks, E, NORM, TYPE)
        vj = _load(v, key, vn, ve, tokens, E, BLOCK_E).to(TYPE)
        p = tl.exp2(tl.dot(qi, tl.trans(kj), input_precision="ieee") * scale_log2 - lsei[:, None])
        if not EVEN:
            p = tl.where((key < tokens)[None, :], p, 0.0)
        if WHOLE:
            dvj = tl.dot(tl.trans(p.to(TYPE)), dyi, input_precision="ieee")
            _store(dvj, dv, key, sequence, tokens, heads, E, BLOCK_E)
        dp = tl.dot(dyi, tl.trans(vj), input_precision="ieee")
        ds = (p * (dp - deltai[:, None])).to(TYPE)
        if WHOLE:
            dkj = tl.dot(tl.trans(ds), qi, input_precision="ieee") * scale
            _store_gradient(
                dkj, k, kn, ke, k_scale, dk, dk_scale, key, sequence, tokens, heads, E, BLOCK_E, NORM
            )  # fmt: skip
        dqi = tl.dot(ds, kj, dqi, input_precision="ieee")
    dqi = dqi * scale
    _store_gradient(
        dqi, q, qn, qe, q_scale, dq, dq_scale, row, sequence, tokens, heads, E, BLOCK_E, NORM
    )  # fmt: skip
    if not WHOLE:
        tl.store(delta + sequence * tokens + row, deltai, mask=row < tokens)


@triton.jit
def _backward_keys(
    q, k, v, q_scale, k_scale, lse, delta, dy, dk, dv, dk_scale,
    qb, qt, qn, qg, qe, kb, kt, kn, kg, ke, vb, vt, vn, vg, ve, yb, yt, yn, yg, ye, tokens, frames, heads, scale,
    scale_log2,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    EVEN: tl.constexpr, NORM: tl.constexpr, TYPE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """dk and dv of frames larger than a tile.

    Scores are transposed here (keys × queries), as the two accumulated products need them.
    """
    row, sequence, b, t, g = _program(tokens, frames, heads, BLOCK)
    qs = _load_scale(q_scale, E, BLOCK_E, NORM)
    ks = _load_scale(k_scale, E, BLOCK_E, NORM)
    q = q + b * qb + t * qt + g * qg
    dy = dy + b * yb + t * yt + g * yg
    k = k + b * kb + t * kt + g * kg
    v = v + b * vb + t * vt + g * vg
    kj = _normed(_load(k, row, kn, ke, tokens, E, BLOCK_E), ks, E, NORM, TYPE)
    vj = _load(v, row, vn, ve, tokens, E, BLOCK_E).to(TYPE)
    dkj = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    dvj = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    for first in range(0, tokens, STEP):
        query = first + tl.arange(0, STEP)
        qi = _normed(_load(q, query, qn, qe, tokens, E, BLOCK_E), qs, E, NORM, TYPE)
        dyi = _load(dy, query, yn, ye, tokens, E, BLOCK_E).to(TYPE)
        lsei = tl.load(lse + sequence * tokens + query, mask=query < tokens, other=0.0)
        deltai = tl.load(delta + sequence * tokens + query, mask=query < tokens, other=0.0)
        p = tl.exp2(tl.dot(kj, tl.trans(qi), input_precision="ieee") * scale_log2 - lsei[None, :])
        if not EVEN:  # padding must not enter the gradient of the keys' scale
            p = tl.where((row < tokens)[:, None], p, 0.0)
        dvj = tl.dot(p.to(TYPE), dyi, dvj, input_precision="ieee")
        dp = tl.dot(vj, tl.trans(dyi), input_precision="ieee")
        dkj = tl.dot((p * (dp - deltai[None, :])).to(TYPE), qi, dkj, input_precision="ieee")
    _store(dvj, dv, row, sequence, tokens, heads, E, BLOCK_E)
    dkj = dkj * scale
    _store_gradient(
        dkj, k, kn, ke, k_scale, dk, dk_scale, row, sequence, tokens, heads, E, BLOCK_E, NORM
    )  # fmt: skip


def tiling(kernel, tokens: int, head_dim: int, itemsize: int) -> dict[str, int]:
    """The constants of a kernel: the rows of a program (BLOCK) and the rows of each STEP.

    Both are powers of two of at least 16, the least that tl.dot takes. `WHOLE`: one step holds the
    frame. `EVEN`: steps have no padding. Float32 is multiplied exactly, from registers instead of
    on tensor cores, so its tiles are smaller.
    """
    channels = max(16, triton.next_power_of_2(head_dim))
    padded_tokens = max(16, triton.next_power_of_2(tokens))
    largest = 64 if itemsize == 2 else 32
    step = min(padded_tokens, largest * 128 // max(128, channels))
    block = 2 * step if kernel is _forward and step == 64 and tokens > step else step
    sizes = {"E": head_dim, "BLOCK_E": channels, "BLOCK": block, "STEP": step}
    return sizes | {"EVEN": tokens % step == 0, "WHOLE": tokens <= step}


def options(constants: dict, itemsize: int) -> dict[str, int]:
    """The numbers of warps and stages.

    Tensor cores take 16 rows per warp. More warps would repeat each other's work, unless rows are
    too wide for a warp to keep 16 of them in its registers.
    """
    rows, numbers = (16, 1024) if itemsize == 2 else (4, 512)
    block = constants["BLOCK"]
    warps = max(block // rows, block * constants["BLOCK_E"] // numbers)
    return {"num_warps": min(8, warps), "num_stages": 2}


def _programs(kernel, q: Tensor) -> int:
    batch, frames, tokens, heads, head_dim = q.shape
    block = tiling(kernel, tokens, head_dim, q.element_size())["BLOCK"]
    return triton.cdiv(tokens, block) * batch * frames * heads


def _launch(kernel, tensors: list[Tensor | None], strided: list[Tensor], *scales: float) -> None:
    q = strided[0]
    _, frames, tokens, heads, head_dim = q.shape
    constants = tiling(kernel, tokens, head_dim, q.element_size())
    constants |= {"NORM": tensors[3] is not None, "TYPE": TYPES[q.dtype]}
    strides = [stride for tensor in strided for stride in tensor.stride()]
    sizes = (tokens, frames, heads, *scales)
    chosen = options(constants, q.element_size())
    kernel[(_programs(kernel, q),)](*tensors, *strides, *sizes, **constants, **chosen)


@torch.library.custom_op("genie_fn::attend_space", mutates_args=())
def attend_space(
    q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor | None, k_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention of q to k and v, (B, T, N, G, E) each, among the N tokens of each frame.

    With the scales (E,), float32, q and k are first normalised. The result is contiguous, with the
    shape and type of q. Also returns the binary logarithm of each row's sum of exponentials,
    (B, T, G, N) float32, for the backward pass.
    """
    out, lse = _results(q)
    tensors = [q, k, v, q_scale, k_scale, out, lse]
    _launch(_forward, tensors, [q, k, v], q.shape[-1] ** -0.5 * LOG2_E)
    return out, lse


@attend_space.register_fake
def _(q, k, v, q_scale, k_scale):
    return _results(q)


def _results(q: Tensor) -> tuple[Tensor, Tensor]:
    batch, frames, tokens, heads, _ = q.shape
    lse = torch.empty((batch, frames, heads, tokens), dtype=torch.float32, device=q.device)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), lse


@torch.library.custom_op("genie_fn::attend_space_backward", mutates_args=())
def attend_space_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    y: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the two scales, (2, E) float32 (zeros without scales)."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    tokens, head_dim = q.shape[2], q.shape[4]
    scale = head_dim**-0.5
    programs = _programs(_backward_queries, q) if q_scale is not None else 1
    partial_sums = torch.zeros((2, programs, head_dim), dtype=torch.float32, device=q.device)
    strided = [q, k, v, dy]
    tensors = [q, k, v, q_scale, k_scale, y, lse, delta, dy, dq, dk, dv, *partial_sums]
    _launch(_backward_queries, tensors, strided, scale, scale * LOG2_E)
    if not tiling(_backward_queries, tokens, head_dim, q.element_size())["WHOLE"]:
        tensors = [q, k, v, q_scale, k_scale, lse, delta, dy, dk, dv, partial_sums[1]]
        _launch(_backward_keys, tensors, strided, scale, scale * LOG2_E)
    return dq, dk, dv, partial_sums.sum(1)


@attend_space_backward.register_fake
def _(dy, q, k, v, q_scale, k_scale, y, lse):
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return dq, dk, dv, torch.empty((2, q.shape[-1]), dtype=torch.float32, device=q.device)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _derive(ctx, dy, _):
    dq, dk, dv, dscale = attend_space_backward(dy, *ctx.saved_tensors)
    scales = dscale.unbind(0) if ctx.saved_tensors[3] is not None else (None, None)
    return dq, dk, dv, *scales


attend_space.register_autograd(_derive, setup_context=_keep)
