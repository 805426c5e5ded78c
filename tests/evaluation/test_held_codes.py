"""Held codes: a world that follows its actions, one that drifts, one that stands still, and reading codes back."""

from types import SimpleNamespace

import pytest
import torch

from genie_fn import random
from genie_fn.evaluation import held_codes
from genie_fn.evaluation.held_codes import FRAMES, Held

STARTS = 3
# Recorded transitions: action 0 moves the picture by 2 pixels to the right, 1 to the left, 2 not.
CODES = torch.tensor([[0, 1, 2, 0]] * 20)
SHIFT = torch.tensor([[[2, 0], [-2, 0], [0, 0], [2, 0]]] * 20)
WORLD = SimpleNamespace(lam=None)


def scrolled(by: int) -> torch.Tensor:
    """A picture that moves by so many pixels to the right per frame, from every start."""
    picture = random.randint(random.key(0), (32, 32, 3), 0, 256).to(torch.uint8)
    video = torch.stack([picture.roll(by * t, 1) for t in range(FRAMES + 1)])
    return video.expand(STARTS, -1, -1, -1, -1)


def scored(*by: int):
    held = Held(torch.arange(3), torch.stack([scrolled(x) for x in by]))
    return held_codes.score(WORLD, held, CODES, SHIFT, random.key(1))


def test_a_world_that_follows():
    result = scored(1, -1, 0)
    assert result.followed == [1, 1, 1] and result.average == [1, 1, 1]
    assert result.others == 0 and result.recorded == [1, 1, 1]
    assert result.expected == [[2, 0], [-2, 0], [0, 0]] and result.reinferred is None


@pytest.mark.parametrize("by", [1, -1, 0])
def test_a_world_that_ignores_its_actions_does_no_better_than_chance(by):
    result = scored(by, by, by)
    assert result.average[0] == pytest.approx(1 / 3, abs=1e-4)
    assert result.others == pytest.approx(1 / 3, abs=1e-4)


def test_a_world_with_left_and_right_swapped_follows_only_the_others():
    result = scored(-1, 1, 0)
    assert result.followed == [0, 0, 1] and result.others == pytest.approx(1 / 3, abs=1e-4)


def test_rare_actions_are_not_tested():
    codes = torch.cat((torch.zeros(1, 96), torch.ones(1, 4)), 1).long()
    assert held_codes.tested(codes, 3).tolist() == [0]
