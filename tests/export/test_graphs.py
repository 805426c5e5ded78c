"""Worlds as ONNX graphs: the same tokens, the cache of the machine, and what fails."""

import os
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from genie_fn import dynamics, maskgit, random, tree, world
from genie_fn.bundle import Bundle
from genie_fn.dynamics import DynamicsConfig
from genie_fn.export import graphs, prepared
from genie_fn.layers import STConfig
from genie_fn.maskgit import SampleConfig
from genie_fn.play.engine import Engine
from tests.play.engines import wait_until_ready

SAMPLE = SampleConfig(steps=3, guidance=1.0)


@pytest.fixture(scope="module")
def folder(world_model, tmp_path_factory):
    """The graphs of a small world, exported by another process to a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("graphs")))
        prepared.programs(world_model, SAMPLE, 1)
        (folder,) = prepared.cache().iterdir()
    return folder


def played(model, programs, actions, sample):
    """Frames after each action, from a start frame of noise."""
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 32, 3), np.uint8)
    state, _ = world.reset(model, torch.from_numpy(image))
    frames = []
    for t, action in enumerate(actions):
        key = random.fold_in(random.key(3), t)
        state, frame = world.step(model, state, torch.tensor([action]), key, sample, programs)
        frames.append(frame)
    return frames, state


@pytest.mark.parametrize("steps, temperature", [(3, 1.0), (5, 0.5), (1, 0.0)])
def test_graphs_generate_the_same_tokens_as_torch(world_model, folder, steps, temperature):
    """Steps and temperature are arguments of the same graph."""
    sample = replace(SAMPLE, steps=steps, temperature=temperature)
    actions = [0, 1, 2, 3, 4, 0]  # more than the window holds
    programs = graphs.programs(folder, 1)
    expected, state = played(world_model, world.EAGER, actions, sample)
    found, own_state = played(world_model, programs, actions, sample)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.step, b.step)
        assert (a.pixels.int() - b.pixels.int()).abs().max() <= 1
        torch.testing.assert_close(a.probability, b.probability, atol=1e-5, rtol=1e-4)
    for a, b in zip(tree.leaves(state), tree.leaves(own_state), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_inputs_are_named_after_the_arguments(folder):
    names = [entry.name for entry in onnx.load(folder / "unmask.onnx").graph.input]
    assert names[:2] == ["ids", "action"] and "memory/cache/k_LBSNGE" in names
    assert names[-1] == "noise/score" and "step/temperature" in names


def test_a_session_of_two_worlds_is_refused(world_model, folder):
    """A graph is made for one session."""
    programs = graphs.programs(folder, 1)
    two = torch.zeros((2, 1, 32, 32, 3), dtype=torch.uint8)
    state, _ = world.reset(world_model, two)
    with pytest.raises(Exception, match="(?i)invalid dimensions|invalid_argument"):
        world.step(world_model, state, torch.tensor([0, 1]), random.key(0), SAMPLE, programs)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return prepared.cache()


def test_graphs_are_exported_once_and_again_when_damaged(world_model, folder, cache, monkeypatch):
    place = cache / folder.name
    exports = []

    def export(*arguments):
        exports.append(arguments)
        shutil.copytree(folder, place)

    monkeypatch.setattr(prepared, "_export", export)
    prepared.programs(world_model, SAMPLE, 1)
    assert exports == [(world_model, SAMPLE, place)]
    names = ["decode.onnx", "remember.onnx", "unmask.onnx"]
    assert sorted(path.name for path in place.iterdir()) == names
    prepared.programs(world_model, replace(SAMPLE, steps=9), 1)
    assert len(exports) == 1
    content = (place / "decode.onnx").read_bytes()
    (place / "decode.onnx").write_bytes(content[:1000])
    prepared.programs(world_model, SAMPLE, 1)
    assert len(exports) == 2 and (place / "decode.onnx").read_bytes() == content


def test_the_name_depends_on_what_is_in_the_graphs_alone(world_model):
    name = prepared.name_of(world_model, SAMPLE)
    assert name == prepared.name_of(world_model, replace(SAMPLE, steps=9, temperature=0.3))
    assert name != prepared.name_of(world_model, replace(SAMPLE, guidance=None))
    params = world_model.dynamics.params
    other = params | {"action": params["action"] + 1e-3}
    changed = world_model._replace(dynamics=world_model.dynamics._replace(params=other))
    assert name != prepared.name_of(changed, SAMPLE)


def test_an_export_that_fails_leaves_nothing(world_model, cache, monkeypatch):
    monkeypatch.setattr(prepared, "COMMAND", ("-c", "raise SystemExit('no room')"))
    with pytest.raises(RuntimeError, match="exporting graphs failed: no room"):
        prepared.programs(world_model, SAMPLE, 1)
    assert not list(cache.iterdir())


def test_the_graphs_that_were_used_longest_ago_are_removed(cache, monkeypatch):
    monkeypatch.setattr(prepared, "KEPT", 2)
    for i in range(4):
        (cache / f"{i}").mkdir(parents=True)
        os.utime(cache / f"{i}", (i, i))
    (cache / ".at-work").mkdir()
    (cache / ".killed").mkdir()
    os.utime(cache / ".killed", (0, 0))
    prepared._remove_old(cache)
    left = {path.name for path in cache.iterdir()}
    assert left == {"3", ".at-work"}  # beside the one that is made next


def test_where_nothing_can_be_written_graphs_are_of_this_process_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = prepared.cache()
    assert folder.is_dir() and tmp_path not in folder.parents
    folder.rmdir()


def test_missing_packages_are_named(monkeypatch):
    assert graphs.missing() == []
    monkeypatch.setattr(graphs, "PACKAGES", ("torch", "no_such_package"))
    assert graphs.missing() == ["no_such_package"]


def test_the_engine_plays_graphs_as_it_plays_torch(world_model, folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parents[2]))
    monkeypatch.setattr(prepared, "_export", lambda *_: pytest.fail("exported again"))
    bundled = Bundle(world_model, "runs/tiny/dynamics")
    engine = Engine(bundled, torch.device("cpu"), compiled=True, sample=replace(SAMPLE, steps=2))
    wait_until_ready(engine)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    now = engine.start(image, 0).result()
    for action in (1, 2):
        fast = engine.act(now, action, None, 1.0, 3).result()
        slow = engine.act(now, action, None, 1.0, 3, False).result().present
        assert fast.present.record.compiled and not slow.record.compiled
        assert np.array_equal(fast.present.ids, slow.ids)
        now = fast
    engine.close()


# Other worlds


OTHERS = {
    "two factors, pointer": {
        "codes": 64,
        "factors": 2,
        "neighbourhood": 3,
        "pointer": True,
    },
    "three factors, pointer, chain": {
        "codes": 64,
        "factors": 3,
        "neighbourhood": 3,
        "pointer": True,
        "chain": True,
    },
    "prepended actions": {"action_mode": "prepend", "occurring": (0, 2)},
}


@pytest.mark.parametrize(
    "name, sample",
    [
        ("two factors, pointer", SampleConfig(order="random")),
        ("three factors, pointer, chain", SampleConfig(guidance=2.0)),
        ("prepended actions", SampleConfig(guidance=2.0)),
    ],
)
@pytest.mark.slow
def test_graphs_of_other_models_predict_as_torch_does(tmp_path, name, sample):
    stack = STConfig(2, 32, 2, window=3)
    cfg = DynamicsConfig(tokens=6, actions=3, columns=3, stack=stack, **OTHERS[name])
    params = tree.init(dynamics.spec(cfg), random.key(3))
    if cfg.is_chained:  # a chain that has learnt something
        down = random.normal(random.key(4), params["chain"]["down"].shape)
        params["chain"] = params["chain"] | {"down": down}
    model = world.World(None, world.Stage(cfg, params), None)
    state = world.State(dynamics.empty_memory(cfg, 1), None)
    made = {
        "unmask": graphs.unmask_graph(model, state, sample),
        "remember": graphs._remember(model, state),
    }
    found = {}
    for program, graph in made.items():
        graphs.write(graph, tmp_path / "raw")
        graphs.optimise(tmp_path / "raw", tmp_path / f"{program}.onnx")
        found[program] = graphs.Runtime(tmp_path / f"{program}.onnx", 1)
    remember, unmask = made["remember"].function, made["unmask"].function
    memory = state.dynamics
    hidden = torch.full((1, cfg.tokens), cfg.codes)
    for t in range(4):
        action = torch.tensor([t % 3])
        step = maskgit.Step(torch.tensor(1), torch.tensor(3), torch.tensor(0.7))
        noise = maskgit.noise_of(random.key(t), (1, cfg.tokens), len(cfg.sizes))
        expected = unmask(hidden, action, memory, step, noise)
        ids, probability = found["unmask"](hidden, action, memory, step, noise)
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(probability, expected[1], atol=1e-5, rtol=1e-4)
        shown = random.randint(random.key(9 + t), (1, 1, cfg.tokens), 0, cfg.codes)
        leaves = found["remember"](shown, action[:, None], memory)
        memory = remember(shown, action[:, None], memory)
        for a, b in zip(leaves, tree.leaves(memory), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
