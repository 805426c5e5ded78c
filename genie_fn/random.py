"""Counter-based random numbers with explicit keys, equal to those of `jax.random`.

A key is an int64 tensor of shape (2,) that holds two 32-bit words; several keys at once, of shape
(..., 2), give what each of them gives, with the same leading axes. Nothing here has state: the same
key and shape give the same numbers, eager or compiled, on any device. 32-bit words are held in
int64 because signed overflow is undefined in the C++ that torch.compile generates.

torch has no such generator for the CPU: `torch.Generator` is stateful and breaks full graphs, and
`torch.func._random` has GPU kernels only.

Source: Threefry-2x32 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", in the
partitionable layout of JAX. The order of words and the
conversion to floats are its own, too.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF  # the low 32 bits
_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_TINY = torch.finfo(torch.float32).tiny


def _threefry(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """The counters (x0, x1) encrypted with the key (k0, k1): 20 rounds on 32-bit words in int64."""
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0 = (x0 + k0) & _WORD
    x1 = (x1 + k1) & _WORD
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x0 = (x0 + x1) & _WORD
            x1 = (((x1 << r) | (x1 >> (32 - r))) & _WORD) ^ x0
        x0 = (x0 + schedule[(i + 1) % 3]) & _WORD
        x1 = (x1 + schedule[(i + 2) % 3] + i + 1) & _WORD
    return x0, x1


def _encrypt(key: Tensor, counters: Tensor) -> tuple[Tensor, Tensor]:
    """Two random words for each 64-bit counter (n,) and each key (..., 2): (..., n) both."""
    return _threefry(key[..., :1], key[..., 1:], counters >> 32, counters & _WORD)


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """A key (2,) from the low 32 bits of a seed, as `jax.random.key` makes it in 32-bit mode."""
    return torch.tensor([0, seed & _WORD], dtype=torch.int64, device=device)


def split(key: Tensor, num: int = 2) -> Tensor:
    """`num` independent keys, (..., num, 2)."""
    counters = torch.arange(num, device=key.device)
    return torch.stack(_encrypt(key, counters), dim=-1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """A key (2,) from `key` and a 32-bit integer, or keys (n, 2) from a vector (n,) of them.

    `data` may be a 0-D tensor, so that a program with a step counter compiles only once.
    """
    counters = torch.as_tensor(data, dtype=torch.int64, device=key.device) & _WORD
    keys = torch.stack(_encrypt(key, counters.reshape(-1)), dim=-1)
    return keys.reshape(key.shape[:-1] + counters.shape + (2,))


def bits(key: Tensor, shape: Sequence[int] = (), row: int | Tensor = 0) -> Tensor:
    """Uniform 32-bit words, int64 of (..., *shape) with values in [0, 2^32).

    They are the rows from `row` on of a longer array along the first axis, so that part of a batch
    can draw its own part of the whole batch's numbers.
    """
    first = row * math.prod(shape[1:])
    counters = torch.arange(math.prod(shape), device=key.device) + first
    high, low = _encrypt(key, counters)
    return (high ^ low).reshape(key.shape[:-1] + tuple(shape))


def uniform(
    key: Tensor,
    shape: Sequence[int] = (),
    low: float = 0.0,
    high: float = 1.0,
    row: int | Tensor = 0,
) -> Tensor:
    """float32 of `shape`, uniform on [low, high), with 23 random bits; `row` as in `bits`."""
    unit = (bits(key, shape, row) >> 9).to(torch.float32) * 2.0**-23
    if (low, high) == (0.0, 1.0):
        return unit
    return (unit * (high - low) + low).clamp(min=low)


def normal(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """float32 of `shape`, standard normal, by the inverse error function."""
    return math.sqrt(2) * torch.erfinv(uniform(key, shape, low=-1.0 + 2.0**-24, high=1.0))


def bernoulli(
    key: Tensor, p: float | Tensor, shape: Sequence[int] = (), row: int | Tensor = 0
) -> Tensor:
    """bool of `shape`, True with probability `p` (broadcast to it); `row` as in `bits`."""
    return uniform(key, shape, row=row) < p


def gumbel(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """float32 of `shape`, standard Gumbel: argmax(logits + gumbel) samples the softmax."""
    return -torch.log(-torch.log(uniform(key, shape, low=_TINY)))


def randint(key: Tensor, shape: Sequence[int], low: int, high: int) -> Tensor:
    """int64 of `shape`, uniform on [low, high), where high - low < 2^31.

    Two words per value keep the bias below 2^-32.
    """
    span = high - low
    upper, lower = (bits(k, shape) for k in split(key).unbind(-2))
    multiplier = (2**16 % span) ** 2 % 2**32 % span
    offset = (((upper % span) * multiplier & _WORD) + lower % span) & _WORD
    return low + offset % span
