"""A run on several datasets: later stages and tools find them, and it resumes to the same bits."""

import os
import shutil
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path

import pytest

import evaluate
import export_world
import train_dynamics
import train_lam
import train_tokenizer
from genie_fn import bundle, data
from genie_fn.errors import UserError
from genie_fn.runtime import stored_config
from genie_fn.training import checkpoint, inputs
from tests.bundle.test_inputs import append_level, config, evaluation, flat
from tests.faults import rig

BOTH = ("data/own", "data/more")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a world of two datasets, whose recorded actions differ."""
    home = tmp_path_factory.mktemp("home")
    rig.make_data(home / "data" / "own", length=12)
    more = data.create(home / "data" / "more", {}, rig.SIDE, rig.SIDE, 3, ("A", "B", "C"))
    store = data.open_store(home / "data" / "own")
    recordings = [data.read_segment(store, segment) for segment in store.segments]
    data.append_segments(more, [x._replace(frames=255 - x.frames) for x in recordings])
    with chdir(home):
        train_tokenizer.main(config("tokenizer", data=BOTH, data_weights=(1, 3)))
        train_lam.main(config("lam", steps=2))
        train_dynamics.main(config("dynamics", data_weights=(1.0, 1.0), cache=True))
    return home


@pytest.fixture
def home(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, as the current directory."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def said(capsys) -> str:
    return flat(capsys.readouterr().err)


def interrupted(run: str, out: str) -> None:
    """A copy of a run of two steps, as if it had been killed before the second."""
    if run != out:
        shutil.copytree(run, out)
    shutil.rmtree(f"{out}/checkpoints/2")


def test_later_stages_take_the_datasets_and_their_weights(made):
    for stage, weights in (("tokenizer", [1, 3]), ("lam", [1, 3]), ("dynamics", [1, 1])):
        run = made / "runs/own" / stage
        entries = inputs.read(run).datasets
        assert [entry.path for entry in entries] == [f"../../../{root}" for root in BOTH]
        assert [entry.weight for entry in entries] == weights
        assert [entry.action_names[0] for entry in entries] == ["LEFT", "A"]
        stored = checkpoint.read_config(run)
        assert (stored["data"], stored["data_weights"]) == ([*BOTH], weights)
    assert all((made / root / "tokens").is_dir() for root in BOTH)


def test_a_tool_uses_one_dataset_and_names_it(home, capsys):
    run = "runs/own/dynamics"
    for given, used in (("", "data/own"), ("data/more", "data/more")):
        capsys.readouterr()
        assert evaluate.load(evaluation(data=given)).store.root == Path(used)
        expected = f"{run} was made from data/own and data/more: {used} is used; --cfg.data names"
        assert said(capsys).count(expected) == 1
    export_world.main(export_world.Config(run=run, frames=2, data="data/more"))
    assert bundle.load("own.safetensors").dataset.name == "more"
    rig.make_data(home / "data" / "other", length=13)
    assert evaluate.load(evaluation(data="data/other")).store.root == Path("data/other")
    assert f"data/other is not one of the datasets that {run} was made from" in said(capsys)


def test_a_run_resumes_to_the_same_bits(home):
    interrupted("runs/own/lam", "runs/own/half")
    os.rename("runs", "moved")
    train_lam.main(config("lam", out="moved/own/half", steps=2, resume=True))
    assert rig.differing(Path("moved/own/half"), Path("moved/own/lam")) == []


def test_other_datasets_than_before_are_one_line(home, capsys):
    again = {"steps": 3, "resume": True}
    for number, given in enumerate((("data/own",), BOTH[::-1])):
        out = f"runs/own/lam{number}"
        shutil.copytree("runs/own/lam", out)
        capsys.readouterr()
        train_lam.main(config("lam", out=out, data=given, **again))
        now = " and ".join(given)
        expected = f"{out} was made from data/own and data/more; this run takes {now}"
        assert said(capsys).count(expected) == 1
    append_level("data/more", 19)
    train_lam.main(config("lam", **again))
    found = said(capsys)
    assert "data/more has grown since runs/own/lam" in found and "this run takes" not in found


def test_a_dataset_that_is_missing_or_replaced_is_named(home):
    os.rename("data/more", "data/elsewhere")
    with pytest.raises(UserError, match="cannot be found.*data/more.*--cfg.data"):
        train_lam.main(config("lam", steps=3, resume=True))
    evaluate.load(evaluation())
    rig.make_data(home / "data" / "more", length=13)
    with pytest.raises(UserError, match="data/more no longer holds"):
        train_lam.main(config("lam", steps=3, resume=True))


def test_recorded_actions_that_differ_are_refused_when_they_are_used(home):
    with pytest.raises(UserError, match="data/own and data/more have different recorded actions"):
        train_dynamics.main(config("dynamics", out="runs/own/keys", actions="recorded"))


def test_a_run_of_an_earlier_version_is_resumed(home, monkeypatch, capsys):
    """It stored one dataset as a path and as one entry, and no version."""

    def to_store(cfg) -> dict:
        stored = asdict(cfg)
        del stored["data_weights"]
        entry = stored["inputs"]["data"][0]
        del entry["weight"]
        return stored | {"data": stored["data"][0], "inputs": stored["inputs"] | {"data": entry}}

    own = {"data": "data/own", "steps": 2}
    train_lam.main(config("lam", out="runs/own/new", **own))
    with monkeypatch.context() as patch:
        patch.setattr(stored_config, "to_store", to_store)
        train_lam.main(config("lam", out="runs/own/old", **own))
    interrupted("runs/own/old", "runs/own/old")
    assert inputs.read("runs/own/old").datasets[0].path == "../../../data/own"
    capsys.readouterr()
    train_lam.main(config("lam", out="runs/own/old", steps=2, resume=True))
    assert rig.differing(Path("runs/own/old"), Path("runs/own/new")) == []
    assert "made from: data data/own" in said(capsys)
