"""Procgen games: the frames of the dataset, exact states, and independence of each other."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("procgen")

import generate_dataset  # noqa: E402
from genie_fn.data import games, procgen
from genie_fn.errors import UserError

META = {"collection": {"env": "coinrun", "distribution_mode": "hard"}}


@pytest.fixture
def opened():
    game = games.open_game(11, META)
    yield game
    game.close()


def actions(count, seed=0):
    """Random actions, mostly right and jump, so that episodes end."""
    return np.random.default_rng(seed).choice([1, 4, 5, 7, 7, 8, 8, 8], count).tolist()


def same(a, b):
    return all(
        np.array_equal(x.frame, y.frame) and x.ended == y.ended for x, y in zip(a, b, strict=True)
    )


def test_an_opened_level_shows_the_frames_of_the_dataset(opened):
    recording = generate_dataset.play_level(generate_dataset.Config(steps_per_level=300), 11)
    assert np.array_equal(opened.frame(), recording.frames[0])
    steps = [opened.step(action) for action in recording.actions[:-1]]
    assert np.array_equal(np.stack([step.frame for step in steps]), recording.frames[1:])
    assert [step.ended for step in steps] == recording.episode_starts[1:].tolist()
    assert any(step.ended for step in steps), "no episode ended"


def test_a_saved_state_restores_exactly(opened):
    """In the same and in another handle, also across the end of an episode."""
    for action in actions(30):
        opened.step(action)
    saved = opened.save()
    before = opened.frame()
    first = [opened.step(action) for action in actions(400, seed=1)]
    assert any(step.ended for step in first) and not np.array_equal(opened.frame(), before)
    other = games.open_game(11, META)
    for game in (opened, other):
        game.load(saved)
        assert np.array_equal(game.frame(), before)
        assert same(first, [game.step(action) for action in actions(400, seed=1)])
    other.close()
    assert len(saved) < 30_000


def test_a_returned_frame_is_not_overwritten(opened):
    frame = opened.frame()
    kept = frame.copy()
    opened.step(procgen.ACTIONS.index("RIGHT"))
    assert np.array_equal(frame, kept) and not np.array_equal(opened.frame(), kept)


def play(level):
    game = games.open_game(level, META)
    steps = [game.step(action) for action in actions(200, seed=level)]
    game.close()
    return steps


def test_games_in_threads_equal_games_played_one_by_one():
    levels = range(6)
    with ThreadPoolExecutor(len(levels)) as pool:
        together = list(pool.map(play, levels))
    assert all(same(steps, play(level)) for level, steps in zip(levels, together, strict=True))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((3, META, 32, 64), "draws 64x64 frames and this world 32x64"),
        ((3, {}), "not collected from a game"),
        ((-1, META), "no level -1"),
        ((10**10, META), "no level 10000000000"),
        (
            (3, {"collection": {"env": "coinrum", "distribution_mode": "hard"}}),
            "did you mean 'coinrun'",
        ),
        (
            (3, {"collection": {"env": "coinrun", "distribution_mode": "extreme"}}),
            "no extreme mode",
        ),
        ((3, {"collection": {"env": "coinrun", "distribution_mode": "odd"}}), "no odd mode"),
        ((3, {"collection": META["collection"] | {"visuals": "odd"}}), "visuals 'odd'"),
    ],
)
def test_games_that_cannot_be_opened_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        games.open_game(*arguments)


@pytest.mark.parametrize("action", [-1, 15])
def test_unknown_actions_are_refused(opened, action):
    with pytest.raises(UserError, match=f"no action {action}"):
        opened.step(action)


def test_a_missing_procgen_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "procgen", None)
    monkeypatch.delitem(sys.modules, "procgen.env", raising=False)
    with pytest.raises(UserError, match="pip install procgen-mirror"):
        games.open_game(3, META)
