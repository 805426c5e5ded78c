"""Parameter pytrees: specs, initialisation, paths and gradients.

Trees are nested dicts (and NamedTuples) of tensors. A model publishes `spec(cfg)`, a tree of
`ParamSpec`, from which initialisation, parameter count, weight-decay mask and checkpoint check
derive.

`map` and `leaves` are those of torch's own pytree, rather than optree's, because torch.compile
traces them without another dependency.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from genie_fn import random

Tree = Any
"""A leaf, or a nested dict, tuple or NamedTuple of leaves."""

map: Callable[..., Tree] = pytree.tree_map
"""`map(f, tree, *others)`: the tree of f(leaf, …) over the leaves of trees of one structure."""

leaves: Callable[[Tree], list[Any]] = pytree.tree_leaves
"""The leaves of a tree, in order."""


@dataclass(frozen=True)
class ParamSpec:
    """One parameter: its shape, its initial value, and how optimizers and shards treat it."""

    shape: tuple[int, ...]
    init: Literal["normal", "zeros", "ones"] = "normal"
    std: float = 0.02
    """Standard deviation of a normal initial value; its mean is 0."""
    decay: bool = True
    """Whether weight decay applies."""
    whole: bool = False
    """Whether every device keeps all of it, even if the state is sharded."""
    axis: int | None = None
    """The only axis along which it may be sharded; None: any."""

    def draw(self, key: Tensor) -> Tensor:
        """The initial value, float32 of `shape`, on the key's device."""
        match self.init:
            case "normal":
                return random.normal(key, self.shape) * self.std
            case "zeros":
                return torch.zeros(self.shape, device=key.device)
            case "ones":
                return torch.ones(self.shape, device=key.device)


def stack(spec: Tree, num: int) -> Tree:
    """The spec of `num` copies of a block: every leaf gets a leading layer axis."""

    def stacked(leaf: ParamSpec) -> ParamSpec:
        return replace(leaf, shape=(num, *leaf.shape))

    return map(stacked, spec)


def unstack(params: Tree) -> list[Tree]:
    """The blocks of a stacked tree, one tree per index of the layer axis (views, no copies)."""
    flat, treedef = pytree.tree_flatten(params)
    blocks = zip(*(x.unbind(0) for x in flat), strict=True)
    return [pytree.tree_unflatten(list(block), treedef) for block in blocks]


def map_with_path(f: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """The tree of f(path, leaf); a path looks like `encoder/blocks/mlp/up`."""

    def call(path: tuple[Any, ...], leaf: Any) -> Any:
        return f("/".join(_name(entry) for entry in path), leaf)

    return cast(Any, pytree.tree_map_with_path)(call, tree)


def _name(entry: Any) -> str:
    """The name of one step of a path: a dict's key, a NamedTuple's field or a tuple's index."""
    for field in ("key", "name", "idx"):
        if hasattr(entry, field):
            return str(getattr(entry, field))
    raise TypeError(f"a path contains an unknown entry, {entry!r}: use dicts and (named) tuples")


def paths(tree: Tree) -> dict[str, Any]:
    """The leaves by path, in the order of the tree."""
    by_path: dict[str, Any] = {}
    map_with_path(by_path.setdefault, tree)
    return by_path


def init(spec: Tree, key: Tensor) -> Tree:
    """Initial values for all parameters of a spec.

    A leaf's key depends only on its path, so a new parameter does not change the others.
    """

    def draw(path: str, leaf: ParamSpec) -> Tensor:
        return leaf.draw(random.fold_in(key, zlib.crc32(path.encode())))

    return map_with_path(draw, spec)


def count(spec: Tree) -> int:
    """The number of parameters in a tree of specs or tensors."""
    return sum(torch.Size(leaf.shape).numel() for leaf in leaves(spec))


def value_and_grad(
    loss_fn: Callable[..., tuple[Tensor, Tree]], *, differentiable: bool = False
) -> Callable[..., tuple[tuple[Tensor, Tree], Tree]]:
    """A pure function `f(params, *args) -> ((loss, aux), grads)`, as `jax.value_and_grad` gives it.

    `loss_fn(params, *args)` returns a scalar loss and a tree of auxiliary tensors. The gradient of
    a leaf that the loss does not use is zero. With `differentiable`, the gradients can themselves
    be differentiated with respect to whatever else the loss depends on.

    This uses torch.autograd.grad over detached leaves, because compiled torch.func.grad silently
    drops the backward of a custom autograd.Function (tests/test_tree.py checks that this one does
    not). Programs that contain it are compiled by genie_fn/runtime/compilation.py, which lets torch
    trace it.
    """

    def wrapped(params: Tree, *args: Any, **kwargs: Any) -> tuple[tuple[Tensor, Tree], Tree]:
        flat, treedef = pytree.tree_flatten(params)
        flat = [x.detach().requires_grad_() for x in flat]
        with torch.enable_grad():
            loss, aux = loss_fn(pytree.tree_unflatten(flat, treedef), *args, **kwargs)
            grads = torch.autograd.grad(
                loss, flat, create_graph=differentiable, materialize_grads=True
            )
        value = (loss.detach(), map(torch.Tensor.detach, aux))
        return value, pytree.tree_unflatten(list(grads), treedef)

    return wrapped
