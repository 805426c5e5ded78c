"""Configurations as earlier versions stored them, and what this version makes of them."""

import copy
import json
from dataclasses import asdict, dataclass

import pytest

from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.runtime import stored_config

STACK = {"layers": 2, "dim": 128, "heads": 4, "mlp": 4, "window": 16, "dtype": "float32"}
IMPLEMENTATIONS = {"space_impl": "sdpa", "time_impl": "reference"}
QUANTIZER = {"kind": "vq", "codes": 1024, "latent_dim": 16, "books": 1, "reset_below": 0.1}
BLOCKS = [["space_attn", [["n_head", 4], ["d_head", 16]]], ["silu", []]]
TOKENIZER = {
    "height": 64,
    "patch": 8,
    "encoder": STACK,
    "decoder": STACK,
    "quantizer": QUANTIZER,
    "arch": "st_vivit",
    "blueprints": {"encoder": BLOCKS, "decoder": [], "dtype": "float32"},
}
DYNAMICS = {"codes": 1024, "tokens": 64, "actions": 6, "stack": STACK, "factors": 0}


def with_implementations(model: dict) -> dict:
    """A model's configuration as it was stored while it still chose implementations."""
    old = dict(model)
    for name in ("encoder", "decoder", "stack"):
        if name in old:
            old[name] = STACK | IMPLEMENTATIONS
    if "quantizer" in old:
        old["quantizer"] = QUANTIZER | {"impl": "triton"}
    if "blueprints" in old:
        block = ["space_attn", [["impl", "sdpa"], ["n_head", 4], ["d_head", 16]]]
        old["blueprints"] = old["blueprints"] | {"encoder": [block, ["silu", []]]}
    return old


@pytest.mark.parametrize("model", [TOKENIZER, DYNAMICS])
def test_implementations_leave_a_model(model):
    assert stored_config.update_model(with_implementations(model)) == model
    assert stored_config.update_model(model) == model


def test_a_dynamics_run():
    old = {
        "preset": "demo",
        "steps": 20,
        "seed": 0,
        "optim": {"lr": 0.008, "schedule": "wsd"},
        "lam": "runs/demo/lam",
        "actions": "true",
        "train_lam": False,
        "mirror": True,  # language: allow
        "lam_model": with_implementations(TOKENIZER),
        "model": with_implementations(DYNAMICS),
        "sample": {"steps": 8, "guidance": None},
    }
    before = copy.deepcopy(old)
    new = stored_config.update_run(old)
    assert old == before, "the argument is left alone"
    assert new == {
        "preset": "demo",
        "steps": 20,
        "seed": 0,
        "optim": {"lr": 0.008, "schedule": "wsd"},
        "lam": "runs/demo/lam",
        "actions": "recorded",
        "train_lam": False,
        "flip": True,
        "lam_model": TOKENIZER,
        "model": DYNAMICS,
        "sample": {"steps": 8, "guidance": None},
    }
    assert stored_config.update_run(new) == new, "updating twice changes nothing more"


def test_latent_actions_stay_latent():
    assert stored_config.update_run({"actions": "latent"}) == {"actions": "latent"}
    assert stored_config.update_model({"actions": 6}) == {"actions": 6}


def test_a_removed_option_is_left_out_where_it_was_off_and_refused_where_it_was_on():
    stored = asdict(LamConfig())
    off = stored | {"facing": {"side": 0, "hidden": 16}}
    assert stored_config.from_dict(LamConfig, stored_config.update_model(off)) == LamConfig()
    on = stored_config.update_model(stored | {"facing": {"side": 32, "hidden": 16}})
    with pytest.raises(UserError, match="differ in facing: train again"):
        stored_config.from_dict(LamConfig, on)


@pytest.mark.parametrize("value", [None, 3, "true", [{"mirror": True}], {}])  # language: allow
def test_anything_else_is_left_as_it_is(value):
    assert stored_config.update_run(value) == value
    assert stored_config.update_model(value) == value
    assert stored_config.update_run({"actions": value, "model": value})["model"] == value


def test_a_run_of_one_dataset_is_one_of_several():
    old = {"data": "data/own", "inputs": {"data": {"path": "../data/own"}, "lam": {}}}
    new = stored_config.update_run(old)
    assert new == {"data": "data/own", "inputs": {"data": [{"path": "../data/own"}], "lam": {}}}
    assert stored_config.update_run(new) == new


@dataclass(frozen=True)
class Item:
    size: int = 1


@dataclass(frozen=True)
class Holder:
    items: tuple[Item, ...] = ()
    names: str | tuple[str, ...] = ()
    pairs: tuple[tuple[str, int], ...] = ()


@pytest.mark.parametrize(
    "holder", [Holder(), Holder((Item(2), Item(3)), "a", (("b", 4),)), Holder((), ("c", "d"))]
)
def test_tuples_of_dataclasses_and_alternatives_survive_json(holder):
    stored = json.loads(json.dumps(asdict(holder)))
    assert stored_config.from_dict(Holder, stored) == holder


@pytest.mark.parametrize("wrong", [{"items": [3]}, {"items": {}}, {"names": 3}, {"names": None}])
def test_other_values_in_them_are_refused(wrong):
    with pytest.raises(UserError, match="has an invalid"):
        stored_config.from_dict(Holder, wrong)
    with pytest.raises(UserError, match="newer version"):
        stored_config.from_dict(Holder, {"items": [{"size": 1, "other": 2}]})
