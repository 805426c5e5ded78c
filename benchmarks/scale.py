"""Memory of one process, and its traffic in a training step, as formulas; the tables of docs/scale.md.

`python -m benchmarks.scale` prints the tables. tests/training/test_sharding.py compares the formulas
with the memory and traffic of running processes.
"""

from collections.abc import Callable
from typing import NamedTuple

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from genie_fn import dynamics, lam, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime import output
from genie_fn.runtime.backend import AUTO
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training.sharding import largest_shard, shard_axis
from genie_fn.tree import Tree

NUMBER = 4  # bytes of a float32: parameters, moments, averages and gradients
NODE = 8  # GPUs
GPUS = (8, 64, 512, 4096)


class Traffic(NamedTuple):
    """Bytes of the inputs or outputs of each kind of exchange, whichever are larger.

    A copy of the state is divided between the processes of one row.
    """

    gather: int
    """Parameters, within a row of `shards` processes."""
    scatter: int
    """Gradients, within a row."""
    columns: int
    """The shards' gradients, between rows; 0 with one row."""
    everyone: int
    """Gradients of replicated leaves, between all processes."""


class Wire(NamedTuple):
    """Bytes that a process sends in a step with ring algorithms."""

    within: float
    """To processes of its row (its node, with `hybrid`)."""
    between: float
    """To processes that hold the same shards."""


def state_bytes(spec: Tree, shards: int, copies: int = 3) -> int:
    """Bytes of the state on the process with most of it.

    `copies` are the parameters and their two moments; 4 with averaged weights.
    """
    return copies * NUMBER * sum(largest_shard(s, shards) for s in tree.leaves(spec))


def step_bytes(spec: Tree, shards: int) -> int:
    """Bytes that a step adds, beside activations: gathered parameters, and all gradients."""
    divided = [s for s in tree.leaves(spec) if shard_axis(s, shards) is not None]
    return NUMBER * (tree.count(divided) + tree.count(spec))


def traffic(spec: Tree, shards: int, rows: int) -> Traffic:
    """The exchanges of parameters and gradients.

    A few thousand numbers for metrics and codebooks are not counted.
    """
    if shards * rows == 1:
        return Traffic(0, 0, 0, 0)
    divided = [s for s in tree.leaves(spec) if shard_axis(s, shards) is not None]
    padded = NUMBER * shards * sum(largest_shard(s, shards) for s in divided)
    columns = NUMBER * sum(largest_shard(s, shards) for s in divided) if rows > 1 else 0
    return Traffic(padded, padded, columns, NUMBER * (tree.count(spec) - tree.count(divided)))


def wire(spec: Tree, shards: int, rows: int) -> Wire:
    """What a process sends: of n, (n-1)/n of a gather or scatter, and twice that of a sum."""
    moved = traffic(spec, shards, rows)
    count = shards * rows
    within = (moved.gather + moved.scatter) * (shards - 1) / shards
    between = 2 * moved.columns * (rows - 1) / rows
    everyone = 2 * moved.everyone * (count - 1) / count
    if rows == 1:
        return Wire(within + everyone, between)
    return Wire(within, between + everyone)


def activation_bytes(loss: Callable[[Tree, int], Tensor], spec: Tree) -> tuple[int, int]:
    """Bytes that the backward pass of `loss(params, clips)` needs: (casts of the weights, per clip).

    Counted on tensors without content, not compiled.
    """
    one = _saved_bytes(loss, spec, 1)
    two = _saved_bytes(loss, spec, 2)
    return 2 * one - two, two - one


def _saved_bytes(loss: Callable[[Tree, int], Tensor], spec: Tree, clips: int) -> int:
    """Bytes that autograd saves for the backward pass, without the parameters."""
    with FakeTensorMode():
        params = tree.map(lambda s: torch.empty(s.shape, requires_grad=True), spec)
        own = {x.untyped_storage()._cdata for x in tree.leaves(params)}
        saved: dict[int, torch.UntypedStorage] = {}

        def save(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage
            return x

        with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
            result = loss(params, clips)
        total = sum(storage.nbytes() for storage in saved.values())
        del result  # after the count, because it keeps the saved tensors alive
    return total


class Model(NamedTuple):
    """A model: its parameters, and its loss on a number of clips of 16 frames."""

    name: str
    spec: Tree
    loss: Callable[[Tree, int], Tensor]


FRAMES = 16
EAGER = AUTO.resolve("cuda", compiled=False)


def _video(clips: int, cfg: TokenizerConfig | LamConfig) -> Tensor:
    return torch.empty((clips, FRAMES, cfg.height, cfg.width, 3), dtype=torch.uint8)


def _tokenizer(name: str, cfg: TokenizerConfig) -> Model:
    def loss(params: Tree, clips: int) -> Tensor:
        return tokenizer.loss(params, _video(clips, cfg), cfg, backend=EAGER)[0]

    return Model(name, tokenizer.spec(cfg), loss)


def _lam(name: str, cfg: LamConfig) -> Model:
    def loss(params: Tree, clips: int) -> Tensor:
        return lam.loss(params, _video(clips, cfg), cfg, backend=EAGER)[0]

    return Model(name, lam.spec(cfg), loss)


def _dynamics(name: str, cfg: DynamicsConfig) -> Model:
    def loss(params: Tree, clips: int) -> Tensor:
        ids = torch.empty((clips, FRAMES, cfg.tokens), dtype=torch.int64)
        actions = torch.empty((clips, FRAMES - 1), dtype=torch.int64)
        mask = torch.empty(ids.shape, dtype=torch.bool)
        return dynamics.loss(params, ids, actions, mask, cfg, backend=EAGER)[0]

    return Model(name, dynamics.spec(cfg), loss)


def models() -> list[Model]:
    """The presets `coinrun`, and Genie's 11B model on frames of 160 x 90, padded to whole patches.

    The paper's tables give twice our number of layers: 48 layers of width 5120 with 10.1B parameters
    have 8 · width² each, while a block here, of two attentions and an MLP four times as wide, has
    16 · width².
    """

    def stack(count: int, dim: int, head: int = 64) -> STConfig:
        return STConfig(count, dim, dim // head, dtype="bfloat16")

    book = QuantizerConfig("vq", 1024, latent_dim=32)
    small = LamConfig(encoder=stack(8, 512), decoder=stack(8, 512))
    large_tokenizer = TokenizerConfig(92, 160, 4, stack(6, 512), stack(10, 1024), book)
    large_lam = LamConfig(96, 160, 16, stack(10, 1024), stack(10, 1024))
    large_dynamics = DynamicsConfig(tokens=23 * 40, actions=8, stack=stack(24, 5120, 128))
    return [
        _tokenizer("coinrun tokenizer", tokenizer.PRESETS["coinrun"]),
        _lam("coinrun latent actions", small),
        _dynamics("coinrun dynamics", DynamicsConfig(tokens=256, stack=stack(12, 512))),
        _tokenizer("11B tokenizer", large_tokenizer),
        _lam("11B latent actions", large_lam),
        _dynamics("11B dynamics", large_dynamics),
    ]


def row(cells: list) -> str:
    """A line of a Markdown table; numbers have two digits."""
    texts = [cell if isinstance(cell, str) else f"{cell:,.2f}" for cell in cells]
    return "| " + " | ".join(texts) + " |"


def _table(head: list[str], rows: list[list]) -> str:
    return "\n".join([row(head), "|---" * len(head) + "|", *map(row, rows)])


def needs(model: Model) -> list:
    """The cells of a row: parameters; GB of state, step and activations on one GPU and in 8 shards."""
    casts, clip = activation_bytes(model.loss, model.spec)
    states = [state_bytes(model.spec, shards) for shards in (1, NODE)]
    steps = [step_bytes(model.spec, shards) + casts for shards in (1, NODE)]
    totals = [state + step + clip for state, step in zip(states, steps, strict=True)]
    size = f"{tree.count(model.spec) / 1e6:,.0f}M"
    return [model.name, size, *(number / 1e9 for number in (*states, *steps, clip, *totals))]


def exchanges(model: Model, gpus: int) -> list:
    """The cells of a row: GB of state, and GB that a GPU sends in a step, hybrid and sharded."""
    nodes = gpus // NODE
    hybrid = wire(model.spec, NODE, nodes)
    sharded = wire(model.spec, gpus, 1)
    numbers = (
        state_bytes(model.spec, NODE),
        hybrid.within,
        hybrid.between,
        state_bytes(model.spec, gpus),
        sharded.within,
    )
    return [model.name, str(gpus), *(number / 1e9 for number in numbers)]


NEEDS = [
    "",
    "parameters",
    "state, 1 GPU",
    "state, 8 shards",
    "step, 1 GPU",
    "step, 8 shards",
    "activations per clip",
    "total, 1 GPU",
    "total, 8 shards",
]
EXCHANGES = [
    "",
    "GPUs",
    "hybrid: state",
    "hybrid: sent within nodes",
    "hybrid: sent between nodes",
    "sharded: state",
    "sharded: sent",
]


def main() -> None:
    """Print both tables."""
    with output.never_failing():
        print(_table(NEEDS, [needs(model) for model in models()]), end="\n\n")
        print(_table(EXCHANGES, [exchanges(model, gpus) for model in models() for gpus in GPUS]))


if __name__ == "__main__":
    main()
