"""Compilation of whole functions, and on a GPU their replay as CUDA graphs."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


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
