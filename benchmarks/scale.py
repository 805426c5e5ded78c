"""What one process of many holds, and what it exchanges in a step: formulae, and a table of them.

`python -m benchmarks.scale` prints the tables of docs/scale.md. tests/benchmarks/test_scale.py compares the formulae
with what running processes hold and send.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from genie_fn import dynamics, lam, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime.backend import AUTO
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training.sharding import largest_shard, shard_axis
from genie_fn.tree import Tree

NUMBER = 4  # bytes of a float32: parameters, moments, averages and gradients
NODE = 8  # GPUs
GPUS = (8, 64, 512, 4096)


class Traffic(NamedTuple):
    """Bytes of the tensors that each kind of exchange of a step is given or gives, whichever is larger."""

    gather: int
    """Parameters, within a row of `shards` processes."""
    scatter: int
    """Gradients, within a row."""
    columns: int
    """The shards' gradients, between rows; 0 if there is one row."""
    everyone: int
    """Gradients of undivided leaves, between all processes."""


class Wire(NamedTuple):
    """Bytes that a process sends in a step, by ring algorithms."""

    within: float
    """To others of its row, which is a node's where the layout is `hybrid`."""
    between: float
    """To processes that hold what it holds."""


def state_bytes(spec: Tree, shards: int, copies: int = 3) -> int:
    """What lies on a process between steps, at most: `copies` of its parameters (two are moments; a fourth, `ema`)."""
    return copies * NUMBER * sum(largest_shard(s, shards) for s in tree.leaves(spec))


def step_bytes(spec: Tree, shards: int) -> int:
    """What a step adds to that beside activations: the gathered parameters, and the gradients of all."""
    divided = [s for s in tree.leaves(spec) if shard_axis(s, shards) is not None]
    return NUMBER * (tree.count(divided) + tree.count(spec))


def traffic(spec: Tree, shards: int, rows: int) -> Traffic:
    """Of parameters and gradients; beside them go a few thousand numbers, for metrics and codebooks."""
    if shards * rows == 1:
        return Traffic(0, 0, 0, 0)
    divided = [s for s in tree.leaves(spec) if shard_axis(s, shards) is not None]
    padded = NUMBER * shards * sum(largest_shard(s, shards) for s in divided)
    columns = NUMBER * sum(largest_shard(s, shards) for s in divided) if rows > 1 else 0
    return Traffic(padded, padded, columns, NUMBER * (tree.count(spec) - tree.count(divided)))


def wire(spec: Tree, shards: int, rows: int) -> Wire:
    """A ring of n sends (n-1)/n of what it gathers or scatters, and twice that of what it sums."""
    moved, count = traffic(spec, shards, rows), shards * rows
    within = (moved.gather + moved.scatter) * (shards - 1) / shards
    between = 2 * moved.columns * (rows - 1) / rows
    everyone = 2 * moved.everyone * (count - 1) / count
    return Wire(within + everyone, between) if rows == 1 else Wire(within, between + everyone)


def activation_bytes(loss: Callable[[Tree, int], Tensor], spec: Tree) -> tuple[int, int]:
    """What the backward pass of `loss(params, clips)` finds saved: (copies of the weights, for each clip).

    Counted on tensors without content, uncompiled.
    """

    def saved(clips: int) -> int:
        with FakeTensorMode():
            params = tree.map(lambda s: torch.empty(s.shape, requires_grad=True), spec)
            own = {x.untyped_storage()._cdata for x in tree.leaves(params)}
            kept: dict[int, torch.UntypedStorage] = {}

            def keep(x: Tensor) -> Tensor:
                storage = x.untyped_storage()
                if storage._cdata not in own:
                    kept[storage._cdata] = storage
                return x

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                result = loss(params, clips)
            found = sum(storage.nbytes() for storage in kept.values())
            del result
        return found

    one, two = saved(1), saved(2)
    return 2 * one - two, two - one


class Model(NamedTuple):
    """A stage at the size of a preset: its parameters, and its loss on so many clips of 16 frames."""

    name: str
    spec: Tree
    loss: Callable[[Tree, int], Tensor]
    batch: int
    """Clips of a step in the paper."""


FRAMES = 16
EAGER = AUTO.resolve("cuda", compiled=False)


def _video(clips: int, cfg: TokenizerConfig | LamConfig) -> Tensor:
    return torch.empty((clips, FRAMES, cfg.height, cfg.width, 3), dtype=torch.uint8)


def _tokenizer(name: str, batch: int, cfg: TokenizerConfig) -> Model:
    return Model(
        name,
        tokenizer.spec(cfg),
        lambda p, clips: tokenizer.loss(p, _video(clips, cfg), cfg, backend=EAGER)[0],
        batch,
    )


def _lam(name: str, batch: int, cfg: LamConfig) -> Model:
    return Model(
        name,
        lam.spec(cfg),
        lambda p, clips: lam.loss(p, _video(clips, cfg), cfg, backend=EAGER)[0],
        batch,
    )


def _dynamics(name: str, batch: int, cfg: DynamicsConfig) -> Model:

    def loss(params: Tree, clips: int) -> Tensor:
        ids = torch.empty((clips, FRAMES, cfg.tokens), dtype=torch.int64)
        actions = torch.empty((clips, FRAMES - 1), dtype=torch.int64)
        mask = torch.empty(ids.shape, dtype=torch.bool)
        return dynamics.loss(params, ids, actions, mask, cfg, backend=EAGER)[0]

    return Model(name, dynamics.spec(cfg), loss, batch)


def models() -> list[Model]:
    """The presets `coinrun`, and Genie's 11B model on frames of 160 x 90, padded to whole patches.

    Its tables give twice our number of layers: 48 of width 5120 with 10.1B parameters are 8 · width² a layer, and a
    block here, of two attentions and one MLP four times as wide, has 16 · width².
    """

    def stack(count: int, dim: int, head: int = 64) -> STConfig:
        return STConfig(count, dim, dim // head, dtype="bfloat16")

    book = QuantizerConfig("vq", 1024, latent_dim=32)
    return [
        _tokenizer("coinrun tokenizer", 48, tokenizer.PRESETS["coinrun"]),
        _lam("coinrun latent actions", 36, LamConfig(encoder=stack(8, 512), decoder=stack(8, 512))),
        _dynamics("coinrun dynamics", 36, DynamicsConfig(tokens=256, stack=stack(12, 512))),
        _tokenizer(
            "11B tokenizer", 512, TokenizerConfig(92, 160, 4, stack(6, 512), stack(10, 1024), book)
        ),
        _lam("11B latent actions", 512, LamConfig(96, 160, 16, stack(10, 1024), stack(10, 1024))),
        _dynamics(
            "11B dynamics",
            512,
            DynamicsConfig(tokens=23 * 40, actions=8, stack=stack(24, 5120, 128)),
        ),
    ]


def row(cells: list) -> str:
    """A line of a table in Markdown."""
    return (
        "| "
        + " | ".join(cell if isinstance(cell, str) else f"{cell:,.2f}" for cell in cells)
        + " |"
    )


def _table(head: list[str], rows: list[list]) -> str:
    return "\n".join([row(head), "|---" * len(head) + "|", *map(row, rows)])


def needs(model: Model) -> list:
    """GB on one GPU of a node: the state by layout, what a step adds, and all of it with one clip at a time."""
    copies, clip = (x / 1e9 for x in activation_bytes(model.loss, model.spec))
    whole, divided = (state_bytes(model.spec, shards) / 1e9 for shards in (1, NODE))
    alone, step = (step_bytes(model.spec, shards) / 1e9 + copies for shards in (1, NODE))
    size = f"{tree.count(model.spec) / 1e6:,.0f}M"
    return [
        model.name,
        size,
        whole,
        divided,
        alone,
        step,
        clip,
        whole + alone + clip,
        divided + step + clip,
    ]


def exchanges(model: Model, gpus: int) -> list:
    """GB of state, and GB that a GPU sends in a step, hybrid and sharded, on so many GPUs in nodes."""
    layouts = (NODE, gpus // NODE), (gpus, 1)
    found = [
        (state_bytes(model.spec, shards) / 1e9, wire(model.spec, shards, rows))
        for shards, rows in layouts
    ]
    (mixed, sent), (divided, ring) = found
    return [
        model.name,
        str(gpus),
        mixed,
        sent.within / 1e9,
        sent.between / 1e9,
        divided,
        ring.within / 1e9,
    ]


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
    every = models()
    print(_table(NEEDS, [needs(model) for model in every]), end="\n\n")
    print(_table(EXCHANGES, [exchanges(model, gpus) for model in every for gpus in GPUS]))


if __name__ == "__main__":
    main()
