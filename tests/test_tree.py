"""Pytrees: initialisation by path, selection, and gradients, with the canary for dropped custom backwards."""

import pytest
import torch

from genie_fn import random, tree
from genie_fn.runtime import compilation
from genie_fn.tree import ParamSpec

MARK = 123.0


class Marked(torch.autograd.Function):
    """Squares; its backward is wrong on purpose, so that using anything else shows."""

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, MARK)


def spec():
    return {
        "a": {"w": ParamSpec((3, 4)), "b": ParamSpec((4,), "zeros", decay=False)},
        "c": ParamSpec((2,), "ones"),
    }


def test_adding_a_parameter_changes_no_other():
    before = tree.paths(tree.init(spec(), random.key(0)))
    larger = {"0": ParamSpec((5,))} | spec() | {"z": {"w": ParamSpec((3, 4))}}
    after = tree.paths(tree.init(larger, random.key(0)))
    for path, leaf in before.items():
        assert torch.equal(leaf, after[path]), path
    assert not torch.equal(after["a/w"], after["z/w"]), "two paths share one key"
    assert not torch.equal(before["a/w"], tree.init(spec(), random.key(1))["a"]["w"]), (
        "the key is ignored"
    )


def test_init_draws_what_the_spec_says():
    params = tree.init(spec() | {"wide": ParamSpec((300, 300), std=0.5)}, random.key(0))
    assert torch.equal(params["a"]["b"], torch.zeros(4)) and torch.equal(params["c"], torch.ones(2))
    assert params["wide"].std().item() == pytest.approx(0.5, rel=0.02)
    assert params["wide"].mean().item() == pytest.approx(0.0, abs=0.01)
    assert tree.count(spec()) == tree.count(tree.init(spec(), random.key(0))) == 12 + 4 + 2


def test_stack_adds_a_layer_axis_and_unstack_removes_it():
    params = tree.init(tree.stack(spec(), 3), random.key(0))
    blocks = tree.unstack(params)
    assert len(blocks) == 3 and blocks[1]["a"]["w"].shape == (3, 4)
    assert torch.equal(blocks[2]["a"]["w"], params["a"]["w"][2])
    assert not torch.equal(blocks[0]["a"]["w"], blocks[1]["a"]["w"]), "layers start out equal"


def toy_loss(params, x):
    hidden = torch.tanh(x @ params["a"]["w"] + params["a"]["b"])
    return hidden.square().mean() + params["c"].sin().sum(), {"hidden": hidden}


def test_value_and_grad_equals_torch_func():
    params, x = tree.init(spec(), random.key(0)), random.normal(random.key(1), (5, 3))
    (loss, aux), grads = tree.value_and_grad(toy_loss)(params, x)
    oracle_grads, (oracle_loss, oracle_aux) = torch.func.grad_and_value(toy_loss, has_aux=True)(
        params, x
    )
    torch.testing.assert_close((loss, aux, grads), (oracle_loss, oracle_aux, oracle_grads))
    outputs = [loss, *tree.leaves(aux), *tree.leaves(grads)]
    assert not any(t.requires_grad for t in outputs), "the graph leaks out"
    assert not any(p.requires_grad or p.grad is not None for p in tree.leaves(params)), (
        "the parameters were touched"
    )


def test_value_and_grad_works_without_grad_mode_and_gives_unused_leaves_zeros():
    params = tree.init(spec(), random.key(0)) | {"unused": torch.ones(2, 2)}
    with torch.no_grad():
        (_, _), grads = tree.value_and_grad(toy_loss)(params, torch.ones(5, 3))
    assert torch.equal(grads["unused"], torch.zeros(2, 2))
    assert grads["a"]["w"].abs().sum() > 0


@pytest.mark.compile
@pytest.mark.parametrize("compiled", [False, True])
def test_canary_a_custom_backward_is_used(compiled):
    """Compiled torch.func.grad drops a custom backward silently: if this fails, no custom gradient can be trusted."""

    def loss(params):
        return Marked.apply(params["w"]).sum(), {"twice": params["w"] * 2}

    f = tree.value_and_grad(loss)
    f = compilation.compiled(f) if compiled else f
    (value, aux), grads = f({"w": torch.tensor([2.0, 3.0]), "unused": torch.ones(3)})
    assert value.item() == 13.0
    assert torch.equal(aux["twice"], torch.tensor([4.0, 6.0]))
    assert torch.equal(grads["w"], torch.full((2,), MARK))
    assert torch.equal(grads["unused"], torch.zeros(3))
