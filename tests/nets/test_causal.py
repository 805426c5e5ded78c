"""The time axis of layers: which frames a condition belongs to."""

import torch

from genie_fn.nets import causal


def test_conditions_are_repeated_for_the_frames_they_belong_to():
    x = torch.arange(3.0)[None, :, None]
    grid = x[:, :, None, None].expand(1, 3, 2, 2, 1)
    for condition, frames, alone, expected in (
        (x, 6, False, [0, 0, 1, 1, 2, 2]),
        (x, 5, True, [0, 1, 1, 2, 2]),
        (x[:, :1], 1, True, [0]),
        (grid, 3, False, [0, 1, 2]),
    ):
        y = causal.condition_per_frame(condition, frames, alone)
        assert y.flatten().tolist() == expected
