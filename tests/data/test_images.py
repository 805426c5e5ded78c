"""Image files as first frames: large photos are scaled down, transparency shows a background."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from genie_fn.data import colour, images
from genie_fn.data.colour import Coding
from genie_fn.errors import UserError


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_large_photo_is_scaled_down_and_turned_upright():
    photo = Image.new("L", (8192, 4096), 200)  # 33 million pixels
    photo.paste(30, (0, 0, 8192, 2048))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    content = encoded(photo, "JPEG", exif=exif, quality=30)
    assert max(images.open_image(content).size) < 2100
    frame = images.decode_image(content, 64, 64).astype(int)
    assert abs(frame[:31] - 200).max() < 6 and abs(frame[33:] - 30).max() < 6


def test_a_small_photo_keeps_its_size():
    content = encoded(Image.new("RGB", (1500, 900)), "JPEG")
    assert images.open_image(content).size == (1500, 900)


@pytest.mark.parametrize("kind, size", [("JPEG", (20_000, 1)), ("PNG", (10_000, 1))])
def test_larger_images_are_refused(kind, size):
    with pytest.raises(UserError, match=f"{size[0]}x1 pixels: give an image of under"):
        images.decode_image(encoded(Image.new("L", size), kind), 64, 64)


@pytest.mark.parametrize("meta, level", [({}, 0), ({"import": {"background": "white"}}, 255)])
def test_a_start_frame_has_the_background_of_the_dataset(meta, level):
    content = encoded(Image.new("RGBA", (9, 9), (200, 60, 80, 0)), "PNG")
    frame = images.decode_image(content, 4, 4, background=images.background_of(meta))
    assert (frame == level).all()


def test_metadata_of_another_kind_is_black():
    for meta in ({"import": 3}, {"import": {"background": ["white"]}}):
        assert images.background_of(meta) == "black"


def test_deep_greys_keep_their_range():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    for kind in ("PNG", "TIFF"):
        grey = np.array(images.open_image(encoded(Image.fromarray(ramp), kind)))[0, :, 0]
        assert (grey == ramp[0] >> 8).all()
    with pytest.raises(UserError, match="not an image that can be read"):
        images.open_image(encoded(Image.new("F", (4, 4)), "TIFF"))


def display_p3():
    """The ICC profile of Display P3: that of sRGB with other primaries (adapted to D50)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {"r": (0.5151, 0.2412, -0.0011), "g": (0.2920, 0.6922, 0.0419)}
    for name, xyz in (primaries | {"b": (0.1571, 0.0666, 0.7841)}).items():
        entry = profile.index(f"{name}XYZ".encode())
        (at,) = struct.unpack_from(">I", profile, entry + 4)
        struct.pack_into(">3i", profile, at + 8, *(round(65536 * value) for value in xyz))
    return bytes(profile.replace("sRGB".encode("utf-16-be"), "P300".encode("utf-16-be")))


def test_colours_of_an_icc_profile_become_srgb():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    expected = colour.to_standard(pixels, Coding(13, 12)).astype(int)
    content = encoded(Image.fromarray(pixels), "PNG", icc_profile=display_p3())
    assert abs(np.array(images.open_image(content)) - expected).max() <= 3
    for profile in (
        b"no profile",
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        content = encoded(Image.fromarray(pixels), "PNG", icc_profile=profile)
        assert (np.array(images.open_image(content)) == pixels).all()
