"""What benchmark.py compares with: the same models in the usual style, without what genie_fn does differently.

The tokenizer as nn.Module with torch.optim, entropies by their definition, and sampling without a cache. Tests hold
them to the same results, so that a ratio of times compares two ways of doing one thing.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genie_fn import dynamics, layers, metrics, quantize, random
from genie_fn.kernels import lfq
from genie_fn.kernels.attention import rms_norm, rotary
from genie_fn.layers import STConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training.config import RunConfig


class Attention(nn.Module):
    """Pre-norm attention over the second last axis of (batch, length, D), by scaled_dot_product_attention."""

    def __init__(self, dim: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(dim // heads, eps=1e-6) for _ in "qk")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b n (three g e) -> three b g n e", three=3, g=self.heads
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if self.causal:
            q, k = (self.rotate(z) for z in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(rearrange(y, "b g n e -> b n (g e)"))

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        frequency = 100.0 ** (-torch.arange(half, device=x.device) / half)
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * frequency
        (a, b), cos, sin = x.chunk(2, -1), angle.cos(), angle.sin()
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)


class Block(nn.Module):
    """Space attention, time attention, MLP; each axis is brought to the front of its attention by a transpose."""

    def __init__(self, cfg: STConfig):
        super().__init__()
        self.space, self.time = (
            Attention(cfg.dim, cfg.heads, False),
            Attention(cfg.dim, cfg.heads, True),
        )
        self.mlp_norm, hidden = nn.RMSNorm(cfg.dim, eps=1e-6), cfg.mlp * cfg.dim
        self.up, self.down = (
            nn.Linear(cfg.dim, hidden, bias=False),
            nn.Linear(hidden, cfg.dim, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, places, _ = x.shape
        x = x + self.space(x.flatten(0, 1)).unflatten(0, (batch, frames))
        y = self.time(rearrange(x, "b t n d -> (b n) t d"))
        x = x + rearrange(y, "(b n) t d -> b t n d", n=places)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Grid(nn.Module):
    """A space-time transformer with its ends."""

    def __init__(self, cfg: STConfig, inputs: int, outputs: int, places: int):
        super().__init__()
        self.dtype = layers.DTYPES[cfg.dtype]
        self.embed, self.head = nn.Linear(inputs, cfg.dim), nn.Linear(cfg.dim, outputs)
        self.place = nn.Parameter(torch.empty(places, cfg.dim))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = nn.RMSNorm(cfg.dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            x = (self.embed(x) + self.place).to(self.dtype)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)).float()


class Tokenizer(nn.Module):
    """`genie_fn.tokenizer` for st_vivit and LFQ, with clips no longer than the window."""

    def __init__(self, cfg: TokenizerConfig):
        super().__init__()
        self.cfg, pixels, latent = cfg, 3 * cfg.patch**2, cfg.quantizer.dim
        self.encoder = Grid(cfg.encoder, pixels, latent, cfg.tokens)
        self.decoder = Grid(cfg.decoder, latent, pixels, cfg.tokens)

    def forward(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        target = layers.patchify(layers.to_float(video), self.cfg.patch)
        q = quantize.lfq(self.encoder(target), self.cfg.quantizer)
        mse = (self.decoder(q.codes) - target).square().mean()
        return mse + q.loss, {"psnr": metrics.psnr(mse.detach())}

    def load(self, params: dict) -> None:
        """Take over the parameters of the functional model."""
        with torch.no_grad():
            for side in ("encoder", "decoder"):
                grid, given = getattr(self, side), params[side]
                for name in ("embed", "head"):
                    getattr(grid, name).weight.copy_(given[name]["w"].T)
                    getattr(grid, name).bias.copy_(given[name]["b"])
                grid.place.copy_(given["place"])
                grid.norm.weight.copy_(given["stack"]["norm"])
                for i, block in enumerate(grid.blocks):
                    self._load_block(block, given["stack"]["blocks"], i)

    @staticmethod
    def _load_block(block: Block, given: dict, i: int) -> None:
        for axis in ("space", "time"):
            mine, theirs = getattr(block, axis), given[axis]
            for norm in ("norm", "q_norm", "k_norm"):
                getattr(mine, norm).weight.copy_(theirs[norm][i])
            for name in ("qkv", "out"):
                getattr(mine, name).weight.copy_(theirs[name]["w"][i].T)
        block.mlp_norm.weight.copy_(given["mlp_norm"][i])
        for name in ("up", "down"):
            getattr(block, name).weight.copy_(given["mlp"][name]["w"][i].T)


def module_step(params: dict, model: TokenizerConfig, cfg: RunConfig, device: torch.device):
    """The usual training step: zero_grad, backward, clip_grad_norm_, AdamW.step, an average of the weights."""
    net = Tokenizer(model).to(device)
    net.load(params)
    o = cfg.optim
    optimizer = torch.optim.AdamW(
        net.parameters(),
        o.lr,
        (o.b1, o.b2),
        o.eps,
        o.weight_decay,
        fused=device.type == "cuda" or None,
    )
    average = [p.detach().clone() for p in net.parameters()] if o.ema else []
    forward = torch.compile(net, dynamic=False) if cfg.compile != "off" else net

    def step(video: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss, _ = forward(video)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), o.clip)
        optimizer.step()
        if average:
            torch._foreach_lerp_(average, [p.detach() for p in net.parameters()], 1 - o.ema)
        return loss.detach()

    return step


def uncached_unmask(
    params, ids_BN, action_B, past, step, key, cfg, sample
) -> tuple[Tensor, Tensor]:
    """`dynamics.unmask` with the past's ids and actions in the place of its cache: all logits are computed anew."""
    ids_BTN = torch.cat((past[0], ids_BN[:, None]), 1)
    logits, _ = dynamics.logits_next(
        params, ids_BTN, torch.cat((past[1], action_B[:, None]), 1), None, cfg
    )
    return dynamics.reveal(
        logits[:, -1], ids_BN, step, random.fold_in(key, step.k), sample, cfg.sizes
    )


def materialised_entropies(z_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The definition of `lfq.entropies`: entropies of a softmax over all 2^K codes."""
    codes_VK = lfq.codes_of(torch.arange(2 ** z_MK.shape[1], device=z_MK.device), z_MK.shape[1])
    log_p_MV = (2 / temperature * z_MK @ codes_VK.T).log_softmax(-1)
    p_MV = log_p_MV.exp()
    return -(p_MV * log_p_MV).sum(-1).mean(), torch.special.entr(p_MV.mean(0)).sum()


def transposed_attention(
    axis: str, position_T1: Tensor, q: Tensor, k: Tensor, v: Tensor, *scales: Tensor
) -> Tensor:
    """The usual attention over an axis of (B, T, N, G, E): norms, for time rotary positions, and contiguous copies."""
    q, k = (rms_norm(scale, x) for scale, x in zip(scales, (q, k), strict=True))
    if axis == "time":
        q, k = rotary(q, position_T1), rotary(k, position_T1)
    first, back = ("b t n g e -> (b n) g t e", "(b n) g t e -> b t n g e")
    if axis == "space":
        first, back = ("b t n g e -> (b t) g n e", "(b t) g n e -> b t n g e")
    y = F.scaled_dot_product_attention(
        *(rearrange(x, first).contiguous() for x in (q, k, v)), is_causal=axis == "time"
    )
    return rearrange(y, back, b=len(v)).contiguous()


def with_backend(name: str, attend: Callable) -> Callable:
    """`attend` with torch's `flash` or `cudnn` attention and no other."""
    backend = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name]

    def restricted(*args):
        with sdpa_kernel(backend):
            return attend(*args)

    return restricted


def check_same(a: Tensor, b: Tensor, what: str, tolerance: float = 0.0) -> None:
    """A ratio of times counts only if both ways have the same result, up to a share of its norm."""
    apart = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)
    if not apart <= tolerance:
        raise RuntimeError(
            f"{what} differ by {apart:.1e} between the variants, so their times cannot be compared"
        )
