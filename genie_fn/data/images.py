"""Reading image files: frames of a video, or the first frame of a rollout.

Files are untrusted input. Every picture becomes RGB in sRGB, turned upright, and what is
transparent shows a background.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from genie_fn.data import colour
from genie_fn.data.colour import Coding
from genie_fn.errors import UserError

# Other decoders of Pillow start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
MAX_PIXELS = 32_000_000
MAX_SIDE = 9_999
MAX_JPEG_PIXELS = 128_000_000  # which are decoded at a fraction of the size
MAX_JPEG_SIDE = 19_999
JPEG_SIDE = 1024  # to which they are reduced, more or less; no frame is larger
DEFAULT_MS = 100  # of a picture with a duration of MIN_MS or less, as browsers show it
MIN_MS = 10

Background = Literal["black", "white"]
LEVELS = {"black": 0, "white": 255}


def background_of(meta: Mapping[str, Any]) -> Background:
    """The background with which a dataset with this metadata was imported; black if it was not."""
    options = meta.get("import")
    is_white = isinstance(options, dict) and options.get("background") == "white"
    return "white" if is_white else "black"


def read_image(
    path: str | Path, height: int, width: int, background: Background = "black"
) -> np.ndarray:
    """Read an image file as one frame: see `decode_image`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"there is no image {path} that can be read: check the name") from error
    return decode_image(content, height, width, str(path), background)


def decode_image(
    content: bytes,
    height: int,
    width: int,
    name: str = "the file",
    background: Background = "black",
) -> np.ndarray:
    """Decode an image file to one (height, width, 3) uint8 frame.

    The frame is the largest part of that shape from the middle of the image, resized. Raises
    UserError: see `open_image`.
    """
    image = open_image(content, name, background)
    return np.array(ImageOps.fit(image, (width, height), Image.Resampling.BOX))


def open_image(
    content: bytes, name: str = "the file", background: Background = "black"
) -> Image.Image:
    """Decode an image file, or the first picture of it, to RGB, turned upright.

    A large JPEG file is decoded at a half, a quarter or an eighth of its size. Raises UserError if
    it is not an image, or, before decoding it, if it has too many pixels.
    """
    with _opened(content, name) as image:
        return _to_rgb(image, background, coding(content))


def pictures(
    content: bytes, name: str, background: Background = "black"
) -> Iterator[tuple[Fraction | None, Image.Image]]:
    """The pictures of an animated file, and the seconds at which they appear, if it has times.

    Raises UserError as `open_image` does, after the pictures before the damage.
    """
    milliseconds = Fraction(0)
    with _opened(content, name) as image:
        colours = coding(content)
        # The first picture of a PNG file may stand for the animation and be no part of it.
        first = bool(getattr(image, "default_image", False))
        for number in range(first, getattr(image, "n_frames", 1)):
            image.seek(number)
            _check_size(image, name)  # that of a page of its own
            picture = _to_rgb(image, background, colours)
            duration = image.info.get("duration")
            yield (None if duration is None else milliseconds / 1000), picture
            milliseconds += Fraction(duration or 0) if (duration or 0) > MIN_MS else DEFAULT_MS


def count_pictures(path: Path) -> int:
    """The number of pictures in a file, found without decoding them; 0 if it is no image."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            # A JPEG file with several pictures holds one, and previews or depth.
            count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            return count - bool(getattr(image, "default_image", False) and count > 1)
    except Exception:  # the decoders raise many kinds
        return 0


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """An image file whose pictures have an acceptable size. Every error is a UserError."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image, name)
            yield image
    except UserError:
        raise
    except Exception as error:  # the decoders raise many kinds
        raise UserError(
            f"{name} is not an image that can be read: give a PNG or JPEG file"
        ) from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    is_jpeg = image.format in ("JPEG", "MPO")
    pixels, side = (MAX_JPEG_PIXELS, MAX_JPEG_SIDE) if is_jpeg else (MAX_PIXELS, MAX_SIDE)
    if width * height > pixels or max(width, height) > side:
        raise UserError(
            f"{name} has {width}x{height} pixels: give an image of under {pixels:,} pixels and "
            f"{side:,} a side"
        )
    if is_jpeg:
        image.draft(None, (JPEG_SIDE, JPEG_SIDE))


def _to_rgb(image: Image.Image, background: Background, coding: Coding) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("real numbers have no range that could be shown")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
    else:
        image = _without_profile(image).convert("RGB")
        if colour.is_standard(coding):
            return image
        rgba = np.asarray(image)
    return Image.fromarray(to_standard(rgba, coding, background))


def _without_profile(image: Image.Image) -> Image.Image:
    """An opaque image in sRGB, if an ICC profile in its file says that it is in other colours."""
    profile = image.info.get("icc_profile") or b""
    named = b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
    if not profile or named or image.mode not in ("RGB", "L", "CMYK"):
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one of another kind of image
        return image
    return converted or image


def to_standard(pixels: np.ndarray, coding: Coding, background: Background) -> np.ndarray:
    """RGB or RGBA (H, W, 3 or 4), uint8 or uint16 → sRGB (H, W, 3) uint8 over a background.

    Alpha is straight: colours are not multiplied by it.
    """
    rgb = pixels[..., :3]
    if not colour.is_standard(coding):
        rgb = colour.to_standard(rgb, coding)
    elif rgb.dtype == np.uint16:
        rgb = (rgb >> 8).astype(np.uint8)
    if pixels.shape[2] == 3:
        return rgb
    alpha = pixels[..., 3:].astype(np.float32) / np.iinfo(pixels.dtype).max
    return (rgb * alpha + LEVELS[background] * (1 - alpha) + 0.5).astype(np.uint8)


def coding(content: bytes) -> Coding:
    """How a PNG or AVIF file codes colours. Raises UserError if that is not supported."""
    found = Coding()
    png = content.find(b"cICP", 0, 1 << 16)
    avif = content.find(b"colrnclx", 0, 1 << 16)
    if (
        content.startswith(b"\x89PNG")
        and 0 < png < content.find(b"IDAT")
        and len(content) > png + 5
    ):
        found = Coding(primaries=content[png + 4], transfer=content[png + 5])
    elif content[4:8] == b"ftyp" and avif > 0 and len(content) > avif + 12:
        primaries, transfer = (int.from_bytes(content[at : at + 2]) for at in (avif + 8, avif + 10))
        found = Coding(transfer, primaries)
    problem = colour.unsupported(found)
    if problem:
        raise UserError(f"the colours of an image cannot be converted: {problem}")
    return found
