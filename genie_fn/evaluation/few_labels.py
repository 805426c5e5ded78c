"""How the map from latent to recorded actions improves with the number of labelled transitions.

Each latent action is mapped to the recorded action with which it occurs most often among the
labelled transitions, which are drawn at random from clips of the train split. Accuracy is the share
of the evaluated transitions whose recorded action is predicted in this way.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import random
from genie_fn.data import Store
from genie_fn.evaluation import actions as action_statistics
from genie_fn.evaluation import statistics
from genie_fn.evaluation.actions import Transitions
from genie_fn.evaluation.record import FewLabels, LabelCurve

NUMBERS = (10, 50, 200)
"""Of labelled transitions."""
DRAWS = 1000
CLIPS = 300
"""Clips of the train split from which labelled transitions are drawn, at most."""


class Pairs(NamedTuple):
    """Latent and recorded actions of the transitions of M clips, (M, T-1) each."""

    codes: Tensor
    recorded: Tensor


def measure(
    store: Store,
    infer: Callable[[Tensor, Tensor], Tensor],
    transitions: Transitions,
    actions: int,
    clips: int,
    device: torch.device,
    key: Tensor,
) -> FewLabels:
    """Accuracies on `transitions`, with labelled ones of at most `clips` clips of the train split.

    `infer` maps frames and recorded actions to latent actions.
    """
    assert transitions.recorded is not None

    def label(frames: Tensor, recorded: Tensor) -> Tensor:
        return torch.stack((infer(frames, recorded), recorded), 1)

    count = min(clips, CLIPS)
    offsets = action_statistics.spread_clips(store, "train", action_statistics.CLIP, count)
    labelled = action_statistics.map_clips(store, offsets, action_statistics.CLIP, label, device)
    tested = Pairs(transitions.codes, transitions.recorded)
    return evaluate(Pairs(*labelled.unbind(1)), tested, actions, store.action_names, key.cpu())


def evaluate(
    labelled: Pairs, tested: Pairs, actions: int, names: tuple[str, ...], key: Tensor
) -> FewLabels:
    """Accuracies on `tested` by the number of transitions drawn from `labelled`.

    `names` are those of the recorded actions, which are also grouped into left, none and right if
    the names say so.
    """
    largest = max(int(labelled.recorded.max()), int(tested.recorded.max()))
    kinds = max(len(names), largest + 1)
    side = action_statistics.sides(names)
    by_side = None
    if side is not None and largest < len(names):
        sizes = (actions, len(action_statistics.SIDES))
        by_side = curve(_grouped(labelled, side), _grouped(tested, side), sizes, key)
    available = labelled.codes.numel()
    return FewLabels(
        numbers=[number for number in NUMBERS if number <= available],
        transitions=available,
        draws=DRAWS,
        all=curve(labelled, tested, (actions, kinds), key),
        sides=by_side,
    )


def _grouped(pairs: Pairs, group: Tensor) -> Pairs:
    """The same transitions with the group of each recorded action instead of it."""
    return Pairs(pairs.codes, group[pairs.recorded])


def curve(labelled: Pairs, tested: Pairs, sizes: tuple[int, int], key: Tensor) -> LabelCurve:
    """Accuracies with as many latent and recorded actions as `sizes` says.

    Every interval contains 95% of DRAWS draws, each tested on a bootstrap sample of the clips.
    """
    draw_key, clip_key = random.split(key).unbind(0)
    drawn = random.uniform(draw_key, (DRAWS, labelled.codes.numel())).argsort(1)
    tested_MRA = _tables(*tested, sizes)
    labelled_RA = _tables(*labelled, sizes).sum(0)
    weight = statistics.resampling(clip_key, len(tested_MRA), DRAWS)
    resampled_DRA = (weight @ tested_MRA.flatten(1)).unflatten(1, tested_MRA.shape[1:])
    whole_RA = tested_MRA.sum(0)

    accuracies = []
    for number in NUMBERS:
        if number > drawn.shape[1]:
            continue
        chosen = drawn[:, :number]
        codes, recorded = (x.flatten()[chosen] for x in labelled)
        maps_DA = action_statistics.best_map(_tables(codes, recorded, sizes))
        values = torch.stack((_accuracy(whole_RA, maps_DA), _accuracy(resampled_DRA, maps_DA)))
        ends = values[1].quantile(values.new_tensor([0.025, 0.975]))
        accuracies.append(_rounded(torch.cat((values[0].mean()[None], ends))))
    every = _accuracy(whole_RA, action_statistics.best_map(labelled_RA))
    majority = whole_RA[labelled_RA.sum(1).argmax()].sum() / whole_RA.sum()
    return LabelCurve(accuracies, *_rounded(torch.stack((every, majority))))


def _tables(codes: Tensor, recorded: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Counts of recorded actions (rows) by latent actions, for each row of (M, T): (M, R, A)."""
    actions, kinds = sizes
    pairs = recorded * actions + codes
    counts = torch.zeros((len(pairs), kinds * actions))
    counts.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=torch.float32))
    return counts.unflatten(1, (kinds, actions))


def _accuracy(table: Tensor, predicted: Tensor) -> Tensor:
    """The share of the counts (..., R, A) in the rows that are `predicted` (..., A) for a column."""
    correct = (table * F.one_hot(predicted, table.shape[-2]).mT).sum((-2, -1))
    return correct / table.sum((-2, -1))


def _rounded(values: Tensor) -> list[float]:
    return [round(x, 4) for x in values.tolist()]
