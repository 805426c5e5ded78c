"""Importing this module, before torch, keeps OpenMP's threads from spinning for long at barriers.

torch's OpenMP threads wait for each other in a busy loop. On an idle machine that is harmless. As soon
as other programs run, a thread that waits keeps its core from the one that it waits for, and a training
step takes several times as long (docs/performance.md has the figures). A short spin is as fast on an
idle machine and much faster on a busy one.

The OpenMP library reads its environment when it is loaded, so every entry point imports this module
before torch. A variable that the user has set is left as it is.
"""

import os

VARIABLES = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""libgomp: turns of the busy loop; Intel's and LLVM's OpenMP: milliseconds of it, of which
already one is as slow as the default."""

if not os.environ.keys() & {"OMP_WAIT_POLICY", *VARIABLES}:
    os.environ.update(VARIABLES)
