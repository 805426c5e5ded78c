"""The engine: one thread answers requests in order, and programs are compiled during play."""

import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from genie_fn import bundle, maskgit, tokenizer, tree, world
from genie_fn.data import procgen
from genie_fn.errors import UserError
from genie_fn.export import graphs, prepared
from genie_fn.maskgit import SampleConfig
from genie_fn.play import engine as module
from genie_fn.play import session
from genie_fn.play.engine import Engine
from genie_fn.runtime import compilation
from tests.play.engines import wait_until_ready

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), "u1")


@pytest.fixture
def engine(playable):
    engine = Engine(playable, CPU, compiled=False, sample=SampleConfig(steps=3))
    yield engine
    engine.close()


def play(engine, image, seed, actions, temperature=1.0, steps=3):
    """A session after some actions."""
    now = engine.start(image, seed).result()
    for action in actions:
        now = engine.act(now, action, None, temperature, steps).result()
    return now


def hashes(play):
    return [moment.record.hash for moment in play.moments[1:]]


def blocked(engine):
    """Keep the engine's thread busy until the event returned is set, so that requests wait."""
    gate, begun = threading.Event(), threading.Event()
    engine._submit(lambda: begun.set() or gate.wait())
    begun.wait()
    return gate


@pytest.mark.parametrize("count", [2, 3, 5])
def test_requests_that_wait_together_do_not_change_each_other(engine, count):
    """Each has its own past (of its own length), key, temperature, number of steps and action."""
    sessions = [play(engine, IMAGES[i], i, [1] * i, 1 + i / 4) for i in range(count)]
    requests = [(now, i % 5, None, 1 + i / 4, 3) for i, now in enumerate(sessions)]
    requests.append((*requests[0][:-1], 2))
    expected = [engine.act(*request).result() for request in requests]
    gate = blocked(engine)
    futures = [engine.act(*request) for request in requests]
    gate.set()
    for future, other in zip(futures, expected, strict=True):
        now = future.result()
        assert now.at == other.at and np.array_equal(now.present.ids, other.present.ids)
        assert np.array_equal(now.present.revealed, other.present.revealed)
        assert np.array_equal(now.present.pixels, other.present.pixels)
        states = (tree.leaves(session.state(x)) for x in (now, other))
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_visitor_who_left_is_skipped(engine):
    gate, now = blocked(engine), None
    gone, stays = engine.start(IMAGES[0], 0), engine.start(IMAGES[1], 0)
    assert gone.cancel()
    gate.set()
    now = stays.result()
    with pytest.raises(IndexError):
        engine.act(now, 99, None, 1.0, 3).result()
    assert engine.act(now, 0, None, 1.0, 3).result().at == 1


def test_a_session_is_a_function_of_its_start_seed_and_actions(engine):
    a, b, c = (play(engine, IMAGES[0], seed, [0, 1, 2]) for seed in (0, 0, 1))
    assert hashes(a) == hashes(b) != hashes(c)
    back = engine.act(session.moved(a, 1), 1, None, 1.0, 3).result()
    assert back.present.record == a.moments[2].record
    hotter = engine.act(session.moved(a, 1), 1, None, 9.0, 3).result()
    assert hotter.present.record.hash != back.present.record.hash


def test_faster_programs_are_prepared_during_play(playable, monkeypatch):
    """Play begins at once; records say which programs generated a frame."""
    gate, used, ready = threading.Event(), [], threading.Event()

    def unmask(*arguments):
        used.append(threading.current_thread().name)
        return maskgit.unmask(*arguments)

    def fast(*_):
        gate.wait()
        return world.Programs(unmask, maskgit.remember, tokenizer.decode_next)

    monkeypatch.setattr(prepared, "programs", fast)
    engine = Engine(playable, CPU, compiled=True)
    engine.when_ready(ready.set)
    assert engine.ready == "compiling"
    now = play(engine, IMAGES[0], 0, [1])
    assert not used and not now.present.record.compiled
    gate.set()
    assert ready.wait(20) and engine.ready == "compiled" and set(used) == {"compiling"}
    later = engine.act(now, 2, None, 1.0, 3).result()
    assert later.present.record.compiled and "engine" in used
    used.clear()
    eager = engine.act(now, 2, None, 1.0, 3, False).result()
    assert not eager.present.record.compiled and not used
    engine.close()


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("slow", [False, True])
def test_slow_frames_are_tried_in_bfloat16(playable, monkeypatch, slow, rounded):
    tried = []

    def seconds(_, runner):
        tried.append(runner.world.dynamics.backend.products)
        return 1.0 if slow and tried[-1] != "bfloat16" else 0.1

    monkeypatch.setattr(Engine, "_try_out", seconds)
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: rounded)
    monkeypatch.setattr(prepared, "programs", lambda *_: world.Programs())
    monkeypatch.setattr(compilation, "works", lambda device: False)
    engine = Engine(playable, CPU, compiled=True)
    wait_until_ready(engine)
    assert ("bfloat16" in tried) == (slow and rounded)
    now = engine.start(IMAGES[0], 0).result()
    now = engine.act(now, 1, None, 1.0, 3).result()
    assert now.present.record.compiled
    products = engine._compiled.world.dynamics.backend.products
    assert products == ("bfloat16" if slow and rounded else "float32")
    engine.close()


def test_where_bfloat16_fails_the_other_programs_stay(playable, monkeypatch, capsys):
    def seconds(_, runner):
        if runner.world.dynamics.backend.products == "bfloat16":
            raise RuntimeError("no such product")
        return 1.0

    monkeypatch.setattr(Engine, "_try_out", seconds)
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(prepared, "programs", lambda *_: world.Programs())
    monkeypatch.setattr(compilation, "works", lambda device: False)
    engine = Engine(playable, CPU, compiled=True)
    wait_until_ready(engine)
    assert engine._compiled.world.dynamics.backend.products == "float32"
    assert "no such product" in capsys.readouterr().err
    now = engine.start(IMAGES[0], 0).result()
    assert engine.act(now, 1, None, 1.0, 3).result().present.record.compiled
    engine.close()


def test_where_that_fails_play_continues_without(playable, monkeypatch):
    monkeypatch.setattr(prepared, "programs", lambda *_: world.Programs(lambda *_: 1 / 0))
    engine = Engine(playable, CPU, compiled=True)
    wait_until_ready(engine, "eager")
    now = play(engine, IMAGES[0], 0, [1])
    eager = engine.act(now, 2, None, 1.0, 3, True).result()
    assert not eager.present.record.compiled, "there is no other program"
    engine.close()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_where_faster_programs_are_impossible_play_goes_on(playable, monkeypatch, device, capsys):
    """Packages are missing on a CPU, or a compiler beside a GPU."""
    ready = threading.Event()
    monkeypatch.setattr(graphs, "missing", lambda: ["onnx"])
    monkeypatch.setattr(compilation, "works", lambda device: False)
    engine = Engine(playable, CPU, compiled=False)
    engine.device = torch.device(device)
    engine.when_ready(ready.set)
    usual = sys.getswitchinterval()
    engine._prepare_beside_play()
    assert sys.getswitchinterval() == usual
    assert ready.is_set() and engine.ready == "eager"
    assert ("pip install onnx" in capsys.readouterr().err) == (device == "cpu")
    assert not play(engine, IMAGES[0], 0, [1]).present.record.compiled
    engine.close()


def test_programs_that_fail_during_play_are_not_used_any_more(playable, monkeypatch):
    """They fail in the engine's thread only; an invalid request leaves them in use."""
    broken = []

    def unmask(*arguments):
        if broken and threading.current_thread().name == "engine":
            raise RuntimeError("a CUDA graph of another thread")
        return maskgit.unmask(*arguments)

    monkeypatch.setattr(prepared, "programs", lambda *_: world.Programs(unmask))
    engine = Engine(playable, CPU, compiled=True)
    wait_until_ready(engine)
    now = engine.start(IMAGES[0], 0).result()
    with pytest.raises(IndexError):
        engine.act(now, 99, None, 1.0, 3).result()
    assert engine.act(now, 1, None, 1.0, 3).result().present.record.compiled
    broken.append(True)
    eager = engine.act(now, 1, None, 1.0, 3).result().present.record
    assert not eager.compiled and engine.ready == "eager"
    engine.close()


def test_levels_share_their_games_and_the_longest_unused_is_closed(engine, monkeypatch):
    monkeypatch.setattr(module, "MAX_GAMES", 1)
    right = procgen.ACTIONS.index("RIGHT")
    first, second = (engine.start(None, 0, level).result() for level in (3, 4))
    assert not np.array_equal(first.present.game, second.present.game)
    a = engine.act(first, 0, right, 1.0, 3).result()
    b = engine.act(second, 0, right, 1.0, 3).result()
    assert len(engine._games) == 1
    again = engine.act(first, 0, right, 1.0, 3).result()
    assert np.array_equal(a.present.game, again.present.game)
    assert not np.array_equal(a.present.game, b.present.game)


def test_recorded_actions_are_mapped(engine, playable):
    to_latent = bundle.play_map(playable).to_latent
    assert [engine.to_latent(i) for i in range(15)] == to_latent
    unknown = Engine(playable._replace(action_map=None), CPU, compiled=False)
    with pytest.raises(UserError, match="evaluate.py"):
        unknown.to_latent(1)
    without_lam = playable.world._replace(lam=None)
    recorded = Engine(playable._replace(world=without_lam, action_map=None), CPU, compiled=False)
    assert recorded.to_latent(3) == 3
    for engine in (unknown, recorded):
        engine.close()


def test_settings_reach_the_sampling(engine):
    now = play(engine, IMAGES[0], 0, [])
    for steps in (1, 5):
        moment = engine.act(now, 0, None, 1.0, steps).result().present
        assert moment.revealed.max() == steps and moment.record.steps == steps
    engine.sample = replace(engine.sample, order="random")
    assert engine.act(now, 0, None, 1.0, 5).result().present.record.hash != moment.record.hash


def test_worlds_in_bfloat16_are_played_in_float32_on_a_cpu(playable):
    model = playable.world
    half = replace(model.dynamics.cfg, stack=replace(model.dynamics.cfg.stack, dtype="bfloat16"))
    bundled = playable._replace(world=model._replace(dynamics=model.dynamics._replace(cfg=half)))
    engines = [
        Engine(x, CPU, compiled=False, sample=SampleConfig(steps=3)) for x in (playable, bundled)
    ]
    a, b = (play(engine, IMAGES[0], 0, [1, 2]) for engine in engines)
    assert hashes(a) == hashes(b)
    for engine in engines:
        engine.close()
