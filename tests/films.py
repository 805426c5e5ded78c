"""Small videos for tests, in files of several formats."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {
    ".mp4": "libx264",
    ".mkv": "libx264",
    ".avi": "mpeg4",
    ".webm": "libvpx",
    ".gif": "gif",
    ".mov": "png",
    ".ts": "libx264",
}
PIXELS = {"libx264": "yuv444p", "gif": "rgb8", "png": "rgba"}


def squares(count: int, height: int = 24, width: int = 32, colour: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: a bright block that moves right over a plain background.

    The background is drawn with the seed `colour`.
    """
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = np.random.default_rng(colour).integers(0, 160, 3)
    for t in range(count):
        x = 4 * t % (width - 8)
        frames[t, height // 3 : 2 * height // 3, x : x + 8] = (250, 240, 30)
    return frames


def greys(levels: list[int], height: int = 24, width: int = 32) -> np.ndarray:
    """(n, height, width, 3) uint8: one flat frame of each level, distinct after any compression."""
    flat = np.array(levels, np.uint8)[:, None, None, None]
    return np.broadcast_to(flat, (len(levels), height, width, 3))


def write(
    path: Path,
    frames: np.ndarray,
    fps: float = 30,
    times: list[float] | None = None,
    pixels: str = "",
    **settings,
) -> Path:
    """Write frames in the format of the file name, at a constant rate or at `times` (seconds; .mkv).

    `pixels` is a pixel format of ffmpeg, and `settings` are attributes of the codec context.
    """
    codec = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        exact = {"crf": "0", "preset": "ultrafast"} if codec == "libx264" else {}
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate, options=exact)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels or PIXELS.get(codec, "yuv420p")
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        colours = {f"dst_{name}": x for name, x in settings.items() if name.startswith("color")}
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times is not None:
                picture.time_base = Fraction(1, 1000)
                picture.pts = round(1000 * times[number])
            if colours:
                picture = picture.reformat(format=stream.pix_fmt, **colours)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
