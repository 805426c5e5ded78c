"""What is measured of a latent action model by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import evaluate_lam
import train_lam
from genie_fn import data, lam, random, tree
from genie_fn.errors import UserError
from genie_fn.evaluation import latent_actions
from genie_fn.evaluation.actions import Transitions
from genie_fn.training import checkpoint
from genie_fn.training.checkpoint import Loaded
from tests.evaluation.examples import MOTION_MODEL, SIDE


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> data.Store:
    """A texture that moves by two pixels to either side, as the recorded action says."""
    root = tmp_path_factory.mktemp("latent_actions") / "data"
    store = data.create(root, {}, SIDE, SIDE, 2, ("LEFT", "RIGHT"))
    rng = np.random.default_rng(0)
    for level in range(10):
        texture = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        action = rng.integers(0, 2, 40)
        place = np.cumsum(2 - 4 * action) - (2 - 4 * action)  # each action moves the next frame
        frames = np.stack([np.roll(texture, x, 1) for x in place])
        start = np.arange(40) == 0
        store = data.append_segments(
            store, [data.Recording(level, frames, action, np.zeros(40), start)]
        )
    return store


def test_a_trained_model_is_measured_and_drawn(store, tmp_path, capsys):
    """Its two actions move the picture as the recorded ones do, and are as informative."""
    train_lam.main(
        train_lam.Config(
            "test",
            out=str(tmp_path / "lam"),
            data=str(store.root),
            model=MOTION_MODEL,
            steps=30,
            batch_size=4,
            num_frames=3,
            compile="off",
            device="cpu",
        )
    )
    cfg = evaluate_lam.Config(
        run=str(tmp_path / "lam"), split="val", clips=2, action_clips=3, probe_steps=2
    )
    evaluate_lam.main(cfg)
    folder = tmp_path / "lam" / "evaluation"
    assert {path.name for path in folder.iterdir()} == {latent_actions.FILE, evaluate_lam.PICTURE}
    record = latent_actions.read(folder)
    assert record.predictions.cost > 0.3
    assert record.predictions.inferred > record.predictions.copied
    assert record.horizontal_nmi > 0.9 and record.vertical_nmi == 0
    left, right = record.directions["LEFT"], record.directions["RIGHT"]
    assert left is not None and right is not None and left.action != right.action
    assert left.moves == right.moves == 1 and left.pixels == pytest.approx(2, abs=0.2)
    assert record.directions["UP"] is None
    assert record.actions.recorded is not None and record.actions.recorded.all.nmi > 0.9
    assert record.actions.recorded.sides is not None and record.actions.recorded.sides.nmi > 0.9
    assert record.actions.inverse_dynamics is not None and record.actions.few_labels is not None
    printed = capsys.readouterr().out
    assert "shuffling the actions costs" in printed and "100%" in printed


def test_shuffling_actions_that_are_all_the_same_costs_nothing():
    texture = random.randint(random.key(0), (1, 1, SIDE, SIDE, 3), 0, 256).to(torch.uint8)
    params = tree.init(lam.spec(MOTION_MODEL), random.key(1))
    found = latent_actions.shuffling(
        params, texture.expand(3, 4, -1, -1, -1), MOTION_MODEL, random.key(2)
    )
    assert found.cost == 0 and 0 < found.inferred < 60
    assert found.copied == pytest.approx(100)


def test_rare_actions_stand_for_no_direction():
    codes = torch.zeros(1, 100, dtype=torch.long)
    codes[0, :30] = 1
    codes[0, 0] = 2
    shift = torch.zeros(1, 100, 2)
    shift[codes == 1] = torch.tensor([-1.0, 0.0])  # the agent moves to the right
    shift[codes == 2] = torch.tensor([-9.0, 0.0])
    found = latent_actions.directions(Transitions(codes, None, torch.zeros(1), shift), 4)
    assert found["RIGHT"] is not None and found["RIGHT"].action == 1
    assert found["RIGHT"].share == 0.29 and found["RIGHT"].moves == 1
    assert found["LEFT"] is found["UP"] is found["DOWN"] is None


def test_records_that_are_missing_damaged_or_newer_are_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"evaluate_lam\.py"):
        latent_actions.read(tmp_path)
    path = tmp_path / latent_actions.FILE
    for text in ("{", "[]", '{"schema": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            latent_actions.read(tmp_path)
    path.write_text('{"schema": 99}')
    with pytest.raises(UserError, match="newer"):
        latent_actions.read(tmp_path)


@pytest.mark.parametrize(
    ("option", "script"), [("adversarial", "tokenizer"), ("train_lam", "dynamics")]
)
def test_the_run_of_another_stage_is_refused_by_its_name(tmp_path, monkeypatch, option, script):
    loaded = Loaded(1, {"model": {}, option: False}, {"params": {}})
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: loaded)
    monkeypatch.setattr(checkpoint, "weights", lambda loaded: {})
    with pytest.raises(UserError, match=rf"is a run of train_{script}\.py: .* train_lam\.py"):
        evaluate_lam.evaluate(evaluate_lam.Config(run=str(tmp_path)))


def test_bad_numbers_are_a_sentence():
    for wrong in ({"clips": 1}, {"action_clips": 1}, {"probe_steps": -1}):
        with pytest.raises(UserError, match="at least"):
            replace(evaluate_lam.Config(), **wrong)
