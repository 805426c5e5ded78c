"""The baselines of benchmark.py: the same models in the usual style.

The tokenizer as nn.Module with torch.optim, entropies by their definition, and sampling without a
cache. Tests check that they give the same results, so a ratio of times compares two implementations
of one computation.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genie_fn import dynamics, layers, maskgit, metrics, quantize
from genie_fn.kernels import lfq
from genie_fn.kernels.attention import rms_norm, rotary
from genie_fn.layers import STConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training.config import RunConfig


class Attention(nn.Module):
    """Pre-norm attention over (batch, length, D) by scaled_dot_product_attention."""

    def __init__(self, dim: int, heads: int, causal: bool):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(dim // heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(dim // heads, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b n (three g e) -> three b g n e", three=3, g=self.heads
        )
        q = self.q_norm(q)
        k = self.k_norm(k)
        if self.causal:
            q = self.rotate(q)
            k = self.rotate(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(rearrange(y, "b g n e -> b n (g e)"))

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        frequency = 100.0 ** (-torch.arange(half, device=x.device) / half)
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * frequency
        a, b = x.chunk(2, -1)
        cos = angle.cos()
        sin = angle.sin()
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)


class Block(nn.Module):
    """Space attention, time attention, MLP; transposes move the attended axis."""

    def __init__(self, cfg: STConfig):
        super().__init__()
        self.space = Attention(cfg.dim, cfg.heads, causal=False)
        self.time = Attention(cfg.dim, cfg.heads, causal=True)
        self.mlp_norm = nn.RMSNorm(cfg.dim, eps=1e-6)
        self.up = nn.Linear(cfg.dim, cfg.mlp * cfg.dim, bias=False)
        self.down = nn.Linear(cfg.mlp * cfg.dim, cfg.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, places, _ = x.shape
        x = x + self.space(x.flatten(0, 1)).unflatten(0, (batch, frames))
        y = self.time(rearrange(x, "b t n d -> (b n) t d"))
        x = x + rearrange(y, "(b n) t d -> b t n d", n=places)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Grid(nn.Module):
    """A space-time transformer between two linear layers."""

    def __init__(self, cfg: STConfig, inputs: int, outputs: int, places: int):
        super().__init__()
        self.dtype = layers.DTYPES[cfg.dtype]
        self.embed = nn.Linear(inputs, cfg.dim)
        self.head = nn.Linear(cfg.dim, outputs)
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
        self.cfg = cfg
        pixels = 3 * cfg.patch**2
        latent = cfg.quantizer.dim
        self.encoder = Grid(cfg.encoder, pixels, latent, cfg.tokens)
        self.decoder = Grid(cfg.decoder, latent, pixels, cfg.tokens)

    def forward(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        target = layers.patchify(layers.to_float(video), self.cfg.patch)
        q = quantize.lfq(self.encoder(target), self.cfg.quantizer)
        mse = (self.decoder(q.codes) - target).square().mean()
        return mse + q.loss, {"psnr": metrics.psnr(mse.detach())}

    def load(self, params: dict) -> None:
        """Copy the parameters of the functional model."""
        with torch.no_grad():
            for side in ("encoder", "decoder"):
                grid = getattr(self, side)
                source = params[side]
                for name in ("embed", "head"):
                    getattr(grid, name).weight.copy_(source[name]["w"].T)
                    getattr(grid, name).bias.copy_(source[name]["b"])
                grid.place.copy_(source["place"])
                grid.norm.weight.copy_(source["stack"]["norm"])
                for i, block in enumerate(grid.blocks):
                    _load_block(block, source["stack"]["blocks"], i)


def _load_block(block: Block, source: dict, i: int) -> None:
    for axis in ("space", "time"):
        module = getattr(block, axis)
        for norm in ("norm", "q_norm", "k_norm"):
            getattr(module, norm).weight.copy_(source[axis][norm][i])
        for name in ("qkv", "out"):
            getattr(module, name).weight.copy_(source[axis][name]["w"][i].T)
    block.mlp_norm.weight.copy_(source["mlp_norm"][i])
    for name in ("up", "down"):
        getattr(block, name).weight.copy_(source["mlp"][name]["w"][i].T)


def module_step(params: dict, model: TokenizerConfig, cfg: RunConfig, device: torch.device):
    """A conventional training step: backward, clip_grad_norm_, AdamW.step, and averaged weights."""
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
            weights = [p.detach() for p in net.parameters()]
            torch._foreach_lerp_(average, weights, 1 - o.ema)  # pyright: ignore[reportPrivateImportUsage]
        return loss.detach()

    return step


def uncached_unmask(  # noqa: PLR0913 the arguments of maskgit.unmask
    params, ids_BN, action_B, past, step, noise, cfg, sample, backend
) -> tuple[Tensor, Tensor]:
    """`maskgit.unmask` from the past's ids and actions: it recomputes all frames."""
    ids_BTN = torch.cat((past[0], ids_BN[:, None]), 1)
    prediction, _ = dynamics.predict_next(
        params, ids_BTN, torch.cat((past[1], action_B[:, None]), 1), None, cfg, backend=backend
    )
    logits_BNV, chained = prediction.rearranged(
        lambda logits: logits[:, -1], lambda digit: digit[:, None].expand_as(ids_BTN)
    )
    return maskgit.reveal(logits_BNV, ids_BN, step, noise, sample, cfg.sizes, chained)


def materialised_entropies(z_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The definition of `lfq.entropies`: entropies of a softmax over all 2^K codes."""
    codes_VK = lfq.codes_of(torch.arange(2 ** z_MK.shape[1], device=z_MK.device), z_MK.shape[1])
    log_p_MV = (2 / temperature * z_MK @ codes_VK.T).log_softmax(-1)
    p_MV = log_p_MV.exp()
    return -(p_MV * log_p_MV).sum(-1).mean(), torch.special.entr(p_MV.mean(0)).sum()


def transposed_attention(
    axis: str, position_T1: Tensor, q: Tensor, k: Tensor, v: Tensor, *scales: Tensor
) -> Tensor:
    """The usual attention over an axis of (B, T, N, G, E): norms, rotary positions over time, and
    contiguous copies."""
    q_scale, k_scale = scales
    batch = len(q)
    q = rms_norm(q_scale, q)
    k = rms_norm(k_scale, k)
    if axis == "time":
        q = rotary(q, position_T1)
        k = rotary(k, position_T1)
    flat = {"time": "(b n) g t e", "space": "(b t) g n e"}[axis]
    q, k, v = (rearrange(x, f"b t n g e -> {flat}").contiguous() for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=axis == "time")
    return rearrange(y, f"{flat} -> b t n g e", b=batch).contiguous()


def with_backend(name: str, attend: Callable) -> Callable:
    """`attend` restricted to torch's `flash` or `cudnn` attention."""
    backend = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name]

    def restricted(*args):
        with sdpa_kernel(backend):
            return attend(*args)

    return restricted


def check_same(a: Tensor, b: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Raise RuntimeError if the results differ by more than `tolerance` · |b|."""
    difference = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)
    if not difference <= tolerance:
        raise RuntimeError(
            f"{what} differ by {difference:.1e} between the variants, "
            "so their times cannot be compared"
        )
