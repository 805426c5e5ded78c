"""Recording and replaying: with a stand-in for the GPU's recorder here, with the GPU's own where there is one."""

import pytest
import torch
from torch.utils import _pytree as pytree

from genie_fn.runtime import graphs


def stand_in(run):
    """Replays by running again, and writes its results where the first run left them, as a CUDA graph does."""
    result = run()

    def replay():
        for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(run()), strict=True):
            if isinstance(old, torch.Tensor) and old is not new:
                old.copy_(new)

    return replay, result


RECORDERS = [
    pytest.param((stand_in, "cpu"), id="stand-in"),
    pytest.param(
        (graphs.capture, "cuda"),
        id="gpu",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    ),
]


@pytest.fixture(params=RECORDERS)
def recorder(request):
    return request.param


def test_a_recorded_function_gives_what_the_function_gives(recorder):
    capture, device = recorder
    runs = []

    def function(params, x, name):
        runs.append(name)
        return {"y": params["w"] * x[0] + x[1], "name": name}

    fast = graphs.recorded(function, capture=capture)
    params = {"w": torch.tensor([2.0], device=device)}
    results = [fast(params, (torch.full((3,), float(i), device=device), torch.ones((), device=device)), "a")
               for i in range(6)]  # fmt: skip
    for i, result in enumerate(
        results
    ):  # results are the caller's own: no later replay changes them
        assert result["y"].tolist() == [2.0 * i + 1] * 3 and result["name"] == "a"
    params["w"].fill_(5.0)  # fixed tensors are read where they lie
    assert (
        fast(params, (torch.ones(3, device=device), torch.ones((), device=device)), "a")[
            "y"
        ].tolist()
        == [6.0] * 3
    )
    if device == "cuda":
        assert len(runs) == graphs.WARMUP + 1


def test_other_shapes_and_other_options_are_other_recordings(recorder):
    capture, device = recorder
    fast = graphs.recorded(lambda p, x, k: p + x * k, capture=capture)
    p = torch.ones((), device=device)
    for _ in range(5):
        assert fast(p, torch.ones(2, device=device), 3).tolist() == [4.0] * 2
        assert fast(p, torch.ones(3, device=device), 3).tolist() == [4.0] * 3
        assert fast(p, torch.ones(3, device=device), 4).tolist() == [5.0] * 3


def test_a_state_is_overwritten_once_per_call(recorder):
    capture, device = recorder

    def step(state, batch):
        state["x"].add_(batch)
        return state, state["x"] * 1

    fast, state = graphs.recorded(step, capture=capture), {"x": torch.zeros(2, device=device)}
    seen = []
    for _ in range(
        6 if device == "cuda" else 2
    ):  # the stand-in runs while it records, which a GPU does not
        state, value = fast(state, torch.ones(2, device=device))
        seen.append(value[0].item())
    assert seen == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0][: len(seen)]
