"""Pace, shape, scenes, actions of frames: every rule of the import by itself."""

import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genie_fn.data import video
from genie_fn.data.importing import resampling
from genie_fn.data.importing.action_labels import Known
from genie_fn.data.importing.readers import Shown
from genie_fn.data.importing.resampling import End, Shape
from genie_fn.data.importing.sources import Source
from tests import films


def numbers(times, fps):
    """The frames that are taken, and where episodes begin."""
    shown = [
        Shown(None if t is None else Fraction(t).limit_denominator(10**6), None) for t in times
    ]
    taken = [(number, begins) for number, begins, _ in resampling.resample(shown, fps)]
    return [number for number, _ in taken], [at for at, (_, begins) in enumerate(taken) if begins]


def regular(count, fps, ticks=None):
    """Times of a regular video, rounded to `ticks` per second as containers do."""
    return [
        round(t / fps * ticks) / ticks if ticks else Fraction(t) / Fraction(fps)
        for t in range(count)
    ]


def test_every_frame_without_a_pace():
    assert numbers(regular(5, 30), 0) == ([0, 1, 2, 3, 4], [0])
    assert numbers([None] * 5, 10) == ([0, 1, 2, 3, 4], [0])


@pytest.mark.parametrize("ticks", [None, 1000, 90_000])
def test_half_the_pace_takes_every_other_frame_however_times_are_rounded(ticks):
    assert numbers(regular(31, 30, ticks), 15)[0] == [*range(0, 31, 2)]
    assert numbers(regular(50, 60, ticks), 10)[0] == [*range(0, 50, 6)]
    assert numbers(regular(40, 25, ticks), 25)[0] == [*range(40)]


def test_odd_ratios_stay_within_half_a_frame():
    times = regular(200, Fraction(30_000, 1001))
    taken, _ = numbers(times, 12)
    error = [abs(times[number] - Fraction(k, 12)) for k, number in enumerate(taken)]
    assert max(error) <= Fraction(1001, 60_000) and len(taken) == int(times[-1] * 12) + 1


def test_a_slower_source_repeats_its_frames():
    assert numbers(regular(3, 10), 30)[0] == [0, 0, 0, 1, 1, 1, 2]


def test_a_variable_rate_shows_what_is_on_the_screen():
    # A picture that stands for a second, then quick ones: nothing may appear much before its time.
    times = [0, 1, 1.02, 1.04, 1.5]
    taken, _ = numbers(times, 10)
    assert taken == [0] * 10 + [1] + [3] * 4 + [4]


def test_a_pause_or_a_jump_back_begins_an_episode_and_the_clock_anew():
    assert numbers([0, 0.1, 0.2, 60.25, 60.35], 10) == ([0, 1, 2, 3, 4], [0, 3])
    assert numbers([5, 5.1, 1.03, 1.13], 10) == ([0, 1, 2, 3], [0, 2])
    assert numbers([0, 0.1, 99, 99.1], 0) == ([0, 1, 2, 3], [0, 2])


def test_times_far_apart_do_not_fill_the_disk():
    assert len(numbers([0, 10**9, 2 * 10**9], 240)[0]) < 10


def picture(height, width):
    """Red left, green in the middle, blue right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel, part in enumerate(np.array_split(np.arange(width), 3)):
        pixels[:, part, channel] = 255
    return Image.fromarray(pixels)


def test_cropping_keeps_the_middle_padding_everything_stretching_the_size():
    wide = picture(30, 90)
    assert (resampling.fit(wide, 30, "crop") == (0, 255, 0)).all()
    padded = resampling.fit(wide, 30, "pad")
    assert (
        (padded[10:20] == np.asarray(wide)[::3, ::3]).all()
        and not padded[:10].any()
        and not padded[20:].any()
    )
    assert (resampling.fit(wide, 30, "stretch")[:, ::10] == np.eye(3) * 255).all()
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    assert (resampling.fit(tall, 30, "crop") == (0, 255, 0)).all()
    assert not resampling.fit(tall, 30, "pad")[:, :10].any()


def test_pixels_that_are_not_square_are_shown_as_they_should_look():
    narrow = picture(30, 15)  # each pixel twice as wide as high: a square
    assert (
        resampling.fit(narrow, 30, "crop", Fraction(2)) == resampling.fit(narrow, 30, "stretch")
    ).all()
    assert (
        resampling.fit(narrow, 30, "pad", Fraction(2)) == resampling.fit(narrow, 30, "stretch")
    ).all()
    assert (
        resampling.fit(picture(30, 90), 30, "pad", Fraction(1, 3))
        == resampling.fit(picture(30, 30), 30, "crop")
    ).all()


@pytest.mark.parametrize(
    "aspect", [Fraction(1), Fraction(8, 9), Fraction(64, 45), Fraction(1, 7), Fraction(8)]
)
@pytest.mark.parametrize("sides", [(1, 1), (1, 999), (999, 1), (31, 23), (720, 576)])
@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_every_shape_fits(how, sides, aspect):
    white = Image.new("RGB", sides, (255, 255, 255))
    frame = resampling.fit(white, 16, how, aspect)
    assert (
        frame.shape == (16, 16, 3) and frame.max() == 255 and (how == "pad" or frame.min() == 255)
    )


def test_resizing_averages_and_leaves_what_fits_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(pixels)
    assert (resampling.fit(image, 64, "crop") == pixels).all()
    means = pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert abs(resampling.fit(image, 32, "crop") - means).max() <= 1
    assert (resampling.fit(Image.fromarray(video.enlarge(pixels, 3)), 64, "crop") == pixels).all()


def test_movement_is_no_cut_and_another_scene_is():
    first, second = films.squares(30, 64, 64, colour=1), films.squares(30, 64, 64, colour=2)
    moves = [
        resampling.change(a, b)
        for film in (first, second)
        for a, b in zip(film, film[1:], strict=False)
    ]
    assert max(moves) < 0.05 and resampling.change(first[-1], second[0]) > 0.9
    assert resampling.change(first[0], first[0]) == 0


def test_a_background_at_the_edge_of_a_bin_is_no_cut():
    for level in range(1, 255):
        before, after = films.greys([level, level + 1])
        assert resampling.change(before, after) == 0


def known(by, at, ids):
    return Known(Path("a.csv"), by, np.array(at, float), np.array(ids, np.uint8))


@pytest.fixture
def film(tmp_path):
    """A video of 12 frames at 30 frames per second, which changes its scene at frame 6."""
    frames = np.concatenate([films.squares(6, colour=1), films.squares(6, colour=2)])
    return Source("a.mkv", "video", (films.write(tmp_path / "a.mkv", frames),))


def imported(source, labels=None, **options):
    shape = Shape(**{"size": 16, "fit": "crop", "fps": 0, "cuts": 0.4} | options)
    *found, end = resampling.parts(source, shape, labels, threading.Event())
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)], end


def test_a_source_becomes_frames_actions_and_episodes(film):
    (frames, actions, starts), end = imported(film, known("row", range(12), range(12)))
    assert frames.shape == (12, 16, 16, 3) and end == End()
    assert actions.tolist() == [*range(12)] and np.flatnonzero(starts).tolist() == [0, 6]
    assert np.flatnonzero(imported(film, cuts=0)[0][2]).tolist() == [0]


def test_actions_follow_the_pace(film):
    rows = [
        0,
        0,
        1,
        2,
        3,
        3,
        3,
        4,
        5,
        6,
        6,
        7,
    ]  # at 10 frames per second: the longest of three, of equals the first
    assert imported(film, known("row", range(12), rows), fps=10)[0][1].tolist() == [0, 3, 3, 6]
    assert imported(film, known("frame", [0, 4, 7], [1, 2, 3]), fps=15)[0][1].tolist() == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert (
        imported(film, known("time", [0, 0.1334, 0.21], [1, 2, 3]))[0][1].tolist()
        == [1] * 4 + [2] * 3 + [3] * 5
    )
    assert imported(film, known("row", range(12), range(12)), fps=60)[0][1].tolist()[:4] == [
        0,
        0,
        1,
        1,
    ]


def test_actions_that_do_not_fit_the_video_are_refused(film):
    for labels, words in (
        (known("row", range(10), [0] * 10), "has 10 rows, and the video 12 frames"),
        (known("frame", [0, 12], [0, 1]), "has a row for frame 12"),
    ):
        end = imported(film, labels)[1]
        assert end.refused and words in end.note
    assert not imported(film, known("row", range(11), [0] * 11))[
        1
    ].refused  # the last frame's action leads nowhere


def test_a_long_video_becomes_parts(film, monkeypatch):
    whole = imported(film, known("row", range(12), range(12)))[0]
    monkeypatch.setattr(resampling, "PART_BYTES", 5 * 16 * 16 * 3)
    shape = Shape(16, "crop", 0, 0.4)
    found = [*resampling.parts(film, shape, known("row", range(12), range(12)), threading.Event())]
    assert [len(part.frames) for part in found[:-1]] == [5, 5, 2]
    for arrays, all_of_it in zip(zip(*found[:-1], strict=True), whole, strict=True):
        assert (np.concatenate(arrays) == all_of_it).all()


def test_streams_are_read_in_order_whatever_their_pace():
    def stream(name, count, pause):
        def run():
            for i in range(count):
                time.sleep(pause)
                yield name, i

        return run

    streams = [
        stream("slow", 3, 0.02),
        stream("empty", 0, 0),
        stream("long", 9, 0),
        stream("short", 1, 0.01),
    ]
    for workers in (1, 3):
        found = [list(items) for items in resampling.in_order(streams, workers)]
        assert found == [
            [("slow", i) for i in range(3)],
            [],
            [("long", i) for i in range(9)],
            [("short", 0)],
        ]


def test_streams_close_their_threads_and_pass_errors_on():
    def broken():
        yield 1
        raise ValueError("no")

    results = resampling.in_order([broken], 2)
    with pytest.raises(ValueError, match="no"):
        list(next(results))
    results.close()
    assert not any(thread.name.startswith("import") for thread in threading.enumerate())
