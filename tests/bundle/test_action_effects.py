"""The effects of latent actions: what recorded pictures that scroll show, the keys that follow, and files."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import export_world
from genie_fn import bundle, data
from genie_fn import world as worlds
from genie_fn.bundle import Bundle, action_effects
from genie_fn.bundle.action_effects import ActionEffects
from genie_fn.bundle.action_map import ActionMap
from genie_fn.errors import UserError
from tests.conftest import effects_of

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
STILL = [0.1, -0.2]


def effects(*motion, share=None) -> ActionEffects:
    """Effects without examples of actions that occur equally often, if nothing else is said."""
    count = len(motion)
    share = share or [1 / count] * count
    return ActionEffects([*motion], share, 1000, [0] * count, [b""] * count)


@pytest.fixture(scope="module")
def scrolling(tmp_path_factory):
    """A store whose picture moves 2 pixels to the right, then 3 up, again and again."""
    moves = [(0, 2), (-3, 0)] * 12
    positions = np.cumsum([(0, 0), *moves], 0)
    frames = np.stack([np.roll(PICTURE, tuple(place), (0, 1)) for place in positions])
    store = data.create(tmp_path_factory.mktemp("scrolling") / "data", {}, 32, 32, 0)
    none = np.zeros(len(frames), int)
    return data.append_segments(store, [data.Recording(9, frames, none, none, none.astype(bool))])


def test_the_agent_moves_against_the_picture_and_examples_are_recorded(scrolling):
    offsets = np.array([0, 2, 4, 6])
    codes = torch.tensor([[1, 0]] * 4)
    shift = torch.tensor([[[2, 0], [0, -3]]] * 4)
    found = action_effects.describe(scrolling, offsets, codes, shift, 3)
    assert found.motion == [[0, 3], [-2, 0], None]
    assert found.share == [0.5, 0.5, 0] and found.transitions == 8
    assert found.examples == [3, 3, 0] and found.strips[2] == b""
    strip = np.asarray(Image.open(io.BytesIO(found.strips[1])))
    before, after = strip[:, :32], strip[:, 32:64]
    assert strip.shape == (32, 6 * 32, 3) and np.array_equal(np.roll(before, 2, 1), after)
    assert action_effects.is_valid(found, SimpleNamespace(**sizes(actions=3)))


def sizes(actions):
    """The parts of a world that effects are compared with."""
    return {
        "dynamics": SimpleNamespace(cfg=SimpleNamespace(actions=actions)),
        "tokenizer": SimpleNamespace(cfg=SimpleNamespace(height=32, width=32)),
    }


def test_effects_are_measured_where_they_are_unknown(scrolling, world_model, tmp_path, monkeypatch):
    """Inferred actions are taken to alternate, as the moves do."""
    monkeypatch.setattr(
        worlds, "infer_actions", lambda _, video: (torch.arange(10) % 2).expand(len(video), -1)
    )
    measured = action_effects.measure(world_model, scrolling)
    assert measured.transitions == 10 * 15  # of every clip of 11 frames
    unknown = Bundle(world_model, str(tmp_path))
    found = bundle.with_effects(unknown, scrolling)
    assert found.effects == measured == action_effects.load(world_model, tmp_path)
    assert bundle.with_effects(found, None) is found
    recorded = unknown._replace(world=world_model._replace(lam=None))
    assert bundle.with_effects(recorded, scrolling) is recorded


def test_a_dataset_of_short_episodes_leaves_them_unknown(tmp_path, world_model):
    store = data.create(tmp_path / "data", {}, 32, 32, 0)
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    none = np.zeros(5, int)
    store = data.append_segments(store, [data.Recording(9, frames, none, none, none.astype(bool))])
    assert bundle.with_effects(Bundle(world_model, str(tmp_path)), store).effects is None


@pytest.mark.parametrize(
    ("motion", "expected"),
    [
        (
            [[-2, 0.3], [2, 0.2], [0, -3], [0.1, 4], STILL],
            {"LEFT": 0, "RIGHT": 1, "UP": 2, "DOWN": 3, "NOOP": 4},
        ),
        ([[0.3, 0], [3, 0], [1, 0]], {"RIGHT": 1, "NOOP": 0}),
        ([[-2.5, -4], [-2.2, 0]], {"LEFT": 1, "UP": 0}),  # one action, one key
        ([[3.1, 3], [2, 0]], {"RIGHT": 1, "DOWN": 0}),
        ([[2, 0], [1.9, 0]], {"RIGHT": 0}),  # the other does not stand still
        ([[0.6, 0], [0.7, 4]], {"RIGHT": 0, "DOWN": 1}),  # not the one that falls
        (  # jumps and falls are faster than walks
            [[-0.9, -6], [1.9, -4.9], [-1.4, 5.9], [1.6, 5.8], STILL],
            {"LEFT": 2, "RIGHT": 1, "UP": 0, "DOWN": 3, "NOOP": 4},
        ),
        ([[-1, 9], [3, 0.1], [-3, 0.1]], {"LEFT": 2, "RIGHT": 1, "DOWN": 0}),
        ([STILL, [0, 0.4]], {}),
        ([None, [1, 0]], {"RIGHT": 1}),
        ([None, None], {}),
    ],
)
def test_keys_follow_from_what_actions_do(motion, expected):
    assert action_effects.keys(effects(*motion)) == expected


def test_rare_actions_have_no_key():
    rare = effects([-3, 0], [-2, 0], STILL, share=[0.01, 0.5, 0.49])
    assert action_effects.keys(rare) == {"LEFT": 1, "NOOP": 2}


def test_fewer_keys_are_worse_than_a_larger_angle():
    """An agent whose motion is always diagonal has four keys."""
    motion = [[-0.9, -6], [1.7, -5.2], [-0.9, 6.1], [1.7, 5.5], [0.1, -0.6]]
    found = action_effects.keys(effects(*motion))
    assert found.keys() == {"LEFT", "RIGHT", "UP", "DOWN", "NOOP"}
    assert found["LEFT"] in (0, 2) and found["RIGHT"] in (1, 3) and found["NOOP"] == 4


def test_recorded_directions_have_the_actions_that_move_the_agent_so(playable):
    what = effects([-2, 0], [2, 0], [0, -3], [0, 4], [1.5, -3.1])
    names = ["NOOP", "RIGHT+JUMP", "LEFT", "LEFT+DOWN", "FIRE", "DOWN", "FIRE+LEFT", "up"]
    allowed = [set(), {4}, {0}, {0}, set(), {3}, set(), {2, 4}]
    assert action_effects.candidates(what, names) == allowed
    # UP occurred most often with action 3, which moves the agent down, and then with action 4.
    table = [[9, 9, 9, 30, 9]] * 7 + [[1, 1, 5, 80, 20]]
    counted = ActionMap(names, table, [3] * 8, 0.5, 0.4)
    both = playable._replace(effects=what, action_map=counted)
    expected = [3, 4, 0, 0, 3, 3, 3, 4]
    assert bundle.play_map(both).to_latent == expected
    assert bundle.key_actions(both) == dict(zip(names, expected, strict=True))
    assert bundle.play_map(both._replace(effects=None)) is counted
    still = both._replace(effects=effects(*[STILL] * 5))
    assert bundle.play_map(still).to_latent == counted.to_latent


def test_arrow_keys_have_effects_where_no_recorded_action_is_a_direction(playable):
    named = ActionMap(["forward", "turn"], [[9, 1, 1, 1, 1], [1, 9, 1, 1, 1]], [0, 1], 0.5, 0.4)
    mapped = playable._replace(action_map=named)
    arrows = {"LEFT": 0, "RIGHT": 1, "UP": 2, "DOWN": 3, "NOOP": 4}
    assert bundle.key_actions(mapped) == arrows | {"forward": 0, "turn": 1}
    assert bundle.arrows_by_motion(mapped)
    assert bundle.key_actions(mapped._replace(effects=None)) == {"forward": 0, "turn": 1}
    assert not bundle.arrows_by_motion(mapped._replace(effects=None))
    assert bundle.arrows_by_motion(playable._replace(action_map=None))
    right_only = playable._replace(effects=effects([3, 0], *[STILL] * 4))
    assert not bundle.arrows_by_motion(right_only)  # LEFT is chosen by co-occurrence


def test_recorded_actions_come_before_effects(playable):
    assert bundle.key_actions(playable) == bundle.recorded_actions(playable)
    unlabelled = playable._replace(action_map=None)
    expected = {"LEFT": 0, "RIGHT": 1, "UP": 2, "DOWN": 3, "NOOP": 4}
    assert bundle.key_actions(unlabelled) == expected
    assert bundle.key_actions(unlabelled._replace(effects=None)) == {}


@pytest.mark.parametrize(
    ("motion", "arrow", "words"),
    [
        ([2, 0], "→", "moves right, 2.0 pixels per step"),
        ([-2, 0.5], "←", "moves left, 2.1 pixels per step"),
        ([0, 3], "↓", "moves down, 3.0 pixels per step"),
        ([0.4, -3], "↑", "moves up, 3.0 pixels per step"),
        ([-1, -1], "↖", "moves up and left, 1.4 pixels per step"),
        (STILL, "·", "hardly moves, 0.2 pixels per step"),
        (None, " ", "does not occur in recorded video"),
    ],
)
def test_a_motion_is_an_arrow_and_words(motion, arrow, words):
    assert (action_effects.arrow(motion), action_effects.in_words(motion)) == (arrow, words)


def test_a_run_keeps_effects_of_its_own_latent_actions_only(stage, tmp_path):
    world_model, _, store = stage
    found = effects_of(store, 5)
    assert action_effects.load(world_model, tmp_path) is None
    path = action_effects.save(found, world_model, tmp_path)
    assert action_effects.load(world_model, tmp_path) == found
    stored = json.loads(path.read_text())
    wrong = {
        "lam": "another model",
        "motion": [[1, 0]] * 4,
        "share": [2.0] * 5,
        "transitions": "many",
        "examples": [1] * 4 + [4],
        "strips": stored["strips"][:4] + ["AAAA"],
    }
    for name, value in wrong.items():
        path.write_text(json.dumps(stored | {name: value}))
        assert action_effects.load(world_model, tmp_path) is None, name
    path.write_text("[]")
    assert action_effects.load(world_model, tmp_path) is None


def test_effects_travel_in_world_files(playable, tmp_path):
    path = tmp_path / "world.safetensors"
    bundle.save(path, playable)
    loaded = bundle.load(path)
    assert loaded.effects == playable.effects
    larger = path.stat().st_size
    bundle.save(path, playable._replace(effects=None))
    assert bundle.load(path).effects is None
    strips = sum(map(len, playable.effects.strips))
    assert larger < path.stat().st_size + strips + 2000


def test_impossible_effects_in_a_world_file_are_refused(playable, tmp_path):
    path = tmp_path / "world.safetensors"
    wrong = playable.effects._replace(motion=[[1e9, 0]] * 5)
    bundle.save(path, playable._replace(effects=wrong))
    with pytest.raises(UserError, match="effects of its actions are impossible"):
        bundle.load(path)


def test_a_world_file_is_written_again_with_effects(playable, stage, tmp_path, monkeypatch, capsys):
    old, new = (str(tmp_path / f"{name}.safetensors") for name in ("old", "new"))
    bundle.save(old, playable._replace(effects=None, action_map=None, card={"licence": "MIT"}))
    monkeypatch.setattr(action_effects, "measure", lambda *_: playable.effects)
    export_world.main(export_world.Config(run=old, output=new, data=str(stage[2].root)))
    loaded = bundle.load(new)
    assert loaded.effects == playable.effects and loaded.card == {"licence": "MIT"}
    assert np.array_equal(loaded.start_frames, playable.start_frames)
    again = str(tmp_path / "again.safetensors")
    export_world.main(export_world.Config(run=new, output=again))  # which needs no dataset now
    copy = bundle.load(again)
    assert bundle.fingerprint(*copy.world) == bundle.fingerprint(*loaded.world)
    assert copy.effects == loaded.effects and np.array_equal(copy.start_frames, loaded.start_frames)


def test_export_says_what_the_arrow_keys_do(playable):
    cfg = export_world.Config()
    unnamed = playable._replace(action_map=None, action_names=())
    assert export_world.advise_on_keys(cfg, playable) == ""
    assert export_world.advise_on_keys(cfg, unnamed) == ""
    still = unnamed._replace(effects=effects(*[STILL] * 5))
    assert "do nothing" in export_world.advise_on_keys(cfg, still)
