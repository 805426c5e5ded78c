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

from genie_fn.data import colour
from genie_fn.data.importing import pipeline, readers, sources
from genie_fn.data.importing.pipeline import End, VideoPart
from genie_fn.data.importing.readers import Conversion, Unreadable
from genie_fn.data.importing.resampling import FrameFormat
from genie_fn.data.importing.sources import Source
from tests import films
from tests.data.test_colour import coded

FRAMES = films.squares(6)
PICTURES = [".png", ".jpg", ".bmp", ".webp", ".tiff", ".avif", ".ppm"]
ANIMATIONS = {".apng": "PNG", ".webp2": "WEBP", ".tif": "TIFF", ".gif": "GIF", ".avifs": "AVIF"}
KINDS = [*films.CODECS, ".npy", *PICTURES, *ANIMATIONS]


def save(path, frames):
    """Frames, or the first of them, as a file of that name."""
    if path.suffix in ANIMATIONS:
        animate(path, frames)
    elif path.suffix in films.CODECS:
        films.write(path, frames)
    elif path.suffix == ".npy":
        np.save(path, frames)
    else:
        Image.fromarray(frames[0]).save(path)
    return path


def animate(path, frames, **options):
    """Frames, RGB or RGBA, as an animated file of a format of Pillow."""
    first, *others = map(Image.fromarray, frames)
    kind = ANIMATIONS.get(path.suffix) or path.suffix[1:].upper()
    options = {"lossless": True, "duration": 100} | options if kind != "TIFF" else {}
    if kind == "AVIF":
        options |= {"quality": 100, "subsampling": "4:4:4"}
    first.save(path, kind, save_all=True, append_images=others, **options)
    return path


def source(*paths):
    return Source("a", sources.kind_of(paths[0]), paths)


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


@pytest.mark.parametrize("suffix", [*ANIMATIONS, ".png", ".webp", ".jpg", ".mp4"])
def test_an_animation_is_a_video_whatever_its_ending(tmp_path, suffix):
    path = animate(tmp_path / f"a{suffix if suffix in ANIMATIONS else '.webp2'}", FRAMES)
    path = path.rename(tmp_path / f"a{suffix}")
    assert sources.kind_of(path) == "animation"
    error = abs(images(path).astype(int) - FRAMES).mean()
    assert error < (6 if suffix in (".gif", ".avifs") else 0.01)
    times = [frame.time for frame in readers.read(source(path))]
    assert times == [None if suffix == ".tif" else Fraction(t, 10) for t in range(6)]


def test_a_video_with_the_ending_of_a_picture_is_a_video(tmp_path):
    path = films.write(tmp_path / "a.mkv", FRAMES).rename(tmp_path / "a.png")
    assert sources.kind_of(path) == "video" and len(images(path)) == 6


def test_a_stream_of_pictures_is_a_video_and_one_picture_is_none(tmp_path):
    pictures = [save(tmp_path / f"{t}.jpg", FRAMES[t:]).read_bytes() for t in range(6)]
    stream = tmp_path / "a.mjpeg"
    stream.write_bytes(b"".join(pictures))
    assert sources.kind_of(stream) == "video" and len(images(stream)) == 6
    for name, kind in (("a.photo", "JPEG"), ("a.gif", "GIF")):
        Image.fromarray(FRAMES[0]).save(tmp_path / name, kind)
        assert sources.kind_of(tmp_path / name) == "images"


def test_durations_of_an_animation_are_its_times(tmp_path):
    path = animate(tmp_path / "a.gif", FRAMES, duration=[50, 200, 0, 10, 20, 30])
    times = [float(frame.time) for frame in readers.read(source(path))]
    assert times == [0, 0.05, 0.25, 0.35, 0.45, 0.47]


@pytest.mark.parametrize("suffix", PICTURES)
def test_every_format_of_pictures_is_read(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", FRAMES)
    assert sources.kind_of(path) == "images"
    assert abs(images(path)[0].astype(int) - FRAMES[0]).mean() < 8


# Transparency


HIDDEN = np.dstack([FRAMES[0], np.full((24, 32), 255, np.uint8)])
HIDDEN[:, :16, 3] = 0
HIDDEN[:8, 16:, 3] = 102  # 40 percent


SHARP = {".avif": {"quality": 100}, ".webp": {"lossless": True, "exact": True}}


def over(background):
    """What is seen of HIDDEN."""
    alpha = HIDDEN[..., 3:] / 255
    return HIDDEN[..., :3] * alpha + (255 if background == "white" else 0) * (1 - alpha)


def with_alpha(path, codec, pixels):
    """A video of three frames HIDDEN."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 24, 32, pixels
        if path.suffix == ".webm":
            stream.codec_context.options = {"auto-alt-ref": "0", "crf": "4", "b": "4M"}
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(HIDDEN, format="rgba")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("background", ["black", "white"])
@pytest.mark.parametrize(
    "name", ["a.png", "a.webp", "a.tiff", "a.apng", "a.webp2", "a.avif", "a.avifs"]
)
def test_what_is_transparent_in_pictures_shows_the_background(tmp_path, name, background):
    path = tmp_path / name
    if path.suffix in ANIMATIONS:
        animate(path, np.stack([HIDDEN, HIDDEN[:, ::-1]]))
    else:
        Image.fromarray(HIDDEN).save(path, **SHARP.get(path.suffix, {}))
    first = next(readers.read(source(path), 1, Conversion(background)))
    error = abs(np.array(first.image()) - over(background))
    assert error.max() < 4 or ("avif" in name and error.mean() < 8)


@pytest.mark.parametrize("background", ["black", "white"])
@pytest.mark.parametrize("mode", ["P", "LA", "PA", "RGB"])
def test_every_kind_of_transparency_counts(tmp_path, mode, background):
    image = Image.new("RGBA", (8, 8), (70, 70, 70, 255))
    image.paste((200, 200, 200, 0), (0, 0, 4, 8))
    options = {}
    if mode == "RGB":  # a colour that is transparent
        options = {"transparency": (200, 200, 200)}
    elif mode == "P":
        options = {"transparency": 1}
        image = Image.fromarray((np.asarray(image)[..., 0] == 200).astype(np.uint8), "P")
        image.putpalette([70, 70, 70, 200, 200, 200])
    path = tmp_path / ("a.tiff" if mode == "PA" else "a.png")
    (image if mode == "P" else image.convert("LA" if mode == "PA" else mode)).save(path, **options)
    (frame,) = readers.read(source(path), 1, Conversion(background))
    pixels = np.array(frame.image())
    assert (pixels[:, :4] == (255 if background == "white" else 0)).all()
    assert (pixels[:, 4:] == 70).all()


@pytest.mark.parametrize("background", ["black", "white"])
@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("png.mov", "png", "rgba"),
        ("rle.mov", "qtrle", "argb"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("vp9.webm", "libvpx-vp9", "yuva420p"),
        ("vp8.webm", "libvpx", "yuva420p"),
    ],
)
def test_what_is_transparent_in_videos_shows_the_background(
    tmp_path, name, codec, pixels, background
):
    path = with_alpha(tmp_path / name, codec, pixels)
    frames = list(readers.read(source(path), 1, Conversion(background)))
    error = abs(np.array(frames[1].image()) - over(background))
    assert len(frames) == 3 and error.mean() < (8 if name.endswith("webm") else 2)


# High dynamic range


@pytest.mark.parametrize("transfer", [colour.PQ, colour.HLG])
@pytest.mark.parametrize("tagged", [True, False])
def test_high_dynamic_range_is_tone_mapped(tmp_path, transfer, tagged):
    level = (204, 58, 82)
    path = hdr_video(tmp_path / "a.mkv", level, transfer, tagged)
    frame = next(readers.read(source(path))).image()
    assert abs(np.asarray(frame)[12, 16].astype(int) - level).max() <= 4
    small = next(readers.read(source(path), 1, Conversion(least_side=8))).image()
    assert small.size == (10, 8) and abs(np.asarray(small)[4, 5].astype(int) - level).max() <= 4


def hdr_video(path, level, transfer, tagged=True, primaries=colour.BT2020):
    """Two frames of 10 bits in BT.2020, with primaries and matrix in the file if `tagged`."""
    signal = coded(np.array(level), transfer)
    pixels = np.broadcast_to(signal, (24, 32, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p10le"
        context = stream.codec_context
        context.color_trc = transfer
        if tagged:
            context.color_primaries, context.colorspace = primaries, Colorspace.BT2020
            context.color_range = ColorRange.MPEG
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_pictures_of_high_dynamic_range_are_tone_mapped(tmp_path):
    signal = (coded(np.array((204, 58, 82)), colour.PQ) >> 8).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(signal, (8, 8, 3)).copy()).save(file, "PNG")
    content = file.getvalue()
    at = content.find(b"IDAT") - 4
    for transfer, primaries in ((colour.PQ, 9), (10, 9)):
        chunk = b"cICP" + bytes([primaries, transfer, 0, 1])
        chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / f"{transfer}.png").write_bytes(content[:at] + chunk + content[at:])
    assert abs(images(tmp_path / "16.png")[0].astype(int) - (204, 58, 82)).max() <= 4
    with pytest.raises(Unreadable, match="number 10 of"):
        images(tmp_path / "10.png")


@pytest.mark.parametrize("transfer, primaries", [(10, 9), (1, 10), (10, 10)])
def test_colours_that_cannot_be_converted_are_refused(tmp_path, transfer, primaries):
    path = hdr_video(tmp_path / "a.mkv", (204, 58, 82), transfer, primaries=primaries)
    with pytest.raises(Unreadable, match="number 10 of ITU-T"):
        images(path)


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


@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709, Colorspace.BT2020])
@pytest.mark.parametrize("levels", [ColorRange.MPEG, ColorRange.JPEG])
def test_the_matrix_and_the_range_of_the_file_count(tmp_path, matrix, levels):
    path = films.write(
        tmp_path / "a.mkv",
        np.full((2, 24, 32, 3), (200, 40, 90), np.uint8),
        pixels="yuv444p",
        colorspace=matrix,
        color_range=levels,
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
        assert consume(path) == (1 if suffix in PICTURES else 6, End())
