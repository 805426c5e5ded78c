"""The shape of frames, and how pictures of another shape get it."""

from fractions import Fraction
from typing import Literal

import numpy as np
from PIL import Image

from genie_fn.errors import UserError

Fit = Literal["crop", "pad", "stretch"]
Size = int | tuple[int, int]
"""Height and width in pixels; one number stands for both."""


def height_and_width(size: Size) -> tuple[int, int]:
    """The two numbers of a size."""
    return (size, size) if isinstance(size, int) else size


def check(size: Size) -> None:
    """Raise UserError for a --cfg.size that is too small or too large for a world."""
    if not all(8 <= side <= 512 for side in height_and_width(size)):
        raise UserError(f"--cfg.size is {size}: choose numbers from 8 to 512")


def fit(image: Image.Image, size: Size, how: Fit, aspect: Fraction = Fraction(1)) -> np.ndarray:
    """An image as (height, width, 3) uint8, every pixel the mean of the area that it covers.

    `crop` keeps the largest part of that shape in the middle, `pad` the whole picture between black
    bars, and `stretch` changes its shape. `aspect` is the width of a pixel divided by its height.
    """
    height, width = height_and_width(size)
    own_width, own_height = image.size
    displayed_width = own_width * aspect
    shape = Fraction(width, height)
    if how == "crop":
        kept_width = min(displayed_width, own_height * shape)
        kept_height = min(Fraction(own_height), displayed_width / shape)
        x = float(own_width - kept_width / aspect) / 2
        y = float(own_height - kept_height) / 2
        box = (x, y, own_width - x, own_height - y)
        return np.array(image.resize((width, height), Image.Resampling.BOX, box=box))
    inner_width, inner_height = width, height
    if how == "pad":
        scale = min(width / displayed_width, Fraction(height, own_height))
        inner_width = max(1, round(displayed_width * scale))
        inner_height = max(1, round(own_height * scale))
    resized = image.resize((inner_width, inner_height), Image.Resampling.BOX)
    frame = Image.new("RGB", (width, height))
    frame.paste(resized, ((width - inner_width) // 2, (height - inner_height) // 2))
    return np.array(frame)
