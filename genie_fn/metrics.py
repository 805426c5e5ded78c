"""Image and code metrics as plain functions. Pixels are uint8 in [0, 255] unless a docstring says otherwise."""

import torch
from torch import Tensor


def psnr(mse: Tensor, peak: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error; the default peak to peak is that of [-1, 1] floats."""
    return 10 * torch.log10(peak**2 / mse.clamp(min=1e-10 * peak**2))
