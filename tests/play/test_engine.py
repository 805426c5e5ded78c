"""The engine: one thread, batches in which nobody notices the others, programs that are compiled beside the play."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from genie_fn import dynamics, tokenizer, world
from genie_fn.data import procgen
from genie_fn.dynamics import SampleConfig
from genie_fn.errors import UserError
from genie_fn.play import engine as module
from genie_fn.play import session
from genie_fn.play.engine import Engine

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), "u1")


@pytest.fixture
def engine(stage):
    dream, found, store = stage
    engine = Engine(
        dream, CPU, found, compiled=False, meta=store.meta, sample=SampleConfig(steps=3)
    )
    yield engine
    engine.close()


def play(engine, image, seed, actions, temperature=1.0, steps=3):
    """A session after some actions."""
    now = engine.start(image, seed).result()
    for action in actions:
        now = engine.act(now, action, None, temperature, steps).result()
    return now


def hashes(play):
    return [moment.note.hash for moment in play.moments[1:]]


def blocked(engine):
    """Keep the engine's thread busy until the event returned is set, so that requests wait together."""
    gate, begun = threading.Event(), threading.Event()
    engine._submit(lambda: begun.set() or gate.wait())
    begun.wait()
    return gate


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_batch_gives_everybody_what_they_would_get_alone(engine, count):
    """Own past (of own length), key, temperature and action; of another number of steps, another batch."""
    engine._ways[False].together = dict.fromkeys(module.SIZES, world.vmapped())
    alone = [play(engine, IMAGES[i], i, [1] * i, 1 + i / 4) for i in range(count)]
    wishes = [(now, i % 5, None, 1 + i / 4, 3) for i, now in enumerate(alone)]
    expected = [engine.act(*wish).result() for wish in wishes] + [
        engine.act(*wishes[0][:-1], 2).result()
    ]
    gate = blocked(engine)
    futures = [engine.act(*wish) for wish in wishes] + [engine.act(*wishes[0][:-1], 2)]
    gate.set()
    for future, other in zip(futures, expected, strict=True):
        made = future.result()
        assert made.at == other.at and np.array_equal(made.present.ids, other.present.ids)
        assert np.array_equal(made.present.revealed, other.present.revealed)
        assert np.abs(made.present.pixels.astype(int) - other.present.pixels).max() <= 1
        for a, b in zip(
            *(module.tree.leaves(session.state(x)) for x in (made, other)), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_requests_are_put_together_only_where_there_is_a_program_for_it(engine, monkeypatch):
    sizes, true = [], engine._acts
    monkeypatch.setattr(engine, "_acts", lambda acts: sizes.append(len(acts)) or true(acts))
    now = play(engine, IMAGES[0], 0, [])
    for together in ({}, {2: world.vmapped()}):
        engine._ways[False].together = together
        gate = blocked(engine)
        futures = [engine.act(now, 0, None, 1.0, 3) for _ in range(3)]
        gate.set()
        assert len({future.result().present.note.hash for future in futures}) == 1
    assert sizes == [1, 1, 1] + [3, 1, 1, 1]  # none of size 4: they take turns


def test_who_has_gone_costs_nothing_and_hurts_nobody(engine):
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
    assert back.present.note == a.moments[2].note
    assert (
        engine.act(session.moved(a, 1), 1, None, 9.0, 3).result().present.note.hash
        != back.present.note.hash
    )


def test_programs_are_compiled_beside_the_play(stage, monkeypatch):
    """Play begins at once; frames tell which program dreamed them, and each can be asked for again."""
    gate, used, told = threading.Event(), [], threading.Event()

    def unmask(*arguments):
        used.append(threading.current_thread().name)
        return dynamics.unmask(*arguments)

    def compiled(*_):
        gate.wait()
        return world.Programs(unmask, dynamics.remember, tokenizer.decode_next)

    monkeypatch.setattr(world, "compiled", compiled)
    dream, found, _ = stage
    engine = Engine(dream, CPU, found, compiled=True)
    engine.when_ready(told.set)
    assert engine.ready == "compiling"
    now = play(engine, IMAGES[0], 0, [1])
    assert not used and not now.present.note.compiled
    gate.set()
    assert told.wait(20) and engine.ready == "compiled" and set(used) == {"compiling"}
    later = engine.act(now, 2, None, 1.0, 3).result()
    assert later.present.note.compiled and "engine" in used
    used.clear()
    assert not engine.act(now, 2, None, 1.0, 3, False).result().present.note.compiled and not used
    engine.close()


def test_where_compiling_fails_play_goes_on_without(stage, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(world, "compiled", lambda *_: world.Programs(lambda *_: 1 / 0))
    engine = Engine(stage[0], CPU, None, compiled=True)
    engine.when_ready(told.set)
    assert told.wait(20) or engine.ready == "eager"
    assert engine.ready == "eager"
    now = play(engine, IMAGES[0], 0, [1])
    assert not engine.act(now, 2, None, 1.0, 3, True).result().present.note.compiled, (
        "there is no other program"
    )
    engine.close()


def test_levels_share_their_games_and_the_longest_unused_is_closed(engine, monkeypatch):
    monkeypatch.setattr(module, "GAMES", 1)
    right = procgen.ACTIONS.index("RIGHT")
    first, second = (engine.start(None, 0, level).result() for level in (3, 4))
    assert not np.array_equal(first.present.game, second.present.game)
    a = engine.act(first, 0, right, 1.0, 3).result()
    b = engine.act(second, 0, right, 1.0, 3).result()
    assert len(engine._games) == 1
    again = engine.act(first, 0, right, 1.0, 3).result()
    assert np.array_equal(a.present.game, again.present.game) and not np.array_equal(
        a.present.game, b.present.game
    )


def test_real_actions_are_mapped(engine, stage):
    found = stage[1]
    assert [engine.to_latent(i) for i in range(15)] == found.to_latent
    unknown = Engine(stage[0], CPU, None, compiled=False)
    with pytest.raises(UserError, match="evaluate.py"):
        unknown.to_latent(1)
    true = Engine(stage[0]._replace(lam=None), CPU, None, compiled=False)
    assert true.to_latent(3) == 3
    for engine in (unknown, true):
        engine.close()


def test_settings_reach_the_sampling(engine):
    now = play(engine, IMAGES[0], 0, [])
    for steps in (1, 5):
        made = engine.act(now, 0, None, 1.0, steps).result().present
        assert made.revealed.max() == steps and made.note.steps == steps
    engine.sample = replace(engine.sample, order="random")
    assert engine.act(now, 0, None, 1.0, 5).result().present.note.hash != made.note.hash
