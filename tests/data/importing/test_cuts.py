"""Cuts are changes of colours that last."""

import numpy as np
import pytest

from genie_fn.data.importing import cuts
from genie_fn.data.importing.cuts import FLASH
from genie_fn.data.importing.resampling import Pixels
from tests import films

FIRST = films.squares(30, 16, 16, colour=1)
SECOND = films.squares(30, 16, 16, colour=2)
WHITE = films.greys([255] * FLASH, 16, 16)


def starts(*parts, begins=(0,)):
    """The frames of these parts that begin an episode, where `begins` did before."""
    frames = np.concatenate(parts)
    samples = [Pixels(t, t in begins, frame) for t, frame in enumerate(frames)]
    marked = list(cuts.mark_cuts(samples, 0.4))
    assert [sample.number for sample in marked] == [*range(len(frames))]
    assert all((sample.pixels == frames[t]).all() for t, sample in enumerate(marked))
    return [t for t, sample in enumerate(marked) if sample.begins_episode]


def test_a_change_that_lasts_is_a_cut():
    assert starts(FIRST, SECOND) == [0, 30]
    assert starts(FIRST, SECOND[:1]) == [0, 30]
    assert starts(FIRST[:8], SECOND[:8], FIRST[8:]) == [0, 8, 16]
    assert starts(FIRST[:0]) == []


@pytest.mark.parametrize("length", range(1, FLASH + 1))
def test_a_flash_is_no_cut(length):
    assert starts(FIRST[:9], WHITE[:length], FIRST[9:], SECOND) == [0, 30 + length]
    flashes = [part for t in range(4) for part in (FIRST[7 * t : 7 * t + 7], WHITE[:length])]
    assert starts(*flashes, FIRST[28:]) == [0]


def test_a_flash_of_several_colours_is_no_cut():
    assert starts(FIRST[:9], WHITE[:2], SECOND[:2], FIRST[9:]) == [0]


def test_a_longer_change_is_a_cut_at_both_ends():
    assert starts(FIRST[:9], SECOND[: FLASH + 1], FIRST[9:]) == [0, 9, 10 + FLASH]


def test_a_flash_between_two_scenes_hides_no_cut():
    assert starts(FIRST, WHITE[:1], SECOND) == [0, 30, 31]


def test_a_change_is_not_compared_across_episodes():
    assert starts(FIRST[:9], WHITE[:2], FIRST[9:], begins=(0, 11)) == [0, 9, 11]
    assert starts(FIRST[:9], WHITE[:2], begins=(0, 9)) == [0, 9]


def test_another_scene_is_a_cut_and_movement_is_none():
    first, second = films.squares(30, 64, 64, colour=1), films.squares(30, 64, 64, colour=2)
    moves = [
        cuts.colour_change(a, b)
        for film in (first, second)
        for a, b in zip(film, film[1:], strict=False)
    ]
    assert max(moves) < 0.05 and cuts.colour_change(first[-1], second[0]) > 0.9
    assert cuts.colour_change(first[0], first[0]) == 0


def test_a_background_at_the_edge_of_a_bin_is_no_cut():
    for level in range(1, 255):
        before, after = films.greys([level, level + 1])
        assert cuts.colour_change(before, after) == 0
