"""The report on actions, on transitions made so that the answer is known."""

import numpy as np
import pytest
import torch

from genie_fn import data, random
from genie_fn.bundle import action_map
from genie_fn.evaluation import action_report
from genie_fn.evaluation.action_report import Transitions

NAMES = ("LEFT", "NOOP", "RIGHT", "UP")
CLIPS, STEPS, KEY = 120, 10, random.key(0)


def draw(seed: int, high: int) -> torch.Tensor:
    return random.randint(random.key(seed), (CLIPS, STEPS), 0, high)


@pytest.fixture
def found(monkeypatch) -> Transitions:
    """Codes that name the recorded action but for one tenth, and a picture that moves against LEFT and RIGHT."""
    monkeypatch.setattr(action_report, "PERMUTATIONS", 99)
    true = draw(1, 4)
    codes = torch.where(draw(2, 10) == 0, draw(3, 4), torch.tensor([2, 3, 0, 1])[true])
    moved = torch.stack((torch.tensor([3, 0, -3, 0])[true] + draw(4, 3) - 1, draw(5, 3) - 1), -1)
    return Transitions(codes, true, torch.arange(CLIPS) // 10, moved)


def test_collapse_is_named():
    for codes, word in (
        (torch.zeros(1000).long(), "collapsed: 100% of transitions have one code"),
        (
            torch.cat((torch.zeros(970), torch.ones(30))).long(),
            "collapsed: 97% of transitions have one code",
        ),
        (torch.arange(1000) % 2, "partly collapsed: only 2 of 6 codes"),
        (torch.arange(1000) % 5, "in use: 5 of 6 codes"),
    ):
        assert action_report.usage(codes, 6)["state"].startswith(word)
    even = action_report.usage(torch.arange(600) % 6, 6)
    assert even["perplexity"] == pytest.approx(6, abs=1e-3) and even["used"] == 6


def test_codes_that_name_actions_are_seen_to(found):
    told = action_report.describe(found, 4, NAMES, True, KEY)["true"]
    whole = told["all"]
    assert whole["information"] > 0.7 and whole["by_chance"] < 0.02 and whole["p"] == 0.01
    assert (
        0.89 < whole["accuracy"] < 0.95 and 0.2 < whole["chance"] < 0.32 and whole["stability"] == 1
    )
    assert np.sum(whole["table"]) == CLIPS * STEPS and np.argmax(whole["table"], 1).tolist() == [
        2,
        3,
        0,
        1,
    ]
    assert (
        np.sum(told["sides"]["table"], 1).tolist()
        == torch.bincount(torch.tensor([0, 1, 2, 1])[found.true].flatten()).tolist()
    )
    assert told["sides"]["information"] > 0.5


def test_codes_of_other_clips_tell_nothing(found):
    told = action_report.describe(found._replace(codes=draw(9, 4)), 4, NAMES, True, KEY)["true"][
        "all"
    ]
    assert told["information"] == pytest.approx(told["by_chance"], abs=0.01) and told["p"] > 0.02
    assert told["accuracy"] == pytest.approx(told["chance"], abs=0.06)


def test_maps_are_fitted_on_other_levels_than_they_are_tested_on(found):
    """Codes that mean one thing on even levels and another on odd ones: perfect within a half, wrong across."""
    turned = torch.where(found.level[:, None] % 2 == 0, found.true, (found.true + 1) % 4)
    told = action_report.agreement(turned, found.true, found.level, 4, 4, KEY)
    assert min(told["halves"]) == 1 and told["accuracy"] == 0 and told["stability"] == 0


def test_what_actions_do_to_the_picture(found):
    moves = action_report.displacements(found.codes, found.moved, 5, KEY)
    assert moves["dx"][2] == pytest.approx(2.75, abs=0.4) and moves["dx"][0] == pytest.approx(
        -2.75, abs=0.4
    )
    assert moves["left"] == [0] and moves["right"] == [2]
    assert moves["dx_p"] == 0.01 < 0.05 < moves["dy_p"]  # nothing moves up or down by the action
    assert moves["dx"][4] is None  # an action that never occurs has no mean
    value = found.moved[..., 0].float()[found.codes == 2]
    assert moves["dx_error"][2] == pytest.approx(value.std().item() / len(value) ** 0.5, rel=0.35)


def test_without_recorded_actions_or_with_them_as_actions_there_is_nothing_to_compare(found):
    assert "true" not in action_report.describe(found._replace(true=None), 4, (), True, KEY)
    told = action_report.describe(found._replace(codes=found.true), 4, NAMES, False, KEY)
    assert told["kind"] == "true" and told["names"] == list(NAMES) and "true" not in told


def test_of_one_level_the_clips_are_halved(found):
    told = action_report.describe(found, 4, NAMES, True, KEY)["true"]["all"]
    alone = action_report.describe(found._replace(level=torch.zeros(CLIPS)), 4, NAMES, True, KEY)[
        "true"
    ]["all"]
    assert (told["halves_of"], alone["halves_of"]) == ("levels", "clips")
    assert told["table"] == alone["table"] and told["halves"] != alone["halves"]


def test_sides_need_names():
    assert action_report.sides(("LEFT+UP", "NOOP", "RIGHT")).tolist() == [0, 1, 2]
    assert action_report.sides(("A", "B")) is None and action_report.sides(()) is None


def test_the_map_for_play(found):
    report = action_report.describe(found, 4, NAMES, True, KEY)
    made = action_report.to_map(report)
    assert made.to_latent == [2, 3, 0, 1] and made.names == list(NAMES)
    assert made.agreement == report["true"]["all"]["accuracy"]


def test_the_map_for_play_is_kept_beside_the_run(found, tmp_path):
    made = action_report.to_map(action_report.describe(found, 4, NAMES, True, KEY))
    assert action_map.load(tmp_path) is None
    action_map.save(made, tmp_path)
    assert action_map.load(tmp_path) == made


def test_by_lift_rare_actions_have_codes_of_their_own():
    """Code 0 is commonest with both actions; the second raises code 1 most."""
    table = torch.tensor([[900, 50, 50], [60, 40, 0]])
    assert action_map.by_lift(table).tolist() == [2, 1]


def test_examples_are_of_their_action_and_of_different_clips():
    codes = draw(7, 3)
    codes[codes == 1] = 0
    first, none, third = action_report.examples(codes, 3, 8)
    assert none == [] and len(first) == len(third) == 8 == len({clip for clip, _ in first})
    assert all(codes[clip, t] == 2 and 2 not in codes[clip, :t] for clip, t in third)


def test_clips_are_spread_and_labelled_in_order(tmp_path):
    store = data.create(tmp_path / "data", {}, 16, 16, 3, ("LEFT", "NOOP", "RIGHT"))
    for level in (9, 19):
        frames = (
            np.zeros((50, 16, 16, 3), np.uint8)
            + np.arange(50, dtype=np.uint8)[:, None, None, None]
            + level
        )
        recording = data.Recording(
            level, frames, np.arange(50) % 3, np.zeros(50), np.zeros(50, bool)
        )
        store = data.append_segments(store, [recording])
    offsets = action_report.spread_clips(store, "test", 5, 8)
    assert len(offsets) == 8 and np.diff(offsets).min() >= 5
    codes = action_report.label(
        store, offsets, 5, lambda frames, true: true + 1, torch.device("cpu")
    )
    found = action_report.gather(store, offsets, 5, codes)
    assert torch.equal(found.codes, found.true + 1) and found.moved.shape == (8, 4, 2)
    assert found.level.tolist() == [9] * 4 + [19] * 4
    assert len(action_report.spread_clips(store, "test", 5, 1000)) == 20
