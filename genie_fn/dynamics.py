"""The dynamics model: a space-time transformer that fills in the masked tokens of the next frame, given the action.

Genie (arXiv 2402.15391), section 2.1, after MaskGIT (Chang et al. 2022, arXiv 2202.04200). Training hides tokens and
predicts them; sampling starts from a hidden frame and reveals the surest tokens in a few steps. Since temporal
attention is causal, the past's keys and values are computed once and cached.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tyro.conf import Suppress

from genie_fn import layers, random
from genie_fn.errors import UserError
from genie_fn.layers import Cache, STConfig
from genie_fn.microbatch import WHOLE_BATCH, Microbatch
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import ParamSpec, Tree


@dataclass(frozen=True)
class DynamicsConfig:
    """`codes` ids per token, `tokens` per frame, `actions` to choose from."""

    codes: Suppress[int] = 1024
    tokens: Suppress[int] = 64
    actions: Suppress[int] = 6
    """These three are the earlier stages'; not flags."""
    action_mode: str = "add"
    """`add` an embedding of the action to every token of its frame, or `prepend` it as a token of its own."""
    stack: STConfig = field(default_factory=STConfig)
    mask_low: float = 0.5
    """The share of hidden tokens is uniform on [mask_low, 1] for each clip."""
    corrupt: float = 0.0
    """What training shows of a clip has a share of wrong tokens, uniform on [0, corrupt]: a dream's past is never as
    clean as a real one."""
    factors: int = 0
    """Into how many parts an id's bits are cut, each with an embedding and a softmax of its own; 0: two from 2^14 codes
    on, otherwise one."""

    def __post_init__(self):
        if self.action_mode not in ("add", "prepend"):
            raise UserError(f"--cfg.model.action-mode is add or prepend, not {self.action_mode!r}")
        if not 0 <= self.corrupt <= 1:
            raise UserError(f"--cfg.model.corrupt is a share, from 0 to 1, not {self.corrupt}")
        uneven = self.factors > 1 and (
            self.codes.bit_count() > 1 or self.codes.bit_length() <= self.factors
        )
        if self.factors < 0 or uneven:
            raise UserError(
                f"{self.codes} codes cannot be cut into {self.factors} factors, which takes a power of two of at least "
                "a bit each: change --cfg.model.factors"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The vocabulary of each factor, that of the lowest bits first; their product is `codes`."""
        parts = self.factors or (2 if self.codes >= 2**14 and self.codes.bit_count() == 1 else 1)
        bits = self.codes.bit_length() - 1
        return (
            tuple(2 ** ((bits + i) // parts) for i in range(parts)) if parts > 1 else (self.codes,)
        )


PRESETS = {
    "demo": DynamicsConfig(stack=STConfig(layers=4, dim=128, heads=4)),
    "small": DynamicsConfig(stack=STConfig(layers=8, dim=384, heads=6, dtype="bfloat16")),
    "coinrun": DynamicsConfig(stack=STConfig(layers=12, dim=512, heads=8, dtype="bfloat16")),
}
"""The models of train_dynamics.py's presets; `coinrun` is the paper's Appendix F.3."""


@dataclass(frozen=True)
class SampleConfig:
    """How a frame is sampled."""

    steps: int = 8
    temperature: float = 1.0
    order: str = "confidence"
    """Which tokens a step reveals: those of highest `confidence`, or `random` ones."""
    noise: float = 1.0
    """Gumbel noise on the log-confidence at the first step, annealed to zero at the last."""
    guidance: float | None = None
    """How far to go beyond what the action predicts, away from what no action in particular does: more obedience, for
    twice the time. None: not at all, but in play of recorded actions by 1 (`world.play_sample`)."""

    def __post_init__(self):
        if (
            self.steps < 1
            or min(self.temperature, self.guidance or 0) < 0
            or self.order not in ("confidence", "random")
        ):
            raise UserError(
                "sampling needs at least 1 step, a temperature and guidance of at least 0 and the order confidence or "
                f"random: got {self.steps}, {self.temperature}, {self.guidance} and {self.order!r}"
            )


PLAY = SampleConfig(steps=4)
"""How worlds are played, see `world.play_sample`: with guidance these take the time of 8 steps without."""


class Step(NamedTuple):
    """Step k = 0..steps-1 of a frame's sampling, and its temperature: 0-D tensors, so that a program compiled once runs
    every one of them."""

    k: Tensor
    steps: Tensor
    temperature: Tensor


def digits(ids: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """An id's factors, the lowest first: Σ digit_i · Π_{j<i} size_j. Those of the mask id V are its factors' sizes."""
    hidden, found, rest = ids == math.prod(sizes), [], ids
    for size in sizes:
        found.append(torch.where(hidden, size, rest % size))
        rest = rest // size
    return found


def spec(cfg: DynamicsConfig) -> Tree:
    """The parameters. A factor's rows of the token table end with its mask's; row `actions` of the action table is "no
    action"."""
    dim, extra = cfg.stack.dim, cfg.action_mode == "prepend"
    return {
        "token": ParamSpec(
            (sum(cfg.sizes) + len(cfg.sizes), dim), std=0.5 * len(cfg.sizes) ** -0.5, decay=False
        ),
        "action": ParamSpec((cfg.actions + 1, dim), std=0.5, decay=False),
        "place": ParamSpec((cfg.tokens + extra, dim), std=0.5, decay=False),
        "stack": layers.st_spec(cfg.stack),
        "head": layers.linear_spec(dim, sum(cfg.sizes), bias=True),
    }


def logits_next(
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    cache: Cache | None,
    cfg: DynamicsConfig,
    *,
    extend: bool = True,
    backend: Backend = AUTO,
) -> tuple[Tensor, Cache | None]:
    """Logits (B, T, N, V) of the frames that follow those in the cache, and the extended cache if `extend`.

    A factorised vocabulary's logits lie side by side: V is the sum of `sizes` there, not their product.
    `ids_BTN` may hold the mask id V. `actions_BT[t]` is the action that led into frame t, `cfg.actions` where none did.
    """
    tables = params["token"].split([size + 1 for size in cfg.sizes])
    x = sum(
        F.embedding(digit, table)
        for digit, table in zip(digits(ids_BTN, cfg.sizes), tables, strict=True)
    )
    action_BT1D = F.embedding(actions_BT, params["action"])[:, :, None]
    x = torch.cat((action_BT1D, x), 2) if cfg.action_mode == "prepend" else x + action_BT1D
    x, cache = layers.st_transformer(
        params["stack"], x + params["place"], cfg.stack, cache, extend=extend, backend=backend
    )
    return layers.linear(params["head"], x[:, :, -cfg.tokens :]).float(), cache


def guided_logits(
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    cache: Cache,
    cfg: DynamicsConfig,
    guidance: float | None,
    *,
    backend: Backend = AUTO,
) -> Tensor:
    """`logits_next` with the action made to count more: l + guidance · (l - l'), with l' under the mean of all actions'
    embeddings, in the place of a null action that training would have to know (classifier-free guidance, Ho & Salimans
    2022, arXiv 2207.12598, equation 6)."""
    logits, _ = logits_next(params, ids_BTN, actions_BT, cache, cfg, extend=False, backend=backend)
    if not guidance:
        return logits
    table = params["action"]
    known = params | {"action": torch.cat((table, table[: cfg.actions].mean(0, keepdim=True)))}
    mean_BT = torch.full_like(actions_BT, len(table))
    unmoved, _ = logits_next(known, ids_BTN, mean_BT, cache, cfg, extend=False, backend=backend)
    return logits + guidance * (logits - unmoved)


def entering(actions_BT: Tensor, cfg: DynamicsConfig) -> Tensor:
    """Actions between T+1 frames (B, T) → the action that led into each frame (B, T+1); nothing led into the first."""
    return F.pad(actions_BT, (1, 0), value=cfg.actions)


def sample_mask(
    key: Tensor, batch: int, frames: int, cfg: DynamicsConfig, first: int | Tensor = 0
) -> Tensor:
    """Which tokens training hides, (B, T, N): at a rate per clip, uniform on [mask_low, 1]; none in the first frame.

    `first` is the place of the first of these clips in the whole batch, whose mask this is a part of.
    """
    rate_key, mask_key = random.split(key).unbind(0)
    rate_B = random.uniform(rate_key, (batch,), cfg.mask_low, 1.0, row=first)
    mask_BTN = random.bernoulli(
        mask_key, rate_B[:, None, None], (batch, frames, cfg.tokens), row=first
    )
    return mask_BTN & (torch.arange(frames, device=key.device) > 0)[:, None]


def corrupt(key: Tensor, ids_BTN: Tensor, cfg: DynamicsConfig, first: int | Tensor = 0) -> Tensor:
    """`ids_BTN` as training shows them: at a rate per clip, uniform on [0, cfg.corrupt], replaced by ids drawn evenly.

    `first` as in `sample_mask`. What is predicted stays as it is.
    """
    if not cfg.corrupt:
        return ids_BTN
    rate_key, place_key, id_key = random.split(key, 3).unbind(0)
    rate_B = random.uniform(rate_key, ids_BTN.shape[:1], 0.0, cfg.corrupt, row=first)
    wrong_BTN = random.bernoulli(place_key, rate_B[:, None, None], ids_BTN.shape, row=first)
    drawn_BTN = (random.uniform(id_key, ids_BTN.shape, row=first) * cfg.codes).long()
    return torch.where(wrong_BTN, drawn_BTN, ids_BTN)


def statistics(mask_BTN: Tensor) -> dict[str, Tensor]:
    """The statistic, by name, whose average over the whole batch `loss` uses: how many tokens are hidden."""
    return {"hidden_tokens": mask_BTN.sum().float()}


def loss(
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    mask_BTN: Tensor,
    cfg: DynamicsConfig,
    microbatch: Microbatch = WHOLE_BATCH,
    shown_BTN: Tensor | None = None,
    *,
    backend: Backend = AUTO,
):
    """Cross-entropy, in nats per token, of the hidden tokens given the others and the actions between frames (B, T-1).

    Where they are not hidden, tokens are seen as in `shown_BTN`, if that is given. Returns the scalar loss and
    (metrics, ()).
    """
    hidden = torch.where(mask_BTN, cfg.codes, ids_BTN if shown_BTN is None else shown_BTN)
    logits, _ = logits_next(params, hidden, entering(actions_BT, cfg), None, cfg, backend=backend)
    hidden_tokens = microbatch.mean("hidden_tokens", statistics(mask_BTN)["hidden_tokens"])
    weight = mask_BTN.float() / hidden_tokens.clamp(min=1 / microbatch.count)
    nats, right = 0.0, True
    for factor, target in zip(logits.split(cfg.sizes, -1), digits(ids_BTN, cfg.sizes), strict=True):
        nats = nats + F.cross_entropy(
            factor.flatten(0, 2), target.flatten(), reduction="none"
        ).reshape(mask_BTN.shape)
        right = right & (factor.argmax(-1) == target)
    cross_entropy = (nats * weight).sum()
    return cross_entropy, ({"cross_entropy": cross_entropy, "accuracy": (right * weight).sum()}, ())


def revealed(step: Tensor, steps: int | Tensor, tokens: int) -> Tensor:
    """How many of a frame's tokens are known after step k = 0..steps-1: N - floor(N cos(π/2 · (k+1)/steps))."""
    hidden = torch.floor(tokens * torch.cos(math.pi / 2 * (step + 1) / steps))
    return tokens - hidden.clamp(min=0).to(torch.int64)


def reveal(
    logits_BNV: Tensor,
    ids_BN: Tensor,
    step: Step,
    key: Tensor,
    cfg: SampleConfig,
    sizes: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """One MaskGIT step: sample every hidden token, keep the surest, as many as the schedule allows.

    Only the order and the noise are read from `cfg`; the rest is in `step`.

    Hidden tokens are those whose id is the mask; known ones never change. A sample's confidence is its own probability
    (over a vocabulary of factors `sizes`, the product of theirs), not sharpened by the temperature, with Gumbel noise
    that fades over the steps. Returns the new ids and the probability of each sampled or known token, (B, N) both.
    """
    sizes = sizes or (logits_BNV.shape[-1],)
    (batch, tokens), codes = ids_BN.shape, math.prod(sizes)
    pick_key, noise_key = random.split(key).unbind(0)
    hidden_BN = ids_BN == codes
    threshold_BNS = random.uniform(pick_key, (batch, tokens, len(sizes)))
    parts = list(logits_BNV.split(sizes, -1))
    picks = [
        _pick(part / step.temperature.clamp(min=1e-4), threshold_BNS[..., i])
        for i, part in enumerate(parts)
    ]
    sample_BN = sum(pick * math.prod(sizes[:i]) for i, pick in enumerate(picks))
    ids_BN = torch.where(hidden_BN, sample_BN, ids_BN)
    log_p_BN = sum(
        part.log_softmax(-1).gather(-1, digit[..., None])[..., 0]
        for part, digit in zip(parts, digits(ids_BN, sizes), strict=True)
    )
    noise_BN = random.gumbel(noise_key, (batch, tokens))
    fade = cfg.noise * (1 - (step.k + 1) / step.steps)
    score_BN = noise_BN if cfg.order == "random" else log_p_BN + fade * noise_BN
    surest_BN = score_BN.masked_fill(~hidden_BN, torch.inf).argsort(
        dim=-1, descending=True, stable=True
    )
    rank_BN = surest_BN.argsort(dim=-1)
    keep_BN = ~hidden_BN | (rank_BN < revealed(step.k, step.steps, tokens))
    return torch.where(keep_BN, ids_BN, codes), log_p_BN.exp()


def _pick(logits_BNV: Tensor, threshold_BN: Tensor) -> Tensor:
    """Where the distribution function passes a threshold, uniform on [0, 1): a sample (B, N)."""
    cdf_BNV = logits_BNV.softmax(-1).cumsum(-1)
    return (
        (cdf_BNV <= threshold_BN[..., None] * cdf_BNV[..., -1:])
        .sum(-1)
        .clamp(max=logits_BNV.shape[-1] - 1)
    )


def unmask(
    params: Tree,
    ids_BN: Tensor,
    action_B: Tensor,
    cache: Cache,
    step: Step,
    key: Tensor,
    cfg: DynamicsConfig,
    sample: SampleConfig,
    backend: Backend = AUTO,
) -> tuple[Tensor, Tensor]:
    """Predict the hidden tokens of the frame after the cache's, and `reveal` some of them; `key` is the frame's."""
    logits_B1NV = guided_logits(
        params, ids_BN[:, None], action_B[:, None], cache, cfg, sample.guidance, backend=backend
    )
    return reveal(logits_B1NV[:, 0], ids_BN, step, random.fold_in(key, step.k), sample, cfg.sizes)


def remember(
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    cache: Cache,
    cfg: DynamicsConfig,
    backend: Backend = AUTO,
) -> Cache:
    """The cache extended by known frames; `actions_BT[t]` led into frame t."""
    return logits_next(params, ids_BTN, actions_BT, cache, cfg, backend=backend)[1]


class Programs(NamedTuple):
    """The functions that sampling calls again and again, so that a caller can pass compiled ones."""

    unmask: Callable = unmask
    remember: Callable = remember


EAGER = Programs()


def empty_cache(cfg: DynamicsConfig, batch: int, device=None) -> Cache:
    """The cache before any frame."""
    return layers.empty_cache(cfg.stack, batch, cfg.tokens + (cfg.action_mode == "prepend"), device)


class Sampled(NamedTuple):
    """A frame: ids, the probability of each, the step 1..steps that revealed it, (B, N) each; and the cache after."""

    ids: Tensor
    probability: Tensor
    step: Tensor
    cache: Cache


def next_frame(
    params: Tree,
    action_B: Tensor,
    cache: Cache,
    key: Tensor,
    cfg: DynamicsConfig,
    sample: SampleConfig,
    programs: Programs = EAGER,
    *,
    backend: Backend = AUTO,
) -> Sampled:
    """Sample the frame that `action_B` leads to."""
    count = torch.arange(sample.steps + 1, device=action_B.device)
    temperature = torch.tensor(sample.temperature, device=action_B.device)
    ids = torch.full((*action_B.shape, cfg.tokens), cfg.codes, device=action_B.device)
    step_of = torch.zeros_like(ids)
    fixed = replace(
        sample, steps=1, temperature=1.0
    )  # what `step` holds must not make a program anew
    for k in count[:-1]:
        ids, p = programs.unmask(
            params, ids, action_B, cache, Step(k, count[-1], temperature), key, cfg, fixed, backend
        )
        step_of = torch.where((step_of == 0) & (ids != cfg.codes), k + 1, step_of)
    cache = programs.remember(
        params, ids.unsqueeze(-2), action_B.unsqueeze(-1), cache, cfg, backend
    )
    return Sampled(ids, p, step_of, cache)


def generate(
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    key: Tensor,
    cfg: DynamicsConfig,
    sample: SampleConfig,
    programs: Programs = EAGER,
    *,
    backend: Backend = AUTO,
) -> Tensor:
    """Continue T prompt frames of ids by F frames, given the T - 1 + F actions between them all: (B, T + F, N)."""
    frames = ids_BTN.shape[1]
    entering_BT = entering(actions_BT, cfg)
    cache = empty_cache(cfg, len(ids_BTN), ids_BTN.device)
    cache = programs.remember(params, ids_BTN, entering_BT[:, :frames], cache, cfg, backend)
    video = [ids_BTN]
    for t in range(frames, entering_BT.shape[1]):
        frame_key = random.fold_in(key, t)
        new = next_frame(
            params, entering_BT[:, t], cache, frame_key, cfg, sample, programs, backend=backend
        )
        cache = new.cache
        video.append(new.ids[:, None])
    return torch.cat(video, 1)


def generate_jointly(
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    key: Tensor,
    cfg: DynamicsConfig,
    sample: SampleConfig,
    *,
    backend: Backend = AUTO,
) -> Tensor:
    """As `generate`, but the F frames are hidden and revealed together, as if they were one frame of F · N tokens.

    A frame's logits depend on the frames before it alone, of which the early steps see the prompt and little else.
    """
    frames, entering_BT = ids_BTN.shape[1], entering(actions_BT, cfg)
    future, device = entering_BT.shape[1] - frames, ids_BTN.device
    cache = empty_cache(cfg, len(ids_BTN), device)
    cache = remember(params, ids_BTN, entering_BT[:, :frames], cache, cfg, backend)
    new_BM = torch.full((len(ids_BTN), future * cfg.tokens), cfg.codes, device=device)
    count, temperature = (
        torch.arange(sample.steps + 1, device=device),
        torch.tensor(sample.temperature, device=device),
    )
    for k in count[:-1]:
        shown = new_BM.unflatten(1, (future, cfg.tokens))
        logits = guided_logits(
            params,
            shown,
            entering_BT[:, frames:],
            cache,
            cfg,
            sample.guidance,
            backend=backend,
        )
        step, chance = Step(k, count[-1], temperature), random.fold_in(key, k)
        new_BM, _ = reveal(logits.flatten(1, 2), new_BM, step, chance, sample, cfg.sizes)
    return torch.cat((ids_BTN, new_BM.unflatten(1, (future, cfg.tokens))), 1)
