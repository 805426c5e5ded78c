"""Opening video files with PyAV. Files are untrusted input: no other file or device is opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import av
from av.container import InputContainer

MAX_PIXELS = 16_000_000  # of a frame: a decoder may hold some twenty of them at once
LIMITS = {"max_pixels": str(MAX_PIXELS)}
# Formats of ffmpeg that open other files, devices or addresses.
INDIRECT_FORMATS = (
    "concat dash hls imf webm_dash_manifest sdp rtp rtsp sap "
    "image2 image2pipe fbdev kmsgrab lavfi oss alsa x11grab"
)
# Formats that make pictures of text or of any bytes.
RAW_FORMATS = "tty bin xbin adf idf rawvideo bitpacked v210 v210x data"
FORMATS = ",".join(
    sorted(
        av.formats_available
        - {*INDIRECT_FORMATS.split(), *RAW_FORMATS.split(), "video4linux2,v4l2"}
    )
)


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """A video file. Raises any of PyAV's errors."""
    whitelists = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with av.open(
        str(path), options=LIMITS, container_options=whitelists, metadata_errors="replace"
    ) as file:
        yield file


def is_video(path: Path, frames: int = 0) -> bool:
    """True if a file has a video stream, of which this many frames can be decoded."""
    try:
        with opened(path) as file:
            stream = file.streams.best("video")
            if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
                return False
            context = stream.codec_context
            if context.width * context.height > MAX_PIXELS:
                return False
            context.options = LIMITS
            return len(list(islice(file.decode(stream), frames))) == frames
    except Exception:  # PyAV raises many kinds
        return False
