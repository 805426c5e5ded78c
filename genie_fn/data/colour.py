"""Colours of other transfer functions and primaries as standard ones: sRGB.

Files of high dynamic range (PQ and HLG of ITU-R BT.2100) and of a wide gamut (BT.2020, P3) say so
by the code points of ITU-T H.273. Shown as they are, they look dim and pale. They are converted to
linear light, to the primaries of BT.709, and to the transfer function of sRGB. Light up to KNEE of
the reference white keeps its value, and brighter light is compressed into the rest.
"""

import functools
from typing import NamedTuple

import numpy as np

UNSPECIFIED = 2
PQ = 16
HLG = 18
LINEAR = 8
# Differences between these are too small to be corrected, and players correct none of them. 0 and 3
# are reserved, and say as little as 2.
STANDARD_TRANSFERS = {0, 1, 2, 3, 4, 5, 6, 7, 11, 13, 14, 15}
STANDARD_PRIMARIES = {0, 1, 2, 3, 5, 6, 7}
BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
BT2020 = 9
PRIMARIES = {  # the chromaticities of red, green and blue
    4: ((0.670, 0.330), (0.210, 0.710), (0.140, 0.080)),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # P3 of cinemas
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # P3 of displays
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
WHITE = (0.3127, 0.3290)  # D65, to which the white of all primaries is mapped
LUMA_BT2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)

REFERENCE_NITS = 203  # of white in graphics, by ITU-R BT.2408; linear light is relative to it
PEAK_NITS = 1000  # of the brightest light that is told from white
KNEE = 0.8  # of the reference white


class Coding(NamedTuple):
    """How a file codes colours: code points of ITU-T H.273."""

    transfer: int = UNSPECIFIED
    primaries: int = UNSPECIFIED


def is_standard(coding: Coding) -> bool:
    """True if the colours can be taken as sRGB."""
    return coding.transfer in STANDARD_TRANSFERS and coding.primaries in STANDARD_PRIMARIES


def unsupported(coding: Coding) -> str:
    """What cannot be converted, as a clause; empty if `to_standard` can convert all."""
    if coding.transfer not in {*STANDARD_TRANSFERS, PQ, HLG, LINEAR}:
        return f"its transfer function (number {coding.transfer} of ITU-T H.273) is not supported"
    if coding.primaries not in {*STANDARD_PRIMARIES, *PRIMARIES}:
        return f"its primaries (number {coding.primaries} of ITU-T H.273) are not supported"
    return ""


def to_standard(signal: np.ndarray, coding: Coding) -> np.ndarray:
    """(..., 3) uint8 or uint16 RGB of a supported coding → (..., 3) uint8 sRGB."""
    if signal.dtype == np.uint8:
        signal = signal.astype(np.uint16) * 257
    light = _to_light(coding.transfer)[signal]
    if coding.transfer == HLG:
        luma = light @ LUMA_BT2020
        light *= (PEAK_NITS / REFERENCE_NITS * luma**0.2)[..., None]
    if coding.transfer not in STANDARD_TRANSFERS:
        light *= _compression(light.max(-1, keepdims=True))
    primaries = coding.primaries
    if coding.transfer in (PQ, HLG) and primaries in (0, UNSPECIFIED, 3):
        primaries = BT2020
    if primaries not in STANDARD_PRIMARIES:
        light = light @ _to_bt709(primaries).T
    return _to_srgb()[(light.clip(0, 1) * 65535 + 0.5).astype(np.uint16)]


@functools.cache
def _to_light(transfer: int) -> np.ndarray:
    """(65536,) float32: the light of each signal, relative to the reference white.

    Of HLG it is the light of the scene, from 0 to 1.
    """
    signal = np.linspace(0, 1, 1 << 16)
    if transfer == PQ:
        power = signal ** (1 / 78.84375)
        ratio = (power - 0.8359375).clip(0) / (18.8515625 - 18.6875 * power)
        light = 10_000 / REFERENCE_NITS * ratio ** (1 / 0.1593017578125)
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    elif transfer == LINEAR:
        light = signal
    else:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@functools.cache
def _to_srgb() -> np.ndarray:
    """(65536,) uint8: the level of each light from 0 to 1."""
    light = np.linspace(0, 1, 1 << 16)
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * signal + 0.5).astype(np.uint8)


def _compression(brightest: np.ndarray) -> np.ndarray:
    """The factor by which light is darkened so that its brightest channel fits into 0 to 1.

    An extended Reinhard curve above KNEE, with the slope 1 there, reaches 1 at PEAK_NITS.
    """
    room = 1 - KNEE
    above = (brightest - KNEE).clip(0) / room
    peak = (PEAK_NITS / REFERENCE_NITS - KNEE) / room
    mapped = KNEE + room * (above * (1 + above / peak**2) / (1 + above)).clip(0, 1)
    return np.where(above > 0, mapped / brightest.clip(KNEE), 1).astype(np.float32)


@functools.cache
def _to_bt709(primaries: int) -> np.ndarray:
    """(3, 3): from linear light of other primaries to that of BT.709; white stays white."""
    return (np.linalg.inv(_to_xyz(BT709)) @ _to_xyz(PRIMARIES[primaries])).astype(np.float32)


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> np.ndarray:
    """(3, 3): from linear RGB of these primaries to CIE XYZ."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in chromaticities]).T
    x, y = WHITE
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])
