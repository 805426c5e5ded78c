"""Reading the frames of a source: video files, folders of images, npy episodes.

Files are untrusted input. Nothing is decoded before its size is known to be acceptable. A file that
cannot be read, is cut short or damaged raises `Unreadable` with the reason, after the frames before
the damage.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import InvalidDataError
from PIL import Image

from genie_fn.data import images
from genie_fn.data.importing.sources import Source
from genie_fn.errors import UserError

MAX_PIXELS = 16_000_000  # of a frame: a decoder may hold some twenty of them at once
MAX_IMAGE_BYTES = 256 << 20
MAX_THREADS = 8  # of a decoder; each of them holds one more frame
MAX_ASPECT = 8  # of a pixel; a file that claims more is wrong
SMALL = 1 << 18  # pixels; decoding smaller frames is slower with several threads
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


class Unreadable(Exception):
    """Why a source, or the rest of it, cannot be read: a clause about it."""


class SourceFrame(NamedTuple):
    """One frame of a source, decoded when `image` is called."""

    time: Fraction | None
    """When it appears, in seconds; None if the source has no times."""
    image: Callable[[], Image.Image]
    aspect: Fraction = Fraction(1)
    """The width of a pixel divided by its height."""


def read(source: Source, threads: int = 1) -> Iterator[SourceFrame]:
    """The frames of a source in order. Raises Unreadable."""
    if source.kind == "video":
        return _read_video(source.files[0], threads)
    if source.kind == "npy":
        return _read_npy(source.files[0])
    return _read_images(source.files)


# Video files


def _read_video(path: Path, threads: int) -> Iterator[SourceFrame]:
    limits = {"max_pixels": str(MAX_PIXELS)}
    whitelists = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    opened = False
    try:
        with av.open(
            str(path), options=limits, container_options=whitelists, metadata_errors="replace"
        ) as file:
            stream = file.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise Unreadable("it has no video stream")
            context = stream.codec_context
            if context is None:
                raise Unreadable("its codec is unknown")
            _check_size(context.width, context.height)
            opened = True
            context.options = limits
            context.thread_type = "AUTO"
            small = context.width * context.height <= SMALL
            context.thread_count = 1 if small else min(threads, MAX_THREADS)
            yield from _stream_frames(file, stream)
    except Unreadable:
        raise
    except Exception as error:  # PyAV raises many kinds
        what = "it is damaged" if opened else "it cannot be read as a video"
        raise Unreadable(f"{what} ({_reason(error)})") from error


def _stream_frames(file: InputContainer, stream: av.VideoStream) -> Iterator[SourceFrame]:
    """The frames of a video stream with their times and the rotation of the first frame."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        aspect = Fraction(1)
    # Only the first frame is asked: side data keeps its frame until garbage is collected.
    rotation = None
    for number, frame in enumerate(_decoded(file, stream)):
        time = number / rate
        if frame.pts is not None and frame.time_base:
            time = frame.pts * frame.time_base
        if rotation is None:
            rotation = _rotation(frame)
        sideways = rotation[0, 1] != 0
        yield SourceFrame(
            time, partial(_picture, frame, rotation), 1 / aspect if sideways else aspect
        )


def _decoded(file: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The decoded frames, without damaged ones at the start: recorded broadcasts start anywhere."""
    begun = False
    first_error = None
    for packet in file.demux(stream):
        try:
            frames = packet.decode()
        except InvalidDataError as error:
            if begun:
                raise
            first_error = first_error or error
            continue
        for frame in frames:
            if begun and frame.is_corrupt:
                raise Unreadable("it is damaged")
            begun |= not frame.is_corrupt
            if begun:
                yield frame
    if first_error and not begun:
        raise first_error


def _reason(error: Exception) -> str:
    """The first line of an error's message."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return message.partition("\n")[0].lower()[:100]


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unreadable(
            f"its frames have {width}x{height} pixels, more than {MAX_PIXELS:,}: make it smaller "
            "first"
        )


def _rotation(frame: av.VideoFrame) -> np.ndarray:
    """How to rotate or flip the frame for display: (x, y) @ matrix, with entries -1, 0 and 1.

    The identity for angles that are not multiples of 90 degrees.
    """
    try:
        stored = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know all kinds of side data that its ffmpeg writes
        return _turn(frame.rotation)
    if stored is None:
        return np.eye(2)
    matrix = np.frombuffer(bytes(stored), np.int32)[[0, 1, 3, 4]].reshape(2, 2) / 65536
    lengths = [*abs(matrix).sum(0), *abs(matrix).sum(1)]
    return matrix if all(length == 1 for length in lengths) else np.eye(2)


def _turn(degrees: int) -> np.ndarray:
    """The matrix of a rotation against the clock, as `_rotation` returns it."""
    quarters, rest = divmod(degrees, 90)
    clockwise = np.array([[0, 1], [-1, 0]])
    return np.eye(2) if rest else np.linalg.matrix_power(clockwise, -quarters % 4)


def _picture(frame: av.VideoFrame, rotation: np.ndarray) -> Image.Image:
    try:
        pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
    except Exception as error:  # PyAV raises many kinds
        raise Unreadable(f"a frame cannot be decoded ({_reason(error)})") from error
    if rotation[0, 1]:
        pixels = pixels.swapaxes(0, 1)
        rotation = rotation[::-1]
    pixels = pixels[:: int(rotation[1, 1]), :: int(rotation[0, 0])]
    return Image.fromarray(np.ascontiguousarray(pixels))


# Images and arrays


def _read_images(paths: tuple[Path, ...]) -> Iterator[SourceFrame]:
    for path in paths:
        yield SourceFrame(None, partial(_open_image, path))


def _open_image(path: Path) -> Image.Image:
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise Unreadable(f"{path.name} is larger than {MAX_IMAGE_BYTES >> 20} MB")
        return images.open_image(path.read_bytes(), path.name)
    except (UserError, OSError) as error:
        raise Unreadable(str(error)) from error


def _read_npy(path: Path) -> Iterator[SourceFrame]:
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's parser of headers raises many kinds
        raise Unreadable("it is not a complete npy file of plain numbers") from error
    is_uint8 = isinstance(frames, np.ndarray) and frames.dtype == np.uint8
    if not is_uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise Unreadable("it does not hold uint8 frames of shape (T, H, W, 3)")
    _check_size(frames.shape[2], frames.shape[1])
    if 0 in frames.shape:
        raise Unreadable("it holds no pixels")
    for frame in frames:
        yield SourceFrame(None, partial(Image.fromarray, np.ascontiguousarray(frame)))
