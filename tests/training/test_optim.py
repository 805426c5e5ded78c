"""The optimiser against torch.optim, the clipping against torch's, and the schedules at their corners."""

import math
from dataclasses import asdict

import pytest
import torch

from genie_fn import random, tree
from genie_fn.errors import UserError
from genie_fn.runtime import stored_config
from genie_fn.training import optim
from genie_fn.training.optim import OptimConfig

DECAY = {"w": True, "b": False}


def start():
    return {"w": random.normal(random.key(0), (4, 3)), "b": random.normal(random.key(1), (3,))}


def gradient(step):
    key = random.fold_in(random.key(2), step)
    return {"w": random.normal(key, (4, 3)), "b": random.normal(random.fold_in(key, 1), (3,))}


def test_adamw_equals_torch_with_weight_decay_on_the_marked_leaves_only():
    cfg = OptimConfig(weight_decay=0.3, b1=0.8, b2=0.95, eps=1e-6)
    params, theirs = start(), tree.map(lambda p: p.clone().requires_grad_(), start())
    groups = [
        {"params": [theirs["w"]], "weight_decay": 0.3},
        {"params": [theirs["b"]], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    moments = optim.adamw_init(params)
    for s in range(20):
        lr, grads = 0.01 * (1 + s), gradient(s)
        params, moments = optim.adamw(
            grads, moments, params, torch.tensor(s), torch.tensor(lr), DECAY, cfg
        )
        for name, p in theirs.items():
            p.grad = grads[name]
        for group in oracle.param_groups:
            group["lr"] = lr
        oracle.step()
        torch.testing.assert_close(
            params, tree.map(torch.Tensor.detach, theirs), rtol=1e-4, atol=1e-5
        )


def test_adamw_is_pure():
    params, moments, grads = start(), optim.adamw_init(start()), gradient(0)
    optim.adamw(grads, moments, params, torch.tensor(0), torch.tensor(0.1), DECAY, OptimConfig())
    torch.testing.assert_close(params, start(), rtol=0, atol=0)
    assert all(torch.equal(m, torch.zeros_like(m)) for m in tree.leaves(moments))


@pytest.mark.parametrize("shape", [(8, 8), (6, 12), (12, 6)])
def test_orthogonal_keeps_the_directions_and_evens_the_singular_values(shape):
    x = random.normal(random.key(3), (2, *shape))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    y = optim.orthogonal(100 * x)
    values = u.transpose(-1, -2) @ y @ v.transpose(-1, -2)
    rest = values - torch.diag_embed(values.diagonal(dim1=-2, dim2=-1))
    assert rest.abs().max() < 1e-3
    assert (values.diagonal(dim1=-2, dim2=-1) > 0.5).all() and (
        values.diagonal(dim1=-2, dim2=-1) < 1.3
    ).all()


def test_muon_moves_stacked_matrices_and_leaves_the_rest_to_adamw():
    """Its step against one written out with a singular value decomposition."""
    keys = random.split(random.key(4), 2)
    params = start() | {"blocks": random.normal(keys[0], (3, 4, 8)), "norms": torch.ones(3, 4, 8)}
    grads = gradient(0) | {
        "blocks": random.normal(keys[1], (3, 4, 8)),
        "norms": torch.ones(3, 4, 8),
    }
    decay = DECAY | {"blocks": True, "norms": False}
    results = {}
    for muon in (False, True):
        cfg = OptimConfig(weight_decay=0.5, muon=muon)
        args = torch.tensor(0), torch.tensor(0.1), decay, cfg
        results[muon] = optim.adamw(grads, optim.adamw_init(params), params, *args)
    (plain, _), (moved, moments) = results[False], results[True]
    for name in ("w", "b", "norms"):
        assert torch.equal(plain[name], moved[name])
    u, _, v = torch.linalg.svd(grads["blocks"], full_matrices=False)
    update = (0.95 * params["blocks"] - moved["blocks"]) / (0.1 * 0.2 * 8**0.5)
    assert torch.nn.functional.cosine_similarity(update.flatten(), (u @ v).flatten(), dim=0) > 0.97
    assert torch.equal(moments["v"]["blocks"], torch.zeros(3, 4, 8))
    torch.testing.assert_close(moments["m"]["blocks"], 0.05 * grads["blocks"])


@pytest.mark.parametrize("limit", [0.1, 1e3])
def test_clip_equals_torch(limit):
    grads, theirs = gradient(0), start()
    for name, p in theirs.items():
        p.requires_grad_().grad = grads[name].clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs.values(), limit)
    clipped, ours = optim.clip(grads, limit)
    torch.testing.assert_close(ours, norm)
    torch.testing.assert_close(clipped, {name: p.grad for name, p in theirs.items()})


def rate(step, steps=100, **changes):
    value = optim.learning_rate(
        torch.tensor(step), steps, OptimConfig(lr=2.0, warmup=10, final=0.1, **changes)
    )
    assert value.shape == () and value.dtype == torch.float32
    return value.item()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_every_schedule_warms_up_linearly_to_the_peak(schedule):
    for step, expected in ((0, 0.2), (4, 1.0), (9, 2.0), (10, 2.0)):
        assert rate(step, schedule=schedule) == pytest.approx(expected, rel=1e-3)


def test_schedules_at_key_points():
    assert rate(99, schedule="constant") == pytest.approx(2.0)
    assert rate(55, schedule="cosine") == pytest.approx(2 * 0.55)
    assert rate(100, schedule="cosine") == pytest.approx(0.2)
    assert rate(99, schedule="cosine") == pytest.approx(
        0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * 89 / 90))
    )
    assert rate(80, schedule="wsd", decay=0.2) == pytest.approx(2.0)
    assert rate(90, schedule="wsd", decay=0.2) == pytest.approx(2 * 0.55)
    assert rate(100, schedule="wsd", decay=0.2) == pytest.approx(0.2)


def test_a_schedule_without_warm_up_or_of_one_step_is_finite():
    for schedule in ("constant", "cosine", "wsd"):
        cfg = OptimConfig(warmup=0, schedule=schedule)
        assert 0 < optim.learning_rate(torch.tensor(0), 1, cfg).item() <= cfg.lr * 1.001


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_the_number_of_steps_may_be_a_tensor(schedule):
    """As in a run with a time budget, which only expects a number of steps."""
    for steps in (1, 11, 100):
        for step in (0, 5, 10, 11, 40, 85, 99):
            expected = rate(step, steps, schedule=schedule)
            assert rate(step, torch.tensor(float(steps)), schedule=schedule) == pytest.approx(
                expected, rel=1e-5
            )


def test_ema_follows_at_first_and_ends_at_its_decay():
    zeros, ones = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    assert optim.ema(zeros, ones, torch.tensor(0), 0.99)["w"][0].item() == pytest.approx(0.9)
    assert optim.ema(zeros, ones, torch.tensor(10**6), 0.99)["w"][0].item() == pytest.approx(0.01)
    assert torch.equal(zeros["w"], torch.zeros(2)), "the old average was changed"


def test_the_optimiser_keeps_the_shape_of_every_leaf_scalars_too():
    params = {"w": torch.ones(2, 3), "scalar": torch.tensor(1.0)}
    moved, _ = optim.adamw(
        params, optim.adamw_init(params), params, torch.tensor(0), torch.tensor(0.1), {"w": True, "scalar": False},
        OptimConfig(),
    )  # fmt: skip
    average = optim.ema(params, moved, torch.tensor(0), 0.9)
    for result in (moved, average):
        assert tree.map(lambda x: x.shape, result) == tree.map(lambda x: x.shape, params)


def test_an_unknown_schedule_in_a_stored_configuration_is_refused():
    """On the command line tyro refuses it: see tests/scripts/test_training.py."""
    with pytest.raises(UserError):
        stored_config.from_dict(OptimConfig, asdict(OptimConfig()) | {"schedule": "linear"})
