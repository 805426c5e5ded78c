"""Operations with several implementations, chosen by the argument `impl` of one function.

Each has a plain reference in torch operations, against which the faster ones are tested.
"""

import torch

from genie_fn.errors import UserError


def require_triton() -> None:
    """Raise UserError if Triton is not installed or cannot run here.

    It is called before a module of kernels is imported. Functions import such modules only when
    their kernels are asked for, because a CPU build of torch does not contain Triton.
    """
    try:
        from genie_fn.kernels import common
    except ImportError as error:
        raise UserError(
            "the impl triton needs the package triton: install it, or leave out the flags --cfg.backend"
        ) from error
    if not torch.cuda.is_available() and not common.INTERPRETED:
        raise UserError(
            "the impl triton runs on a GPU, and there is none here: leave out the flags --cfg.backend"
        )
