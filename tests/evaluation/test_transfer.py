"""Transferred actions: pictures that move as the source of the actions did, as their own clip did, or not at all."""

import numpy as np
import pytest
import torch

from genie_fn import random
from genie_fn.evaluation import statistics, transfer

CLIPS, FRAMES, SIDE = 8, 6, 32
LEVELS = torch.arange(CLIPS)
SHIFTS = random.randint(random.key(1), (CLIPS, FRAMES - 1, 2), -2, 3)
"""(dx, dy) of every transition."""


@pytest.fixture(autouse=True)
def fewer_permutations(monkeypatch):
    monkeypatch.setattr(statistics, "PERMUTATIONS", 99)


def scrolled(shifts: torch.Tensor) -> torch.Tensor:
    """Videos (CLIPS, FRAMES, SIDE, SIDE, 3) of pictures, one per clip, that move by `shifts`."""
    pictures = random.randint(random.key(0), (CLIPS, SIDE, SIDE, 3), 0, 256).to(torch.uint8)
    position = torch.cat((torch.zeros(CLIPS, 1, 2).long(), shifts.cumsum(1)), 1)
    return torch.stack(
        [
            torch.stack([picture.roll((int(dy), int(dx)), (0, 1)) for dx, dy in path])
            for picture, path in zip(pictures, position, strict=True)
        ]
    )


def measured(shuffled: torch.Tensor, recorded=SHIFTS, level=LEVELS):
    """The measure of a world that generates frames which move by `shuffled` under shuffled actions."""
    frames = scrolled(recorded)
    videos = {"own_actions": frames[:, 1:], "shuffled": scrolled(shuffled)[:, 1:]}
    return transfer.evaluate(frames, videos, 1, level, random.key(2))


def test_pictures_that_move_as_the_source_of_their_actions():
    found = measured(SHIFTS.roll(1, 0))
    for correlation in (found.transferred, found.own):
        assert correlation.dx == correlation.dy == correlation.both == [1, 1, 1]
    assert abs(found.permuted.both[0]) < 0.1 and found.p == 0.01
    assert (found.frames, found.pairs) == (FRAMES - 1, CLIPS)


def test_pictures_that_move_as_their_own_clip_did_do_no_better_than_chance():
    found = measured(SHIFTS)
    mean, low, high = found.transferred.both
    assert low <= mean <= high and abs(mean) < 0.3 and found.p > 0.05
    assert found.own.both == [1, 1, 1]


def test_pictures_that_drift_or_stand_still_have_no_correlation():
    for by in (0, 1):
        found = measured(torch.full_like(SHIFTS, by))
        assert found.transferred.both == [0, 0, 0] and found.p == 1


def test_the_correlation_is_pearsons():
    other = (SHIFTS.roll(1, 0) + random.randint(random.key(3), SHIFTS.shape, -1, 2)).clamp(-2, 2)
    found = measured(other).transferred
    pairs = [x.flatten(0, 1).double().numpy() for x in (SHIFTS.roll(1, 0), other)]
    for axis, values in enumerate((found.dx, found.dy)):
        expected = np.corrcoef(pairs[0][:, axis], pairs[1][:, axis])[0, 1]
        assert values[0] == pytest.approx(expected, abs=1e-3)
        assert values[1] < values[0] < values[2]
    a, b = (pair - pair.mean(0) for pair in pairs)
    both = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    assert found.both[0] == pytest.approx(both, abs=1e-3)


def test_a_clip_of_the_same_level_is_no_source_of_actions():
    found = measured(SHIFTS.roll(1, 0), level=LEVELS // 2)
    assert found.pairs == CLIPS // 2
    assert measured(SHIFTS.roll(1, 0), level=torch.zeros(CLIPS)).pairs == CLIPS


def test_an_axis_without_motion_has_no_correlation():
    sideways = SHIFTS * torch.tensor([1, 0])
    found = measured(sideways.roll(1, 0), sideways)
    assert found.transferred.dy is found.permuted.dy is found.own.dy is None
    assert found.transferred.dx == found.transferred.both == [1, 1, 1]
    still = torch.zeros_like(SHIFTS)
    assert measured(still, still) is None
