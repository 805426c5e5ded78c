"""Which clips a report shows, and the files beside it."""

import numpy as np
import torch
from PIL import Image

from genie_fn import data, random
from genie_fn.evaluation.report import pictures


def test_clips_that_change_most_come_first_and_the_lowest_psnr_is_shown(tmp_path):
    frames = random.randint(random.key(0), (16, 4, 16, 16, 3), 0, 256).to(torch.uint8)
    noise = (
        torch.arange(16)[:, None, None, None, None] * 8
    )  # clip 15 is generated worst, clip 0 is copied worst
    future = frames[:, 1:]

    def off(by: torch.Tensor) -> torch.Tensor:
        return torch.where(future < 128, future + by, future - by).to(torch.uint8)

    videos = {"own_actions": off(noise), "copy_last": off(120 - noise), "shuffled": future}
    spread, worst = pictures.choose_clips(frames, videos, np.arange(100, 116))
    assert [picture.caption.split(":")[0] for picture in worst] == [
        f"level {115 - i}" for i in range(6)
    ]
    assert [picture.caption.split(":")[0] for picture in spread] == [
        f"level {102 + 2 * i}" for i in range(6)
    ]
    assert spread[0].frames.shape == (4, 48, 16, 3)
    real, own, shuffled = np.split(spread[0].frames, 3, 1)
    assert np.array_equal(real, frames[2]) and np.array_equal(own[1:], videos["own_actions"][2])
    assert np.array_equal(own[0], real[0]) and np.array_equal(shuffled, real)
    pictures.write(tmp_path, spread, 16, [])
    assert not (tmp_path / "held.gif").exists()
    assert np.array(Image.open(tmp_path / "strip.png")).shape == (
        2 * (12 * 17 - 1),
        2 * (4 * 17 - 1),
        3,
    )
    assert Image.open(tmp_path / "rollouts.gif").size == (6 * 32, 64)


def test_held_keys_are_one_video(tmp_path):
    real, generated = (
        torch.full((2, 3, 5, 8, 8, 3), shade, dtype=torch.uint8) for shade in (50, 200)
    )
    films = pictures.held_keys(real, generated, ("LEFT", "RIGHT"))
    pictures.write(tmp_path, [pictures.Picture(np.zeros((5, 16, 8, 3), np.uint8), "")], 8, films)
    film = Image.open(tmp_path / "held.gif")
    assert film.size == (2 * 3 * 8, 2 * 4 * 8)
    rows = np.array(film.convert("L"))[::16, 0]
    assert [row > 100 for row in rows] == [False, True, False, True], (
        "recorded above generated, for each key"
    )


def test_a_strip_shows_transitions_and_what_changed(tmp_path):
    store = data.create(tmp_path / "data", {}, 16, 16, 3)
    frames = (
        np.zeros((10, 16, 16, 3), np.uint8)
        + np.arange(0, 100, 10, dtype=np.uint8)[:, None, None, None]
    )
    store = data.append_segments(
        store, [data.Recording(9, frames, np.zeros(10), np.zeros(10), np.zeros(10, bool))]
    )
    strip = pictures.transitions(store, np.array([0, 5]), [(0, 1), (1, 2)])
    corners = strip[::18, ::18, 0]
    assert corners.tolist() == [[10, 70], [20, 80], [133, 133]]
    assert pictures.transitions(store, np.array([0]), []).size == 0


def test_a_caption_stands_above_its_image_and_may_be_wider():
    image = np.full((8, 20, 3), 7, np.uint8)
    captioned = pictures.captioned(image, "action 0: moves to the right")
    height = len(captioned) - 8
    assert height > 8 and captioned.shape[1] > 60
    assert (captioned[height:, :20] == 7).all() and (captioned[height:, 20:] == 255).all()
    assert captioned[:height].min() < 50 and (captioned[0] == 255).all()
