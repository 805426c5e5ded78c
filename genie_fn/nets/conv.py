"""Layers over video (B, T, H, W, C) that are causal in time: convolution, pooling, up-sampling, norms, attention.

MAGVIT-2 (Yu et al. 2023, arXiv 2310.05737), section 3.2, after TATS and MAGVIT: at one frame rate no layer lets frame t
see a later one.

Layers that divide the frame rate by s follow one of two rules, chosen per video by its length. A video of 1 + s·k
frames has its first frame coded alone, so that a single image is a video: coarse frame j sees frames <= s·j. A video of
s·k frames is cut into k groups of s: coarse frame j sees frames < s·(j + 1).
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers
from genie_fn.kernels import attention
from genie_fn.layers import linear, linear_spec, norm_spec, rms_norm
from genie_fn.tree import ParamSpec, Tree

Triple = tuple[int, int, int]  # (time, height, width)


class Pass:
    """One pass through a network: what all of its layers share, and what they remember of the frames before.

    `alone`: the first frame is coded alone (see above). `condition`: an external input (B, T, K) or (B, T, h, w, K).
    `past`: what `kept` was after the pass over the frames before, if these frames continue them; layers ask in the same
    order every time. Only layers that keep the frame rate can continue.
    """

    def __init__(
        self, alone: bool, condition: Tensor | None = None, past: tuple[Tensor, ...] | None = None
    ):
        self.alone, self.condition, self.kept = alone, condition, []
        self._past: Iterator[Tensor] | None = None if past is None else iter(past)

    def recall(self, initial: Tensor) -> Tensor:
        """What this layer kept in the pass before, `initial` in the first."""
        return initial if self._past is None else next(self._past)

    def prepend_past(self, x: Tensor, frames: int, *, zeros: bool = True) -> Tensor:
        """x (B, T, …) after the `frames` frames before it: in the first pass zeros, or without `zeros` nothing."""
        if frames == 0:
            return x
        first, batch, *rest = self._past is None, x.shape[0], *x.shape[2:]
        whole = torch.cat((self.recall(x.new_zeros(batch, frames, *rest)), x), 1)
        self.kept.append(whole[:, -frames:])
        return x if first and not zeros else whole

    def condition_at(self, frames: int) -> Tensor:
        """The condition, averaged over space, for each of `frames` frames of this video at an equal or finer rate."""
        coarse_BTK = self.condition if self.condition.dim() == 3 else self.condition.mean((2, 3))
        gaps, coarse_gaps = (n - 1 if self.alone else n for n in (frames, coarse_BTK.shape[1]))
        return repeat_time(coarse_BTK, gaps // coarse_gaps if coarse_gaps else 1, self.alone)


def repeat_time(x: Tensor, factor: int, alone: bool) -> Tensor:
    """Every frame `factor` times; if the first is coded alone, it comes once."""
    return drop_padding(x.repeat_interleave(factor, 1), factor, alone)


def drop_padding(x: Tensor, factor: int, alone: bool) -> Tensor:
    """T·factor up-sampled frames without those before the first, if it is coded alone: 1 + (T-1)·factor."""
    return x[:, factor - 1 :] if alone else x


def conv_spec(inputs: int, outputs: int, kernel: Triple, *, scale: float = 1.0) -> Tree:
    """A kernel (outputs, inputs, t, h, w) with variance scale² / fan-in, and a zero bias."""
    fan_in = inputs * kernel[0] * kernel[1] * kernel[2]
    return {
        "w": ParamSpec((outputs, inputs, *kernel), std=scale * fan_in**-0.5),
        "b": ParamSpec((outputs,), "zeros", decay=False),
    }


def causal_conv(params: Tree, x_BTHWC: Tensor, at: Pass, stride: Triple = (1, 1, 1)) -> Tensor:
    """3D convolution padded with zeros: before the first frame only, and on both sides in space (odd kernels)."""
    time, height, width = params["w"].shape[2:]
    # In a video cut into groups a window ends with a group's last frame; otherwise with the first, the s-th, the 2s-th…
    before = time - 1 if at.alone else time - stride[0]
    x = at.prepend_past(x_BTHWC, before) if before > 0 else x_BTHWC[:, -before:]
    y = F.conv3d(
        x.permute(0, 4, 1, 2, 3),
        params["w"].to(x.dtype),
        params["b"].to(x.dtype),
        stride=stride,
        padding=(0, height // 2, width // 2),
    )
    return y.permute(0, 2, 3, 4, 1)


def causal_conv_transpose(params: Tree, x_BTHWC: Tensor, at: Pass, stride: Triple) -> Tensor:
    """Transposed 3D convolution: `stride` times as many frames, rows and columns. Kernels (outputs, inputs, t, h, w).

    Coarse frame j is written onto its own fine frames and later ones. Kernels are at least as long as the stride.
    """
    frames, height, width = (n * s for n, s in zip(x_BTHWC.shape[1:4], stride, strict=True))
    time, rows, columns = params["w"].shape[2:]
    past = (time - 1) // stride[0]  # earlier coarse frames that reach into this one's
    x = at.prepend_past(x_BTHWC, past)
    y = F.conv_transpose3d(
        x.permute(0, 4, 1, 2, 3),
        params["w"].transpose(0, 1).to(x.dtype),
        params["b"].to(x.dtype),
        stride=stride,
    ).permute(0, 2, 3, 4, 1)
    t, h, w = past * stride[0], (rows - stride[1]) // 2, (columns - stride[2]) // 2
    return drop_padding(y[:, t : t + frames, h : h + height, w : w + width], stride[0], at.alone)


def pool(x_BTHWC: Tensor, at: Pass, factor: Triple, *, blur: bool) -> Tensor:
    """Every factor-th frame, row and column, after a mean over as many or, with `blur`, a triangular filter.

    The filter (1, 2, 1 for a factor of 2; Zhang 2019, arXiv 1904.11486) is centred in space and looks back in time;
    edges are repeated.
    """
    x = x_BTHWC
    for axis, f in zip((1, 2, 3), factor, strict=True):
        weights = (
            [min(k + 1, 2 * f - 1 - k) / f**2 for k in range(2 * f - 1)] if blur else [1 / f] * f
        )
        extra = len(weights) - f
        before = (extra + 1) // 2 if axis > 1 else len(weights) - 1 if at.alone else extra
        x = _filter(x, axis, f, weights, before, extra - before if axis > 1 else 0) if f > 1 else x
    return x


def _filter(
    x: Tensor, axis: int, stride: int, weights: list[float], before: int, after: int
) -> Tensor:
    """A strided filter along one axis, with the first and last values repeated beyond the edges."""
    length = x.shape[axis]
    edges = (x.narrow(axis, 0, 1),) * before, (x.narrow(axis, length - 1, 1),) * after
    padded = torch.cat((*edges[0], x, *edges[1]), axis).movedim(axis, 0)
    span = len(padded) - len(weights) + 1
    return sum(w * padded[k : k + span : stride] for k, w in enumerate(weights)).movedim(0, axis)


def depth_to_spacetime(x_BTHWC: Tensor, at: Pass, time: int, space: int) -> Tensor:
    """Channels to frames, rows and columns: (B, T, H, W, C·time·space²) → (B, T·time, H·space, W·space, C)."""
    x = rearrange(x_BTHWC, "b t h w (c f p q) -> b (t f) (h p) (w q) c", f=time, p=space, q=space)
    return drop_padding(x, time, at.alone)


def space_to_depth(x_BTHWC: Tensor, space: int) -> Tensor:
    """(B, T, H·space, W·space, C) → (B, T, H, W, C·space²)."""
    return rearrange(x_BTHWC, "b t (h p) (w q) c -> b t h w (c p q)", p=space, q=space)


def group_norm_spec(channels: int) -> Tree:
    """Scale and shift per channel."""
    return {"scale": norm_spec(channels), "shift": ParamSpec((channels,), "zeros", decay=False)}


def group_norm(params: Tree, x_BTHWC: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    """Group norm (Wu & He 2018) of each frame by itself, in float32: a mean over time would see the future."""
    return (_normalised(x_BTHWC, groups, eps) * params["scale"] + params["shift"]).to(x_BTHWC.dtype)


def _normalised(x_BTHWC: Tensor, groups: int, eps: float) -> Tensor:
    x = x_BTHWC.float().unflatten(-1, (groups, -1))
    variance, mean = torch.var_mean(x, dim=(2, 3, 5), keepdim=True, correction=0)
    return ((x - mean) * torch.rsqrt(variance + eps)).flatten(-2)


def adaptive_group_norm_spec(channels: int, condition: int) -> Tree:
    """A linear map of the condition to a change of scale and a shift, at full size from the start.

    At a tenth of it, a latent action model's decoder never took notice of its action.
    """
    return linear_spec(condition, 2 * channels, bias=True)


def adaptive_group_norm(
    params: Tree, x_BTHWC: Tensor, at: Pass, groups: int, eps: float = 1e-6
) -> Tensor:
    """Group norm whose scale and shift at frame t follow the condition of frame t's own code, nothing later."""
    condition_BTK = at.condition_at(x_BTHWC.shape[1]).float()
    scale, shift = linear(params, condition_BTK)[:, :, None, None].chunk(2, -1)
    return (_normalised(x_BTHWC, groups, eps) * (1 + scale) + shift).to(x_BTHWC.dtype)


def attention_spec(dim: int, heads: int, head_dim: int, condition: int = 0) -> Tree:
    """Attention of `heads` heads; with a `condition` width, keys and values of an external input too."""
    spec = layers.attention_spec(dim, heads, head_dim, scale=0.3)
    return spec | ({"condition": linear_spec(condition, 2 * heads * head_dim)} if condition else {})


def space_attention(params: Tree, x_BTHWC: Tensor, heads: int, impl: str) -> Tensor:
    """x plus attention among the places of each frame; positions are rotary, half of each head's channels per axis."""
    height, width = x_BTHWC.shape[2:4]
    q, k, v = layers.qkv(params, x_BTHWC.flatten(2, 3), heads)
    row = torch.arange(height, device=q.device).repeat_interleave(width)
    column = torch.arange(width, device=q.device).repeat(height)

    def turn(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((layers.rotary(a, row), layers.rotary(b, column)), -1)

    y = attention.attend_space(turn(q), turn(k), v, impl=impl)
    return x_BTHWC + linear(params["out"], y.flatten(-2)).unflatten(2, (height, width))


def time_attention(params: Tree, x_BTHWC: Tensor, at: Pass, heads: int, window: int) -> Tensor:
    """x plus attention of each place to itself in the last `window` frames and, if given, to their conditions."""
    frames, height, width = x_BTHWC.shape[1:4]
    q, k, v = layers.qkv(params, x_BTHWC.flatten(2, 3), heads)
    seen = at.recall(torch.zeros((), dtype=torch.int64, device=q.device))
    at.kept.append(seen + frames)
    position = torch.arange(frames, device=q.device)[:, None] + seen
    q, k = layers.rotary(q, position), layers.rotary(k, position)
    sides = [(k, v)]
    if "condition" in params:
        external = linear(params["condition"], at.condition_at(frames).to(q.dtype))
        k2, v2 = (
            rearrange(external, "b t (two g e) -> two b t 1 g e", two=2, g=heads)
            .expand(-1, *k.shape)
            .unbind(0)
        )
        sides.append((layers.rotary(rms_norm(params["k_norm"], k2), position), v2))
    k, v = (
        torch.cat([at.prepend_past(x, window - 1, zeros=False) for x in xs], 1)
        for xs in zip(*sides, strict=True)
    )
    past = k.shape[1] // len(sides) - frames
    slot, query = (
        torch.arange(past + frames, device=q.device),
        torch.arange(frames, device=q.device)[:, None] + past,
    )
    visible = (slot <= query) & (slot > query - window) & (slot >= past - seen)
    y = attention.attend_time(q, k, v, visible.repeat(1, len(sides)), impl="fused")
    return x_BTHWC + linear(params["out"], y.flatten(-2)).unflatten(2, (height, width))
