"""Sampling with MaskGIT (Chang et al. 2022): the frame after those in memory, and whole videos.

A frame starts with all tokens hidden. Each step predicts them with the dynamics model, samples the
hidden ones and keeps the most confident, more with every step, until none is hidden.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from genie_fn import random
from genie_fn.dynamics import (
    Chained,
    DynamicsConfig,
    Memory,
    Prediction,
    composed,
    digits,
    empty_memory,
    entering,
    parts,
    predict_next,
    total,
)
from genie_fn.errors import UserError
from genie_fn.guidance import guided_prediction
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import Tree


@dataclass(frozen=True)
class SampleConfig:
    """How a frame is sampled."""

    steps: int = 8
    """MaskGIT steps per frame."""
    temperature: float = 1.0
    """Softmax temperature of the ids; 0: the most probable ones."""
    order: Literal["confidence", "random"] = "confidence"
    """Which tokens a step reveals: those of the highest confidence, or random ones."""
    noise: float = 1.0
    """Gumbel noise on the log-confidence at the first step; it decreases to zero at the last."""
    guidance: float | None = None
    """Classifier-free guidance: the weight by which logits move away from those of the mean action.
    A positive weight makes actions more controllable, for twice the time. None: 0, but 1 in play
    unless distillation has put guidance into the weights."""

    def __post_init__(self):
        if self.steps < 1 or min(self.temperature, self.guidance or 0) < 0:
            raise UserError(
                "sampling needs at least 1 step and a temperature and guidance of at least 0: "
                f"change --cfg.sample.steps {self.steps}, .temperature {self.temperature} or "
                f".guidance {self.guidance}"
            )


PLAY = SampleConfig(steps=3)
"""How worlds are played (`world.play_sample`): in as few steps as lose about 0.2 dB at most against 8."""


class Step(NamedTuple):
    """One sampling step, as 0-D tensors, so that one compiled program runs all of them."""

    k: Tensor
    """The step's index, 0..steps-1."""
    steps: Tensor
    temperature: Tensor


# Sampling of a frame


def revealed(step: Tensor, steps: int | Tensor, tokens: int) -> Tensor:
    """How many of N tokens are revealed after step k = 0..steps-1: N - ⌊N cos(π/2 · (k+1)/steps)⌋.

    This is the cosine schedule of MaskGIT, section 3.3.
    """
    hidden = torch.floor(tokens * torch.cos(math.pi / 2 * (step + 1) / steps))
    return tokens - hidden.clamp(min=0).to(torch.int64)


class Noise(NamedTuple):
    """The random numbers of a MaskGIT step, or, with a leading axis, of all steps of a frame."""

    threshold: Tensor
    """(B, N, F) for F factors, uniform on [0, 1): they sample the ids."""
    score: Tensor
    """(B, N), standard Gumbel: they are added to the confidence."""


def noise_of(key: Tensor, shape: tuple[int, int], factors: int = 1) -> Noise:
    """The noise of a step for ids of `shape` (B, N). Keys (K, 2) give those of K steps."""
    pick_key, score_key = random.split(key).unbind(-2)
    threshold = random.uniform(pick_key, (*shape, factors))
    return Noise(threshold, random.gumbel(score_key, shape))


def draw(key: Tensor, steps: int, shape: tuple[int, int], factors: int = 1) -> Noise:
    """The noise of all steps of a frame. That of step k has the key `fold_in(key, k)`.

    Keys (T, 2) give those of T frames, with a leading axis.
    """
    index = torch.arange(steps, device=key.device)
    return noise_of(random.fold_in(key, index), shape, factors)


def reveal(
    logits_BNV: Tensor,
    ids_BN: Tensor,
    step: Step,
    noise: Noise,
    cfg: SampleConfig,
    sizes: tuple[int, ...] = (),
    chained: Chained | None = None,
) -> tuple[Tensor, Tensor]:
    """One MaskGIT step: sample every hidden token, and keep the most confident ones.

    The schedule `revealed` says how many. Tokens with the mask id are hidden; the others never
    change. The confidence of a sample is its probability before the temperature is applied (with
    several factors of `sizes`, the product of theirs), with Gumbel noise that decreases over the
    steps. Only the order and the noise are read from `cfg`, the rest from `step`.

    Returns the new ids and the probability of each sampled or revealed token, (B, N) both.
    """
    sizes = sizes or (logits_BNV.shape[-1],)
    codes = math.prod(sizes)
    hidden_BN = ids_BN == codes
    chosen: list[Tensor] = []
    log_p: list[Tensor] = []
    known = digits(ids_BN, sizes)
    for i, factor_BNV in enumerate(parts(logits_BNV, sizes, -1)):
        if chained is not None and chosen:
            factor_BNV = factor_BNV + chained(chosen)
        scaled_BNV = factor_BNV / step.temperature.clamp(min=1e-4)
        sampled_BN = _sample(scaled_BNV, noise.threshold[..., i])
        chosen.append(torch.where(hidden_BN, sampled_BN, known[i]))
        log_p.append(_log_probability(factor_BNV, chosen[-1]))
    ids_BN = composed(chosen, sizes)
    log_p_BN = total(log_p)

    score_BN = noise.score
    if cfg.order == "confidence":
        scale = cfg.noise * (1 - (step.k + 1) / step.steps)
        score_BN = log_p_BN + scale * score_BN
    # Tokens that are revealed already rank first.
    rank_BN = _rank(score_BN.masked_fill(~hidden_BN, torch.inf))
    keep_BN = ~hidden_BN | (rank_BN < revealed(step.k, step.steps, ids_BN.shape[1]))
    return torch.where(keep_BN, ids_BN, codes), log_p_BN.exp()


def _rank(score_BN: Tensor) -> Tensor:
    """The rank of each score, 0 for the largest; of equal ones the first ranks first."""
    if torch.compiler.is_exporting():
        return _rank_by_pairs(score_BN)
    return score_BN.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def _rank_by_pairs(score_BN: Tensor) -> Tensor:
    """`_rank` for ONNX, which has no stable sort; N × N comparisons."""
    index = torch.arange(score_BN.shape[-1], device=score_BN.device)
    own = score_BN[..., :, None]
    other = score_BN[..., None, :]
    ahead_BNN = (other > own) | (other == own) & (index < index[:, None])
    return ahead_BNN.sum(-1)


def _sample(logits_BNV: Tensor, threshold_BN: Tensor) -> Tensor:
    """Samples (B, N): where the cumulative distribution exceeds a threshold, uniform on [0, 1)."""
    cdf_BNV = logits_BNV.softmax(-1).cumsum(-1)
    below = cdf_BNV <= threshold_BN[..., None] * cdf_BNV[..., -1:]
    return below.sum(-1).clamp(max=logits_BNV.shape[-1] - 1)


def _log_probability(logits_BNV: Tensor, digit_BN: Tensor) -> Tensor:
    """The log-probability (B, N) of digits under the logits of their factor."""
    return logits_BNV.log_softmax(-1).gather(-1, digit_BN[..., None])[..., 0]


def unmask(  # noqa: PLR0913 (a program that a caller may compile)
    params: Tree,
    ids_BN: Tensor,
    action_B: Tensor,
    memory: Memory,
    step: Step,
    noise: Noise,
    cfg: DynamicsConfig,
    sample: SampleConfig,
    backend: Backend = AUTO,
) -> tuple[Tensor, Tensor]:
    """Predict the hidden tokens of the frame after those in memory, and `reveal` some of them."""
    prediction = guided_prediction(
        params, ids_BN[:, None], action_B[:, None], memory, cfg, sample.guidance, backend=backend
    )
    logits_BNV, chained = _of_one_frame(prediction, 1)
    return reveal(logits_BNV, ids_BN, step, noise, sample, cfg.sizes, chained)


def _of_one_frame(prediction: Prediction, frames: int) -> tuple[Tensor, Chained | None]:
    """A prediction of several frames as that of one large frame of all their tokens."""
    return prediction.rearranged(
        lambda logits: logits.flatten(1, 2), lambda digit: digit.reshape(len(digit), frames, -1)
    )


def remember(
    params: Tree,
    ids_BTN: Tensor,
    actions_BT: Tensor,
    memory: Memory,
    cfg: DynamicsConfig,
    backend: Backend = AUTO,
) -> Memory:
    """The memory extended by complete frames; `actions_BT[t]` led into frame t."""
    _, extended = predict_next(params, ids_BTN, actions_BT, memory, cfg, backend=backend)
    assert extended is not None, "a memory was given, so one is returned"
    return extended


class Programs(NamedTuple):
    """The functions that sampling calls repeatedly, so that a caller can pass compiled ones."""

    unmask: Callable[..., tuple[Tensor, Tensor]] = unmask
    remember: Callable[..., Memory] = remember


EAGER = Programs()


class Sampled(NamedTuple):
    """A sampled frame, and the memory that includes it."""

    ids: Tensor
    """(B, N), int64."""
    probability: Tensor
    """The probability of each id, (B, N)."""
    step: Tensor
    """The step 1..steps that revealed each id, (B, N)."""
    memory: Memory


def next_frame(  # noqa: PLR0913 (the paper's arguments)
    params: Tree,
    action_B: Tensor,
    memory: Memory,
    key: Tensor,
    cfg: DynamicsConfig,
    sample: SampleConfig,
    programs: Programs = EAGER,
    *,
    noise: Noise | None = None,
    backend: Backend = AUTO,
) -> Sampled:
    """Sample the frame into which `action_B` leads. `noise` is that of `draw` for the key, if it has
    been drawn before."""
    device = action_B.device
    index = torch.arange(sample.steps + 1, device=device)
    steps = index[-1]
    temperature = torch.tensor(sample.temperature, device=device)
    ids_BN = torch.full((len(action_B), cfg.tokens), cfg.codes, device=device)
    step_BN = torch.zeros_like(ids_BN)
    probability_BN = torch.zeros_like(ids_BN, dtype=torch.float32)
    # `Step` holds these two: other values of them must not compile a program again.
    fixed = replace(sample, steps=1, temperature=1.0)
    if noise is None:
        noise = draw(key, sample.steps, (len(ids_BN), cfg.tokens), len(cfg.sizes))
    for k, threshold_BNF, score_BN in zip(index[:-1], *noise, strict=True):
        step = Step(k, steps, temperature)
        step_noise = Noise(threshold_BNF, score_BN)
        ids_BN, probability_BN = programs.unmask(
            params, ids_BN, action_B, memory, step, step_noise, cfg, fixed, backend
        )
        new_BN = (step_BN == 0) & (ids_BN != cfg.codes)
        step_BN = torch.where(new_BN, k + 1, step_BN)
    memory = programs.remember(params, ids_BN[:, None], action_B[:, None], memory, cfg, backend)
    return Sampled(ids_BN, probability_BN, step_BN, memory)


# Sampling of videos


def generate(  # noqa: PLR0913 (the paper's arguments)
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
    """Continue T prompt frames of ids by F frames, one after the other: (B, T + F, N).

    `actions_BT` are the T - 1 + F actions between all frames.
    """
    frames = ids_BTN.shape[1]
    entering_BT = entering(actions_BT, cfg)
    memory = empty_memory(cfg, len(ids_BTN), ids_BTN.device)
    memory = programs.remember(params, ids_BTN, entering_BT[:, :frames], memory, cfg, backend)
    video = [ids_BTN]
    for t in range(frames, entering_BT.shape[1]):
        frame_key = random.fold_in(key, t)
        new = next_frame(
            params, entering_BT[:, t], memory, frame_key, cfg, sample, programs, backend=backend
        )
        memory = new.memory
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
    """As `generate`, with joint decoding: the F frames are revealed together, as one large frame.

    The logits of a frame depend only on the frames before it, of which the early steps see little
    more than the prompt. With a `neighbourhood` the tokens of the frame before are masked there at
    first, which they never are in training.
    """
    frames = ids_BTN.shape[1]
    batch = len(ids_BTN)
    device = ids_BTN.device
    entering_BT = entering(actions_BT, cfg)
    future = entering_BT.shape[1] - frames
    memory = empty_memory(cfg, batch, device)
    memory = remember(params, ids_BTN, entering_BT[:, :frames], memory, cfg, backend)
    index = torch.arange(sample.steps + 1, device=device)
    temperature = torch.tensor(sample.temperature, device=device)
    new_BM = torch.full((batch, future * cfg.tokens), cfg.codes, device=device)
    for k in index[:-1]:
        prediction = guided_prediction(
            params,
            new_BM.reshape(batch, future, cfg.tokens),
            entering_BT[:, frames:],
            memory,
            cfg,
            sample.guidance,
            backend=backend,
        )
        step = Step(k, index[-1], temperature)
        shape = (batch, future * cfg.tokens)
        noise = noise_of(random.fold_in(key, k), shape, len(cfg.sizes))
        logits_BMV, chained = _of_one_frame(prediction, future)
        new_BM, _ = reveal(logits_BMV, new_BM, step, noise, sample, cfg.sizes, chained)
    return torch.cat((ids_BTN, new_BM.reshape(batch, future, cfg.tokens)), 1)
