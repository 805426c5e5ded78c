"""One model on many processes, one per device: who they are, what each holds, and what they exchange in a step.

Every process computes the gradients of its own clips. Between steps the parameters, their moments and their average
(the state) lie whole on every process, or divided into shards as DTensors (ZeRO, Rajbhandari et al. 2020, arXiv
1910.02054): then a step gathers the parameters, and the averaged gradients go to whom they concern. The functions on
trees here work on a process's own tensors inside a compiled step; `local` and `wrap` lead from DTensors to these and
back. torchrun starts the processes; without it there is one, and nothing here does anything.
"""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from genie_fn import tree
from genie_fn.errors import UserError
from genie_fn.tree import ParamSpec, Tree

SMALL = 1 << 16  # numbers; leaves of fewer stay whole
_EVERYWHERE = Replicate()
KINDS = ("auto", "replicated", "sharded", "hybrid")
PATIENCE = timedelta(
    days=7
)  # how long processes wait for the first, which may encode a whole dataset


@dataclass(frozen=True)
class Layout:
    """How a state lies on the processes: in rows of `shards` between which it is divided; all rows hold the same."""

    every: DeviceMesh | None = None
    """All processes; None where there is only one."""
    row: DeviceMesh | None = None
    """Those of this process's row; None where nothing is divided."""
    column: DeviceMesh | None = None
    """Those that hold what this process holds; None where no other does."""

    @property
    def count(self) -> int:
        """The number of processes."""
        return self.every.size() if self.every else 1

    @property
    def shards(self) -> int:
        return self.row.size() if self.row else 1


SINGLE_PROCESS = Layout()


def join(device: torch.device) -> None:
    """Meet the other processes that torchrun started, if it did; once is enough."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    """This process's number among all; the first, 0, also writes logs, pictures and checkpoints."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def layout(kind: str) -> Layout:
    """`replicated`: everything on every process; `sharded`: divided between all of them; `hybrid`: divided between the
    processes of a node; `auto`: hybrid, which on a single node is sharded."""
    if count() == 1:
        return SINGLE_PROCESS
    node = int(os.environ.get("LOCAL_WORLD_SIZE", count()))
    if kind in ("hybrid", "auto") and count() % node:
        raise UserError(
            f"{count()} processes are no rows of {node}: start as many on every node, or choose another --cfg.sharding"
        )
    shards = {"replicated": 1, "sharded": count()}.get(kind, node)
    return _layout(shards, "cuda" if dist.get_backend() == "nccl" else "cpu")


@functools.cache  # every mesh makes process groups
def _layout(shards: int, device: str) -> Layout:
    every, rows = init_device_mesh(device, (count(),)), count() // shards
    both = init_device_mesh(device, (rows, shards), mesh_dim_names=("column", "row"))
    return Layout(every, both["row"] if shards > 1 else None, both["column"] if rows > 1 else None)


def share(batch_size: int, accumulate: int) -> slice:
    """Which clips of a batch are this process's. Raises UserError if they cannot be divided into equal parts."""
    if batch_size % (parts := count() * accumulate):
        raise UserError(
            f"a batch of {batch_size} clips cannot be divided into {parts} equal parts (processes: {count()}, "
            f"--cfg.accumulate {accumulate}): make --cfg.batch-size a multiple of {parts}"
        )
    own = batch_size // count()
    return slice(rank() * own, (rank() + 1) * own)


# What lies where


def cut(spec: ParamSpec, shards: int) -> int | None:
    """The axis along which a leaf is divided: the one whose largest shard is smallest. None: every process has it all.

    torch.chunk divides an axis: into pieces of equal size but for the last, so that some processes may have none.
    """
    shape = spec.shape
    if shards == 1 or spec.whole or small(spec):
        return None
    if spec.axis is not None:
        return spec.axis
    return min(range(len(shape)), key=lambda axis: -(-shape[axis] // shards) / max(shape[axis], 1))


def small(spec: ParamSpec) -> bool:
    """Whether a leaf costs more to divide than to keep: its gradient goes with others in one exchange."""
    return math.prod(spec.shape) < SMALL


def held(spec: ParamSpec, shards: int) -> int:
    """How many numbers of a leaf the process that holds most of it has."""
    axis, size = cut(spec, shards), math.prod(spec.shape)
    return size if axis is None else size // spec.shape[axis] * -(-spec.shape[axis] // shards)


def place(params: Tree, spec: Tree, layout: Layout) -> Tree:
    """Whole leaves, the same on every process, as they lie between steps."""

    def lay(s: ParamSpec, x: Tensor) -> Tensor:
        axis = cut(s, layout.shards)
        if axis is None:
            return x
        # Without a copy the shard would be a view that keeps the whole leaf in memory.
        own = distribute_tensor(x, layout.row, [Shard(axis)], src_data_rank=None).to_local().clone()
        return _dtensor(own, s, layout, axis)

    return tree.map(lay, spec, params)


def _dtensor(own: Tensor, spec: ParamSpec, layout: Layout, axis: int) -> DTensor:
    stride = torch.empty(spec.shape, device="meta").stride()
    where = {"run_check": False, "shape": torch.Size(spec.shape), "stride": stride}
    return DTensor.from_local(own, layout.row, [Shard(axis)], **where)


def local(state: Tree) -> Tree:
    """A process's own tensors, which share memory with the state's."""
    return tree.map(lambda x: x.to_local() if isinstance(x, DTensor) else x, state)


def wrap(own: Tree, like: Tree) -> Tree:
    """The inverse of `local`: `own` as the DTensors that `like` has in its place."""

    def one(x: Tensor, old: Tensor) -> Tensor:
        if not isinstance(old, DTensor):
            return x
        where = {"run_check": False, "shape": old.shape, "stride": old.stride()}
        return DTensor.from_local(x, old.device_mesh, old.placements, **where)

    return tree.map(one, own, like)


def full(state: Tree) -> Tree:
    """Whole leaves again, on every process; all have to call this."""
    return tree.map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, state)


def to_first(state: Tree) -> Tree | None:
    """Whole leaves in the memory of the first process's host, one after the other; None on the rest. All call this."""
    if count() == 1:
        return state
    keep = (lambda x: x.cpu()) if rank() == 0 else lambda x: None
    whole = tree.map(lambda x: keep(full(x)), state)
    return whole if rank() == 0 else None


def from_first(whole: Tree | None, like: Tree) -> Tree:
    """The inverse of `to_first`: what the first process has, laid out like `like`, in its order."""
    if count() == 1:
        return whole

    def spread(old: Tensor, x: Tensor | None) -> Tensor:
        sent = (
            torch.empty(old.shape, dtype=old.dtype, device=local(old).device)
            if x is None
            else x.to(local(old))
        )
        dist.broadcast(sent, 0)
        if not isinstance(old, DTensor):
            return sent
        placed = distribute_tensor(sent, old.device_mesh, old.placements, src_data_rank=None)
        return wrap(placed.to_local().clone(), old)

    return tree.map(spread, like, tree.map(lambda _: None, like) if whole is None else whole)


# What a step exchanges


def gather(own: Tree, spec: Tree, layout: Layout) -> Tree:
    """Whole parameters from each process's shards."""

    def one(s: ParamSpec, x: Tensor) -> Tensor:
        axis = cut(s, layout.shards)
        return (
            x
            if axis is None
            else _dtensor(x, s, layout, axis).redistribute(placements=[Replicate()]).to_local()
        )

    return tree.map(one, spec, own)


def scatter(grads: Tree, spec: Tree, layout: Layout) -> Tree:
    """The average over all processes of whole gradients; of each leaf the part that is this process's."""
    if layout.count == 1:
        return grads

    few = iter(
        total(
            [g for s, g in zip(*map(tree.leaves, (spec, grads)), strict=True) if small(s)], layout
        )
    )

    def one(s: ParamSpec, g: Tensor) -> Tensor:
        if small(s):
            return next(few) / layout.count
        axis = cut(s, layout.shards)
        if axis is None:
            return _reduce(g, layout.every, "avg")
        g = _reduce(g, layout.row, "avg", Shard(axis))
        return (
            _reduce(g, layout.column, "avg") if layout.column else g
        )  # between nodes, perhaps, goes a shard

    return tree.map(one, spec, grads)


def _reduce(x: Tensor, mesh: DeviceMesh, kind: str, to: Placement = _EVERYWHERE) -> Tensor:
    """The sum or average of the x of a mesh's processes, on all of them or in shards."""
    return (
        DTensor.from_local(x, mesh, [Partial(kind)], run_check=False)
        .redistribute(placements=[to])
        .to_local()
    )


def average(x: Tensor, layout: Layout) -> Tensor:
    """The average over all processes; its gradient goes to this process's x, undivided: see `parts.Part.mean`."""
    if layout.count == 1:
        return x
    return _reduce(x.detach(), layout.every, "avg") + (x - x.detach())


def total(values: Tree, layout: Layout) -> Tree:
    """The sums over all processes of float32 leaves, in one exchange."""
    if layout.count == 1 or not tree.leaves(values):
        return values
    flat = torch.cat([x.detach().flatten() for x in tree.leaves(values)])
    sums = iter(_reduce(flat, layout.every, "sum").split([x.numel() for x in tree.leaves(values)]))
    return tree.map(lambda x: next(sums).reshape(x.shape), values)


def norm(own: Tree, spec: Tree, layout: Layout) -> Tensor:
    """The 2-norm of all leaves together, of which each process has its shards."""
    squares: dict[bool, list[Tensor]] = {True: [], False: []}
    tree.map(
        lambda s, g: squares[cut(s, layout.shards) is None].append(g.float().square().sum()),
        spec,
        own,
    )
    whole, mine = squares[True], squares[False]
    if mine:
        whole = [*whole, _reduce(torch.stack(mine).sum(), layout.row, "sum")]
    return torch.stack(whole).sum().sqrt()


# Between the processes' hosts


@functools.cache
def _hosts() -> dist.ProcessGroup:
    """All processes, by messages between the hosts that do not wait for a device."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def anyone(asks: bool) -> bool:
    """Whether any process asks, the same answer for all, who must all call this."""
    if count() == 1:
        return asks
    flag = torch.tensor(int(asks))
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=_hosts())
    return bool(flag)


def summed(number: int) -> int:
    """The sum over all processes, who must all call this."""
    if count() == 1:
        return number
    held = torch.tensor(number)
    dist.all_reduce(held, group=_hosts())
    return int(held)


def by_first(function: Callable[[], Any]) -> Any:
    """What `function()` returns, or the UserError that it raises, in the first process; all get it, and all wait."""
    if count() == 1:
        return function()
    said, trouble = [None, None], None
    if rank() == 0:
        try:
            said[0] = function()
        except UserError as error:
            said[1], trouble = str(error), error
    dist.broadcast_object_list(said, 0, group=_hosts())
    if said[1] is not None:
        raise trouble or UserError(said[1])
    return said[0]


def by_all(function: Callable[[], Any]) -> Any:
    """What `function()` returns in each process, or a UserError in all, if any raises one; all wait."""
    found = trouble = None
    try:
        found = function()
    except UserError as error:
        trouble = error
    end_together(trouble)
    return found


def end_together(trouble: UserError | None) -> None:
    """Raise in all processes, who must all call this, the UserError of the first that has one."""
    if count() == 1:
        said = [trouble]
    else:
        said = [None] * count()
        dist.all_gather_object(said, trouble and str(trouble), group=_hosts())
    if first := next(filter(None, said), None):
        raise trouble or UserError(first)


def check_same(value: str, what: str) -> None:
    """Refuse what is not the same for all processes, who must all call this."""
    if count() > 1:
        found = [None] * count()
        dist.all_gather_object(found, value, group=_hosts())
        if len(set(found)) > 1:
            raise UserError(
                f"{what} is not the same for all processes: let nothing write there, or copy it again"
            )
