"""How the training state lies on several processes: whole on each, or divided into shards.

Every process computes the gradients of its own clips. Between steps the parameters, their moments
and their moving average are whole on every process, or DTensors divided between them (ZeRO,
Rajbhandari et al. 2020, arXiv 1910.02054). `genie_fn/training/exchange.py` has what processes
exchange in a step; it works on plain tensors, to which `local` leads from DTensors, and `wrap`
back.
"""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.training import processes
from genie_fn.tree import ParamSpec, Tree

SMALL = 1 << 16
"""Leaves of fewer numbers are not divided."""


@dataclass(frozen=True)
class Layout:
    """The processes as a grid: a state is divided between those of a row, and rows hold copies."""

    mesh: DeviceMesh | None = None
    """All processes; None if there is a single one."""
    shard_mesh: DeviceMesh | None = None
    """Those of this process's row, which hold the shards; None if nothing is divided."""
    replica_mesh: DeviceMesh | None = None
    """Those of this process's column, which hold the same shard; None if there is one row."""

    @property
    def count(self) -> int:
        """The number of processes."""
        return self.mesh.size() if self.mesh else 1

    @property
    def shards(self) -> int:
        """The number of processes that a state is divided between."""
        return self.shard_mesh.size() if self.shard_mesh else 1


SINGLE_PROCESS = Layout()


def layout(kind: str) -> Layout:
    """The layout that --cfg.sharding names.

    `replicated` keeps everything on every process, `sharded` divides it between all, and `hybrid`
    divides it between the processes of a node. `auto` is hybrid, which on one node is sharded.
    Raises UserError if the nodes have different numbers of processes.
    """
    count = processes.count()
    if count == 1:
        return SINGLE_PROCESS
    node = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if kind in ("hybrid", "auto") and count % node:
        raise UserError(
            f"{count} processes cannot be divided into nodes of {node}: start the same number on "
            "every node, or choose another --cfg.sharding"
        )
    shards = {"replicated": 1, "sharded": count}.get(kind, node)
    return _grid(shards, "cuda" if dist.get_backend() == "nccl" else "cpu")


@functools.cache  # every mesh makes process groups
def _grid(shards: int, device: str) -> Layout:
    count = processes.count()
    rows = count // shards
    mesh = init_device_mesh(device, (count,))
    grid = init_device_mesh(device, (rows, shards), mesh_dim_names=("replicate", "shard"))
    shard_mesh = grid["shard"] if shards > 1 else None
    replica_mesh = grid["replicate"] if rows > 1 else None
    return Layout(mesh, shard_mesh, replica_mesh)


def shard_axis(spec: ParamSpec, shards: int) -> int | None:
    """The axis along which a leaf is divided, or None if every process holds all of it.

    It is the axis whose largest shard is smallest. Like torch.chunk, shards have equal sizes except
    for the last ones, which may be empty.
    """
    if shards == 1 or spec.whole or is_small(spec):
        return None
    if spec.axis is not None:
        return spec.axis
    shares = [_largest(size, shards) / max(size, 1) for size in spec.shape]
    return shares.index(min(shares))


def _largest(size: int, shards: int) -> int:
    """The size of the largest shard of an axis."""
    return -(-size // shards)


def is_small(spec: ParamSpec) -> bool:
    """Whether a leaf costs more to divide than to copy; such leaves share one exchange."""
    return math.prod(spec.shape) < SMALL


def largest_shard(spec: ParamSpec, shards: int) -> int:
    """The number of numbers of a leaf's largest shard."""
    axis = shard_axis(spec, shards)
    size = math.prod(spec.shape)
    if axis is None:
        return size
    length = spec.shape[axis]
    return size // length * _largest(length, shards)


def place(params: Tree, spec: Tree, layout: Layout) -> Tree:
    """Whole parameters, equal on every process, as they lie between steps."""

    def place_leaf(s: ParamSpec, x: Tensor) -> Tensor:
        axis = shard_axis(s, layout.shards)
        if axis is None:
            return x
        # Without a copy the shard would be a view that keeps the whole leaf in memory.
        return to_dtensor(_own_shard(x, layout.shard_mesh, [Shard(axis)]).clone(), s, layout, axis)

    return tree.map(place_leaf, spec, params)


def _own_shard(x: Tensor, mesh: DeviceMesh | None, placements: Sequence[Placement]) -> Tensor:
    """This process's part of a tensor that every process has."""
    return distribute_tensor(x, mesh, placements, src_data_rank=None).to_local()


def to_dtensor(own: Tensor, spec: ParamSpec, layout: Layout, axis: int) -> DTensor:
    """The DTensor of a leaf of which this process holds the shard `own`."""
    return DTensor.from_local(
        own,
        layout.shard_mesh,
        [Shard(axis)],
        run_check=False,
        shape=torch.Size(spec.shape),
        stride=torch.empty(spec.shape, device="meta").stride(),
    )


def local(state: Tree) -> Tree:
    """This process's own tensors, which share memory with the state's."""
    return tree.map(_local, state)


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def wrap(own: Tree, like: Tree) -> Tree:
    """The inverse of `local`: DTensors where `like` has them."""
    return tree.map(_wrap, own, like)


def _wrap(x: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return x
    return DTensor.from_local(
        x,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def full(state: Tree) -> Tree:
    """Whole leaves on every process. All processes must call this."""
    return tree.map(_full, state)


def _full(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def from_first(whole: Tree | None, like: Tree) -> Tree:
    """The whole leaves of the first process, laid out on all processes like those of `like`."""
    if processes.count() == 1:
        return whole

    def spread(old: Tensor, x: Tensor | None) -> Tensor:
        own = _local(old)
        empty = functools.partial(torch.empty, old.shape, dtype=old.dtype, device=own.device)
        sent = empty() if x is None else x.to(own)
        dist.broadcast(sent, 0)
        if not isinstance(old, DTensor):
            return sent
        return _wrap(_own_shard(sent, old.device_mesh, old.placements).clone(), old)

    if whole is None:
        whole = tree.map(lambda _: None, like)
    return tree.map(spread, like, whole)
