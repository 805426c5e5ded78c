"""Frames to files that people open (mp4, gif, png), and images to first frames. Frames are (T, H, W, 3) uint8 RGB."""

import io
from pathlib import Path

import av
import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageOps

from genie_fn.errors import UserError

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
)  # read from outside; other decoders of Pillow start programs
MAX_PIXELS, MAX_SIDE = 32_000_000, 9_999  # of an image that is read
FPS = 15  # what Procgen plays at


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """(..., H, W, 3) -> (..., scale*H, scale*W, 3), each pixel a square."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def write_video(path: str | Path, frames: np.ndarray, fps: int = FPS, scale: int = 1) -> None:
    """Write frames as the format that the file name asks for: .mp4, .gif, or .png (the frames side by side)."""
    writers = {".mp4": write_mp4, ".gif": write_gif, ".png": write_strip}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise UserError(
            f"Cannot write a video to {path}: choose a file name that ends in {', '.join(writers)}."
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    frames = enlarge(frames, scale)
    writers[suffix](path, frames) if suffix == ".png" else writers[suffix](path, frames, fps)


def write_mp4(path: str | Path, frames: np.ndarray, fps: int = FPS, lossless: bool = False) -> None:
    """Write an H.264 video. `lossless` keeps every RGB value, and few players but ffmpeg-based ones show it.

    Otherwise colours are halved in resolution, as every player expects: enlarge small frames first. An odd height or
    width gains a line.
    """
    codec, pixels = ("libx264rgb", "rgb24") if lossless else ("libx264", "yuv420p")
    if not lossless:
        odd = [(0, side % 2) for side in frames.shape[1:3]]
        frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "0" if lossless else "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1  # frames are small: threads only cost
        for frame in frames:
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                )
            )
        container.mux(stream.encode())


def write_gif(path: str | Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write a gif that loops. Colours are reduced to 256 per frame."""
    imageio.imwrite(path, frames, extension=".gif", duration=round(1000 / fps), loop=0)


def gif_bytes(frames: np.ndarray, fps: int = FPS) -> bytes:
    """The content of such a file."""
    return imageio.imwrite("<bytes>", frames, extension=".gif", duration=round(1000 / fps), loop=0)


def png_bytes(frame: np.ndarray) -> bytes:
    """The content of `write_png`'s file."""
    return imageio.imwrite("<bytes>", frame, extension=".png")


def write_png(path: str | Path, frame: np.ndarray) -> None:
    """Write one (H, W, 3) uint8 image."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame).save(path)


def grid(rows: np.ndarray, gap: int = 1) -> np.ndarray:
    """(R, T, H, W, 3) -> one (H', W', 3) uint8 image: R rows of T frames, `gap` white pixels apart."""
    R, T, H, W, _ = rows.shape
    image = np.full((R * (H + gap) - gap, T * (W + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for t, frame in enumerate(row):
            image[r * (H + gap) : r * (H + gap) + H, t * (W + gap) : t * (W + gap) + W] = frame
    return image


def write_strip(path: str | Path, frames: np.ndarray) -> None:
    """Write (T, H, W, 3) as one png, the frames side by side."""
    write_png(path, grid(frames[None]))


def write_episodes(
    folder: str | Path, name: str, frames: np.ndarray, episode_starts: np.ndarray
) -> None:
    """Write each episode of (length, H, W, 3) as <folder>/<name>_<number>.mp4, lossless; starts are (length,) bool."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, episode in enumerate(np.split(frames, np.flatnonzero(episode_starts)[1:])):
        write_mp4(Path(folder) / f"{name}_{number:03d}.mp4", episode, lossless=True)


def read_image(path: str | Path, height: int, width: int) -> np.ndarray:
    """An image file as one frame: see `decode_image`."""
    try:
        return decode_image(Path(path).read_bytes(), height, width, str(path))
    except OSError as error:
        raise UserError(f"there is no image {path} that can be read: check the name") from error


def decode_image(content: bytes, height: int, width: int, what: str = "the file") -> np.ndarray:
    """An image file as one (H, W, 3) uint8 frame: the largest part of that shape, from the middle, resized.

    Raises UserError: see `open_image`.
    """
    return np.array(ImageOps.fit(open_image(content, what), (width, height), Image.Resampling.BOX))


def open_image(content: bytes, what: str = "the file") -> Image.Image:
    """An image file's content, decoded and upright, as RGB.

    Raises UserError for what is no image, and before decoding for one of too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                limit = f"under {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side"
                raise UserError(
                    f"{what} has {image.width}x{image.height} pixels: give an image of {limit}"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # the decoders raise many kinds
        raise UserError(
            f"{what} is not an image that can be read: give a PNG or JPEG file"
        ) from error
