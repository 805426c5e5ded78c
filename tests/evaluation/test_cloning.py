"""Behaviour cloning: labels, translation of latent actions, and play in the real game."""

import numpy as np
import pytest
import torch

import clone
import generate_dataset
from genie_fn import bundle, data, random
from genie_fn.bundle import Bundle
from genie_fn.data import expert as experts
from genie_fn.data.procgen import ACTIONS
from genie_fn.errors import UserError
from genie_fn.evaluation import clone_record, cloning, inverse_dynamics
from genie_fn.evaluation.clone_record import CloneRecord, ExpertSummary, Seed
from genie_fn.evaluation.cloning import FRAMES, Examples
from genie_fn.evaluation.report import pages, tables

CPU = torch.device("cpu")
NOOP, RIGHT_UP = ACTIONS.index("NOOP"), ACTIONS.index("RIGHT+UP")
META = {"collection": {"env": "coinrun", "distribution_mode": "hard"}}


def always(action: int) -> cloning.Policy:
    return cloning.constant(torch.eye(len(ACTIONS))[action])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Episodes of 20, 15 (solved), 8 (solved) and 37 (cut off) frames, on three levels.

    A frame is dark or bright by the action that is taken at it, and its first pixel is its time.
    """
    store = data.create(tmp_path_factory.mktemp("cloning") / "data", META, 32, 32, 15, ACTIONS)
    for level in (1, 2, 9):
        rng = np.random.default_rng(level)
        actions, starts, rewards = 7 + rng.integers(0, 2, 80), np.zeros(80, bool), np.zeros(80)
        frames = np.broadcast_to(
            np.uint8(100 * (actions - 7))[:, None, None, None], (80, 32, 32, 3)
        ).copy()
        frames[:, 0, 0] = np.arange(80)[:, None]
        starts[[0, 20, 35, 43]], rewards[[34, 42]] = True, 10
        store = data.append_segments(
            store, [data.Recording(level, frames, actions, rewards, starts)]
        )
    return store


def test_episodes_are_separated(store):
    found = cloning.episodes(store)
    assert [episode.start for episode in found[:4]] == [0, 20, 35, 43]
    assert [episode.end for episode in found[:4]] == [20, 35, 43, 80]
    assert [episode.solved for episode in found] == [False, True, True, False] * 3
    assert [episode.complete for episode in found] == [True, True, True, False] * 3
    assert [episode.first for episode in found] == [True, False, False, False] * 3
    assert [episode.start for episode in found[4:8]] == [1000, 1020, 1035, 1043]
    assert [episode.train for episode in found] == [True] * 8 + [False] * 4


def recorded_actions(frames: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    return recorded


def test_the_expert_is_labelled_where_it_solves_a_level(store):
    """Its latent actions, here the time in a frame, are those of their moments."""
    found = cloning.episodes(store)
    expert = cloning.label(store, found, lambda frames, _: frames[:, :-1, 0, 0, 0].long(), CPU, 100)
    # 8 frames are too few, level 9 is held out
    assert expert.offsets.tolist() == [*range(20, 32), *range(1020, 1032)]
    assert (expert.latent == expert.offsets % 1000 + FRAMES - 1).all()
    recorded = data.read_segment(store, store.segments[0]).actions
    assert (expert.recorded[:12] == recorded[22:34]).all()
    assert len(cloning.label(store, found, recorded_actions, CPU, 1).offsets) == 12


def test_without_a_solved_episode_there_is_no_expert(stage):
    with pytest.raises(UserError, match="no solved episode"):
        cloning.episodes(stage[2])


def test_a_policy_learns_what_comes_next(store):
    expert = cloning.label(store, cloning.episodes(store), recorded_actions, CPU, 100)
    settings = inverse_dynamics.settings(40, 0, CPU)
    examples = Examples(expert.offsets, expert.recorded - 7, 2)
    policy = cloning.fit(store, examples, 4, settings, range(40))
    with torch.no_grad():
        guess = policy(torch.from_numpy(data.read_clips(store, expert.offsets, FRAMES).frames))
    assert guess.shape == (24, 2)
    assert (guess.argmax(1).numpy() == expert.recorded - 7).mean() > 0.9


def test_latent_actions_are_translated_by_frequency():
    latent, recorded = np.array([0, 0, 0, 2]), np.array([8, 8, 1, 4])
    share = cloning.translation(latent, recorded, 3)
    assert share.shape == (3, len(ACTIONS)) and torch.allclose(share.sum(1), torch.ones(3).double())
    assert share[0, 8] == pytest.approx(2 / 3) and share[2, 4] == 1
    assert share[1, [1, 4, 8]].tolist() == [0.25, 0.25, 0.5]  # a code that was not among them
    sure = cloning.translation(latent, recorded, 3, commonest=True)
    assert sure.argmax(1).tolist() == [8, 8, 4] and (sure.sum(1) == 1).all()
    policy = cloning.translated(cloning.constant(torch.tensor([0.0, 0.0, 1.0])), sure)
    assert policy(torch.zeros(2, FRAMES, 1, 1, 3)).argmax(1).tolist() == [4, 4]


def test_shares_and_their_intervals():
    even = torch.tensor([[1, 0, 1, 0], [1, 0, 1, 0]])
    assert cloning.share(torch.ones(2, 4), random.key(0)) == [1, 1, 1]
    mean, low, high = cloning.share(even, random.key(0))
    assert mean == 0.5 and 0 <= low < 0.3 and 0.7 < high <= 1
    assert cloning.share(even - even, random.key(0)) == [0, 0, 0]


@pytest.fixture(scope="module")
def levels():
    return cloning.open_levels(4, META)


def test_levels_are_held_out_and_play_repeats(levels):
    assert [opened.level for opened, _ in levels] == [9, 19, 29, 39]
    chance = np.random.default_rng(0).random((4, 150))
    whole = cloning.play(always(RIGHT_UP), levels, chance)
    assert 0 < whole.sum() < 4
    assert (cloning.play(always(RIGHT_UP), levels[::-1], chance[::-1])[::-1] == whole).all()
    assert not cloning.play(always(NOOP), levels, chance[:, :40]).any()
    assert not cloning.play(always(RIGHT_UP), levels, chance[:, :5]).any()


def test_policies_see_the_last_frames_and_are_drawn_from(levels):
    """A policy that sees NOOP's stillness first, and then what moved.

    Its draws follow the probabilities.
    """
    seen = []

    def look(frames):
        seen.append(frames.clone())
        return torch.eye(len(ACTIONS))[RIGHT_UP].expand(len(frames), -1)

    cloning.play(look, levels[:2], np.zeros((2, 6)))
    assert seen[0].shape == (2, FRAMES, 64, 64, 3) and torch.equal(seen[0][:, 0], seen[0][:, 2])
    for before, after in zip(seen, seen[1:], strict=False):
        assert torch.equal(before[:, 1:], after[:, :-1])
    assert not torch.equal(seen[-1][:, 0], seen[-1][:, 2])


@pytest.fixture(scope="module")
def home(stage, tmp_path_factory):
    """A world file, and a dataset of the real game with solved episodes."""
    home = tmp_path_factory.mktemp("home")
    (home / "world.safetensors").write_bytes(
        bundle.encode(bundle.with_dataset(Bundle(stage[0]), stage[2], 1))
    )
    made = data.create(home / "data", META, 64, 64, 15, ACTIONS)
    played = generate_dataset.Config(steps_per_level=250)
    data.append_segments(made, [generate_dataset.play_level(played, level) for level in (0, 1)])
    return home


def config(home, **options) -> clone.Config:
    sizes = {
        "levels": 2,
        "samples": (5,),
        "steps": 2,
        "dim": 4,
        "episodes": 3,
        "frames": 20,
        "batch_size": 4,
    }
    sizes |= {"seeds": 2, "expert": "dataset"}
    return clone.Config(str(home / "world.safetensors"), str(home / "data"), **sizes | options)


def test_the_expert_that_searches_is_cloned_and_plays_beside_the_clones(
    home, tmp_path, monkeypatch
):
    """Its video is kept: the same command plays nothing again."""
    options = {"expert": "search", "seeds": 1, "demonstrations": 1, "frames": 40}
    clone.main(config(home, out=str(tmp_path), **options))
    first = clone_record.read_complete(tmp_path)
    assert first.expert.solved_held_out == first.seeds["0"].solved["expert"]
    assert first.shares["expert"][0] >= 0.5 and first.expert.levels == 1
    made = data.open_store(tmp_path / "demonstrations")
    assert made.meta["collection"]["distribution_mode"] == "easy"
    assert [segment.level for segment in made.segments] == [0]
    assert "searches in the game" in pages.clone(first)
    monkeypatch.setattr(experts, "solve", None)
    clone.main(config(home, out=str(tmp_path), **options | {"seeds": 2}))
    assert clone_record.read_complete(tmp_path).seeds.keys() == {"0", "1"}
    with pytest.raises(UserError, match="another game, mode or stride"):
        clone.main(config(home, out=str(tmp_path), **options | {"distribution_mode": "hard"}))


def test_seeds_that_are_done_are_kept(home, monkeypatch, capsys):
    played, play = [], cloning.play

    def stopped(*given):
        played.append(1)
        if len(played) == 8:  # six policies a seed: in the second
            raise KeyboardInterrupt
        return play(*given)

    monkeypatch.setattr(cloning, "play", stopped)
    with pytest.raises(KeyboardInterrupt):
        clone.main(config(home))
    first = clone_record.read_complete(home / "world")
    assert first.seeds.keys() == {"0"}
    clone.main(config(home))
    record = clone_record.read_complete(home / "world")
    assert len(played) == 8 + 6 and record.seeds["0"] == first.seeds["0"]
    assert record.seeds.keys() == {"0", "1"}
    names = {"random", "frequencies", "commonest", "oracle", "clone 5", "clone 5, commonest"}
    assert record.shares.keys() == names and record.gains.keys() == names - {"random"}
    assert 0 < record.expert.solved <= 1 and record.expert.levels == 2
    capsys.readouterr()
    clone.main(config(home))
    assert len(played) == 14 and "latent, 5 labels" in capsys.readouterr().out
    with pytest.raises(UserError, match="other options"):
        clone.main(config(home, steps=3))


def test_what_cannot_be_cloned_is_a_sentence(home, stage, tmp_path):
    for wrong in ({"seeds": 0}, {"samples": ()}):
        with pytest.raises(UserError, match="--cfg"):
            clone.Config(**wrong)
    (tmp_path / "clone.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        clone.main(config(home, out=str(tmp_path)))
    path = tmp_path / "recorded.safetensors"
    start = np.zeros((1, 64, 64, 3), np.uint8)
    bundle.save(path, Bundle(stage[0]._replace(lam=None), start_frames=start))
    with pytest.raises(UserError, match="trained on recorded actions"):
        clone.main(clone.Config(str(path), str(home / "data")))


def test_the_page_contains_what_the_record_contains():
    record = CloneRecord(
        config={"run": "runs/a & b/dynamics", "levels": 7},
        lam="",
        data="",
        expert=ExpertSummary(0.456, 0.5, 1234, 200, 80123),
        seeds={"0": Seed({}, 1.0), "1": Seed({}, 1.0)},
        shares={
            "random": [0.1, 0.05, 0.2],
            "oracle": [0.5, 0.4, 0.6],
            "clone 50, commonest": [0.4, 0.3, 0.5],
        },
        gains={"oracle": [0.4, 0.3, 0.5], "clone 50, commonest": [0.3, -0.1, 0.4]},
    )
    page = pages.clone(record)
    assert page.startswith("<!doctype html>") and "a &amp; b" in page
    for words in (
        "80,123",
        "45.6%",
        "40.0 % [30.0, 50.0]",
        "30.0 % [-10.0, 40.0]",
        "latent, 50 labels, commonest",
    ):
        assert words in page
    assert tables.cloning(record)[0] == ["random", "10.0 % [5.0, 20.0]", "–"]
