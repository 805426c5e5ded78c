"""Horizontal-flip augmentation: which clips are flipped, and what happens to their actions."""

import pytest
import torch

from genie_fn.data import Batch, augment
from genie_fn.errors import UserError


def test_left_and_right_are_swapped_in_flipped_actions():
    names = ["LEFT+DOWN", "NOOP", "RIGHT", "RIGHT+DOWN", "LEFT", "UP"]
    assert augment.flipped_actions(names) == [3, 1, 4, 0, 2, 5]
    for unsuitable in (["UP", "DOWN"], ["LEFT", "UP"], ["0", "1"], []):
        with pytest.raises(UserError, match="pass --cfg.no-flip"):
            augment.flipped_actions(unsuitable)


def test_every_second_clip_is_flipped_and_the_others_at_the_next_step():
    batch = Batch(torch.arange(72).reshape(3, 2, 2, 2, 3), torch.tensor([[2], [1], [0]]))
    swap = torch.tensor(augment.flipped_actions(["LEFT", "NOOP", "RIGHT"]))
    even = augment.flip_half(batch, torch.tensor(4), 0, swap)
    odd = augment.flip_half(batch, torch.tensor(5), 0, swap)
    for i, (flipped, kept) in enumerate(((odd, even), (even, odd), (odd, even))):
        assert torch.equal(flipped.frames[i], batch.frames[i].flip(-2))
        assert flipped.actions[i].tolist() == [[0], [1], [2]][i]
        assert torch.equal(kept.frames[i], batch.frames[i])
        assert torch.equal(kept.actions[i], batch.actions[i])
    frames_only = augment.flip_half(batch, torch.tensor(4), 0, None)
    assert torch.equal(frames_only.frames, even.frames)
    assert torch.equal(frames_only.actions, batch.actions)


def test_a_share_of_a_batch_is_flipped_as_in_the_whole_batch():
    frames = torch.arange(96).reshape(4, 2, 2, 2, 3)
    whole = augment.flip_half(Batch(frames, None), torch.tensor(7), 0, None).frames
    share = augment.flip_half(Batch(frames[3:], None), torch.tensor(7), 3, None).frames
    assert torch.equal(whole[3:], share)
