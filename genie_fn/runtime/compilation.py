"""Compilation of whole functions, and on a GPU their replay as CUDA graphs."""

import functools
import hashlib
import os
import re
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from genie_fn.runtime.console import console

COMPILERS = ("g++", "clang++", "c++", "gcc", "cl")


@functools.cache
def works(device: torch.device) -> bool:
    """Whether programs can be compiled for `device` on this machine.

    The first call compiles a small program; if that fails, it prints why. Torch keeps the program in
    its compile cache, in which the calls of later processes find it.
    """
    factor = _toolchain_factor()
    small = torch.compile(lambda x: x * factor, fullgraph=True, dynamic=False)
    try:
        small(torch.ones(64, device=device))
    except Exception as error:  # torch raises several kinds, and Triton others
        console.print(
            f"compiling does not work here ({missing(error)}): running uncompiled, several times "
            "slower; it needs a C++ compiler, such as g++, and Python's header files (python3-dev)",
            markup=False,
            soft_wrap=True,
        )
        return False
    return True


def _toolchain_factor() -> float:
    """A number from 1 to 2 that depends on the compilers and on Python's header files.

    It makes a program of its own for each toolchain: the compile cache does not hold it if something
    has changed since.
    """
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    names = [os.environ.get(name) for name in ("CXX", "CC")] + [*COMPILERS]
    paths = [header, *(shutil.which(name) for name in names if name)]
    found = [(path, os.stat(path).st_mtime) for path in paths if path and Path(path).exists()]
    digest = hashlib.sha256(repr((torch.__version__, names, found)).encode()).digest()
    return 1 + int.from_bytes(digest[:3]) / 2**24


def missing(error: BaseException) -> str:
    """What a failed compilation lacks, in one line: the compiler's own first error, if it has one."""
    text = str(error)
    first = re.search(r"\berror: (.+)", text) or re.search(
        r"^(?:backend=.* raised:\n)?(?:\w+: )?(.+)", text
    )
    return first[1].strip()[:200] if first else type(error).__name__


def compiled(function: Callable, *, cuda_graph: bool = False) -> Callable:
    """`function` compiled to a single graph, anew for every combination of shapes.

    It may contain `tree.value_and_grad`. With `cuda_graph` (on a GPU) its kernels are recorded and
    launched together, which saves the host's time per kernel
    (`torch.compile(mode="reduce-overhead")`). The tensors of its first argument, such as parameters
    or a training state, are then used at the addresses where they are, and the function may
    overwrite them; the tensors of the other arguments are copied into the recording.
    """
    if not cuda_graph:
        return with_traced_gradients(torch.compile(function, fullgraph=True, dynamic=False))
    fast = with_traced_gradients(
        torch.compile(function, fullgraph=True, dynamic=False, mode="reduce-overhead")
    )

    def call(*args: Any) -> Any:
        for leaf in pytree.tree_leaves(args[0]):
            if isinstance(leaf, Tensor):
                torch._dynamo.mark_static_address(leaf, guard=False)
        torch.compiler.cudagraph_mark_step_begin()
        # The next replay overwrites the results of this one.
        return pytree.tree_map(_clone, fast(*args))

    return call


def with_traced_gradients(function: Callable) -> Callable:
    """A compiled `function`, with torch's option to trace torch.autograd.grad whenever it is called.

    Without it, a call of torch.autograd.grad is a graph break. The option is global and read when a
    call compiles, so it is set for the time of the call.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            return function(*args, **kwargs)

    return call


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
