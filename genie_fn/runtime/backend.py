"""The device, the compile mode and the implementations that a program uses.

None of them is part of a model. A model's configuration says what is computed, and a `Backend` says
how. The backend is an argument beside the configuration, and is not part of a model's fingerprint.
"""

import os
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch

from genie_fn.errors import UserError
from genie_fn.runtime import compilation

SpaceImpl = Literal["auto", "reference", "sdpa", "triton"]
TimeImpl = Literal["auto", "reference", "sdpa", "fused", "triton"]
LfqImpl = Literal["reference", "triton"]
ProductDtype = Literal["auto", "float32", "bfloat16"]

LONGEST_REASON = 80
"""Characters of a message of torch's that is repeated in an error; longer ones list its internals."""


@dataclass(frozen=True)
class Backend:
    """The implementation of each operation that has several, which agree up to rounding.

    genie_fn/kernels/ contains them.
    """

    space: SpaceImpl = "auto"
    """Attention within a frame; `auto` is sdpa."""
    time: TimeImpl = "auto"
    """Attention across frames; `auto` is fused if compiled, else reference on a CPU, sdpa on a GPU."""
    lfq: LfqImpl = "reference"
    """Lookup-free quantisation."""
    products: ProductDtype = "auto"
    """The dtype of the matrix products of transformers whose activations are float32. `auto` is
    bfloat16 in training on a CPU that has such products, else float32."""

    def resolve(
        self, device: torch.device | str, compiled: bool, *, training: bool = False
    ) -> "Backend":
        """The backend with every `auto` replaced by the fastest measured choice (docs/LOG.md)."""
        eager = "reference" if torch.device(device).type == "cpu" else "sdpa"
        space: SpaceImpl = "sdpa" if self.space == "auto" else self.space
        time: TimeImpl = ("fused" if compiled else eager) if self.time == "auto" else self.time
        products = self.products
        if products == "auto":
            rounded = training and torch.device(device).type == "cpu" and multiplies_bfloat16()
            products = "bfloat16" if rounded else "float32"
        return replace(self, space=space, time=time, products=products)


AUTO = Backend()
"""The default of all functions: every choice is `auto`."""


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions of x86 for products of bfloat16 numbers."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def pick_device(name: str, flag: str = "--cfg.device") -> torch.device:
    """The device of a flag: `auto` is CUDA where there is one; anything else is torch's own name.

    Each process of a node has its own GPU. Raises UserError, with the devices that there are, for one
    that torch cannot compute on.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (own := os.environ.get("LOCAL_RANK")) is not None:
        if int(own) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(
                f"there are {found} GPUs for more processes: start torchrun with --nproc-per-node {found}"
            )
        name = f"cuda:{own}"
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.zeros(1, device=name).add(1).item()
            device = torch.device(name)
    except Exception as error:  # torch raises several kinds
        reason = str(error).partition("\n")[0]
        reason = f" ({reason})" if len(reason) < LONGEST_REASON else ""
        raise UserError(
            f"{flag} {name} cannot be used here{reason}: torch {torch.__version__} offers "
            f"{', '.join(available_devices())} on this machine; choose one of these, or auto"
        ) from error
    return torch.device("cpu") if device.type == "cpu" else device


def available_devices() -> list[str]:
    """The names of the devices of this machine that torch knows how to use."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(count))]


def pick_compile(mode: str, device: torch.device) -> str:
    """The compile mode that this machine can carry out: `off` where no program can be compiled."""
    if mode == "off" or compilation.works(device):
        return mode
    return "off"
