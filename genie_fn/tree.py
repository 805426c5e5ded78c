"""Parameter pytrees: specs, initialisation, paths and gradients.

Trees are nested dicts (and NamedTuples) of tensors. A model publishes `spec(cfg)`, a tree of `ParamSpec`, from which
initialisation, parameter count, the weight-decay mask and the checkpoint check all derive.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from genie_fn import random

# Without this, torch.autograd.grad inside a compiled function is a graph break. The alternative, compiling
# torch.func.grad, silently drops the backward of every custom autograd.Function (see `value_and_grad`).
torch._dynamo.config.trace_autograd_ops = True

Tree = Any
map = pytree.tree_map
leaves = pytree.tree_leaves


@dataclass(frozen=True)
class ParamSpec:
    """One parameter: its shape, how it starts, and whether weight decay applies to it.

    `init` is "normal" (zero mean, standard deviation `std`), "zeros" or "ones". `whole`: every device keeps all of it,
    however the others are divided; `axis`: the only one along which it may be.
    """

    shape: tuple[int, ...]
    init: str = "normal"
    std: float = 0.02
    decay: bool = True
    whole: bool = False
    axis: int | None = None

    def draw(self, key: Tensor) -> Tensor:
        """The initial value, float32 of `shape`, on the key's device."""
        if self.init == "normal":
            return random.normal(key, self.shape) * self.std
        return {"zeros": torch.zeros, "ones": torch.ones}[self.init](self.shape, device=key.device)


def stack(spec: Tree, num: int) -> Tree:
    """The spec of `num` copies of a block, with a leading layer axis on every leaf."""
    return map(lambda s: replace(s, shape=(num, *s.shape)), spec)


def unstack(params: Tree) -> list[Tree]:
    """The blocks of a stacked tree, one tree per index of the leading layer axis (views, no copies)."""
    flat, treedef = pytree.tree_flatten(params)
    return [
        pytree.tree_unflatten(list(block), treedef)
        for block in zip(*(x.unbind(0) for x in flat), strict=True)
    ]


def map_with_path(f: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """Map `f(path, leaf)` over a tree; a path reads like `encoder/blocks/mlp/up`."""
    return pytree.tree_map_with_path(
        lambda path, leaf: f("/".join(_name(entry) for entry in path), leaf), tree
    )


def _name(entry) -> str:
    return str(
        next(getattr(entry, field) for field in ("key", "name", "idx") if hasattr(entry, field))
    )


def paths(tree: Tree) -> dict[str, Any]:
    """The leaves by path, in tree order."""
    found: dict[str, Any] = {}
    map_with_path(lambda path, leaf: found.setdefault(path, leaf), tree)
    return found


def init(spec: Tree, key: Tensor) -> Tree:
    """Draw every parameter of a spec. A leaf's key depends on its path alone, so adding one never reshuffles others."""
    return map_with_path(
        lambda path, s: s.draw(random.fold_in(key, zlib.crc32(path.encode()))), spec
    )


def count(spec: Tree) -> int:
    """The number of parameters in a tree of specs or tensors."""
    return sum(torch.Size(leaf.shape).numel() for leaf in leaves(spec))


def value_and_grad(loss_fn: Callable, *, differentiable: bool = False) -> Callable:
    """`jax.value_and_grad(loss_fn, has_aux=True)`: `f(params, *args) -> ((loss, aux), grads)`, pure at its interface.

    `loss_fn(params, *args)` returns a scalar loss and a tree of auxiliary tensors. Leaves that the loss does not use
    get zeros. `differentiable` gradients can be derived again, by whatever else the loss depends on. Built on
    torch.autograd.grad over fresh detached leaves because the compiled torch.func.grad drops custom backwards without a
    word; tests/test_tree.py keeps a canary for that.
    """

    def wrapped(params: Tree, *args, **kwargs):
        flat, treedef = pytree.tree_flatten(params)
        flat = [x.detach().requires_grad_() for x in flat]
        with torch.enable_grad():
            loss, aux = loss_fn(pytree.tree_unflatten(flat, treedef), *args, **kwargs)
            grads = torch.autograd.grad(
                loss, flat, create_graph=differentiable, materialize_grads=True
            )
        return (loss.detach(), map(torch.Tensor.detach, aux)), pytree.tree_unflatten(
            list(grads), treedef
        )

    return wrapped
