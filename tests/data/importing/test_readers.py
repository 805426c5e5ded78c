"""Reading frames: order, colours, times and rotation; and any bytes are read or refused."""

import functools
import gc
import io
import struct
import tempfile
import threading
import zlib
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from genie_fn.data.importing import pipeline, readers, sources
from genie_fn.data.importing.pipeline import End, VideoPart
from genie_fn.data.importing.readers import Unreadable
from genie_fn.data.importing.resampling import FrameFormat
from genie_fn.data.importing.sources import Source
from tests import films

FRAMES = films.squares(6)
KINDS = [*films.CODECS, ".npy", ".png", ".jpg", ".bmp", ".webp"]


def save(path, frames):
    """Frames, or the first of them, as a file of that name."""
    if path.suffix in films.CODECS:
        films.write(path, frames)
    elif path.suffix == ".npy":
        np.save(path, frames)
    else:
        Image.fromarray(frames[0]).save(path)
    return path


def source(*paths):
    suffix = paths[0].suffix
    return Source(
        "a", "npy" if suffix == ".npy" else "images" if suffix in sources.IMAGES else "video", paths
    )


def images(*paths):
    return np.stack([np.array(frame.image()) for frame in readers.read(source(*paths))])


@pytest.mark.parametrize("suffix", [*films.CODECS, ".npy"])
def test_every_frame_comes_back_in_order(tmp_path, suffix):
    back = images(save(tmp_path / f"a{suffix}", FRAMES))
    assert back.shape == FRAMES.shape
    error = abs(back.astype(int) - FRAMES).mean((1, 2, 3))
    assert (error == 0).all() if suffix in (".npy", ".mov") else (error < 20).all()
    nearest = [abs(frame - FRAMES.astype(int)).mean((1, 2, 3)).argmin() for frame in back]
    assert nearest == [*range(6)]


def test_a_folder_of_images_is_read_file_by_file(tmp_path):
    paths = [tmp_path / f"{t}.png" for t in range(6)]
    for path, frame in zip(paths, FRAMES, strict=True):
        Image.fromarray(frame).save(path)
    assert (images(*paths) == FRAMES).all()
    assert next(readers.read(source(*paths))).time is None


@pytest.mark.parametrize(
    "pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le", "gray", "yuvj420p"]
)
def test_colours_survive_every_pixel_format(tmp_path, pixels):
    path = films.write(
        tmp_path / "a.mkv", np.full((2, 24, 32, 3), (200, 40, 90), np.uint8), pixels=pixels
    )
    expected = (90, 90, 90) if pixels == "gray" else (200, 40, 90)
    assert abs(images(path)[0, 12, 16].astype(int) - expected).max() <= 3


def test_the_colour_space_of_the_file_counts(tmp_path):
    tags = {"colorspace": Colorspace.ITU709, "color_range": ColorRange.MPEG}
    path = films.write(
        tmp_path / "a.mkv",
        np.full((2, 24, 32, 3), (200, 40, 90), np.uint8),
        pixels="yuv444p",
        **tags,
    )
    assert abs(images(path)[0, 12, 16].astype(int) - (200, 40, 90)).max() <= 3


def test_sixteen_bits_of_grey_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert (images(tmp_path / "a.png")[0, 0, :, 0] == ramp[0] >> 8).all()


def test_odd_sides_and_times(tmp_path):
    path = films.write(tmp_path / "a.mkv", FRAMES[:, :23, :31], times=[0, 0.1, 0.15, 1, 1.001, 2])
    assert images(path).shape == (6, 23, 31, 3)
    times = [frame.time for frame in readers.read(source(path))]
    assert [float(time - times[0]) for time in times] == [0, 0.1, 0.15, 1, 1.001, 2]


MATRICES = {  # as phones write them: x' = ax + cy, y' = bx + dy
    (1, 0, 0, 1): lambda x: x,
    (0, 1, -1, 0): lambda x: np.rot90(x, -1, (1, 2)),  # clockwise
    (-1, 0, 0, -1): lambda x: np.rot90(x, 2, (1, 2)),
    (0, -1, 1, 0): lambda x: np.rot90(x, 1, (1, 2)),
    (-1, 0, 0, 1): lambda x: x[:, :, ::-1],  # a horizontal flip
    (0, 1, 1, 0): lambda x: x.swapaxes(1, 2),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_rotated_videos_are_turned_upright(tmp_path, matrix):
    frames = films.squares(3)
    frames[:, :6, :6] = (255, 0, 0)  # so that no rotation looks like another
    path = films.write(tmp_path / "a.mp4", frames)
    straight, content = images(path), bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 44
    a, b, c, d = (65536 * x for x in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    assert (images(path) == MATRICES[matrix](straight)).all()


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_side_data_that_pyav_does_not_know_does_not_matter(tmp_path, orientation, turns):
    path = tmp_path / "a.avi"
    frames = films.squares(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuvj420p"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for t, frame in enumerate(frames):
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, "JPEG", exif=exif, quality=95)
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts = stream, t, t
            container.mux(packet)
    error = images(path).astype(int) - np.rot90(frames, turns, (1, 2))
    assert abs(error).mean() < 10


def test_the_aspect_of_pixels_is_read(tmp_path):
    path = films.write(tmp_path / "a.mp4", FRAMES, sample_aspect_ratio=Fraction(4, 3))
    assert next(readers.read(source(path))).aspect == Fraction(4, 3)


def test_damaged_videos_are_read_up_to_the_damage(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (30, 24, 32, 3), np.uint8)
    path = films.write(tmp_path / "a.mp4", frames, pixels="yuv420p")
    whole, content = images(path), bytearray(path.read_bytes())
    at = content.find(b"mdat") + 4
    content[at + len(content) // 2 : at + len(content) // 2 + 900] = bytes(900)
    path.write_bytes(content)
    seen = []
    with pytest.raises(Unreadable, match="damaged"):
        seen.extend(np.array(frame.image()) for frame in readers.read(source(path)))
    assert 5 < len(seen) < 30 and (np.stack(seen[:5]) == whole[:5]).all()


def test_a_truncated_recording_is_read_from_its_first_complete_frame(tmp_path):
    path = films.write(tmp_path / "a.ts", films.squares(30), gop_size=10)
    whole, content = images(path), path.read_bytes()
    (tmp_path / "cut.ts").write_bytes(content[len(content) // 2 // 188 * 188 :])
    rest = images(tmp_path / "cut.ts")
    assert 0 < len(rest) < 30 and (rest == whole[-len(rest) :]).all()


def test_frames_that_were_read_are_freed_at_once(tmp_path):
    path = films.write(tmp_path / "a.mkv", films.squares(30))
    gc.collect()
    gc.disable()
    try:
        for frame in readers.read(source(path)):
            frame.image()
        assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) < 6
    finally:
        gc.enable()


def test_files_that_are_no_video_are_refused_with_the_reason(tmp_path):
    (tmp_path / "a.txt").write_text("no video\n" * 100)
    (tmp_path / "a.m3u8").write_text(
        f"#EXTM3U\n#EXTINF:1,\n{films.write(tmp_path / 'b.mp4', FRAMES)}\n#EXT-X-ENDLIST\n"
    )
    np.save(tmp_path / "float.npy", np.zeros((3, 4, 4, 3), np.float32))
    np.save(tmp_path / "flat.npy", np.zeros((3, 4, 4), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{"path": "a"}], object))
    with_sound(tmp_path / "sound.wav")
    reasons = {
        "a.txt": "as a video",
        "a.m3u8": "as a video",
        "float.npy": "uint8",
        "flat.npy": r"\(T, H, W, 3\)",
    }
    reasons |= {"objects.npy": "plain numbers", "sound.wav": "no video stream"}
    for name, reason in reasons.items():
        with pytest.raises(Unreadable, match=reason):
            next(readers.read(source(tmp_path / name)))


def with_sound(path):
    path.write_bytes(
        b"RIFF"
        + struct.pack("<I", 36 + 800)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    )
    path.write_bytes(path.read_bytes() + b"data" + struct.pack("<I", 800) + bytes(800))


def png_claiming(side):
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(100)), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def gif_claiming(side):
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0x80, 0, 0)
        + bytes(6)
        + b","
        + struct.pack("<HHHHB", 0, 0, side, side, 0)
        + b"\2\2L\1\0;"
    )


def npy_claiming(*shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + bytes(1000)


def bmp_claiming(side):
    return (
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 1000, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(946)
    )


def wider(content, width=100_000):
    """A video file that claims another width wherever it stores the width 32."""
    for form in (">H", "<H", "<I", ">I"):
        if width < 1 << 8 * struct.calcsize(form):
            content = content.replace(
                struct.pack(form, 32) + struct.pack(form, 24), struct.pack(form, width) * 2
            )
    return content


@functools.cache
def original(suffix):
    """The bytes of an undamaged file."""
    with tempfile.TemporaryDirectory() as folder:
        return save(Path(folder) / f"a{suffix}", FRAMES).read_bytes()


def consume(path, fps=0.0):
    """Import a file completely; returns the number of frames and the end."""
    frame_format = FrameFormat(16, "crop", fps, 0.4)
    items = pipeline.read_parts(source(path), frame_format, None, threading.Event())
    *parts, end = islice(items, 10_000)
    assert isinstance(end, End) and all(isinstance(part, VideoPart) for part in parts)
    assert "memory" not in end.note and len(end.note) < 300 and "\n" not in end.note
    for part in parts:
        assert part.frames.shape[1:] == (16, 16, 3)
        assert len(part.frames) == len(part.episode_starts)
    return sum(len(part.frames) for part in parts), end


@pytest.mark.parametrize(
    "name, content",
    {
        "png": png_claiming(100_000),
        "png ": png_claiming(15_000),
        "gif": gif_claiming(65_535),
        "bmp": bmp_claiming(100_000),
        "gif ": gif_claiming(15_000),
        "npy": npy_claiming(2, 100_000, 100_000, 3),
        "npy ": npy_claiming(10**9, 64, 64, 3),
        "npy  ": npy_claiming(-1, 64, 64, 3),
    }.items(),
)
def test_vast_sizes_are_refused_before_decoding(tmp_path, careful, name, content):
    path = tmp_path / f"a.{name.strip()}"
    path.write_bytes(content)
    count, end = consume(path)
    assert not count and end.note


@pytest.mark.parametrize(
    "width", [15_000, 60_000, 100_000, 2**31 - 1]
)  # ffmpeg itself would allow the first
@pytest.mark.parametrize("suffix", list(films.CODECS))
def test_videos_that_claim_a_vast_size_are_refused_or_read(tmp_path, careful, suffix, width):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(wider(original(suffix), width))
    count, end = consume(path)
    assert end.note or count == 6
    assert (
        count == 0 or width != 15_000 or suffix not in (".webm", ".gif")
    )  # whose frames say how large they are


EDIT = st.tuples(
    st.sampled_from(["set", "cut", "insert", "end", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([b"\xff" * 4, b"\x7f" + b"\xff" * 3, bytes(4)]),
    ),
)


def edited(content, edits):
    for kind, where, new in edits:
        # Half of the places are in the first bytes, where formats say what is to come.
        at = (
            int(2 * where * len(content))
            if where < 0.5
            else int(2 * (where - 0.5) * min(200, len(content)))
        )
        before, after = content[:at], content[at:]
        parts = {
            "set": before + new + after[len(new) :],
            "cut": before + after[8 * len(new) :],
            "end": before,
        }
        content = (
            parts.get(kind)
            or before + (new if kind == "insert" else content[: 100 * len(new)]) + after
        )
    return content


def fuzz(tmp_path, suffix, edits, fps):
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes(edited(original(suffix), edits))
    count, end = consume(path, fps)
    assert count < 100_000
    assert count or end.note


CASES = given(st.sampled_from(KINDS), st.lists(EDIT, max_size=6), st.sampled_from([0.0, 10.0]))
QUIETLY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=200, **QUIETLY)
@CASES
@example(".gif", [("end", 0.0, b"x")], 0.0)  # an empty file
def test_any_bytes_are_read_or_refused(tmp_path, careful, suffix, edits, fps):
    fuzz(tmp_path, suffix, edits, fps)


@pytest.mark.slow
@settings(max_examples=2000, **QUIETLY)
@CASES
def test_any_bytes_are_read_or_refused_at_length(tmp_path, careful, suffix, edits, fps):
    fuzz(tmp_path, suffix, edits, fps)


def test_undamaged_files_are_read_completely(tmp_path):
    for suffix in KINDS:
        (path := tmp_path / f"a{suffix}").write_bytes(original(suffix))
        assert consume(path) == (1 if suffix in sources.IMAGES else 6, End())
