"""CUDA graphs: a function's kernels are recorded once, then launched all together, and the host costs nothing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARMUP = (
    2  # calls before a recording: the first compiles, the second allocates what is made once only
)


def capture(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record `run` on the GPU: a function that replays it, and the results, which every replay writes anew."""
    graph = torch.cuda.CUDAGraph()
    # Other threads copy batches to the device meanwhile, which is no part of the recording and must not fail it.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()
    return graph.replay, result


def recorded(function: Callable, fixed: int = 1, capture: Callable = capture) -> Callable:
    """`function(*args)`, recorded at the third call and replayed from then on.

    The tensors of the first `fixed` arguments are used where they lie, and `function` may overwrite them (parameters, a
    training state); those of the others are copied into the recording, and results out of it. Each combination of
    shapes and of other arguments, which must be hashable, has a recording of its own; so has each place in memory of
    the fixed tensors, whose memory lives as long as the recording.
    """
    calls: dict[tuple, int] = {}
    recordings: dict[tuple, tuple] = {}

    def call(*args):
        held, given = pytree.tree_leaves(args[:fixed]), pytree.tree_leaves(args[fixed:])
        key = (tuple(map(_place, held)), tuple(map(_kind, given)))
        if calls.setdefault(key, 0) < WARMUP:
            calls[key] += 1
            return function(*args)
        if key not in recordings:
            own = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, args[fixed:])
            inputs = [x for x in pytree.tree_leaves(own) if isinstance(x, Tensor)]
            recordings[key] = (*capture(lambda: function(*args[:fixed], *own)), inputs)
        replay, result, inputs = recordings[key]
        if inputs:
            torch._foreach_copy_(inputs, [x for x in given if isinstance(x, Tensor)])
        replay()
        kept = {id(x) for x in held}  # what the function overwrote and returned
        return pytree.tree_map(
            lambda x: x.clone() if isinstance(x, Tensor) and id(x) not in kept else x, result
        )

    return call


def _place(leaf: Any) -> Any:
    return (leaf.data_ptr(), leaf.shape) if isinstance(leaf, Tensor) else leaf


def _kind(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
