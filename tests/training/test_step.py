"""One training step: networks that have an optimizer of their own."""

from dataclasses import replace

import pytest
import torch

from genie_fn import random, tree
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import Objective, init_state, make_recipe
from genie_fn.tree import ParamSpec

SPEC = {"a": {"w": ParamSpec((2, 4, 3))}, "b": {"w": ParamSpec((2, 3, 4))}}
FIRST = OptimConfig(lr=3e-2, muon=True, warmup=0, ema=0.9, clip=1e9)
OWN = OptimConfig(lr=1e-3, warmup=0, ema=0.5, clip=1e9)


def after(spec, optim: OptimConfig, separate=None):
    """The state and the metrics after two steps of squares, whose gradients are apart."""

    def loss(params, batch, key, step, microbatch):
        return sum(x.square().sum() for x in tree.leaves(params)), ({}, ())

    cfg = RunConfig(compile="off", device="cpu", optim=optim)
    separate = separate or {}
    state = init_state(spec, random.key(0), optim, {}, separate)
    step = make_step(Objective(loss), spec, cfg, separate)
    for _ in range(2):
        state, metrics = step(state, None, random.key(1))
    return state, metrics


@pytest.mark.parametrize("own", [OWN, replace(OWN, muon=True), replace(OWN, weight_decay=0.5)])
def test_each_network_is_trained_as_by_its_optimizer_alone(own):
    both, metrics = after(SPEC, FIRST, {"b": own})
    for name, optim in (("a", FIRST), ("b", own)):
        alone, _ = after({name: SPEC[name]}, optim)
        for part in ("params", "ema"):
            assert torch.equal(getattr(both, part)[name]["w"], getattr(alone, part)[name]["w"])
    assert metrics["lr"] == pytest.approx(3e-2) and metrics["lr_b"] == pytest.approx(1e-3)


def test_only_networks_whose_optimizer_has_one_keep_an_average():
    assert after(SPEC, FIRST, {"b": replace(OWN, ema=0.0)})[0].ema.keys() == {"a"}
    assert after(SPEC, replace(FIRST, ema=0.0), {"b": OWN})[0].ema.keys() == {"b"}


def test_shards_keep_whole_matrices_where_a_networks_own_optimizer_is_muon():
    def axes(optim, separate):
        recipe = make_recipe(Objective(len), SPEC, RunConfig(optim=optim), separate)
        return {name: network["w"].axis for name, network in recipe.spec.items()}

    assert axes(FIRST, {"b": OWN}) == {"a": 0, "b": None}
    assert axes(OWN, {"b": FIRST}) == {"a": None, "b": 0}
