"""What processes exchange in a step: collective operations on trees of plain tensors.

They work inside a compiled step. With a single process they return their arguments.
"""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from genie_fn import tree
from genie_fn.training.sharding import Layout, is_small, shard_axis, to_dtensor
from genie_fn.tree import ParamSpec, Tree

_EVERYWHERE = Replicate()


def gather(own: Tree, spec: Tree, layout: Layout) -> Tree:
    """Whole parameters, from the shards of all processes."""

    def gather_leaf(s: ParamSpec, x: Tensor) -> Tensor:
        axis = shard_axis(s, layout.shards)
        if axis is None:
            return x
        shard = to_dtensor(x, s, layout, axis)
        return shard.redistribute(placements=[_EVERYWHERE]).to_local()

    return tree.map(gather_leaf, spec, own)


def scatter(grads: Tree, spec: Tree, layout: Layout) -> Tree:
    """The average of whole gradients over all processes; of divided leaves this process's shard."""
    if layout.count == 1:
        return grads
    leaves = zip(tree.leaves(spec), tree.leaves(grads), strict=True)
    small_sums = iter(total([g for s, g in leaves if is_small(s)], layout))

    def scatter_leaf(s: ParamSpec, g: Tensor) -> Tensor:
        if is_small(s):
            return next(small_sums) / layout.count
        axis = shard_axis(s, layout.shards)
        if axis is None:
            return _reduce(g, layout.mesh, "avg")
        shard = _reduce(g, layout.shard_mesh, "avg", Shard(axis))
        if layout.replica_mesh is None:
            return shard
        return _reduce(shard, layout.replica_mesh, "avg")  # between nodes only shards are sent

    return tree.map(scatter_leaf, spec, grads)


def average(x: Tensor, layout: Layout) -> Tensor:
    """The average over all processes; its gradient goes to this process's x undivided.

    `Microbatch.mean` says why.
    """
    if layout.count == 1:
        return x
    return _reduce(x.detach(), layout.mesh, "avg") + (x - x.detach())


def total(values: Tree, layout: Layout) -> Tree:
    """The sums over all processes of float32 leaves, in a single exchange."""
    leaves = tree.leaves(values)
    if layout.count == 1 or not leaves:
        return values
    flat = torch.cat([x.detach().flatten() for x in leaves])
    sums = _reduce(flat, layout.mesh, "sum").split([x.numel() for x in leaves])
    remaining = iter(sums)
    return tree.map(lambda x: next(remaining).reshape(x.shape), values)


def norm(own: Tree, spec: Tree, layout: Layout) -> Tensor:
    """The 2-norm of all leaves together, from this process's shards."""
    whole = []
    divided = []

    def square(s: ParamSpec, g: Tensor) -> None:
        squares = whole if shard_axis(s, layout.shards) is None else divided
        squares.append(g.float().square().sum())

    tree.map(square, spec, own)
    if divided:
        whole.append(_reduce(torch.stack(divided).sum(), layout.shard_mesh, "sum"))
    return torch.stack(whole).sum().sqrt()


def _reduce(
    x: Tensor, mesh: DeviceMesh | None, kind: str, placement: Placement = _EVERYWHERE
) -> Tensor:
    """The sum or average of a tensor over the processes of a mesh, on all of them or in shards."""
    partial = DTensor.from_local(x, mesh, [Partial(kind)], run_check=False)
    return partial.redistribute(placements=[placement]).to_local()
