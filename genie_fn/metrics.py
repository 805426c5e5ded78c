"""Metrics as plain functions; docs/evaluation.md says what each is for.

Pixels are uint8 in [0, 255] unless a docstring says otherwise. torchmetrics has SSIM and the
Fréchet distance, and scikit-learn has mutual information. Each would be a large dependency for a
few lines; the tests compare them with scikit-image and with values computed by hand.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Frames

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def psnr(mse: Tensor, peak: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error; at most 100.

    `peak` is the difference of the largest and the smallest value, by default that of floats in
    [-1, 1].
    """
    return 10 * torch.log10(peak**2 / mse.clamp(min=1e-10 * peak**2))


def frame_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each frame, in squared levels of 255: (..., H, W, 3) → (...)."""
    return (a.float() - b.float()).square().mean((-3, -2, -1))


def frame_psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of each frame, (..., H, W, 3) uint8 both → (...); equal frames have 100."""
    return psnr(frame_error(a, b), 255.0)


def frame_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each frame, (..., H, W, 3) uint8 both → (...).

    Wang et al. 2004, with a Gaussian window of 11 pixels and σ = 1.5: the mean over the valid
    windows and the channels.
    """
    x = _channels(a)
    y = _channels(b)
    mean_x = _blur(x)
    mean_y = _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1 = (0.01 * 255) ** 2
    c2 = (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    similarity = (luminance * structure).mean((-3, -2, -1))
    return similarity.reshape(-1, 3).mean(1).reshape(a.shape[:-3])


def edges(frames: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, in levels: (..., H, W, 3) uint8 → (...).

    Blurred frames have less of it than sharp ones.
    """
    x = frames.float()
    across = (x[..., :, 1:, :] - x[..., :, :-1, :]).abs().mean((-3, -2, -1))
    down = (x[..., 1:, :, :] - x[..., :-1, :, :]).abs().mean((-3, -2, -1))
    return (across + down) / 2


def edge_ratio(frames: Tensor, recorded: Tensor) -> float:
    """The mean of `edges` over frames, divided by that over recorded frames."""
    return (edges(frames).mean() / edges(recorded).mean().clamp(min=1e-6)).item()


def _channels(frames: Tensor) -> Tensor:
    """Every channel of every frame as an image, float32 (M · 3, 1, H, W)."""
    images = frames.float().reshape(-1, *frames.shape[-3:])
    return images.permute(0, 3, 1, 2).flatten(0, 1)[:, None]


def _blur(x: Tensor) -> Tensor:
    """Images filtered with the Gaussian window, without padding."""
    offset = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    rows = F.conv2d(x, window[None, None, None, :])
    return F.conv2d(rows, window[None, None, :, None])


def displacement(before: Tensor, after: Tensor) -> Tensor:
    """How far the picture moved to the right and down, in pixels: (..., H, W, 3) uint8 → (..., 2).

    It is the shift (dx, dy), int64, of at most an eighth of the sides, for which the squared
    difference is least between the middle of the grey frame after and the shifted frame before; of
    equally good shifts the smallest. Fourier transforms compute the error of all shifts at once.
    """
    x = before.float().mean(-1) / 255 - 0.5
    y = after.float().mean(-1) / 255 - 0.5
    height, width = x.shape[-2:]
    middle = torch.zeros((height, width), device=x.device)
    middle[_middle(height), _middle(width)] = 1

    # Σ middle (y - x shifted)², without Σ middle y², which is the same for all shifts.
    error = _correlate(middle, x * x) - 2 * _correlate(middle * y, x)
    dy = torch.arange(-(height // 8), height // 8 + 1, device=x.device)
    dx = torch.arange(-(width // 8), width // 8 + 1, device=x.device)
    error = error[..., dy % height, :][..., dx % width].flatten(-2)

    distance = (dy[:, None].abs() + dx.abs()).flatten()
    nearest_first = torch.sort(distance, stable=True).indices
    good = error[..., nearest_first] <= error.amin(-1, keepdim=True) + 1e-3
    best = nearest_first[good.int().argmax(-1)]
    return torch.stack((dx[best % len(dx)], dy[best // len(dx)]), -1)


def aligned_error(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """How much frames `a` differ from `b` where they may show it at another place, and how far off that
    is: (..., H, W, 3) uint8 both → (...), (...).

    The frames of `a` are moved by their `displacement` to those of `b`. The first result is their mean
    squared difference in the middle of the frames, in squared levels of 255. An eighth of the sides, the largest
    displacement, is left out all around, so that nothing is compared with pixels from outside of `a`. The second is
    the length of the displacement in pixels.
    """
    shift = displacement(a, b)
    height, width = a.shape[-3:-1]
    moved = displaced(a, shift)[..., _middle(height), _middle(width), :]
    error = frame_error(moved, b[..., _middle(height), _middle(width), :])
    return error, shift.float().norm(dim=-1)


def _middle(side: int) -> slice:
    """The pixels along a side of a frame that are at least an eighth of it from its ends."""
    return slice(side // 8, side - side // 8)


def _correlate(a: Tensor, b: Tensor) -> Tensor:
    """Circular cross-correlation over the last two axes."""
    product = torch.fft.rfft2(a) * torch.fft.rfft2(b).conj()
    return torch.fft.irfft2(product, s=b.shape[-2:])


def displaced(frame: Tensor, shift: Tensor) -> Tensor:
    """Frames (..., H, W, C) moved by `shift` (..., 2) pixels to the right and down.

    What comes into view repeats the nearest row or column.
    """
    height, width, channels = frame.shape[-3:]
    dx, dy = shift.unbind(-1)
    column = (torch.arange(width, device=frame.device) - dx[..., None]).clamp(0, width - 1)
    row = (torch.arange(height, device=frame.device) - dy[..., None]).clamp(0, height - 1)
    place = row[..., :, None] * width + column[..., None, :]
    index = place.flatten(-2)[..., None].expand(*shift.shape[:-1], height * width, channels)
    return frame.flatten(-3, -2).gather(-2, index).reshape(frame.shape)


def agent_motion(displacement: Tensor) -> Tensor:
    """How far the agent moved to the right and down, given the displacement of the picture (..., 2).

    The view is taken to follow the agent, so that the picture moves against it.
    """
    return -displacement


def mean_displacement(codes: Tensor, shift: Tensor, actions: Tensor) -> Tensor:
    """The mean displacement (A', 2) of transitions with each of `actions` (A',); NaN for none.

    `codes` are (M, T-1) and their displacements (M, T-1, 2).
    """
    return torch.stack([shift[codes == action].float().mean(0) for action in actions.tolist()])


# Codes and labels


def code_usage(use: Tensor) -> dict[str, Tensor]:
    """`codes_used` and `perplexity` (exp of the entropy) from each code's share of use, (V,).

    Of several codebooks, (B, V), the codes used in all of them, and exp of the mean entropy.
    """
    entropy = torch.special.entr(use).sum(-1).mean()
    return {"codes_used": (use > 0).sum(), "perplexity": entropy.exp()}


def entropy(ids: Tensor) -> float:
    """Entropy in nats of the frequencies of ids: the cross-entropy of a unigram model."""
    _, counts = ids.unique(return_counts=True)
    return torch.special.entr(counts.double() / ids.numel()).sum().item()


def contingency(a: Tensor, b: Tensor, rows: int, columns: int) -> Tensor:
    """How often label i of a (M,) occurs with label j of b (M,): int64 (rows, columns)."""
    pairs = a.flatten() * columns + b.flatten()
    return torch.bincount(pairs, minlength=rows * columns).reshape(rows, columns)


def information(table: Tensor) -> float:
    """Normalised mutual information of two labellings: 2 I(a; b) / (H(a) + H(b)), in [0, 1].

    `table` is their contingency table.
    """
    share = table.double() / table.sum()
    joint = torch.special.entr(share).sum().item()
    a = torch.special.entr(share.sum(1)).sum().item()
    b = torch.special.entr(share.sum(0)).sum().item()
    return 2 * (a + b - joint) / (a + b) if a + b > 0 else 0.0


def mutual_information(a: Tensor, b: Tensor) -> float:
    """The normalised mutual information of two integer labellings (M,)."""
    return information(contingency(a, b, int(a.max()) + 1, int(b.max()) + 1))


# Distributions


def frechet(a_MD: Tensor, b_MD: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to features (M, D), Heusel et al. 2017.

    |μ - ν|² + tr(A + B - 2 √(AB)), where tr √(AB) = tr √(√A B √A), whose argument is symmetric.
    """
    a = a_MD.double()
    b = b_MD.double()
    shift = a.mean(0) - b.mean(0)
    cov_a = torch.cov(a.T)
    cov_b = torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return (shift @ shift + cov_a.trace() + cov_b.trace() - 2 * cross).item()
