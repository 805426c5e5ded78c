"""The metrics against independent implementations and against values worked out by hand."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from genie_fn import metrics, random


@pytest.fixture
def pair():
    """Two videos (2, 3, 24, 32, 3) uint8, the second a noisy copy of the first."""
    a = random.randint(random.key(0), (2, 3, 24, 32, 3), 0, 256)
    noise = random.randint(random.key(1), a.shape, -40, 41)
    return a.to(torch.uint8), (a + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_is_scikit_images(pair):
    a, b = pair
    ours = metrics.frame_psnr(a, b)
    assert ours.shape == (2, 3)
    for i, t in [(0, 0), (1, 2)]:
        theirs = peak_signal_noise_ratio(a[i, t].numpy(), b[i, t].numpy(), data_range=255)
        assert ours[i, t].item() == pytest.approx(theirs, abs=1e-4)


def test_equal_frames_have_a_finite_psnr(pair):
    assert metrics.frame_psnr(pair[0], pair[0]).tolist() == [[100.0] * 3] * 2
    assert metrics.psnr(torch.tensor(0.04)).item() == pytest.approx(20)  # floats in [-1, 1]: 10 log10(4 / 0.04)


def test_ssim_is_scikit_images(pair):
    a, b = pair
    ours = metrics.frame_ssim(a, b)
    assert ours.shape == (2, 3)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for i, t in [(0, 1), (1, 2)]:
        _, full = structural_similarity(a[i, t].numpy(), b[i, t].numpy(), channel_axis=-1, full=True, **settings)
        # Ours keeps the windows that lie inside the frame, as Wang et al. do; theirs pads and then crops the mean.
        assert ours[i, t].item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)
    torch.testing.assert_close(metrics.frame_ssim(a, a), torch.ones(2, 3))


def test_entropy_of_a_uniform_and_of_a_constant():
    assert metrics.entropy(torch.arange(8).repeat(5), 8) == pytest.approx(math.log(8))
    assert metrics.entropy(torch.full((9,), 3), 8) == 0.0


def test_mutual_information_sees_through_names_and_not_through_chance():
    a = random.randint(random.key(0), (20_000,), 0, 4)
    renamed = torch.tensor([2, 0, 3, 1])[a]
    assert metrics.mutual_information(a, renamed) == pytest.approx(1)
    assert metrics.mutual_information(a, random.randint(random.key(1), a.shape, 0, 4)) < 0.002
    assert metrics.mutual_information(a, a // 2) == pytest.approx(2 / 3, abs=1e-3)  # 2 · 1 bit / (2 bits + 1 bit)
    assert metrics.mutual_information(torch.zeros_like(a), torch.zeros_like(a)) == 0.0
