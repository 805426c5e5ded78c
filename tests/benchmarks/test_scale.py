"""The formulae of memory and traffic at their corners, and docs/scale.md against them; see also
test_sharding.py."""

from pathlib import Path

import pytest
import torch

from benchmarks import scale
from genie_fn import tree
from genie_fn.training import sharding
from genie_fn.tree import ParamSpec

DOCS = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
MODELS = {model.name: model for model in scale.models()}


def test_the_tables_of_the_docs_are_those_of_the_formulae():
    for model in MODELS.values():
        for gpus in scale.GPUS:
            assert scale.row(scale.exchanges(model, gpus)) in DOCS, (
                f"{model.name}: python -m benchmarks.scale"
            )
    assert scale.row(scale.needs(MODELS["coinrun dynamics"])) in DOCS


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_the_docs_say_of_activations_is_counted(name):
    assert scale.row(scale.needs(MODELS[name])) in DOCS


def test_the_largest_model_is_genies():
    count = tree.count(MODELS["11B dynamics"].spec)
    assert count == pytest.approx(10.1e9, rel=0.01) and count == pytest.approx(
        24 * 16 * 5120**2, rel=0.01
    )


def test_a_state_divides_and_the_traffic_does_not_grow(monkeypatch):
    """Twice the processes, half the state, the same bytes to send: (n - 1) / n of twice the
    parameters."""
    monkeypatch.setattr(sharding, "SMALL", 10)
    spec = {
        "w": ParamSpec((64, 48)),
        "scale": ParamSpec((4,)),
        "codes": ParamSpec((8, 8), whole=True),
    }
    whole = 4 * (64 * 48)
    for shards in (2, 4, 8):
        assert scale.state_bytes(spec, shards) == 3 * (whole // shards + 4 * 68)
        assert scale.step_bytes(spec, shards) == 2 * whole + 4 * 68
        everyone = 2 * (shards - 1) / shards * 4 * 68
        assert scale.wire(spec, shards, 1).within == pytest.approx(
            2 * whole * (shards - 1) / shards + everyone
        )
    alone, rows = scale.wire(spec, 8, 1), scale.wire(spec, 8, 4)
    assert rows.within < alone.within and rows.between == pytest.approx(
        2 * 3 / 4 * whole / 8 + 2 * 31 / 32 * 4 * 68
    )
    assert scale.wire(spec, 1, 1) == (0, 0) and scale.step_bytes(spec, 1) == whole + 4 * 68


def test_activations_are_what_autograd_keeps():
    """Two layers: each keeps its input and the GELU its own, of so many clips; the weights are not
    counted."""
    spec = {"a": ParamSpec((5, 7)), "b": ParamSpec((7, 3))}

    def loss(params, clips):
        return (torch.nn.functional.gelu(torch.ones(clips, 5) @ params["a"]) @ params["b"]).sum()

    assert scale.activation_bytes(loss, spec) == (0, 4 * (5 + 7 + 7))
