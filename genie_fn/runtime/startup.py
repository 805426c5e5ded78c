"""Importing this module, before torch, sets what torch's speed on a CPU depends on.

OpenMP's threads wait for each other in a busy loop. On an idle machine that is harmless. As soon as
other programs run, a thread that waits keeps its core from the one that it waits for, and a training
step takes several times as long. A short spin is as fast on an idle machine and much faster on a busy
one. The OpenMP library reads its environment when it is loaded, so every entry point imports this
module before torch.

glibc returns a tensor's memory to the system when it is freed, if it is large, and the system clears
every page when it is allocated again. With memory that the process keeps, an uncompiled step of the
demo's latent action model takes 0.6 of the time, one of its dynamics model 0.9.

docs/performance.md has the figures. What the user has set in the environment is left as it is.
"""

import ctypes
import os

VARIABLES = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""libgomp: turns of the busy loop; Intel's and LLVM's OpenMP: milliseconds of it, of which
already one is as slow as the default."""
TRIM_THRESHOLD = -1
MMAP_MAX = -4
"""Parameters of glibc's mallopt, by its numbers for them (malloc.h)."""


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next tensors, unless a user has chosen a setting of their own.
    Another C library than glibc has none."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)


if not os.environ.keys() & {"OMP_WAIT_POLICY", *VARIABLES}:
    os.environ.update(VARIABLES)
keep_freed_memory()
