"""Kernels: each with a plain reference, its fast twins, and one public function that chooses by `impl`."""

import torch

from genie_fn.errors import UserError


def require_triton() -> None:
    """Raise UserError where Triton is not installed or cannot run: to be called before a module of kernels is imported.

    Those are imported inside functions, when they are asked for: a CPU build of torch comes without Triton.
    """
    try:
        from genie_fn.kernels import common
    except ImportError as error:
        raise UserError(
            "the impl triton needs the package triton: install it, or choose another impl"
        ) from error
    if not torch.cuda.is_available() and not common.INTERPRETED:
        raise UserError(
            "the impl triton runs on a GPU, and there is none here: choose another impl"
        )
