"""What others have recorded, frame by frame: video files, folders of images, npy episodes.

Nothing is decoded before its size is known to be acceptable. What cannot be read ends in `Unreadable` with a reason,
after the frames that could be; so does what was cut short or damaged.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from genie_fn.data import video
from genie_fn.data.importing.sources import Source
from genie_fn.errors import UserError

MAX_PIXELS = 16_000_000  # of a frame: a decoder may hold some twenty of them at once
MAX_IMAGE = 256 << 20  # bytes of an image file
MAX_THREADS = 8  # of a decoder, each of which holds a frame more
MAX_ASPECT = 8  # of a pixel; a file that claims more is wrong
SMALL = 1 << 18  # pixels; below, a decoder's threads only cost
# Formats of ffmpeg that open other files, devices or addresses, and those that make pictures of text or of any bytes.
OTHERS = (
    "concat dash hls imf webm_dash_manifest sdp rtp rtsp sap "
    "image2 image2pipe fbdev kmsgrab lavfi oss alsa x11grab"
)
TEXT = "tty bin xbin adf idf rawvideo bitpacked v210 v210x data"


class Unreadable(Exception):
    """Why a video, or the rest of it, cannot be read: half a sentence."""


class Shown(NamedTuple):
    """One frame: when it appears, in seconds (None where nothing says), its image when asked for, and how much wider
    its pixels are than high."""

    time: Fraction | None
    image: Callable[[], Image.Image]
    aspect: Fraction = Fraction(1)


def read(source: Source, threads: int = 1) -> Iterator[Shown]:
    """The frames of a source in order. Raises Unreadable."""
    return {"video": _read_video, "images": _read_images, "npy": _read_npy}[source.kind](
        source, threads
    )


def _formats() -> str:
    """What ffmpeg may take a file for."""
    left_out = {*OTHERS.split(), *TEXT.split(), "video4linux2,v4l2"}
    return ",".join(sorted(av.formats_available - left_out))


FORMATS = _formats()


def _read_video(source: Source, threads: int) -> Iterator[Shown]:
    limits = {"max_pixels": str(MAX_PIXELS)}
    own = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    known = False
    turn = (
        None  # that of the first frame: asked of each, all would be kept until garbage is collected
    )
    try:
        with av.open(
            str(source.files[0]), options=limits, container_options=own, metadata_errors="replace"
        ) as file:
            stream = file.streams.best("video")
            if stream is None:
                raise Unreadable("it has no video stream")
            context = stream.codec_context
            if context is None:
                raise Unreadable("its codec is unknown")
            _check_size(context.width, context.height)
            known, context.options = True, limits
            context.thread_type = "AUTO"
            context.thread_count = (
                min(threads, MAX_THREADS) if context.width * context.height > SMALL else 1
            )
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            aspect = stream.sample_aspect_ratio or Fraction(1)
            aspect = aspect if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else Fraction(1)
            for number, frame in enumerate(_decoded(file, stream)):
                time = (
                    number / rate
                    if frame.pts is None or not frame.time_base
                    else frame.pts * frame.time_base
                )
                turn = _matrix(frame) if turn is None else turn
                yield Shown(
                    time, partial(_picture, frame, turn), 1 / aspect if turn[0, 1] else aspect
                )
    except Unreadable:
        raise
    except Exception as error:  # PyAV raises many kinds
        raise Unreadable(
            f"{'it is damaged' if known else 'it cannot be read as a video'} ({_words(error)})"
        ) from error


def _decoded(file: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames. What is damaged before the first good one is passed over: recorded broadcasts begin anywhere."""
    begun, trouble = False, None
    for packet in file.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            if begun:
                raise
            trouble = trouble or error
            continue
        for frame in frames:
            if begun and frame.is_corrupt:
                raise Unreadable("it is damaged")
            begun |= not frame.is_corrupt
            if begun:
                yield frame
    if trouble and not begun:
        raise trouble


def _words(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return said.partition("\n")[0].lower()[:100]


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unreadable(
            f"its frames have {width}x{height} pixels, more than {MAX_PIXELS:,}: make it smaller first"
        )


def _matrix(frame: av.VideoFrame) -> np.ndarray:
    """How the frame is to be turned for display: (x, y) @ matrix, of -1, 0 and 1; other angles count as none."""
    stored = frame.side_data.get(Type.DISPLAYMATRIX)
    if stored is None:
        return np.eye(2)
    turn = np.frombuffer(bytes(stored), np.int32)[[0, 1, 3, 4]].reshape(2, 2) / 65536
    return turn if (abs(turn).sum(0) == 1).all() and (abs(turn).sum(1) == 1).all() else np.eye(2)


def _picture(frame: av.VideoFrame, turn: np.ndarray) -> Image.Image:
    try:
        pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
    except Exception as error:  # PyAV raises many kinds
        raise Unreadable(f"a frame cannot be shown ({_words(error)})") from error
    if turn[0, 1]:
        pixels, turn = pixels.swapaxes(0, 1), turn[::-1]
    return Image.fromarray(np.ascontiguousarray(pixels[:: int(turn[1, 1]), :: int(turn[0, 0])]))


def _read_images(source: Source, _: int) -> Iterator[Shown]:
    for path in source.files:
        yield Shown(None, partial(_open, path))


def _open(path) -> Image.Image:
    try:
        if path.stat().st_size > MAX_IMAGE:
            raise Unreadable(f"{path.name} is larger than {MAX_IMAGE >> 20} MB")
        return video.open_image(path.read_bytes(), path.name)
    except (UserError, OSError) as error:
        raise Unreadable(str(error)) from error


def _read_npy(source: Source, _: int) -> Iterator[Shown]:
    try:
        frames = np.load(source.files[0], mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's parser of headers raises many kinds
        raise Unreadable("it is not a npy file of plain numbers that is complete") from error
    if (
        not isinstance(frames, np.ndarray)
        or frames.dtype != np.uint8
        or frames.shape[3:] != (3,)
        or frames.ndim != 4
    ):
        raise Unreadable("it does not hold uint8 frames of shape (T, H, W, 3)")
    _check_size(frames.shape[2], frames.shape[1])
    if 0 in frames.shape:
        raise Unreadable("it holds no pixels")
    for frame in frames:
        yield Shown(None, partial(Image.fromarray, np.ascontiguousarray(frame)))
