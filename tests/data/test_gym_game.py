"""Gymnasium environments as games: their actions, their frames, and states that come back."""

import sys

import numpy as np
import pytest

from genie_fn.data import games, gym_game
from genie_fn.data.gym_game import GymGame
from genie_fn.errors import UserError
from tests import gym_games  # noqa: F401  # registers the environments

WALK = "gym:tests.gym_games:Walk-v0"


def opened(level=3, **options):
    arguments = {name: options.pop(name) for name in ("actions", "height") if name in options}
    return GymGame(WALK, level, options=arguments, **{"size": (20, 30)} | options)


def play(game, actions):
    return [game.step(int(action)) for action in actions]


def random_actions(count, seed=0):
    return np.random.default_rng(seed).integers(0, 3, count)


def same(first, second):
    return all(
        np.array_equal(a.frame, b.frame) and a[1:] == b[1:]
        for a, b in zip(first, second, strict=True)
    )


def test_a_level_is_a_function_of_its_seed():
    first = play(opened(), random_actions(200))
    assert same(first, play(opened(), random_actions(200)))
    assert not same(first, play(opened(level=4), random_actions(200)))
    ends = [step for step in first if step.ended]
    assert len(ends) > 2, "no episode ends"
    colours = {tuple(step.frame[0, 0]) for step in ends}
    assert len(colours) == len(ends), "episodes begin alike"


def test_an_action_is_held():
    one, three = opened(), opened(skip=3)
    steps = play(one, [2, 2, 2])
    held = three.step(2)
    assert np.array_equal(held.frame, steps[-1].frame)
    assert held.reward == sum(step.reward for step in steps)
    ends = next(step for step in (three.step(2) for _ in range(9)) if step.ended)
    assert ends.reward < held.reward, "an action is held beyond the end of its episode"


@pytest.mark.parametrize("before", [0, 5, 60])
def test_a_saved_state_comes_back(before):
    game = opened()
    play(game, random_actions(before))
    saved, shown = game.save(), game.frame()
    after = play(game, random_actions(80, seed=1))
    game.load(saved)
    assert np.array_equal(game.frame(), shown)
    assert same(play(game, random_actions(80, seed=1)), after)
    other = opened()
    other.load(saved)
    assert same(play(other, random_actions(80, seed=1)), after)


def test_the_state_that_is_there_is_not_made_again(monkeypatch):
    game = opened()
    play(game, [1, 2])
    monkeypatch.setattr(game, "_begin_episode", None)
    game.load(game.save())


@pytest.mark.parametrize(
    ("actions", "names"),
    [
        ("names", ("NOOP", "LEFT+UP", "RIGHT+FIRE")),
        ("start", ("0", "1")),
        ("multi", ("0,0", "0,1", "0,2", "1,0", "1,1", "1,2")),
        ("binary", ("0,0", "0,1", "1,0", "1,1")),
    ],
)
def test_every_action_of_a_finite_space_has_a_number_and_a_name(actions, names):
    game = opened(actions=actions)
    assert game.action_names == names
    taken = []
    for number in range(len(names)):
        game.step(number)  # the environment itself checks what it is given
        taken.append(str(game._env.unwrapped.last))
    assert len(set(taken)) == len(names)
    with pytest.raises(UserError, match=f"no action {len(names)}"):
        game.step(len(names))


def test_frames_get_the_size_of_the_dataset():
    assert opened().frame().shape == (20, 30, 3)
    assert opened(size=16).frame().shape == (16, 16, 3)
    padded = opened(size=(30, 30), fit="pad").frame()
    assert padded.shape == (30, 30, 3)
    assert not padded[:5].any()
    assert padded[5:25].any(-1).all()


REFUSED = {
    "actions are Box": ("Walk-v0", {"actions": "box"}),
    "90000 actions": ("Walk-v0", {"actions": "too many"}),
    "65537 actions": ("Walk-v0", {"actions": "one too many"}),
    "unexpected keyword argument 'colour'": ("Walk-v0", {"colour": 3}),
    "Gymnasium cannot make tests.gym_games:Run-v0": ("Run-v0", {}),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_environments_that_do_not_fit_are_refused(sentence):
    name, options = REFUSED[sentence]
    with pytest.raises(UserError, match=sentence) as error:
        GymGame(f"gym:tests.gym_games:{name}", 0, options=options)
    assert "\n" not in str(error.value)


def test_frames_without_colours_are_refused():
    game = GymGame("gym:tests.gym_games:Grey-v0", 0)
    with pytest.raises(UserError, match="draws no RGB frames"):
        game.frame()


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("ALE/Pong-v5", "ale_py", "atari"), ("VizdoomBasic-v1", "vizdoom", "vizdoom")],
)
def test_a_missing_package_is_named(name, module, extra, monkeypatch):
    for loaded in [key for key in sys.modules if key.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'genie_fn\[{extra}\]'"):
        GymGame(f"gym:{name}", 0)


def test_options_are_python_literals():
    parsed = gym_game.parse_options("frameskip=1, mode='hard', sizes=(2, 3)")
    assert parsed == {"frameskip": 1, "mode": "hard", "sizes": (2, 3)}
    assert gym_game.parse_options("") == {}
    for text in ("frameskip", "a=b()", "a=1)(", "3", "**{'a': 1}", "a=__import__('os')"):
        with pytest.raises(UserError, match="names with values"):
            gym_game.parse_options(text)


def test_datasets_say_which_game_they_are_of():
    collection = {
        "env": "gym:Walk-v0",
        "env_options": "height=24",
        "size": [12, 18],
        "fit": "stretch",
        "frame_skip": 2,
    }
    meta = {"collection": collection}
    assert games.available(meta)
    assert games.draws(meta, 12, 18)
    assert not games.draws(meta, 64, 64)
    game = games.open_game(5, meta, 12, 18, stride=3)
    assert isinstance(game, GymGame)
    assert (game.skip, game.level, game.frame().shape) == (6, 5, (12, 18, 3))
    with pytest.raises(UserError, match="draws 12x18 frames and this world 64x64"):
        games.open_game(5, meta, 64, 64)
    for change in (
        {"size": None},
        {"size": [12]},
        {"size": [12, "18"]},
        {"size": 0},
        {"fit": "fill"},
        {"env_options": 3},
        {"env": 3},
    ):
        assert not games.is_valid(collection | change)
    named = {"collection": collection | {"env": WALK}}
    assert not games.available(named)
    with pytest.raises(UserError, match="names a module"):
        games.open_game(5, named)
    assert games.open_game(5, named, own_modules=True).level == 5
    assert not games.available({})
    assert not games.available({"import": {}})


def test_names_of_the_arcade_and_of_vizdoom():
    pytest.importorskip("ale_py")
    pacman = GymGame("gym:ALE/MsPacman-v5", 0)
    assert pacman.action_names[:6] == ("NOOP", "UP", "RIGHT", "LEFT", "DOWN", "RIGHT+UP")
    pytest.importorskip("vizdoom")
    basic = GymGame("gym:VizdoomBasic-v1", 0)
    assert basic.action_names == ("NOOP", "ATTACK", "RIGHT", "LEFT")
    corridor = GymGame("gym:VizdoomDeadlyCorridor-v1", 0)
    assert {"LEFT", "RIGHT", "UP", "DOWN", "MOVE_LEFT"} <= set(corridor.action_names)
    for game in (pacman, basic, corridor):
        game.step(1)
        game.close()
