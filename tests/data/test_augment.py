"""Horizontal-flip augmentation: which batches are flipped, and what happens to their actions."""

import pytest
import torch

from genie_fn.data import Batch, augment
from genie_fn.errors import UserError


def test_left_and_right_are_swapped_in_flipped_actions():
    names = ["LEFT+DOWN", "NOOP", "RIGHT", "RIGHT+DOWN", "LEFT", "UP"]
    assert augment.flipped_actions(names) == [3, 1, 4, 0, 2, 5]
    for unsuitable in (["UP", "DOWN"], ["LEFT", "UP"], ["0", "1"], []):
        with pytest.raises(UserError, match="leave it out"):
            augment.flipped_actions(unsuitable)


def test_batches_of_odd_steps_are_flipped():
    batch = Batch(torch.arange(24).reshape(1, 2, 2, 2, 3), torch.tensor([[2]]))
    swap = torch.tensor(augment.flipped_actions(["LEFT", "NOOP", "RIGHT"]))
    flipped = augment.flip_odd_steps(batch, torch.tensor(3), swap)
    assert torch.equal(flipped.frames[:, :, :, 0], batch.frames[:, :, :, 1])
    assert flipped.actions.tolist() == [[0]]
    flipped_twice = augment.flip_odd_steps(flipped, torch.tensor(5), swap)
    even = augment.flip_odd_steps(batch, torch.tensor(4), swap)
    for unchanged in (flipped_twice, even):
        assert torch.equal(unchanged.frames, batch.frames)
        assert torch.equal(unchanged.actions, batch.actions)
    frames_only = augment.flip_odd_steps(batch, torch.tensor(3), None)
    assert torch.equal(frames_only.frames, flipped.frames)
    assert torch.equal(frames_only.actions, batch.actions)
