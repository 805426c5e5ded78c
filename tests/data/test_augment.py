"""Batches in a mirror: which, and what becomes of their actions."""

import pytest
import torch

from genie_fn.data import Batch, augment
from genie_fn.errors import UserError


def test_actions_in_a_mirror():
    names = ["LEFT+DOWN", "NOOP", "RIGHT", "RIGHT+DOWN", "LEFT", "UP"]
    assert augment.actions(names) == [3, 1, 4, 0, 2, 5]
    for none in (["UP", "DOWN"], ["LEFT", "UP"], ["0", "1"], []):
        with pytest.raises(UserError, match="leave it out"):
            augment.actions(none)


def test_every_second_batch_is_turned():
    batch = Batch(torch.arange(24).reshape(1, 2, 2, 2, 3), torch.tensor([[2]]))
    swap = torch.tensor(augment.actions(["LEFT", "NOOP", "RIGHT"]))
    there = augment.every_second(batch, torch.tensor(3), swap)
    assert torch.equal(
        there.frames[:, :, :, 0], batch.frames[:, :, :, 1]
    ) and there.actions.tolist() == [[0]]
    back, still = (
        augment.every_second(there, torch.tensor(5), swap),
        augment.every_second(batch, torch.tensor(4), swap),
    )
    for same in (back, still):
        assert torch.equal(same.frames, batch.frames) and torch.equal(same.actions, batch.actions)
    untold = augment.every_second(batch, torch.tensor(3), None)
    assert torch.equal(untold.frames, there.frames) and torch.equal(untold.actions, batch.actions)
