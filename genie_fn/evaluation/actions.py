"""How a world's actions are used, move the image, and depend on the recorded actions.

Transitions of one clip resemble each other, so intervals, permutation tests and halves are over
whole clips or whole levels, never over single transitions. scikit-learn's
normalized_mutual_info_score takes labels, not counts, which is slow for 999 permutations.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genie_fn import data, metrics, random
from genie_fn.bundle import action_map
from genie_fn.bundle.action_map import ActionMap
from genie_fn.data import Store
from genie_fn.evaluation import statistics
from genie_fn.evaluation.record import Actions, Agreement, Displacement, Recorded
from genie_fn.training import setup

CLIP = 11  # frames of the clips that actions are measured on
SIDES = ("left", "none", "right")


class Transitions(NamedTuple):
    """M clips of T - 1 transitions."""

    codes: Tensor
    """(M, T-1): the world's actions."""
    recorded: Tensor | None
    """(M, T-1): recorded actions; None for data without."""
    level: Tensor
    """(M,)."""
    shift: Tensor
    """(M, T-1, 2): displacement of the image in pixels."""


def spread_clips(store: Store, split: str, num_frames: int, count: int) -> np.ndarray:
    """Offsets of at most `count` clips, evenly spread over a split; they hardly overlap."""
    starts = data.clip_starts(store, split, num_frames)
    span = store.span(num_frames)
    disjoint = starts[np.unique(starts // span, return_index=True)[1]]
    rows = np.linspace(0, len(disjoint) - 1, min(count, len(disjoint))).round().astype(int)
    return disjoint[rows]


def map_clips(
    store: Store,
    offsets: np.ndarray,
    num_frames: int,
    function: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """`function(frames, recorded actions)` of the clips, 32 at a time: (M, ...) on the CPU."""
    results = []
    for part in np.array_split(offsets, -(-len(offsets) // 32)):
        clips = setup.to_device(data.read_clips(store, part, num_frames), device)
        results.append(function(*clips).cpu())
    return torch.cat(results)


def gather(store: Store, offsets: np.ndarray, num_frames: int, codes: Tensor) -> Transitions:
    """The transitions of the clips whose actions are `codes`."""

    def observe(frames: Tensor, recorded: Tensor) -> Tensor:
        shift = metrics.displacement(frames[:, :-1], frames[:, 1:])
        return torch.cat((shift, recorded[..., None]), -1)

    observed = map_clips(store, offsets, num_frames, observe, torch.device("cpu"))
    levels = np.asarray(store.arrays["level_seeds"][offsets].read().result())
    recorded = observed[..., 2] if store.num_actions else None
    return Transitions(
        codes, recorded, torch.from_numpy(levels.astype(np.int64)), observed[..., :2]
    )


def sides(names: tuple[str, ...]) -> Tensor | None:
    """The index into SIDES of each recorded action, by its name.

    The result is None if no name says left or right.
    """
    indices = [0 if "LEFT" in name else 2 if "RIGHT" in name else 1 for name in names]
    return torch.tensor(indices) if {0, 2} <= set(indices) else None


class Usage(NamedTuple):
    """How often each action occurs; see `record.Actions`."""

    share: list[float]
    used: int
    perplexity: float
    state: str


def usage(codes: Tensor, actions: int) -> Usage:
    """How often each action occurs, and in words whether the actions have collapsed."""
    share = torch.bincount(codes.flatten(), minlength=actions) / codes.numel()
    used = int((share > 0.01).sum())
    perplexity = round(torch.special.entr(share).sum().exp().item(), 4)
    rounded_share = [round(x, 4) for x in share.tolist()]
    return Usage(rounded_share, used, perplexity, _state(share, used))


def _state(share: Tensor, used: int) -> str:
    largest = share.max().item()
    if largest >= 0.9:
        return f"collapsed: {largest:.0%} of transitions have one code"
    counts = f"{used} of {len(share)} codes have more than 1% of the transitions"
    if used < len(share) / 2:
        return f"partly collapsed: only {counts}"
    return f"in use: {counts}"


def halves(level: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) bool each: the clips of every other level and the rest.

    They are every other clip if there is one level.
    """
    levels, rank = level.unique(return_inverse=True)
    order = rank if len(levels) > 1 else torch.arange(len(level))
    return order % 2 == 0, order % 2 == 1


def best_map(table: Tensor) -> Tensor:
    """The recorded action that most often co-occurs with each code, (..., R, A) → (..., A).

    A code that does not occur maps to the most frequent recorded action.
    """
    return (table + 1e-6 * table.sum(-1, keepdim=True)).argmax(-2)


def agreement(
    codes: Tensor, recorded: Tensor, level: Tensor, sizes: tuple[int, int], key: Tensor
) -> Agreement:
    """Dependence between codes and recorded actions, of which there are `sizes`.

    See `record.Agreement`.
    """
    actions, kinds = sizes

    def count(codes: Tensor, recorded: Tensor) -> Tensor:
        return metrics.contingency(recorded, codes, kinds, actions)

    first, second = (count(codes[half], recorded[half]) for half in halves(level))
    table = first + second
    total = int(table.sum())
    map_first, map_second = best_map(first), best_map(second)
    correct = _correct(first, map_second) + _correct(second, map_first)
    majority = int(first[second.sum(1).argmax()].sum() + second[first.sum(1).argmax()].sum())
    permuted = [
        metrics.information(count(codes[order], recorded))
        for order in statistics.permutations(key, len(codes))
    ]
    nmi = metrics.information(table)
    return Agreement(
        table=table.tolist(),
        nmi=round(nmi, 4),
        permuted_nmi=round(sum(permuted) / len(permuted), 4),
        p=statistics.p_value(nmi, permuted),
        halves_of="levels" if len(level.unique()) > 1 else "clips",
        halves_nmi=[round(metrics.information(half), 4) for half in (first, second)],
        accuracy=round(correct / total, 4),
        majority_accuracy=round(majority / total, 4),
        stability=round(table.sum(0)[map_first == map_second].sum().item() / total, 4),
    )


def _correct(table: Tensor, predicted: Tensor) -> int:
    """Number of transitions whose recorded action is the one predicted from their code."""
    return int(table.gather(0, predicted[None]).sum())


class Axis(NamedTuple):
    """Displacement along one axis, by action and overall, with its p-value."""

    mean: Tensor
    error: Tensor
    overall: Tensor
    p: float


def displacement(codes: Tensor, shift: Tensor, actions: int, key: Tensor) -> Displacement:
    """Mean displacement of the image under each action; see `record.Displacement`.

    Standard errors are by bootstrap over clips. The p-values are of the hypothesis that all actions
    displace the image alike, by permuting clips. The view follows the agent, so the image moves
    against it.
    """
    dx, dy = (axis_displacement(codes, shift[..., i].float(), actions, key) for i in (0, 1))
    difference, limit = dx.mean - dx.overall, 3 * dx.error
    return Displacement(
        dx=rounded(dx.mean),
        dx_error=rounded(dx.error),
        dx_all=round(dx.overall.item(), 4),
        dx_p=dx.p,
        dy=rounded(dy.mean),
        dy_error=rounded(dy.error),
        dy_all=round(dy.overall.item(), 4),
        dy_p=dy.p,
        left=(difference < -limit).nonzero().flatten().tolist(),
        right=(difference > limit).nonzero().flatten().tolist(),
    )


def axis_displacement(codes: Tensor, value: Tensor, actions: int, key: Tensor) -> Axis:
    """Mean by action of a displacement (M, T-1), with its standard error and permutation test."""
    member = torch.nn.functional.one_hot(codes, actions).float()  # (M, T-1, A)
    count = member.sum(1)
    total = (member * value[..., None]).sum(1)
    permuted = [
        _between(torch.bincount(codes[order].flatten(), value.flatten(), actions), count.sum(0))
        for order in statistics.permutations(key, len(codes))
    ]
    return Axis(
        mean=total.sum(0) / count.sum(0),
        error=_standard_error(total, count, random.fold_in(key, 1)),
        overall=total.sum() / count.sum(),
        p=statistics.p_value(_between(total.sum(0), count.sum(0)), permuted),
    )


def _standard_error(total: Tensor, count: Tensor, key: Tensor) -> Tensor:
    """The standard error of each action's mean minus the overall mean.

    By bootstrap over the clips' totals and counts, (M, A).
    """
    weight = statistics.resampling(key, len(total))
    drawn, drawn_count = weight @ total, weight @ count
    overall = drawn.sum(1, keepdim=True) / drawn_count.sum(1, keepdim=True)
    difference = drawn / drawn_count - overall
    known = ~difference.isnan()  # a resample may lack a rare action
    deviation = torch.where(known, difference - difference.nanmean(0), 0)
    return (deviation.square().sum(0) / (known.sum(0) - 1)).sqrt()


def _between(total: Tensor, count: Tensor) -> float:
    """Σ n_a · mean_a²: up to constants, the variance between groups."""
    return (total.double().square() / count.clamp(min=1)).sum().item()


def describe(
    transitions: Transitions, actions: int, names: tuple[str, ...], latent: bool, key: Tensor
) -> Actions:
    """Use and effect of the actions.

    `names` are those of the recorded ones, with which latent ones are compared.
    """
    codes = transitions.codes
    use = usage(codes, actions)
    return Actions(
        kind="latent" if latent else "recorded",
        names=[f"code {i}" for i in range(actions)] if latent else padded_names(names, actions),
        transitions=codes.numel(),
        clips=len(codes),
        levels=len(transitions.level.unique()),
        actions=actions,
        share=use.share,
        used=use.used,
        perplexity=use.perplexity,
        state=use.state,
        displacement=displacement(codes, transitions.shift, actions, key),
        recorded=compare(transitions, actions, names, key) if latent else None,
    )


def compare(
    transitions: Transitions, actions: int, names: tuple[str, ...], key: Tensor
) -> Recorded | None:
    """Agreement of latent with recorded actions, and with left / none / right if the names say.

    The result is None without recorded actions.
    """
    codes, recorded, level, shift = transitions
    if recorded is None:
        return None
    side = sides(names)
    kinds = max(len(names), int(recorded.max()) + 1)
    by_side = None
    if side is not None:
        by_side = agreement(codes, side[recorded], level, (actions, len(SIDES)), key)
    return Recorded(
        names=padded_names(names, kinds),
        displacement=displacement(recorded, shift, kinds, key),
        all=agreement(codes, recorded, level, (actions, kinds), key),
        sides=by_side,
    )


def padded_names(names: tuple[str, ...], count: int) -> list[str]:
    """The names of recorded actions; numbers for those that the store does not name."""
    return [*names, *map(str, range(len(names), count))]


def to_map(recorded: Recorded) -> ActionMap:
    """The map between latent and recorded actions that play uses."""
    fit = recorded.all
    return action_map.make(recorded.names, fit.table, fit.accuracy, fit.majority_accuracy)


def rounded(values: Tensor) -> list[float | None]:
    """Four digits; None for NaN, such as the mean of no transitions."""
    return [round(x, 4) if x == x else None for x in values.tolist()]


def examples(codes: Tensor, actions: int, count: int) -> list[list[tuple[int, int]]]:
    """For each action up to `count` transitions (clip, t), from clips all over.

    Each is the first of its action in its clip.
    """
    result = []
    for action in range(actions):
        occurs = codes == action
        clips = occurs.any(1).nonzero().flatten()
        rows = torch.linspace(0, max(len(clips) - 1, 0), min(count, len(clips))).round().long()
        result.append([(clip, int(occurs[clip].int().argmax())) for clip in clips[rows].tolist()])
    return result
