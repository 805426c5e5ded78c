"""Behaviour cloning from latent actions: Genie (arXiv 2402.15391), section 3.3.

An expert's video does not say what was pressed. The latent action model names every transition, a policy learns from a
few frames which name comes next, and a handful of labelled transitions tells which real action a name stands for. The
oracle is the same network, shown the recorded actions of the same transitions.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import data, layers, metrics, random
from genie_fn.data import Store, procgen
from genie_fn.data.procgen import ACTIONS, Game
from genie_fn.errors import UserError
from genie_fn.evaluation import action_report, inverse_dynamics, statistics
from genie_fn.microbatch import Microbatch
from genie_fn.nets import blueprint
from genie_fn.nets.blueprint import Blueprint
from genie_fn.training import setup
from genie_fn.training.config import RunConfig
from genie_fn.tree import Tree

FRAMES = 3  # that a policy sees: this one and the two before
CLIP = 11  # frames that are labelled at once
Policy = Callable[
    [Tensor], Tensor
]  # frames (B, FRAMES, H, W, 3) uint8 → probabilities of the real actions (B, ACTIONS)


class Episodes(NamedTuple):
    """Frames start..end-1 of each of E episodes on the store's time axis, of which split; whether it was `solved`
    (a reward was earned), is its level's `first`, and is whole: the last one of a level is cut off where it ran on."""

    start: np.ndarray
    end: np.ndarray
    train: np.ndarray
    solved: np.ndarray
    first: np.ndarray
    whole: np.ndarray


class Expert(NamedTuple):
    """S moments of solved episodes: FRAMES frames from `offsets` (S,), and what came next, in either language (S,)."""

    offsets: np.ndarray
    latent: np.ndarray
    real: np.ndarray


def episodes(store: Store) -> Episodes:
    """All episodes of a store."""
    rows = []
    for segment in store.segments:
        span = slice(segment.offset, segment.offset + segment.length)
        rewards, begins = (
            np.asarray(store.arrays[n][span].read().result()) for n in ("rewards", "episode_starts")
        )
        starts = np.flatnonzero(begins)
        ends = np.append(starts[1:], segment.length)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            solved, whole = rewards[start:end].sum() > 0, end < segment.length
            rows.append(
                (
                    span.start + start,
                    span.start + end,
                    segment.split == "train",
                    solved,
                    i == 0,
                    whole or solved,
                )
            )
    found = Episodes(*map(np.array, zip(*rows, strict=True)))
    if not (found.solved & found.train & (found.end - found.start >= CLIP)).any():
        raise UserError(
            f"{store.root} holds no solved episode to learn from: collect a game with rewards, and more"
        )
    return found


def watch(store: Store, found: Episodes, name: Callable, device: torch.device, most: int) -> Expert:
    """The moments of at most so many solved episodes of the train split, spread evenly; `name` as in action_report."""
    expert = np.flatnonzero(found.solved & found.train & (found.end - found.start >= CLIP))
    expert = expert[np.linspace(0, len(expert) - 1, min(most, len(expert))).round().astype(int)]
    clips, moments = [], []
    for start, end in zip(found.start[expert], found.end[expert], strict=True):
        clips.append(
            np.append(np.arange(start, end - CLIP, CLIP - 1), end - CLIP)
        )  # the last one may overlap
        moments.append(np.arange(start, end - FRAMES))
    clips, offsets = np.concatenate(clips), np.concatenate(moments)
    latent = np.full(clips.max() + CLIP, -1)
    latent[clips[:, None] + np.arange(CLIP - 1)] = action_report.label(
        store, clips, CLIP, name, device
    ).numpy()
    now = offsets + FRAMES - 1
    real = np.asarray(store.arrays["actions"][now].read().result()).astype(np.int64)
    return Expert(offsets, latent[now], real)


def logits(params: Tree, frames_BTHWC: Tensor, net: Blueprint) -> Tensor:
    """What comes after FRAMES uint8 frames, (B, kinds): the last one and the two last changes, through the network of
    the probe, which sees the frame after, too."""
    x = layers.to_float(frames_BTHWC)
    change = 4 * torch.diff(x, dim=1)
    inputs = torch.cat((x[:, -1:], change[:, -1:], change[:, :1]), -1)
    y, _ = blueprint.apply(params["net"], inputs, net)
    return layers.linear(params["head"], y.flatten(1))


def fit(
    store: Store,
    offsets: np.ndarray,
    target: np.ndarray,
    kinds: int,
    dim: int,
    cfg: RunConfig,
    steps: Iterable[int],
) -> Policy:
    """Train a network, in `cfg.steps` `steps`, to say what (S,) comes after the frames from `offsets` (S,): a policy
    over these `kinds`."""
    net, parts, device = (
        inverse_dynamics.network(dim),
        inverse_dynamics.spec(dim, store.height, store.width, kinds),
        torch.device(cfg.device),
    )

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for step in itertools.count():
            rows = data.clip_offsets(np.arange(len(offsets)), cfg.seed, step, cfg.batch_size)
            yield setup.to_device(
                (data.read_clips(store, offsets[rows], FRAMES).frames, target[rows]), device
            )

    def loss(
        params: Tree, batch: tuple[Tensor, ...], key: Tensor, step: Tensor, microbatch: Microbatch
    ):
        return F.cross_entropy(logits(params, batch[0], net), batch[1]), ({}, ())

    params = inverse_dynamics.descend(loss, parts, batches(), cfg, steps)
    return lambda frames: logits(params, frames.to(device), net).softmax(-1).cpu()


def meaning(latent: np.ndarray, real: np.ndarray, codes: int, *, commonest: bool = False) -> Tensor:
    """From labelled transitions (N,) p(real | latent), (codes, ACTIONS): their frequencies, or 1 for the commonest.

    A code that does not occur among them is taken to mean what all of them together do.
    """
    table = metrics.contingency(
        torch.from_numpy(latent), torch.from_numpy(real), codes, len(ACTIONS)
    ).double()
    table = torch.where(table.sum(1, keepdim=True) > 0, table, table.sum(0))
    if commonest:
        return F.one_hot(table.argmax(1), len(ACTIONS)).double()
    return table / table.sum(1, keepdim=True)


def constant(share_A: Tensor) -> Policy:
    """A policy that does not look."""
    return lambda frames: share_A.expand(len(frames), -1)


def translated(policy: Policy, meaning_KA: Tensor) -> Policy:
    """A policy over latent actions as one over real ones."""
    return lambda frames: policy(frames).double() @ meaning_KA


def open_levels(count: int, meta: dict) -> list[tuple[Game, bytes]]:
    """The first test levels of the game that a store came from, each with its first state."""
    seeds = (level for level in range(100 * count) if data.split_of(level) == "test")
    opened = [procgen.open_game(level, meta) for level, _ in zip(seeds, range(count), strict=False)]
    return [(level, procgen.save(level)) for level in opened]


@torch.no_grad()
def play(policy: Policy, levels: list[tuple[Game, bytes]], chance_LT: np.ndarray) -> np.ndarray:
    """Play every level once, from its beginning, for at most T steps: which were solved, (L,) bool.

    `chance` is uniform on [0, 1): an action is where it falls in the policy's distribution, so that policies which
    meet the same numbers differ by what they want, not by luck.
    """
    for opened, saved in levels:
        procgen.load(opened, saved)
    seen = np.stack([np.stack([procgen.frame(opened)] * FRAMES) for opened, _ in levels])
    solved, going = np.zeros(len(levels), bool), np.arange(len(levels))
    for t in range(chance_LT.shape[1]):
        likely = policy(torch.from_numpy(seen[going])).double().cumsum(1)
        drawn = (likely <= torch.from_numpy(chance_LT[going, t])[:, None] * likely[:, -1:]).sum(1)
        steps = [procgen.step(levels[i][0], a) for i, a in zip(going, drawn.tolist(), strict=True)]
        solved[going] = [step.reward > 0 for step in steps]
        seen[going] = np.concatenate(
            (seen[going, 1:], np.stack([step.frame for step in steps])[:, None]), 1
        )
        going = going[[not step.ended for step in steps]]
        if not len(going):
            break
    return solved


def share(solved_SL: Tensor, key: Tensor) -> list[float]:
    """[mean, low, high] over S seeds and L levels, the 95% percentile interval of a bootstrap over both."""
    seeds, levels = (
        statistics.resampling(k, n) / n
        for k, n in zip(random.split(key), solved_SL.shape, strict=True)
    )
    drawn = torch.einsum("ns,sl,nl->n", seeds, solved_SL.float(), levels)
    ends = drawn.quantile(drawn.new_tensor([0.025, 0.975])).tolist()
    return [round(x, 4) for x in (solved_SL.float().mean().item(), *ends)]
