"""Reading image files, such as the first frame of a rollout. Files are untrusted input."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from genie_fn.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # other decoders of Pillow start programs
MAX_PIXELS = 32_000_000
MAX_SIDE = 9_999


def read_image(path: str | Path, height: int, width: int) -> np.ndarray:
    """Read an image file as one frame: see `decode_image`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"there is no image {path} that can be read: check the name") from error
    return decode_image(content, height, width, str(path))


def decode_image(content: bytes, height: int, width: int, name: str = "the file") -> np.ndarray:
    """Decode an image file to one (height, width, 3) uint8 frame.

    The frame is the largest part of that shape from the middle of the image, resized. Raises
    UserError: see `open_image`.
    """
    image = open_image(content, name)
    return np.array(ImageOps.fit(image, (width, height), Image.Resampling.BOX))


def open_image(content: bytes, name: str = "the file") -> Image.Image:
    """Decode an image file to RGB, turned upright.

    Raises UserError if it is not an image, or, before decoding it, if it has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                limit = f"under {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side"
                raise UserError(
                    f"{name} has {image.width}x{image.height} pixels: give an image of {limit}"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # the decoders raise many kinds
        raise UserError(
            f"{name} is not an image that can be read: give a PNG or JPEG file"
        ) from error
