"""Metrics as plain functions. Pixels are uint8 in [0, 255] unless a docstring says otherwise.

docs/evaluation.md says what each is for.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def psnr(mse: Tensor, peak: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error; the default peak to peak is that of [-1, 1] floats."""
    return 10 * torch.log10(peak**2 / mse.clamp(min=1e-10 * peak**2))


def code_usage(use_V: Tensor) -> dict[str, Tensor]:
    """From each code's share of use: `codes_used`, how many occur, and `perplexity`, exp of the shares' entropy."""
    return {"codes_used": (use_V > 0).sum(), "perplexity": torch.special.entr(use_V).sum().exp()}


def frame_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each frame, in squared levels of 255, (..., H, W, 3) uint8 both → (...)."""
    return (a.float() - b.float()).square().mean((-3, -2, -1))


def frame_psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of each frame, (..., H, W, 3) uint8 both → (...); equal frames give 100."""
    return psnr(frame_error(a, b), 255.0)


def frame_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each frame, (..., H, W, 3) uint8 → (...): Wang et al. 2004, 11-pixel Gaussian, σ 1.5.

    Means over the valid windows and the channels.
    """
    x, y = (
        v.float().reshape(-1, *v.shape[-3:]).permute(0, 3, 1, 2).flatten(0, 1)[:, None]
        for v in (a, b)
    )
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((-3, -2, -1)).reshape(-1, 3).mean(1).reshape(a.shape[:-3])


def _blur(x: Tensor) -> Tensor:
    at = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    window = torch.exp(-(at**2) / (2 * 1.5**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(x, window[None, None, None, :]), window[None, None, :, None])


def entropy(ids: Tensor, codes: int) -> float:
    """Entropy in nats of how often each of `codes` ids occurs: what guessing by frequency alone costs per token."""
    share = torch.bincount(ids.flatten(), minlength=codes).double() / ids.numel()
    return torch.special.entr(share).sum().item()


def contingency(a: Tensor, b: Tensor, rows: int, columns: int) -> Tensor:
    """How often label i of a (M,) meets label j of b (M,): counts (rows, columns), int64."""
    return torch.bincount(a.flatten() * columns + b.flatten(), minlength=rows * columns).reshape(
        rows, columns
    )


def information(table: Tensor) -> float:
    """Normalised mutual information of the two labellings counted in a contingency table: 2 I(a; b) / (H(a) + H(b))."""
    share = table.double() / table.sum()
    joint, a, b = (torch.special.entr(x).sum().item() for x in (share, share.sum(1), share.sum(0)))
    return 2 * (a + b - joint) / (a + b) if a + b > 0 else 0.0


def mutual_information(a: Tensor, b: Tensor) -> float:
    """The same of two integer labellings (M,), in [0, 1]."""
    return information(contingency(a, b, int(a.max()) + 1, int(b.max()) + 1))


def displacement(before: Tensor, after: Tensor) -> Tensor:
    """By how many pixels the picture moved, (dx, dy) to the right and down: (..., H, W, 3) uint8 → (..., 2) int64.

    The shift, of at most an eighth of the sides, at which the middle of the grey frame after differs least in squares
    from the frame before; of equally good shifts the smallest. All shifts at once by Fourier transforms.
    """
    x, y = (frames.float().mean(-1) / 255 - 0.5 for frames in (before, after))
    sides = height, width = x.shape[-2:]
    middle = torch.zeros(sides, device=x.device)
    middle[height // 8 : height - height // 8, width // 8 : width - width // 8] = 1

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(a) * torch.fft.rfft2(b).conj(), s=sides)

    # Σ middle (y - x shifted)², without Σ middle y², which is the same for all shifts.
    error = correlate(middle, x * x) - 2 * correlate(middle * y, x)
    dy, dx = (torch.arange(-(side // 8), side // 8 + 1, device=x.device) for side in sides)
    error = error[..., dy % height, :][..., dx % width].flatten(-2)
    nearest = torch.sort((dy[:, None].abs() + dx.abs()).flatten(), stable=True).indices
    good = error[..., nearest] <= error.amin(-1, keepdim=True) + 1e-3
    best = nearest[good.int().argmax(-1)]
    return torch.stack((dx[best % len(dx)], dy[best // len(dx)]), -1)


def frechet(a_MD: Tensor, b_MD: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to features (M, D): |μ - ν|² + tr(A + B - 2 √(AB)), Heusel et al. 2017."""
    a, b = a_MD.double(), b_MD.double()
    (cov_a, cov_b), shift = (torch.cov(x.T) for x in (a, b)), a.mean(0) - b.mean(0)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (
        vectors * values.clamp(min=0).sqrt() @ vectors.T
    )  # tr √(AB) = tr √(√A B √A), which is symmetric
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return (shift @ shift + cov_a.trace() + cov_b.trace() - 2 * cross).item()
