"""Pooling and changes between channels and space or time, against torch's functions and values
worked out by hand."""

import pytest
import torch
from torch.nn import functional as F

from genie_fn import random
from genie_fn.nets import resampling


def noise(*shape, seed=0):
    return random.normal(random.key(seed), shape)


@pytest.mark.parametrize("blur", [False, True])
def test_pooling_in_space_is_a_strided_filter(blur):
    x = noise(2, 3, 8, 6, 4)
    kernel = torch.tensor([0.25, 0.5, 0.25]) if blur else torch.tensor([0.5, 0.5])
    window = (kernel[:, None] * kernel[None])[None, None].expand(4, 1, -1, -1)
    flat = x.flatten(0, 1).permute(0, 3, 1, 2)
    flat = F.pad(flat, (1, 0, 1, 0), mode="replicate") if blur else flat
    expected = F.conv2d(flat, window, stride=2, groups=4).permute(0, 2, 3, 1).unflatten(0, (2, 3))
    torch.testing.assert_close(resampling.pool(x, (1, 2, 2), blur=blur), expected)


@pytest.mark.parametrize(
    ("blur", "alone", "expected"),
    [
        (False, False, [0.5, 2.5, 4.5]),
        (False, True, [0.0, 1.5, 3.5]),
        (True, False, [0.25, 2.0, 4.0]),  # of frames (0, 0, 1), (1, 2, 3), (3, 4, 5)
        (True, True, [0.0, 1.0, 3.0]),  # of frames (0, 0, 0), (0, 1, 2), (2, 3, 4)
    ],
)
def test_pooling_in_time_follows_both_rules(blur, alone, expected):
    x = torch.arange(5.0 if alone else 6.0)[None, :, None, None, None]
    y = resampling.pool(x, (2, 1, 1), blur=blur, first_frame_alone=alone)
    assert y.flatten().tolist() == expected


def test_depth_becomes_space_and_time_and_space_becomes_depth():
    x = noise(2, 3, 4, 4, 24)
    y = resampling.depth_to_spacetime(x, 2, 2)
    assert y.shape == (2, 6, 8, 8, 3)
    alone = resampling.depth_to_spacetime(x, 2, 2, first_frame_alone=True)
    assert alone.shape[1] == 5
    assert torch.equal(alone, y[:, 1:])
    still = resampling.depth_to_spacetime(x, 1, 2)
    assert torch.equal(resampling.space_to_depth(still, 2), x)
