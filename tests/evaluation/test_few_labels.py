"""Maps that are fitted on a few labelled transitions: codes that say everything, nothing, or too little data."""

from collections import Counter

import pytest
import torch

from genie_fn import random
from genie_fn.evaluation import actions, few_labels
from genie_fn.evaluation.few_labels import Pairs

NAMES = ("LEFT", "NOOP", "RIGHT", "UP")
CLIPS, STEPS = 60, 10


def draw(seed: int, high: int, clips: int = CLIPS) -> torch.Tensor:
    return random.randint(random.key(seed), (clips, STEPS), 0, high)


def evaluated(labelled: Pairs, tested: Pairs, codes: int = 4):
    return few_labels.evaluate(labelled, tested, codes, NAMES, random.key(0))


def test_codes_that_identify_actions():
    labelled, tested = (
        Pairs((recorded + 1) % 4, recorded) for recorded in (draw(1, 4), draw(2, 4))
    )
    found = evaluated(labelled, tested)
    assert (found.numbers, found.transitions) == ([10, 50, 200], CLIPS * STEPS)
    few, more, most = found.all.accuracy
    assert few[0] < 0.99 and most == more == [1, 1, 1]  # ten labels may lack one of the actions
    assert few[1] < few[0] < few[2]
    assert found.all.all_labels == found.sides.all_labels == 1
    assert found.all.majority == pytest.approx(0.25, abs=0.05)
    assert found.sides.majority == pytest.approx(0.5, abs=0.05)


def test_codes_that_say_nothing_are_no_better_than_the_most_frequent_action():
    labelled, tested = (
        Pairs(draw(seed, 4), (draw(seed + 1, 8) - 4).clamp(min=0)) for seed in (3, 5)
    )
    found = evaluated(labelled, tested).all
    assert found.majority > 0.5 and found.all_labels == pytest.approx(found.majority, abs=0.03)
    assert found.accuracy[0][0] < found.accuracy[2][0] <= found.majority + 0.01


def test_the_mean_is_that_of_maps_which_are_fitted_one_by_one(monkeypatch):
    monkeypatch.setattr(few_labels, "DRAWS", 4)
    labelled, tested = (Pairs(draw(seed, 3), draw(seed + 1, 4)) for seed in (7, 9))
    key = random.key(0)
    found = few_labels.curve(labelled, tested, (3, 4), key)
    order = random.uniform(random.split(key)[0], (4, CLIPS * STEPS)).argsort(1)
    codes, recorded = (x.flatten() for x in labelled)
    accuracies = []
    for rows in order[:, :50]:
        counts = Counter(zip(codes[rows].tolist(), recorded[rows].tolist(), strict=True))
        most = Counter(recorded[rows].tolist())
        best = [max(range(4), key=lambda r: (counts[code, r], most[r])) for code in range(3)]
        accuracies.append((torch.tensor(best)[tested.codes] == tested.recorded).float().mean())
    assert found.accuracy[1][0] == pytest.approx(torch.stack(accuracies).mean().item(), abs=1e-4)


def test_maps_of_several_tables_are_those_of_each():
    tables = random.randint(random.key(11), (5, 4, 3), 0, 6)
    each = torch.stack([actions.best_map(table) for table in tables])
    assert torch.equal(actions.best_map(tables), each)


def test_no_more_labels_than_there_are_transitions():
    few = Pairs(draw(1, 4, clips=3), draw(2, 4, clips=3))
    found = evaluated(few, few)
    assert found.numbers == [10] and len(found.all.accuracy) == len(found.sides.accuracy) == 1
    unnamed = few_labels.evaluate(few, few, 4, (), random.key(0))
    assert unnamed.sides is None
