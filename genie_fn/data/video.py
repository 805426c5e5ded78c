"""Writing frames to mp4, gif and png files. Frames are (T, H, W, 3) uint8 RGB."""

from pathlib import Path

import av
import imageio.v3 as imageio
import numpy as np
from PIL import Image

from genie_fn.errors import UserError
from genie_fn.runtime import files

FPS = 15  # the frame rate of Procgen


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """(..., H, W, 3) → (..., scale*H, scale*W, 3): each pixel becomes a square."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def grid(rows: np.ndarray, gap: int = 1) -> np.ndarray:
    """(R, T, H, W, 3) → one (H', W', 3) image: R rows of T frames, `gap` white pixels apart."""
    R, T, H, W, _ = rows.shape
    image = np.full((R * (H + gap) - gap, T * (W + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for t, frame in enumerate(row):
            top = r * (H + gap)
            left = t * (W + gap)
            image[top : top + H, left : left + W] = frame
    return image


def write_video(path: str | Path, frames: np.ndarray, fps: int = FPS, scale: int = 1) -> None:
    """Write frames in the format of the file name: .mp4, .gif, or .png (frames side by side)."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".mp4", ".gif", ".png"):
        raise UserError(
            f"{path} cannot be written as a video: choose a file name that ends in .mp4, .gif, .png"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    frames = enlarge(frames, scale)
    if suffix == ".mp4":
        write_mp4(path, frames, fps)
    elif suffix == ".gif":
        write_gif(path, frames, fps)
    else:
        write_png(path, grid(frames[None]))


def write_mp4(path: str | Path, frames: np.ndarray, fps: int = FPS, lossless: bool = False) -> None:
    """Write an H.264 video.

    `lossless` keeps every RGB value, but only players based on ffmpeg show the file. Otherwise
    colours have half the resolution, as every player expects (enlarge small frames first), and an
    odd height or width is padded by one line.
    """
    codec = "libx264rgb" if lossless else "libx264"
    pixel_format = "rgb24" if lossless else "yuv420p"
    crf = "0" if lossless else "12"
    if not lossless:
        padding = [(0, side % 2) for side in frames.shape[1:3]]
        frames = np.pad(frames, [(0, 0), *padding, (0, 0)], mode="edge")
    with files.naming(path), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": crf})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1  # frames are small: more threads are slower
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_episodes(
    folder: str | Path, name: str, frames: np.ndarray, episode_starts: np.ndarray
) -> None:
    """Write each episode of (length, H, W, 3) frames as a lossless <folder>/<name>_<number>.mp4.

    `episode_starts` is (length,) bool.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, episode in enumerate(np.split(frames, np.flatnonzero(episode_starts)[1:])):
        write_mp4(Path(folder) / f"{name}_{number:03d}.mp4", episode, lossless=True)


def write_gif(path: str | Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write a gif that loops, with at most 256 colours per frame."""
    with files.naming(path):
        Path(path).write_bytes(gif_bytes(frames, fps))


def gif_bytes(frames: np.ndarray, fps: int = FPS) -> bytes:
    """The content of a gif file: see `write_gif`."""
    duration = round(1000 / fps)
    return imageio.imwrite("<bytes>", frames, extension=".gif", duration=duration, loop=0)


def write_png(path: str | Path, frame: np.ndarray) -> None:
    """Write one (H, W, 3) uint8 image."""
    with files.naming(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path)


def png_bytes(frame: np.ndarray) -> bytes:
    """The content of a png file of one (H, W, 3) uint8 image."""
    return imageio.imwrite("<bytes>", frame, extension=".png")
