"""Reading the frames of a source: video files, animations, images, npy and other episodes.

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
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image

from genie_fn.data import colour, images
from genie_fn.data.colour import UNSPECIFIED, Coding
from genie_fn.data.images import Background
from genie_fn.data.importing import archives, containers
from genie_fn.data.importing.action_labels import TIME_TOLERANCE
from genie_fn.data.importing.archives import Unreadable
from genie_fn.data.importing.sources import Source
from genie_fn.errors import UserError

MAX_IMAGE_BYTES = 256 << 20
MAX_THREADS = 8  # of a decoder; each of them holds one more frame
MAX_ASPECT = 8  # of a pixel; a file that claims more is wrong
SMALL = 1 << 18  # pixels; decoding smaller frames is slower with several threads
# Decoders of WebM's alpha channel, which ffmpeg's own leave out.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Matrices of ITU-T H.273 that ffmpeg converts to RGB.
MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}


class SourceFrame(NamedTuple):
    """One frame of a source, decoded when `image` is called."""

    time: Fraction | None
    """When it appears, in seconds; None if the source has no times."""
    image: Callable[[], Image.Image]
    aspect: Fraction = Fraction(1)
    """The width of a pixel divided by its height."""


class Conversion(NamedTuple):
    """How pictures become RGB."""

    background: Background = "black"
    """What is seen through transparent pixels."""
    least_side: int = 1 << 16
    """Frames of other colours than sRGB may be reduced before these are converted, which is slow,
    but to no fewer pixels a side than this."""


PLAIN = Conversion()


def read(source: Source, threads: int = 1, conversion: Conversion = PLAIN) -> Iterator[SourceFrame]:
    """The frames of a source in order. Raises Unreadable."""
    if source.kind == "video":
        part = source.episode.seconds if source.episode else None
        return _read_video(source.files[0], threads, conversion, part)
    if source.kind == "archive":
        assert source.episode is not None
        pictures = archives.read(source.episode, conversion.background)
        return (SourceFrame(None, picture) for picture in pictures)
    if source.kind == "animation":
        return _read_animation(source.files[0], conversion.background)
    if source.kind == "npy":
        return _read_npy(source.files[0])
    return _read_images(source.files, conversion.background)


# Video files


def _read_video(
    path: Path,
    threads: int,
    conversion: Conversion,
    seconds: tuple[float, float] | None = None,
) -> Iterator[SourceFrame]:
    """The frames of a video file, or of the part of it from one second to another."""
    is_open = False
    try:
        with containers.opened(path) as file:
            stream = file.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise Unreadable("it has no video stream")
            context = stream.codec_context
            if context is None:
                raise Unreadable("its codec is unknown")
            archives.check_size(context.width, context.height)
            is_open = True
            decoder = _decoder(stream, context, threads)
            if seconds is None:
                yield from _stream_frames(file, stream, decoder, conversion)
            else:
                if stream.time_base:
                    file.seek(int(seconds[0] / stream.time_base), stream=stream)
                frames = _stream_frames(file, stream, decoder, conversion)
                yield from _between(frames, *seconds)
    except Unreadable:
        raise
    except Exception as error:  # PyAV raises many kinds
        what = "it is damaged" if is_open else "it cannot be read as a video"
        raise Unreadable(f"{what} ({_reason(error)})") from error


def _between(frames: Iterator[SourceFrame], first: float, last: float) -> Iterator[SourceFrame]:
    """The frames that appear from one second to another, without the second."""
    for frame in frames:
        time = float(frame.time or 0)
        if time >= last - TIME_TOLERANCE:
            return
        if time >= first - TIME_TOLERANCE:
            yield frame


def _decoder(stream: av.VideoStream, context: VideoCodecContext, threads: int) -> VideoCodecContext:
    """The stream's own decoder, or one that decodes alpha too."""
    decoder = context
    if stream.metadata.get("alpha_mode") == "1" and context.name in ALPHA_DECODERS:
        decoder = VideoCodecContext.create(ALPHA_DECODERS[context.name], "r")
        decoder.extradata = context.extradata
    if not isinstance(decoder, VideoCodecContext):
        raise Unreadable("its codec is unknown")
    decoder.options = containers.LIMITS
    decoder.thread_type = "AUTO"
    small = context.width * context.height <= SMALL
    decoder.thread_count = 1 if small else min(threads, MAX_THREADS)
    return decoder


def _stream_frames(
    file: InputContainer,
    stream: av.VideoStream,
    decoder: VideoCodecContext,
    conversion: Conversion,
) -> Iterator[SourceFrame]:
    """The frames of a video stream with their times and the rotation of the first frame."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        aspect = Fraction(1)
    # Only the first frame is asked: side data keeps its frame until garbage is collected.
    rotation = None
    for number, frame in enumerate(_decoded(file, stream, decoder)):
        time = number / rate
        if frame.pts is not None and frame.time_base:
            time = frame.pts * frame.time_base
        if rotation is None:
            rotation = _rotation(frame)
        sideways = rotation[0, 1] != 0
        picture = partial(_picture, frame, rotation, conversion)
        yield SourceFrame(time, picture, 1 / aspect if sideways else aspect)


def _decoded(
    file: InputContainer, stream: av.VideoStream, decoder: VideoCodecContext
) -> Iterator[av.VideoFrame]:
    """The decoded frames, without damaged ones at the start: recorded broadcasts start anywhere."""
    begun = False
    first_error = None
    for packet in file.demux(stream):
        try:
            frames = decoder.decode(packet)
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


def _picture(frame: av.VideoFrame, rotation: np.ndarray, conversion: Conversion) -> Image.Image:
    coding = Coding(frame.color_trc, frame.color_primaries)
    problem = _unsupported(frame, coding)
    if problem:
        raise Unreadable(problem)
    try:
        pixels = _rgb(frame, coding, conversion.least_side)
    except Exception as error:  # PyAV raises many kinds
        raise Unreadable(f"a frame cannot be decoded ({_reason(error)})") from error
    pixels = images.to_standard(pixels, coding, conversion.background)
    if rotation[0, 1]:
        pixels = pixels.swapaxes(0, 1)
        rotation = rotation[::-1]
    pixels = pixels[:: int(rotation[1, 1]), :: int(rotation[0, 0])]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _unsupported(frame: av.VideoFrame, coding: Coding) -> str:
    """Why the colours of a frame cannot be converted to RGB; empty if they can."""
    if frame.format.is_rgb or len(frame.format.components) < 3 or frame.colorspace in MATRICES:
        return colour.unsupported(coding)
    return f"its colour matrix (number {frame.colorspace} of ITU-T H.273) is not supported"


def _rgb(frame: av.VideoFrame, coding: Coding, least_side: int) -> np.ndarray:
    """(H, W, 3 or 4): uint8 RGB or RGBA, or uint16 where the colours are yet to be converted."""
    kind = frame.format
    has_alpha = kind.has_palette or any(component.is_alpha for component in kind.components)
    name = "rgba" if has_alpha else "rgb24"
    if colour.is_standard(coding):
        return frame.reformat(format=name, threads=1).to_ndarray()
    if frame.colorspace == UNSPECIFIED and coding.transfer in (colour.PQ, colour.HLG):
        matrix = Colorspace.BT2020
    else:
        matrix = None
    factor = max(1, min(frame.width, frame.height) // least_side)
    reduced = frame.reformat(
        frame.width // factor,
        frame.height // factor,
        "rgba64le" if has_alpha else "rgb48le",
        src_colorspace=matrix,
        interpolation=Interpolation.AREA,
        threads=1,
    )
    return reduced.to_ndarray()


# Images and arrays


def _read_images(paths: tuple[Path, ...], background: Background) -> Iterator[SourceFrame]:
    for path in paths:
        yield SourceFrame(None, partial(_open_image, path, background))


def _open_image(path: Path, background: Background) -> Image.Image:
    try:
        return images.open_image(_content(path), path.name, background)
    except (UserError, OSError) as error:
        raise Unreadable(str(error)) from error


def _read_animation(path: Path, background: Background) -> Iterator[SourceFrame]:
    try:
        for time, picture in images.pictures(_content(path), path.name, background):
            yield SourceFrame(time, partial(_same, picture))
    except (UserError, OSError) as error:
        raise Unreadable(str(error)) from error


def _same(picture: Image.Image) -> Image.Image:
    return picture


def _content(path: Path) -> bytes:
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise Unreadable(f"{path.name} is larger than {MAX_IMAGE_BYTES >> 20} MB")
    return path.read_bytes()


def _read_npy(path: Path) -> Iterator[SourceFrame]:
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's parser of headers raises many kinds
        raise Unreadable("it is not a complete npy file of plain numbers") from error
    is_uint8 = isinstance(frames, np.ndarray) and frames.dtype == np.uint8
    if not is_uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise Unreadable("it does not hold uint8 frames of shape (T, H, W, 3)")
    archives.check_size(frames.shape[2], frames.shape[1])
    if 0 in frames.shape:
        raise Unreadable("it holds no pixels")
    for frame in frames:
        yield SourceFrame(None, partial(Image.fromarray, np.ascontiguousarray(frame)))
