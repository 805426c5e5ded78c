"""Image and code metrics as plain functions. Pixels are uint8 in [0, 255] unless a docstring says otherwise."""

import torch
from torch import Tensor
from torch.nn import functional as F


def psnr(mse: Tensor, peak: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error; the default peak to peak is that of [-1, 1] floats."""
    return 10 * torch.log10(peak**2 / mse.clamp(min=1e-10 * peak**2))


def frame_psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of each frame, (..., H, W, 3) uint8 both → (...); equal frames give 100."""
    return psnr((a.float() - b.float()).square().mean((-3, -2, -1)), 255.0)


def frame_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each frame, (..., H, W, 3) uint8 → (...): Wang et al. 2004, 11-pixel Gaussian, σ 1.5.

    Means over the valid windows and the channels.
    """
    x, y = (v.float().reshape(-1, *v.shape[-3:]).permute(0, 3, 1, 2).flatten(0, 1)[:, None] for v in (a, b))
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


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Normalised mutual information of two integer labellings (M,): 2 I(a; b) / (H(a) + H(b)), in [0, 1]."""
    rows, columns = int(a.max()) + 1, int(b.max()) + 1
    joint = entropy(a * columns + b, rows * columns)
    single = entropy(a, rows) + entropy(b, columns)
    return 2 * (single - joint) / single if single > 0 else 0.0
