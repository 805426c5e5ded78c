"""Videos and images are written so that they read back."""

import errno
from pathlib import Path

import av
import imageio.v3 as imageio
import numpy as np
import pytest

from genie_fn.data import video
from genie_fn.errors import UserError


@pytest.fixture
def frames():
    """(6, 16, 24, 3) uint8: blocks of flat colour, different in every frame."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 3), dtype=np.uint8)
    return video.enlarge(colours, 8)


def read(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_enlarging_repeats_pixels(frames):
    big = video.enlarge(frames, 3)
    assert big.shape == (6, 48, 72, 3)
    assert (big[:, 1::3, 2::3] == frames).all()


def test_a_lossless_mp4_keeps_every_value(frames, tmp_path):
    video.write_mp4(tmp_path / "a.mp4", frames, lossless=True)
    assert (read(tmp_path / "a.mp4") == frames).all()


def test_a_plain_mp4_is_close_in_colour_and_takes_odd_sizes(frames, tmp_path):
    video.write_video(tmp_path / "new" / "a.mp4", frames[:, :15, :23], scale=5)
    back = read(tmp_path / "new" / "a.mp4")
    assert back.shape == (6, 76, 116, 3)  # the next even sides
    inside = back[:, 20, 20].astype(int)  # the middle of the first block
    assert abs(inside - frames[:, 0, 0]).max() < 16


def test_a_gif_keeps_the_order_and_the_rate_of_frames(frames, tmp_path):
    video.write_video(tmp_path / "a.gif", frames, fps=5, scale=2)
    back = imageio.imread(tmp_path / "a.gif")
    assert back.shape == (6, 32, 48, 3)
    assert abs(back.astype(int) - video.enlarge(frames, 2)).max() < 8  # few colours: nearly exact
    assert imageio.immeta(tmp_path / "a.gif")["duration"] == 200


def test_a_png_is_the_frames_side_by_side(frames, tmp_path):
    video.write_video(tmp_path / "a.png", frames)
    image = imageio.imread(tmp_path / "a.png")
    assert image.shape == (16, 6 * 24 + 5, 3)
    assert (image[:, 25:49] == frames[1]).all() and (image[:, 24] == 255).all()


def test_rows_of_a_grid_keep_their_places(frames):
    image = video.grid(np.stack([frames, frames[::-1]]))
    assert image.shape == (33, 149, 3)
    assert (image[17:, :24] == frames[-1]).all() and (image[:16, -24:] == frames[-1]).all()


def test_an_unknown_kind_of_file_is_refused(frames, tmp_path):
    with pytest.raises(UserError, match=r"choose a file name that ends in \.mp4"):
        video.write_video(tmp_path / "a.txt", frames)


def test_episodes_are_cut_at_their_starts(frames, tmp_path):
    starts = np.array([True, False, True, False, False, True])
    video.write_episodes(tmp_path, "level_7", frames, starts)
    files = sorted(tmp_path.glob("*.mp4"))
    assert [f.name for f in files] == ["level_7_000.mp4", "level_7_001.mp4", "level_7_002.mp4"]
    assert (read(files[1]) == frames[2:5]).all()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("kind", ["mp4", "gif", "png"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError) as full:
        video.write_video(path, np.zeros((2, 32, 32, 3), np.uint8))
    assert full.value.filename == str(path) and full.value.errno == errno.ENOSPC
