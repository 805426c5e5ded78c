"""The expert that searches in the real game: its plans earn the reward when they are played."""

import numpy as np
import pytest

pytest.importorskip("procgen")

from genie_fn.data import expert, games
from genie_fn.errors import UserError

EASY = {"collection": {"env": "coinrun", "distribution_mode": "easy"}}


@pytest.mark.parametrize(("skip", "stride", "hold"), [(1, 1, 4), (3, 1, 2), (1, 2, 4), (2, 3, 3)])
def test_moves_are_held_for_whole_strides_and_at_least_four_frames(skip, stride, hold):
    search = expert.open_search("coinrun", "easy", skip, stride)
    assert search.hold == hold and search.hold % stride == 0 and search.hold * skip >= 4


def test_a_plan_found_in_other_games_earns_the_reward_in_its_own():
    meta = {"collection": EASY["collection"] | {"frame_skip": 2}}
    search = expert.open_search("coinrun", "easy", 2)
    game = games.open_game(4, meta)
    recording = expert.play(search, game)
    assert recording.info["completed"] == 1 and recording.info["reward"] == 10
    assert (recording.rewards > 0).tolist() == [False] * (len(recording.actions) - 1) + [True]
    assert recording.episode_starts.tolist() == [True] + [False] * (len(recording.actions) - 1)
    again = games.open_game(4, meta)
    for frame, action in zip(recording.frames, recording.actions.tolist(), strict=True):
        np.testing.assert_array_equal(frame, again.frame())
        step = again.step(action)
    assert step.reward == 10 and step.ended
    assert len(set(recording.actions.tolist())) > 1


def test_a_search_that_gives_up_returns_the_way_to_the_furthest_position():
    search = expert.open_search("coinrun", "easy")
    game = games.open_game(4, EASY)
    plan = expert.solve(search, game, budget=300)
    assert not plan.solved and plan.frames >= 300
    assert len(plan.actions) > 0 and len(plan.actions) % search.hold == 0
    assert plan.actions[0] in (7, 8)  # to the right, where the level goes on


def test_positions_before_a_still_camera_differ_by_their_coarse_picture():
    still = np.zeros(2)
    dark = np.zeros((64, 64, 3), np.uint8)
    bright = dark.copy()
    bright[:8, :8] = 255
    assert expert._cell(still, still, dark) != expert._cell(still, still, bright)
    assert expert._cell(still + 9, still, dark) == expert._cell(still + 9, still, bright)
    assert expert._cell(still + 9, still, dark) != expert._cell(still + 9, still + 1, dark)
    near, far = (expert._cell(still + 9, still, frame, detailed=True) for frame in (dark, bright))
    assert near != far


def test_a_game_that_does_not_exist_is_a_sentence():
    with pytest.raises(UserError, match="did you mean 'coinrun'"):
        expert.open_search("coinrum", "easy")
