"""Causal convolutions against torch's own, and their two rules of time against values worked out by
hand."""

import pytest
import torch
from torch.nn import functional as F

from genie_fn import random, tree
from genie_fn.nets import conv


def noise(*shape, seed=0):
    return random.normal(random.key(seed), shape)


def to_torch(x):
    return x.permute(0, 4, 1, 2, 3)


def from_torch(x):
    return x.permute(0, 2, 3, 4, 1)


def test_a_causal_convolution_is_torchs_with_all_its_time_padding_in_front():
    params = tree.init(conv.conv_spec(4, 6, (3, 5, 3)), random.key(0)) | {"b": noise(6)}
    x = noise(2, 7, 8, 10, 4, seed=1)
    padded = F.pad(to_torch(x), (1, 1, 2, 2, 2, 0))
    expected = from_torch(F.conv3d(padded, params["w"], params["b"]))
    for alone in (False, True):
        y, _ = conv.causal_conv(params, x, first_frame_alone=alone)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    ("alone", "frames", "sums"), [(True, 5, [0, 3, 7]), (False, 4, [1, 5]), (False, 6, [1, 5, 9])]
)
def test_windows_end_with_each_group_or_with_each_second_frame(alone, frames, sums):
    """A kernel of ones over two frames, stride 2: each output is the sum of its window."""
    params = {"w": torch.ones(1, 1, 2, 1, 1), "b": torch.zeros(1)}
    x = torch.arange(float(frames))[None, :, None, None, None]
    y, _ = conv.causal_conv(params, x, stride=(2, 1, 1), first_frame_alone=alone)
    assert y.flatten().tolist() == sums


def test_a_kernel_shorter_than_its_stride_looks_at_the_last_frame_of_a_group():
    params = {"w": torch.ones(1, 1, 1, 1, 1), "b": torch.zeros(1)}
    x = torch.arange(6.0)[None, :, None, None, None]
    y, _ = conv.causal_conv(params, x, stride=(3, 1, 1))
    assert y.flatten().tolist() == [2, 5]
    y, _ = conv.causal_conv(params, x[:, :4], stride=(3, 1, 1), first_frame_alone=True)
    assert y.flatten().tolist() == [0, 3]


def test_a_transposed_convolution_is_torchs_cropped():
    params = tree.init(conv.conv_spec(4, 6, (4, 4, 4)), random.key(0)) | {"b": noise(6)}
    x = noise(2, 3, 5, 5, 4, seed=1)
    whole = from_torch(
        F.conv_transpose3d(to_torch(x), params["w"].transpose(0, 1), params["b"], stride=2)
    )
    y, _ = conv.causal_conv_transpose(params, x, stride=(2, 2, 2))
    torch.testing.assert_close(y, whole[:, :6, 1:11, 1:11])
    y, _ = conv.causal_conv_transpose(params, x, stride=(2, 2, 2), first_frame_alone=True)
    torch.testing.assert_close(y, whole[:, 1:6, 1:11, 1:11])
