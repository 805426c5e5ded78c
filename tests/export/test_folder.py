"""Worlds as folders of ONNX graphs: the same frames without torch, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from genie_fn import dynamics, maskgit, random, tree, world
from genie_fn.errors import UserError
from genie_fn.export import folder, graphs
from genie_fn.maskgit import SampleConfig
from tests.conftest import tiny_world

SAMPLE = SampleConfig(steps=3, guidance=1.0)
ABOUT = {"card": {"run": "runs/tiny"}, "keys": {"LEFT": 2}}


@pytest.fixture(scope="module")
def model():
    """A small world whose ids have two factors, one predicted after the other, and whose dynamics points
    at the frame before."""
    plain = tiny_world()
    cfg = replace(plain.dynamics.cfg, factors=2, pointer=True, chain=True)
    params = tree.init(dynamics.spec(cfg), random.key(5))
    down = random.normal(random.key(6), params["chain"]["down"].shape)
    params["chain"] = params["chain"] | {"down": down}
    return plain._replace(dynamics=world.Stage(cfg, params))


@pytest.fixture(scope="module")
def starts():
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def written(model, starts, tmp_path_factory):
    place = tmp_path_factory.mktemp("worlds") / "tiny"
    size = folder.write(place, model, SAMPLE, starts, ABOUT)
    assert size == sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]
    return place


class Session:
    """The graphs of a folder in ONNX Runtime, called by name."""

    def __init__(self, place):
        self.graphs = {
            name: onnxruntime.InferenceSession(str(place / f"{name}.onnx"))
            for name in ("start", "unmask", "finish")
        }

    def run(self, name, **inputs):
        graph = self.graphs[name]
        names = [entry.name for entry in graph.get_outputs()]
        return dict(zip(names, graph.run(None, inputs), strict=True))


def state_of(outputs):
    return {x.removeprefix("next/"): y for x, y in outputs.items() if x.startswith("next/")}


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_the_graphs_generate_the_frames_of_the_world(model, starts, written, temperature):
    sample = replace(SAMPLE, temperature=temperature)
    about = json.loads((written / "world.json").read_text())
    session = Session(written)
    begun = session.run("start", frame=starts[1])
    expected, encoded = world.reset(model, torch.from_numpy(starts[1])[None, None])
    assert np.array_equal(begun["ids"], encoded.ids[0])
    assert np.abs(begun["pixels"].astype(int) - encoded.pixels[0, 0].int().numpy()).max() <= 1
    state = state_of(begun)
    for t, action in enumerate([0, 1, 2, 3, 4, 0]):  # more than the window holds
        key = random.fold_in(random.key(3), t)
        expected, frame = world.step(model, expected, torch.tensor([action]), key, sample)
        noise = maskgit.draw(key, about["steps"], (1, about["tokens"]), about["factors"])
        given = {"action": np.array([action])}
        memory = {x: y for x, y in state.items() if x.startswith("memory/")}
        ids = np.full((1, about["tokens"]), about["codes"])
        for k in range(about["steps"]):
            step = {
                "step/k": np.array(k),
                "step/steps": np.array(about["steps"]),
                "step/temperature": np.array(temperature, np.float32),
                "noise/threshold": noise.threshold[k].numpy(),
                "noise/score": noise.score[k].numpy(),
            }
            ids = session.run("unmask", ids=ids, **given, **memory, **step)["next/ids"]
        finished = session.run("finish", ids=ids, **given, **state)
        state = state_of(finished)
        assert np.array_equal(ids, frame.ids.numpy())
        assert np.abs(finished["pixels"].astype(int) - frame.pixels[0].int().numpy()).max() <= 1


def test_its_own_program_plays_it_without_torch(written, tmp_path):
    hidden = f"import sys; sys.modules['torch'] = None; sys.argv = {['play.py', '0', '2']}"
    code = (
        f"{hidden}; import runpy; runpy.run_path({str(written / 'play.py')!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    frames = sorted((written / "frames").iterdir())
    assert [path.name for path in frames] == ["001.png", "002.png"]
    assert Image.open(frames[0]).size == (32, 32)
    folder.check(written)  # it may still be replaced
    for wrong in ([], ["x"], ["99"]):
        command = [sys.executable, str(written / "play.py"), *wrong]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 2 and "name the actions" in result.stderr


def test_the_folder_describes_itself(model, starts, written):
    about = json.loads((written / "world.json").read_text())
    cfg = model.dynamics.cfg
    assert (about["tokens"], about["codes"], about["actions"]) == (
        cfg.tokens,
        cfg.codes,
        cfg.actions,
    )
    assert about["guidance"] == 1.0 and about["keys"] == {"LEFT": 2}
    assert about["card"] == ABOUT["card"]
    for name, frame in zip(about["starts"], starts, strict=True):
        assert np.array_equal(np.asarray(Image.open(written / name)), frame)
    readme = (written / "README.md").read_text()
    session = Session(written)
    for graph in session.graphs.values():
        for entry in graph.get_inputs() + graph.get_outputs():
            assert f"`{entry.name}`" in readme


def test_weights_are_stored_once(model, written):
    """The dynamics model is in two graphs, the tokenizer's decoder as well."""
    parameters = sum(tree.count(stage.params) for stage in (model.tokenizer, model.dynamics))
    assert (written / "weights.bin").stat().st_size < 1.5 * 4 * parameters


def test_a_world_replaces_a_world_and_nothing_else(model, starts, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "graphs_of", lambda *_: {})
    place = tmp_path / "world"
    for count in (2, 1):
        folder.write(place, model, SAMPLE, starts[:count], {})
        assert len(list((place / "starts").iterdir())) == count
    own = tmp_path / "own"
    own.mkdir()
    (own / "README.md").write_text("of somebody")
    with pytest.raises(UserError, match="holds something else"):
        folder.write(own, model, SAMPLE, starts, {})
    (own / "README.md").unlink()
    own.rmdir()
    (tmp_path / "diary.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        folder.write(tmp_path, model, SAMPLE, starts, {})
    monkeypatch.setattr(graphs, "PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match="pip install no_such_package"):
        folder.write(place, model, SAMPLE, starts, {})
    assert {path.name for path in tmp_path.iterdir()} == {"world", "diary.txt"}


def test_an_export_that_fails_leaves_what_was_there(model, starts, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "graphs_of", lambda *_: {})
    place = tmp_path / "world"
    folder.write(place, model, SAMPLE, starts, {"name": "first"})
    with pytest.raises(TypeError):
        folder.write(place, model, SAMPLE, starts, {"name": object()})
    assert json.loads((place / "world.json").read_text())["name"] == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
