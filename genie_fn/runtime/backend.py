"""The device, the compile mode and the implementations that a program uses.

None of them is part of a model. A model's configuration says what is computed, and a `Backend` says
how. The backend is an argument beside the configuration, and is not part of a model's fingerprint.
"""

import os
import shutil
from dataclasses import dataclass, replace
from typing import Literal

import torch

from genie_fn.errors import UserError
from genie_fn.runtime.console import console

SpaceImpl = Literal["auto", "reference", "sdpa", "triton"]
TimeImpl = Literal["auto", "reference", "sdpa", "fused", "triton"]
LfqImpl = Literal["reference", "triton"]


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

    def resolve(self, device: torch.device | str, compiled: bool) -> "Backend":
        """The backend with every `auto` replaced by the fastest measured choice (docs/LOG.md)."""
        eager = "reference" if torch.device(device).type == "cpu" else "sdpa"
        space: SpaceImpl = "sdpa" if self.space == "auto" else self.space
        time: TimeImpl = ("fused" if compiled else eager) if self.time == "auto" else self.time
        return replace(self, space=space, time=time)


AUTO = Backend()
"""The default of all functions: every choice is `auto`."""


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; anything else is torch's own name. Each process of a node has its own GPU."""
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
        torch.empty(0, device=name)
    except RuntimeError as error:
        raise UserError(f"--cfg.device {name} cannot be used here: try auto or cpu") from error
    return torch.device(name)


def pick_compile(mode: str, device: torch.device) -> str:
    """The compile mode that this machine can carry out: without a C++ compiler everything runs uncompiled."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if mode != "off" and device.type == "cpu" and compiler is None:
        console.print(
            "no C++ compiler found: running uncompiled, several times slower; install g++ to change that"
        )
        return "off"
    return mode
