"""Resampling frames in time, and resizing them."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from genie_fn.data import framing, video
from genie_fn.data.importing import resampling
from genie_fn.data.importing.readers import SourceFrame


def numbers(times, fps):
    """The numbers of the frames that are taken, and the samples that begin an episode."""
    exact = [None if t is None else Fraction(t).limit_denominator(10**6) for t in times]
    frames = [SourceFrame(t, Image.Image) for t in exact]
    samples = list(resampling.resample(frames, fps))
    starts = [at for at, sample in enumerate(samples) if sample.begins_episode]
    return [sample.number for sample in samples], starts


def regular(count, fps, ticks=None):
    """Times of a regular video, rounded to `ticks` per second as containers do."""
    return [
        round(t / fps * ticks) / ticks if ticks else Fraction(t) / Fraction(fps)
        for t in range(count)
    ]


def test_every_frame_is_taken_without_a_rate():
    assert numbers(regular(5, 30), 0) == ([0, 1, 2, 3, 4], [0])
    assert numbers([None] * 5, 10) == ([0, 1, 2, 3, 4], [0])


@pytest.mark.parametrize("ticks", [None, 1000, 90_000])
def test_half_the_rate_takes_every_other_frame_however_times_are_rounded(ticks):
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
    # One picture for a second, then quick ones: none may appear much before its time.
    times = [0, 1, 1.02, 1.04, 1.5]
    taken, _ = numbers(times, 10)
    assert taken == [0] * 10 + [1] + [3] * 4 + [4]


def test_a_pause_or_a_jump_back_begins_an_episode():
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
    assert (framing.fit(wide, 30, "crop") == (0, 255, 0)).all()
    padded = framing.fit(wide, 30, "pad")
    assert (
        (padded[10:20] == np.asarray(wide)[::3, ::3]).all()
        and not padded[:10].any()
        and not padded[20:].any()
    )
    assert (framing.fit(wide, 30, "stretch")[:, ::10] == np.eye(3) * 255).all()
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    assert (framing.fit(tall, 30, "crop") == (0, 255, 0)).all()
    assert not framing.fit(tall, 30, "pad")[:, :10].any()


def test_frames_may_be_rectangles():
    wide = picture(30, 90)
    assert (framing.fit(wide, (30, 90), "crop") == np.asarray(wide)).all()
    for how in ("pad", "crop", "stretch"):
        assert (framing.fit(wide, (10, 30), how) == np.asarray(wide)[::3, ::3]).all()
    padded = framing.fit(wide, (40, 30), "pad")
    assert padded.shape == (40, 30, 3)
    assert padded[15:25].any(-1).all()
    assert not padded[:15].any()
    assert not padded[25:].any()
    cropped = framing.fit(wide, (30, 60), "crop")
    assert (cropped == np.asarray(wide)[:, 15:75]).all()


def test_pixels_that_are_not_square_are_shown_as_they_should_look():
    narrow = picture(30, 15)  # each pixel twice as wide as high: a square
    assert (
        framing.fit(narrow, 30, "crop", Fraction(2)) == framing.fit(narrow, 30, "stretch")
    ).all()
    assert (framing.fit(narrow, 30, "pad", Fraction(2)) == framing.fit(narrow, 30, "stretch")).all()
    assert (
        framing.fit(picture(30, 90), 30, "pad", Fraction(1, 3))
        == framing.fit(picture(30, 30), 30, "crop")
    ).all()


@pytest.mark.parametrize(
    "aspect", [Fraction(1), Fraction(8, 9), Fraction(64, 45), Fraction(1, 7), Fraction(8)]
)
@pytest.mark.parametrize("sides", [(1, 1), (1, 999), (999, 1), (31, 23), (720, 576)])
@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_every_shape_fits(how, sides, aspect):
    white = Image.new("RGB", sides, (255, 255, 255))
    frame = framing.fit(white, 16, how, aspect)
    assert (
        frame.shape == (16, 16, 3) and frame.max() == 255 and (how == "pad" or frame.min() == 255)
    )


def test_resizing_averages_and_leaves_what_fits_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(pixels)
    assert (framing.fit(image, 64, "crop") == pixels).all()
    means = pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert abs(framing.fit(image, 32, "crop") - means).max() <= 1
    assert (framing.fit(Image.fromarray(video.enlarge(pixels, 3)), 64, "crop") == pixels).all()
