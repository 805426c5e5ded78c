"""What all Triton kernels share. It imports Triton: see `require_triton` in the package."""

import torch
import triton.language as tl
from triton import knobs

INTERPRETED = knobs.runtime.interpret
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""The type in which a kernel multiplies inputs of each dtype."""
if INTERPRETED:
    TYPES[torch.bfloat16] = tl.float32  # the interpreter multiplies bfloat16 like integers
