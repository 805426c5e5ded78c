"""Statistics of actions, on transitions constructed so that the answer is known."""

import numpy as np
import pytest
import torch

from genie_fn import data, random
from genie_fn.bundle import action_map
from genie_fn.evaluation import actions, statistics
from genie_fn.evaluation.actions import Transitions

NAMES = ("LEFT", "NOOP", "RIGHT", "UP")
CLIPS, STEPS, KEY = 120, 10, random.key(0)


def draw(seed: int, high: int) -> torch.Tensor:
    return random.randint(random.key(seed), (CLIPS, STEPS), 0, high)


@pytest.fixture
def transitions(monkeypatch) -> Transitions:
    """Codes that identify nine in ten actions, and an image that moves against LEFT and RIGHT."""
    monkeypatch.setattr(statistics, "PERMUTATIONS", 99)
    recorded = draw(1, 4)
    codes = torch.where(draw(2, 10) == 0, draw(3, 4), torch.tensor([2, 3, 0, 1])[recorded])
    dx = torch.tensor([3, 0, -3, 0])[recorded] + draw(4, 3) - 1
    shift = torch.stack((dx, draw(5, 3) - 1), -1)
    return Transitions(codes, recorded, torch.arange(CLIPS) // 10, shift)


def test_collapse_is_reported():
    for codes, word in (
        (torch.zeros(1000).long(), "collapsed: 100% of transitions have one code"),
        (
            torch.cat((torch.zeros(970), torch.ones(30))).long(),
            "collapsed: 97% of transitions have one code",
        ),
        (torch.arange(1000) % 2, "partly collapsed: only 2 of 6 codes"),
        (torch.arange(1000) % 5, "in use: 5 of 6 codes"),
    ):
        assert actions.usage(codes, 6).state.startswith(word)
    even = actions.usage(torch.arange(600) % 6, 6)
    assert even.perplexity == pytest.approx(6, abs=1e-3) and even.used == 6


def test_codes_that_identify_actions(transitions):
    recorded = actions.describe(transitions, 4, NAMES, True, KEY).recorded
    whole = recorded.all
    assert whole.nmi > 0.7 and whole.permuted_nmi < 0.02 and whole.p == 0.01
    assert 0.89 < whole.accuracy < 0.95
    assert 0.2 < whole.majority_accuracy < 0.32 and whole.stability == 1
    assert np.sum(whole.table) == CLIPS * STEPS
    assert np.argmax(whole.table, 1).tolist() == [2, 3, 0, 1]
    side = torch.tensor([0, 1, 2, 1])[transitions.recorded]
    assert np.sum(recorded.sides.table, 1).tolist() == torch.bincount(side.flatten()).tolist()
    assert recorded.sides.nmi > 0.5


def test_codes_of_other_clips_are_independent(transitions):
    other = transitions._replace(codes=draw(9, 4))
    whole = actions.describe(other, 4, NAMES, True, KEY).recorded.all
    assert whole.nmi == pytest.approx(whole.permuted_nmi, abs=0.01) and whole.p > 0.02
    assert whole.accuracy == pytest.approx(whole.majority_accuracy, abs=0.06)


def test_maps_are_fitted_on_other_levels_than_they_are_tested_on(transitions):
    """Codes with one meaning on even levels and another on odd ones."""
    recorded, level = transitions.recorded, transitions.level
    turned = torch.where(level[:, None] % 2 == 0, recorded, (recorded + 1) % 4)
    found = actions.agreement(turned, recorded, level, (4, 4), KEY)
    assert min(found.halves_nmi) == 1 and found.accuracy == 0 and found.stability == 0


def test_displacement_of_the_image(transitions):
    codes, shift = transitions.codes, transitions.shift
    moves = actions.displacement(codes, shift, 5, KEY)
    assert moves.dx[2] == pytest.approx(2.75, abs=0.4)
    assert moves.dx[0] == pytest.approx(-2.75, abs=0.4)
    assert moves.left == [0] and moves.right == [2]
    assert moves.dx_p == 0.01 < 0.05 < moves.dy_p  # nothing moves up or down by the action
    assert moves.dx[4] is None  # an action that never occurs has no mean
    value = shift[..., 0].float()[codes == 2]
    assert moves.dx_error[2] == pytest.approx(value.std().item() / len(value) ** 0.5, rel=0.35)


def test_without_recorded_actions_or_conditioned_on_them_nothing_is_compared(transitions):
    unlabelled = transitions._replace(recorded=None)
    assert actions.describe(unlabelled, 4, (), True, KEY).recorded is None
    conditioned = transitions._replace(codes=transitions.recorded)
    found = actions.describe(conditioned, 4, NAMES, False, KEY)
    assert found.kind == "recorded" and found.names == list(NAMES) and found.recorded is None


def test_of_one_level_the_clips_are_halved(transitions):
    several = actions.describe(transitions, 4, NAMES, True, KEY).recorded.all
    single = transitions._replace(level=torch.zeros(CLIPS))
    one = actions.describe(single, 4, NAMES, True, KEY).recorded.all
    assert (several.halves_of, one.halves_of) == ("levels", "clips")
    assert several.table == one.table and several.halves_nmi != one.halves_nmi


def test_sides_need_names():
    assert actions.sides(("LEFT+UP", "NOOP", "RIGHT")).tolist() == [0, 1, 2]
    assert actions.sides(("A", "B")) is None and actions.sides(()) is None


def test_the_map_for_play(transitions):
    recorded = actions.describe(transitions, 4, NAMES, True, KEY).recorded
    mapping = actions.to_map(recorded)
    assert mapping.to_latent == [2, 3, 0, 1] and mapping.names == list(NAMES)
    assert mapping.agreement == recorded.all.accuracy


def test_the_map_for_play_is_kept_beside_the_run(transitions, tmp_path):
    mapping = actions.to_map(actions.describe(transitions, 4, NAMES, True, KEY).recorded)
    assert action_map.load(tmp_path) is None
    action_map.save(mapping, tmp_path)
    assert action_map.load(tmp_path) == mapping


def test_by_their_lift_rare_actions_have_codes_of_their_own():
    """Code 0 is commonest with both actions; the second raises code 1 most."""
    table = torch.tensor([[900, 50, 50], [60, 40, 0]])
    assert action_map.lift(table).argmax(1).tolist() == [2, 1]


def test_examples_are_of_their_action_and_of_different_clips():
    codes = draw(7, 3)
    codes[codes == 1] = 0
    first, none, third = actions.examples(codes, 3, 8)
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
    offsets = actions.spread_clips(store, "test", 5, 8)
    assert len(offsets) == 8 and np.diff(offsets).min() >= 5
    codes = actions.map_clips(
        store, offsets, 5, lambda frames, recorded: recorded + 1, torch.device("cpu")
    )
    found = actions.gather(store, offsets, 5, codes)
    assert torch.equal(found.codes, found.recorded + 1) and found.shift.shape == (8, 4, 2)
    assert found.level.tolist() == [9] * 4 + [19] * 4
    assert len(actions.spread_clips(store, "test", 5, 1000)) == 20
