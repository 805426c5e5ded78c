"""Compiled functions, with and without CUDA graphs, against the functions themselves."""

import pytest
import torch

from genie_fn.runtime.compilation import compiled

pytestmark = pytest.mark.compile

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
        ],
    ),
]


@pytest.mark.compile
@pytest.mark.parametrize("device", DEVICES)
def test_results_are_those_of_the_function_and_stay_the_callers_own(device):
    def function(params, x, name):
        return {"y": params["w"] * x[0] + x[1], "name": name}

    fast = compiled(function, cuda_graph=True)
    params = {"w": torch.tensor([2.0], device=device)}
    one = torch.ones((), device=device)
    results = []
    for i in range(6):
        x = torch.full((3,), float(i), device=device)
        results.append(fast(params, (x, one), "a"))
    for i, result in enumerate(results):  # no later replay changes them
        assert result["y"].tolist() == [2.0 * i + 1] * 3 and result["name"] == "a"
    params["w"].fill_(5.0)  # the first argument is read where it lies
    x = torch.ones(3, device=device)
    assert fast(params, (x, one), "a")["y"].tolist() == [6.0] * 3


@pytest.mark.compile
@pytest.mark.parametrize("device", DEVICES)
def test_other_shapes_and_other_options_are_other_graphs(device):
    fast = compiled(lambda p, x, k: p + x * k, cuda_graph=True)
    p = torch.ones((), device=device)
    for _ in range(5):
        assert fast(p, torch.ones(2, device=device), 3).tolist() == [4.0] * 2
        assert fast(p, torch.ones(3, device=device), 3).tolist() == [4.0] * 3
        assert fast(p, torch.ones(3, device=device), 4).tolist() == [5.0] * 3


@pytest.mark.compile
@pytest.mark.parametrize("device", DEVICES)
def test_a_state_is_overwritten_once_per_call(device):
    def step(state, batch):
        state["x"].add_(batch)
        return state["x"] * 1

    fast = compiled(step, cuda_graph=True)
    state = {"x": torch.zeros(2, device=device)}
    seen = [fast(state, torch.ones(2, device=device))[0].item() for _ in range(6)]
    assert seen == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert state["x"].tolist() == [6.0, 6.0]
