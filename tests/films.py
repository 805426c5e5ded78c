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
}
CODECS |= {".ts": "libx264"}
PIXELS = {"libx264": "yuv444p", "gif": "rgb8", "png": "rgba"}


def squares(count: int, height: int = 24, width: int = 32, colour: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: a bright block that steps to the right, on a background of its own."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = np.random.default_rng(colour).integers(0, 160, 3)
    for t in range(count):
        x = 4 * t % (width - 8)
        frames[t, height // 3 : 2 * height // 3, x : x + 8] = (250, 240, 30)
    return frames


def greys(levels: list[int], height: int = 24, width: int = 32) -> np.ndarray:
    """(n, height, width, 3) uint8: one flat frame of each level, to be told apart after any compression."""
    return np.broadcast_to(
        np.array(levels, np.uint8)[:, None, None, None], (len(levels), height, width, 3)
    )


def write(
    path: Path,
    frames: np.ndarray,
    fps: float = 30,
    times: list[float] | None = None,
    pixels: str = "",
    **settings,
) -> Path:
    """Write frames in the format that the file's name asks for, at a pace or at `times` in seconds (of .mkv)."""
    codec = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        exact = {"crf": "0", "preset": "ultrafast"} if codec == "libx264" else {}
        stream = container.add_stream(
            codec, rate=Fraction(fps).limit_denominator(1001), options=exact
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels or PIXELS.get(codec, "yuv420p")
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times is not None:
                shown.time_base, shown.pts = Fraction(1, 1000), round(1000 * times[number])
            targets = {
                f"dst_{name}": value for name, value in settings.items() if name.startswith("color")
            }
            container.mux(
                stream.encode(
                    shown.reformat(format=stream.pix_fmt, **targets) if targets else shown
                )
            )
        container.mux(stream.encode())
    return path
