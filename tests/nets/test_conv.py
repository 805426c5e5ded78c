"""The causal layers against torch's own functions, and their two rules of time against values worked out by hand."""

import pytest
import torch
from torch.nn import functional as F

from genie_fn import random, tree
from genie_fn.nets import conv
from genie_fn.nets.conv import Pass


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
    torch.testing.assert_close(conv.causal_conv(params, x, Pass(False)), expected)
    torch.testing.assert_close(conv.causal_conv(params, x, Pass(True)), expected)


@pytest.mark.parametrize(
    ("alone", "frames", "sums"), [(True, 5, [0, 3, 7]), (False, 4, [1, 5]), (False, 6, [1, 5, 9])]
)
def test_windows_end_with_each_group_or_with_each_second_frame(alone, frames, sums):
    """A kernel of ones over two frames, stride 2: what each output adds up shows where its window lies."""
    params = {"w": torch.ones(1, 1, 2, 1, 1), "b": torch.zeros(1)}
    x = torch.arange(float(frames))[None, :, None, None, None]
    y = conv.causal_conv(params, x, Pass(alone), (2, 1, 1))
    assert y.flatten().tolist() == sums


def test_a_kernel_shorter_than_its_stride_looks_at_the_last_frame_of_a_group():
    params = {"w": torch.ones(1, 1, 1, 1, 1), "b": torch.zeros(1)}
    x = torch.arange(6.0)[None, :, None, None, None]
    assert conv.causal_conv(params, x, Pass(False), (3, 1, 1)).flatten().tolist() == [2, 5]
    assert conv.causal_conv(params, x[:, :4], Pass(True), (3, 1, 1)).flatten().tolist() == [0, 3]


@pytest.mark.parametrize("blur", [False, True])
def test_pooling_in_space_is_a_strided_filter(blur):
    x = noise(2, 3, 8, 6, 4)
    kernel = torch.tensor([0.25, 0.5, 0.25]) if blur else torch.tensor([0.5, 0.5])
    window = (kernel[:, None] * kernel[None])[None, None].expand(4, 1, -1, -1)
    flat = x.flatten(0, 1).permute(0, 3, 1, 2)
    flat = F.pad(flat, (1, 0, 1, 0), mode="replicate") if blur else flat
    expected = F.conv2d(flat, window, stride=2, groups=4).permute(0, 2, 3, 1).unflatten(0, (2, 3))
    torch.testing.assert_close(conv.pool(x, Pass(False), (1, 2, 2), blur=blur), expected)


def test_pooling_in_time_by_both_rules():
    x = torch.arange(6.0)[None, :, None, None, None]
    both = ((x, False), (x[:, :5], True))
    mean = [conv.pool(v, Pass(a), (2, 1, 1), blur=False).flatten().tolist() for v, a in both]
    assert mean == [[0.5, 2.5, 4.5], [0.0, 1.5, 3.5]]
    blurred = [
        conv.pool(v, Pass(a), (2, 1, 1), blur=True).flatten().tolist()
        for v, a in ((x, False), (x[:, :5], True))
    ]
    assert blurred == [
        [0.25, 2.0, 4.0],
        [0.0, 1.0, 3.0],
    ]  # of frames (0, 0, 1), (1, 2, 3) … and (0, 0, 0), (0, 1, 2) …


def test_group_norm_is_torchs_on_every_frame_alone():
    params = {"scale": noise(8), "shift": noise(8, seed=1)}
    x = noise(2, 3, 4, 4, 8, seed=2)
    flat = x.flatten(0, 1).permute(0, 3, 1, 2)
    expected = (
        F.group_norm(flat, 2, params["scale"], params["shift"], 1e-6)
        .permute(0, 2, 3, 1)
        .unflatten(0, (2, 3))
    )
    torch.testing.assert_close(conv.group_norm(params, x, 2), expected)


def test_depth_becomes_space_and_time_and_space_becomes_depth():
    x = noise(2, 3, 4, 4, 24)
    y = conv.depth_to_spacetime(x, Pass(False), 2, 2)
    assert y.shape == (2, 6, 8, 8, 3)
    assert conv.depth_to_spacetime(x, Pass(True), 2, 2).shape[1] == 5
    assert torch.equal(conv.depth_to_spacetime(x, Pass(True), 2, 2), y[:, 1:])
    still = conv.depth_to_spacetime(x, Pass(False), 1, 2)
    assert torch.equal(conv.space_to_depth(still, 2), x)


def test_a_transposed_convolution_is_torchs_cut_to_size():
    params = tree.init(conv.conv_spec(4, 6, (4, 4, 4)), random.key(0)) | {"b": noise(6)}
    x = noise(2, 3, 5, 5, 4, seed=1)
    whole = from_torch(
        F.conv_transpose3d(to_torch(x), params["w"].transpose(0, 1), params["b"], stride=2)
    )
    y = conv.causal_conv_transpose(params, x, Pass(False), (2, 2, 2))
    torch.testing.assert_close(y, whole[:, :6, 1:11, 1:11])
    y = conv.causal_conv_transpose(params, x, Pass(True), (2, 2, 2))
    torch.testing.assert_close(y, whole[:, 1:6, 1:11, 1:11])


def test_conditions_are_repeated_for_the_frames_they_belong_to():
    x = torch.arange(3.0)[None, :, None]
    assert Pass(False, x).condition_at(6).flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert Pass(True, x).condition_at(5).flatten().tolist() == [0, 1, 1, 2, 2]
    assert Pass(True, x[:, :1]).condition_at(1).flatten().tolist() == [0]
    assert Pass(False, x[:, :, None, None].expand(1, 3, 2, 2, 1)).condition_at(
        3
    ).flatten().tolist() == [0, 1, 2]
