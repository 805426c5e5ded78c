"""Colours of high dynamic range and wide gamuts become those that were coded."""

import numpy as np
import pytest

from genie_fn.data import colour
from genie_fn.data.colour import HLG, LINEAR, PQ, Coding

# From BT.709 to BT.2020, of ITU-R BT.2087.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def linear(levels):
    """The light of sRGB levels from 0 to 255."""
    signal = np.asarray(levels) / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def coded(levels, transfer):
    """The 16-bit signal of sRGB levels in BT.2020 primaries, with white of 203 candelas."""
    nits = 203 * linear(levels) @ TO_BT2020.T
    if transfer == PQ:
        power = (nits / 10_000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    elif transfer == HLG:
        luma = nits @ (0.2627, 0.6780, 0.0593) / 1000
        scene = nits / 1000 * luma[..., None] ** (1 / 1.2 - 1)
        high = 0.17883277 * np.log((12 * scene - 0.28466892).clip(1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)
    else:
        signal = nits / 203
    return np.round(65535 * signal).astype(np.uint16)


COLOURS = np.random.default_rng(0).integers(1, 225, (200, 3))


@pytest.mark.parametrize("transfer, primaries", [(PQ, 9), (PQ, 2), (HLG, 9), (HLG, 2), (LINEAR, 9)])
def test_colours_below_the_knee_come_back(transfer, primaries):
    back = colour.to_standard(coded(COLOURS, transfer), Coding(transfer, primaries))
    assert abs(back.astype(int) - COLOURS).max() <= 2


def test_brighter_light_is_compressed_in_order():
    light = np.geomspace(0.5, 49, 200)[:, None].repeat(3, 1)
    power = (203 / 10_000 * light) ** 0.1593017578125
    signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    levels = colour.to_standard(np.round(65535 * signal).astype(np.uint16), Coding(PQ, 9))
    assert (np.diff(levels[:, 0].astype(int)) >= 0).all() and levels[-1, 0] == 255
    assert 235 < levels[np.searchsorted(light[:, 0], 1), 0] < 250
    assert len({*levels[light[:, 0] > 1, 0]}) > 8


def test_a_wide_gamut_is_converted_and_greys_stay():
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    for primaries in colour.PRIMARIES:
        assert (colour.to_standard(greys, Coding(13, primaries)) == greys).all()
    back = colour.to_standard(_srgb(linear(COLOURS) @ TO_BT2020.T), Coding(1, 9))
    assert abs(back.astype(int) - COLOURS).max() <= 2


def _srgb(light):
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(65535 * signal).astype(np.uint16)


def test_unknown_codings_are_named():
    assert colour.unsupported(Coding()) == "" and colour.unsupported(Coding(PQ, 12)) == ""
    assert "transfer function (number 10" in colour.unsupported(Coding(10, 1))
    assert "transfer function (number 256" in colour.unsupported(Coding(256, 1))
    assert "primaries (number 10" in colour.unsupported(Coding(1, 10))
    assert colour.is_standard(Coding(6, 6)) and not colour.is_standard(Coding(6, 9))
