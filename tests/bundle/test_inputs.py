"""What a run was made from is taken from the run, found again after a move, and compared."""

import os
import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import evaluate
import export_world
import play
import train_dynamics
import train_lam
import train_tokenizer
from genie_fn import bundle, data
from genie_fn.data.procgen import ACTIONS
from genie_fn.errors import UserError
from genie_fn.play import gym_env
from genie_fn.training import checkpoint, inputs
from tests.faults import rig

SCRIPTS = {"tokenizer": train_tokenizer, "lam": train_lam, "dynamics": train_dynamics}
SIZES = {"steps": 1, "batch_size": 1, "num_frames": 2, "save_every": 1, "sample_every": 100}


def config(stage: str, **options):
    """The configuration of a tiny stage of the world in runs/own, which names no inputs."""
    places = {"out": f"runs/own/{stage}"}
    options = SIZES | {"compile": "off", "model": rig.MODELS[stage]} | places | options
    return SCRIPTS[stage].Config(**options)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a world of data/own, and with another dataset where the demo's would be."""
    home = tmp_path_factory.mktemp("home")
    rig.make_data(home / "data" / "own", length=12)
    decoy = data.create(home / "data" / "coinrun", {}, rig.SIDE, rig.SIDE, len(ACTIONS), ACTIONS)
    frames = np.zeros((12, rig.SIDE, rig.SIDE, 3), np.uint8)
    zeros = np.zeros(12)
    levels = [data.Recording(i, frames, zeros, zeros, zeros.astype(bool)) for i in range(10)]
    data.append_segments(decoy, levels)
    with chdir(home):
        train_tokenizer.main(config("tokenizer", data="data/own"))
        train_lam.main(config("lam"))
        train_dynamics.main(config("dynamics"))
    return home


@pytest.fixture
def home(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, as the current directory."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def evaluation(**options) -> evaluate.Config:
    sizes = {"clips": 2, "frames": 4, "action_clips": 2, "prompts": (1,), "brief": True}
    return evaluate.Config(**(sizes | {"run": "runs/own/dynamics"} | options))


def video(**options) -> play.Config:
    base = {"run": "runs/own/dynamics", "actions": "0", "output": "a.png", "scale": 1}
    return play.Config(**(base | options))


def flat(text: str) -> str:
    return " ".join(text.split())


def append_level(root: str, level: int) -> None:
    store = data.open_store(root)
    first = data.read_segment(store, store.segments[0])
    data.append_segments(store, [first._replace(level=level, split="")])


def test_later_stages_take_the_dataset_of_the_runs_beside_them(made):
    for stage in SCRIPTS:
        record = inputs.read(made / "runs" / "own" / stage)
        assert record.inputs.data[0].path == "../../../data/own", stage
        assert record.inputs.data[0].action_names == ("LEFT", "NOOP", "RIGHT")
    assert record.inputs.tokenizer.path == "../tokenizer" and record.inputs.lam.fingerprint


def test_every_tool_takes_the_dataset_of_the_run(home):
    run = "runs/own/dynamics"
    subject = evaluate.load(evaluation())
    assert subject.store.root == Path("data/own")
    expected = bundle.with_dataset(bundle.load(run), data.open_store("data/own")).start_frames
    assert np.array_equal(bundle.load(run, data="").start_frames, expected)
    assert np.array_equal(
        play.add_dataset(video(), bundle.load(run), "video").start_frames, expected
    )
    export_world.main(export_world.Config(run=run, output="own.safetensors", frames=2))
    assert bundle.load("own.safetensors").dataset.name == "own"
    assert gym_env.from_run(run).reset(seed=0)[0].shape == (rig.SIDE, rig.SIDE, 3)
    assert evaluate.load(evaluation(world="own.safetensors", run="own.safetensors")).store.root == (
        Path("data/own")
    )


def test_another_dataset_is_one_line_and_one_with_other_actions_is_refused(home, capsys):
    refused = pytest.raises(UserError, match="other recorded actions.*--cfg.data")
    for attempt in (
        lambda: evaluate.main(evaluation(data="data/coinrun")),
        lambda: play.main(video(data="data/coinrun")),
        lambda: train_dynamics.main(config("dynamics", out="runs/own/new", data="data/coinrun")),
        lambda: train_lam.main(config("lam", resume=True, steps=2, data="data/coinrun")),
    ):
        with refused:
            attempt()
    assert not Path("runs/own/dynamics/actions.json").exists()
    shutil.copytree("data/own", "data/copy")
    shutil.copytree("data/own", "data/more")
    append_level("data/more", 19)
    rig.make_data(home / "data" / "other", length=13)
    for name, expected in (("copy", ""), ("more", "has grown"), ("other", "is not the dataset")):
        capsys.readouterr()
        store = inputs.open_dataset("runs/own/dynamics", f"data/{name}")
        said = flat(capsys.readouterr().err)
        assert store.root.name == name
        assert (expected in said and said.count("data/") <= 2) if expected else not said


def test_a_dataset_that_grew_is_used_and_one_that_was_replaced_is_not(home, capsys):
    append_level("data/own", 10)
    assert len(inputs.open_dataset("runs/own/lam").segments) == 11
    assert "has 11 segments, and had 10" in flat(capsys.readouterr().err)
    shutil.rmtree("data/own")
    rig.make_data(home / "data" / "own", length=13)
    with pytest.raises(UserError, match="no longer holds.*--cfg.data"):
        play.main(video())
    evaluate.load(evaluation(data="data/own"))
    shutil.rmtree("data/own")
    with pytest.raises(UserError, match=r"dataset that .* cannot be found.*data/own.*--cfg\.data"):
        evaluate.main(evaluation())


@pytest.mark.parametrize("move", ["rename", "elsewhere", "alone", "linked"])
def test_a_run_is_found_again_after_a_move(home, tmp_path, monkeypatch, move):
    run = Path("runs/best/dynamics")
    if move == "rename":
        os.rename("runs/own", "runs/best")
    elif move == "elsewhere":  # named from another folder
        monkeypatch.chdir(tmp_path)
        run = Path("home/runs/own/dynamics")
    elif move == "alone":  # what belongs to it stays where it was
        run = tmp_path / "alone"
        os.rename("runs/own/dynamics", run)
    else:  # the run is on another disk
        os.rename("runs/own", tmp_path / "disk")
        os.symlink(tmp_path / "disk", "runs/own")
        run = Path("runs/own/dynamics")
    loaded = bundle.load(run, data="")
    assert loaded.dataset.name == "own" and len(loaded.start_frames)
    if move == "rename":
        train_dynamics.main(config("dynamics", out=str(run), resume=True, steps=2))
        assert checkpoint.latest(run) == 2


def test_a_stage_that_is_missing_is_named_with_where_it_was_looked_for(home):
    os.rename("runs/own/tokenizer", "elsewhere")
    for attempt in (
        lambda: play.main(video()),
        lambda: train_dynamics.main(config("dynamics", resume=True, steps=2)),
    ):
        with pytest.raises(UserError, match="looked for at runs/own/tokenizer: .*--cfg.tokenizer"):
            attempt()
    play.main(video(tokenizer="elsewhere"))
    assert Path("a.png").exists()


def test_the_folder_of_a_run_may_be_meant_by_the_one_around_it(home):
    with pytest.raises(UserError, match="name runs/own/dynamics"):
        bundle.load("runs/own")


def test_a_tokenizer_that_was_trained_further_is_noticed(home):
    train_tokenizer.main(config("tokenizer", resume=True, steps=2))
    earlier = "runs/own/tokenizer/checkpoints/1"
    for attempt in (
        lambda: play.main(video()),
        lambda: train_dynamics.main(config("dynamics", resume=True, steps=2)),
    ):
        with pytest.raises(UserError, match=f"trained further.*--cfg.tokenizer {earlier}"):
            attempt()
    train_dynamics.main(config("dynamics", resume=True, steps=2, tokenizer=earlier))
    play.main(video())  # it now knows that checkpoint


def test_a_latent_action_model_of_another_run_is_refused(home):
    train_lam.main(config("lam", out="runs/own/lam2", seed=1))
    with pytest.raises(UserError, match="latent actions have another meaning.*train the dynamics"):
        play.main(video(lam="runs/own/lam2"))


def test_runs_of_earlier_versions_are_loaded_and_looked_for_beside(home, monkeypatch):
    def without_record(run):
        config = read_config(run)
        return config and {name: value for name, value in config.items() if name != "inputs"}

    read_config = checkpoint.read_config
    monkeypatch.setattr(checkpoint, "read_config", without_record)
    load = checkpoint.load

    def load_old(run, **options):
        loaded = load(run, **options)
        del loaded.config["inputs"]
        return loaded

    monkeypatch.setattr(checkpoint, "load", load_old)
    train_tokenizer.main(config("tokenizer", resume=True, steps=2))  # not noticed, as before
    assert len(bundle.load("runs/own/dynamics", data="").start_frames)
    os.rename("runs/own", "runs/best")
    assert len(bundle.load("runs/best/dynamics", data="").start_frames)


def test_a_new_run_without_neighbours_takes_the_presets(home, monkeypatch):
    cfg = train_dynamics.with_earlier_runs(config("dynamics", out="runs/alone/dynamics"))
    assert (cfg.tokenizer, cfg.lam) == ("runs/demo/tokenizer", "runs/demo/lam")
    assert train_dynamics.with_earlier_runs(train_dynamics.small()).lam == "runs/small/lam"
    tokenizer = config("tokenizer", out="runs/alone/tokenizer")
    assert train_tokenizer.setup.open_dataset(tokenizer).root == Path("data/coinrun")
    given = replace(cfg, tokenizer="runs/own/tokenizer")
    assert train_tokenizer.setup.open_dataset(given, ["runs/own/tokenizer"]).root == Path(
        "data/own"
    )
