"""Counter-based random numbers with explicit keys, reproducing `jax.random` (Threefry-2x32, partitionable layout).

A key is an int64 tensor of shape (2,) holding two 32-bit words. Nothing here has state: the same key and shape always
give the same numbers, eager or compiled, on any device. 32-bit words are kept in int64 because signed overflow is
undefined in the C++ that torch.compile generates.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; word order and float conversion as in JAX.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_TINY = torch.finfo(torch.float32).tiny


def _threefry(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt the counters (x0, x1) with the key (k0, k1): 20 rounds on 32-bit words held in int64."""
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = (x0 + k0) & _WORD, (x1 + k1) & _WORD
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x0 = (x0 + x1) & _WORD
            x1 = (((x1 << r) | (x1 >> (32 - r))) & _WORD) ^ x0
        x0 = (x0 + schedule[(i + 1) % 3]) & _WORD
        x1 = (x1 + schedule[(i + 2) % 3] + i + 1) & _WORD
    return x0, x1


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """A key (2,) from an integer seed, as `jax.random.key` makes it without 64-bit mode: the low 32 bits count."""
    return torch.tensor([0, seed & _WORD], dtype=torch.int64, device=device)


def _encrypt(key: Tensor, counters: Tensor) -> tuple[Tensor, Tensor]:
    return _threefry(key[0], key[1], counters >> 32, counters & _WORD)


def split(key: Tensor, num: int = 2) -> Tensor:
    """`num` independent keys, (num, 2)."""
    return torch.stack(_encrypt(key, torch.arange(num, device=key.device)), dim=-1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """A key (2,) from `key` and a 32-bit integer; `data` may be a 0-D tensor, so a step counter compiles once."""
    data = torch.as_tensor(data, dtype=torch.int64, device=key.device)
    return torch.stack(_encrypt(key, data & _WORD), dim=-1)


def bits(key: Tensor, shape: Sequence[int] = (), row: int | Tensor = 0) -> Tensor:
    """Uniform 32-bit words, int64 of `shape` with values in [0, 2^32): those from `row` on of a longer array."""
    counters = torch.arange(math.prod(shape), device=key.device) + row * math.prod(shape[1:])
    first, second = _encrypt(key, counters)
    return (first ^ second).reshape(tuple(shape))


def uniform(
    key: Tensor,
    shape: Sequence[int] = (),
    low: float = 0.0,
    high: float = 1.0,
    row: int | Tensor = 0,
) -> Tensor:
    """float32 of `shape`, uniform on [low, high), with 23 random mantissa bits; `row` as in `bits`."""
    unit = (bits(key, shape, row) >> 9).to(torch.float32) * 2.0**-23
    return unit if (low, high) == (0.0, 1.0) else (unit * (high - low) + low).clamp(min=low)


def normal(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """float32 of `shape`, standard normal, by the inverse error function."""
    return math.sqrt(2) * torch.erfinv(uniform(key, shape, low=-1.0 + 2.0**-24, high=1.0))


def bernoulli(
    key: Tensor, p: float | Tensor, shape: Sequence[int] = (), row: int | Tensor = 0
) -> Tensor:
    """bool of `shape`, True with probability `p` (broadcast against `shape`); `row` as in `bits`."""
    return uniform(key, shape, row=row) < p


def gumbel(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """float32 of `shape`, standard Gumbel: argmax of logits + gumbel samples the softmax."""
    return -torch.log(-torch.log(uniform(key, shape, low=_TINY)))


def randint(key: Tensor, shape: Sequence[int], low: int, high: int) -> Tensor:
    """int64 of `shape`, uniform on [low, high), high - low < 2^31; two words per value keep the bias below 2^-32."""
    span = high - low
    upper, lower = (bits(k, shape) for k in split(key).unbind(0))
    multiplier = (2**16 % span) ** 2 % 2**32 % span
    offset = (((upper % span) * multiplier & _WORD) + lower % span) & _WORD
    return low + offset % span
