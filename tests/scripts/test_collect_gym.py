"""Collection from Gymnasium environments, by policies of one's own, and play beside the game."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import generate_dataset as script
from genie_fn import data
from genie_fn.data import games
from genie_fn.errors import UserError

ROOT = Path(script.__file__).parent
SMALL = script.Config(
    env="gym:tests.gym_games:Walk-v0",
    num_levels=3,
    start_level=7,
    steps_per_level=60,
    size=(32, 32),
    fit="pad",
    workers=1,
)


def collected(cfg, root):
    script.main(replace(cfg, root=str(root)))
    return data.open_store(root)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return collected(SMALL, tmp_path_factory.mktemp("gym") / "store")


def test_the_dataset_holds_what_the_environment_draws(store):
    assert (store.height, store.width) == (32, 32)
    assert store.action_names == ("NOOP", "LEFT+UP", "RIGHT+FIRE")
    assert {segment.split for segment in store.segments} == set(data.SPLITS)
    for segment in store.segments:
        recording = data.read_segment(store, segment)
        game = games.open_game(segment.level, store.meta, own_modules=True)
        starts = [True]
        for frame, action, reward in zip(
            recording.frames, recording.actions, recording.rewards, strict=True
        ):
            np.testing.assert_array_equal(frame, game.frame())
            step = game.step(int(action))
            assert step.reward == reward
            starts.append(step.ended)
        assert recording.episode_starts.tolist() == starts[:-1]


def test_the_number_of_workers_changes_nothing(store, tmp_path):
    again = collected(replace(SMALL, workers=2), tmp_path / "again")
    assert again.data_hash == store.data_hash
    other = collected(replace(SMALL, seed=1), tmp_path / "other")
    assert other.data_hash != store.data_hash


def test_the_same_command_continues_and_other_options_are_refused(store):
    cfg = replace(SMALL, root=str(store.root))
    script.main(cfg)
    for change, sentence in (
        ({"size": 16}, "collected with size"),
        ({"env_options": "height=24"}, "collected with env_options"),
        ({"policy": "random"}, "collected with policy explorer"),
    ):
        with pytest.raises(UserError, match=sentence):
            script.main(replace(cfg, num_levels=4, **change))


def test_a_policy_of_ones_own_acts(tmp_path):
    cfg = replace(SMALL, policy="tests.gym_games:right", workers=2)
    store = collected(cfg, tmp_path / "right")
    again = collected(cfg, tmp_path / "again")
    assert store.data_hash == again.data_hash
    actions = np.concatenate([data.read_segment(store, s).actions for s in store.segments])
    shares = np.bincount(actions, minlength=3) / len(actions)
    assert shares[0] == 0
    assert 0.02 < shares[1] < 0.3


REFUSED = {
    "no policy 'sticky'": {"policy": "sticky"},
    "tests.gym_games:left cannot be imported": {"policy": "tests.gym_games:left"},
    "nowhere:left cannot be imported": {"policy": "nowhere:left"},
    "returned 'left'": {"policy": "tests.gym_games:wrong"},
    "the game has no action 7": {"policy": "tests.gym_games:beyond"},
    "expert plays Procgen's games alone": {"policy": "expert"},
    "--cfg.visuals is for Procgen's games": {"visuals": "plain"},
    "--cfg.distribution-mode is for Procgen's games": {"distribution_mode": "easy"},
    "--cfg.fit is for Gymnasium environments": {"env": "coinrun", "size": 64, "fit": "pad"},
    "--cfg.size is 600": {"size": 600},
    "--cfg.env-options 'height'": {"env_options": "height"},
    "Gymnasium cannot make Nowhere-v0": {"env": "gym:Nowhere-v0"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_refused_with_one_sentence(sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as error:
        collected(replace(SMALL, **REFUSED[sentence]), tmp_path / "store")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env", "visuals", "root"),
    [
        ("coinrun", "full", "data/coinrun"),
        ("coinrun", "plain", "data/coinrun-plain"),
        ("gym:ALE/Breakout-v5", "full", "data/Breakout-v5"),
        ("gym:mygame:MyGame-v0", "full", "data/MyGame-v0"),
        ("gym:ours/My game-v0", "full", "data/My-game-v0"),
    ],
)
def test_the_folder_is_named_after_the_game(env, visuals, root):
    assert script.default_root(script.Config(env=env, visuals=visuals)) == root


@pytest.mark.subprocess
@pytest.mark.parametrize("actions", ["names", "many"])
def test_a_world_of_an_environment_is_played_beside_it(actions, tmp_path):
    """Two stages of two steps, a world file, and then the page's engine with the real game."""
    import export_world
    from genie_fn import bundle
    from genie_fn.play.engine import Engine
    from genie_fn.play.session import Session

    store = collected(replace(SMALL, env_options=f"actions='{actions}'"), tmp_path / "store")
    last = len(store.action_names) - 1
    assert data.action_counts(store, store.segments)[200:].any() == (actions == "many")

    def run(stage, *more):
        flags = ["--cfg.data", store.root, "--cfg.out", tmp_path / stage, "--cfg.steps", "2"]
        words = [*flags, "--cfg.batch-size", "2", "--cfg.compile", "off", *more]
        command = [sys.executable, ROOT / f"train_{stage}.py", *words]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)

    run("tokenizer")
    earlier = ("--cfg.tokenizer", tmp_path / "tokenizer")
    run("dynamics", "--cfg.actions", "recorded", "--cfg.no-flip", *earlier)
    output = str(tmp_path / "walk.safetensors")
    export_world.main(export_world.Config(run=str(tmp_path / "dynamics"), output=output))
    loaded = bundle.load(output)
    assert loaded.world.dynamics.cfg.actions == last + 1
    assert not games.available(store.meta), "data alone have a module imported"
    with pytest.raises(UserError, match="names a module"):
        games.open_game(9, store.meta)
    import tests.gym_games  # noqa: F401  # registers it

    meta = {"collection": store.meta["collection"] | {"env": "gym:Walk-v0"}}
    store = replace(store, meta=meta)
    loaded = bundle.with_dataset(loaded, store, 4)
    engine = Engine(loaded, torch.device("cpu"), compiled=False)
    now: Session = engine.start(None, 0, level=9).result(60)
    game = games.open_game(9, store.meta)
    np.testing.assert_array_equal(now.present.game, game.frame())
    for action in (last, 1, last - 1):
        now = engine.act(now, action, action, 1, 1.0, None).result(60)
        np.testing.assert_array_equal(now.present.game, game.step(action).frame)
    engine.close()
