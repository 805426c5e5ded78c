"""The metrics against independent implementations and against values worked out by hand."""

import math

import numpy as np
import pytest
import scipy.linalg
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
    assert metrics.psnr(torch.tensor(0.04)).item() == pytest.approx(
        20
    )  # floats in [-1, 1]: 10 log10(4 / 0.04)


def test_ssim_is_scikit_images(pair):
    a, b = pair
    ours = metrics.frame_ssim(a, b)
    assert ours.shape == (2, 3)
    settings = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 255,
    }
    for i, t in [(0, 1), (1, 2)]:
        _, full = structural_similarity(
            a[i, t].numpy(), b[i, t].numpy(), channel_axis=-1, full=True, **settings
        )
        # Ours keeps the windows that lie inside the frame, as Wang et al. do; theirs pads and then crops the mean.
        assert ours[i, t].item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)
    torch.testing.assert_close(metrics.frame_ssim(a, a), torch.ones(2, 3))


def test_edges_are_mean_differences_of_neighbours():
    frame = torch.zeros((2, 4, 4, 3), dtype=torch.uint8)
    frame[1, :, ::2] = 10  # stripes: every horizontal difference is 10, every vertical one 0
    assert metrics.edges(frame).tolist() == [0, 5]


def test_entropy_of_a_uniform_and_of_a_constant():
    assert metrics.entropy(torch.arange(8).repeat(5)) == pytest.approx(math.log(8))
    assert metrics.entropy(torch.full((9,), 3)) == 0.0


def test_mutual_information_sees_through_names_and_not_through_chance():
    a = random.randint(random.key(0), (20_000,), 0, 4)
    renamed = torch.tensor([2, 0, 3, 1])[a]
    assert metrics.mutual_information(a, renamed) == pytest.approx(1)
    assert metrics.mutual_information(a, random.randint(random.key(1), a.shape, 0, 4)) < 0.002
    assert metrics.mutual_information(a, a // 2) == pytest.approx(
        2 / 3, abs=1e-3
    )  # 2 · 1 bit / (2 bits + 1 bit)
    assert metrics.mutual_information(torch.zeros_like(a), torch.zeros_like(a)) == 0.0


def test_a_contingency_table_counts_pairs():
    a, b = torch.tensor([[0, 0, 1], [1, 2, 2]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert metrics.contingency(a, b, 4, 2).tolist() == [[0, 2], [1, 1], [2, 0], [0, 0]]


def test_information_of_a_table_worked_out_by_hand():
    """Rows (3, 1), (1, 3): I = Σ p log p / (p_row p_column) = 0.75 log 1.5 + 0.25 log 0.5, both entropies log 2."""
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / math.log(2)
    assert metrics.information(torch.tensor([[3, 1], [1, 3]])) == pytest.approx(expected)
    # Unequal entropies: a is fair over four, b tells a's half, so I = H(b) = log 2 and H(a) = 2 log 2.
    assert metrics.information(torch.tensor([[2, 0], [2, 0], [0, 2], [0, 2]])) == pytest.approx(
        2 / 3
    )
    assert metrics.information(torch.tensor([[5, 0], [0, 0]])) == 0.0


def test_displacement_is_exact_on_shifted_pictures():
    """Crops of one large picture, as a camera that moves sees them; what stands still in the middle is small."""
    coarse = random.randint(random.key(3), (3, 60, 60), 0, 256).float()
    large = torch.nn.functional.interpolate(coarse[None], (120, 120), mode="bilinear")[0].permute(
        1, 2, 0
    )
    large = large.to(torch.uint8)
    shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -2), (3, -4), (-6, 5), (8, 8)]
    before = large[20:84, 20:84].expand(len(shifts), -1, -1, -1)
    after = torch.stack([large[20 - dy : 84 - dy, 20 - dx : 84 - dx] for dx, dy in shifts])
    before, after = before.clone(), after.clone()
    before[:, 28:36, 30:36] = after[:, 28:36, 30:36] = 255  # an agent that the camera follows
    assert metrics.displacement(before, after).tolist() == [list(shift) for shift in shifts]
    assert metrics.displacement(before[None], after[None]).shape == (1, 8, 2)
    moved = metrics.displaced(before, torch.tensor(shifts))
    assert torch.equal(moved[:, 8:20, 8:-8], after[:, 8:20, 8:-8])  # above the agent
    right = metrics.displaced(before[0], torch.tensor([3, 0]))
    assert torch.equal(right[:, :3], before[0, :, :1].expand(-1, 3, -1))  # the nearest column
    flat = torch.full((1, 64, 48, 3), 90, dtype=torch.uint8)
    assert metrics.displacement(flat, flat).tolist() == [[0, 0]]


def test_aligned_error_is_that_of_the_middle_after_the_displacement():
    a = random.randint(random.key(3), (2, 64, 48, 3), 0, 256).to(torch.uint8)
    b = metrics.displaced(a, torch.tensor([[-6, 8], [0, 0]]))
    b[:, :8] = 0  # outside of the middle
    error, pixels = metrics.aligned_error(a, b)
    assert error.tolist() == [0, 0] and pixels.tolist() == [10, 0]
    b[1, 8:56, 6:42] = (b[1, 8:56, 6:42].int() - 20).clamp(min=0).to(torch.uint8)
    error, pixels = metrics.aligned_error(a, b)
    assert pixels.tolist() == [10, 0] and 300 < error[1] < 400


def test_frechet_distance_is_that_of_the_matrix_square_root():
    a = random.normal(random.key(4), (200, 4)) @ random.normal(random.key(5), (4, 4))
    b = random.normal(random.key(6), (300, 4)) @ random.normal(random.key(7), (4, 4)) + 1
    cov_a, cov_b = (np.cov(x.double().numpy().T) for x in (a, b))
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    expected = shift + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6)
