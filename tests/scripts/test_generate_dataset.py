"""Collection from Procgen: the store holds what was played, whatever happens to the process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

pytest.importorskip("procgen")

import generate_dataset as script  # noqa: E402
from genie_fn import data
from genie_fn.data import games
from genie_fn.errors import UserError

ROOT = Path(script.__file__).parent
# One level in each split.
SMALL = script.Config(num_levels=3, start_level=7, steps_per_level=300, workers=1)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Three levels, and their episodes as mp4."""
    folder = tmp_path_factory.mktemp("collected")
    script.main(replace(SMALL, root=str(folder / "store"), export_mp4=str(folder / "mp4")))
    return data.open_store(folder / "store")


def content(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def command(*flags):
    return [sys.executable, str(ROOT / "generate_dataset.py"), *map(str, flags)]


def replay(level, actions, seed=123, **options):
    """Frames, rewards and starts of `actions` in an environment that the script did not make."""
    from procgen import ProcgenGym3Env

    env = ProcgenGym3Env(1, "coinrun", num_levels=1, start_level=level, rand_seed=seed, **options)
    frames, rewards, starts = [], [], []
    for action in actions:
        _, observation, first = env.observe()
        frames.append(observation["rgb"][0].copy())
        starts.append(first[0])
        env.act(np.array([action]))
        rewards.append(env.observe()[0][0])
    return np.stack(frames), np.array(rewards, np.float32), np.array(starts)


def test_replaying_the_actions_gives_the_frames(collected):
    assert [segment.level for segment in collected.segments] == [7, 8, 9]
    assert [segment.split for segment in collected.segments] == ["train", "val", "test"]
    for segment in collected.segments:
        stored = data.read_segment(collected, segment)
        frames, rewards, starts = replay(segment.level, stored.actions)
        np.testing.assert_array_equal(stored.frames, frames)
        np.testing.assert_array_equal(stored.rewards, rewards)
        np.testing.assert_array_equal(stored.episode_starts, starts)
        assert segment.info["reward"] == rewards.sum()


def test_plain_visuals_have_the_same_physics_without_backgrounds(collected, tmp_path):
    script.main(replace(SMALL, root=str(tmp_path), num_levels=1, visuals="plain"))
    plain = data.open_store(tmp_path)
    stored = data.read_segment(plain, plain.segments[0])
    full = data.read_segment(collected, collected.segments[0])
    np.testing.assert_array_equal(stored.actions, full.actions)
    np.testing.assert_array_equal(stored.rewards, full.rewards)
    np.testing.assert_array_equal(stored.episode_starts, full.episode_starts)
    frames = replay(7, stored.actions, use_backgrounds=False, restrict_themes=True)[0]
    np.testing.assert_array_equal(stored.frames, frames)
    black = (stored.frames == 0).all(-1).mean()
    assert black > 0.3 > (full.frames == 0).all(-1).mean()

    game = games.open_game(7, plain.meta)
    np.testing.assert_array_equal(game.frame(), stored.frames[0])
    game.close()
    assert script.default_root(replace(SMALL, visuals="plain")) == "data/coinrun-plain"


def test_levels_differ_and_another_level_does_not_replay(collected):
    stored = data.read_segment(collected, collected.segments[0])
    assert (replay(0, stored.actions[:2])[0] != stored.frames[:2]).any()
    assert (replay(7, stored.actions[:2], distribution_mode="easy")[0] != stored.frames[:2]).any()


def test_an_action_moves_the_next_frame_not_its_own():
    still, left = [4] * 8, [4, 4, 4, 4, 7, 7, 7, 7]
    a, b = replay(7, still)[0], replay(7, left)[0]
    assert (a[:5] == b[:5]).all() and (a[5:] != b[5:]).any()


def test_the_channels_are_red_green_blue():
    # The coin at the end of a level is yellow: much red and green, little blue. As BGR it is cyan.
    cfg = script.Config(steps_per_level=1000, distribution_mode="easy")
    recording = next(
        r for r in (script.play_level(cfg, level) for level in range(20)) if r.info["completed"]
    )
    done = np.flatnonzero(recording.rewards > 0)[0]
    r, g, b = np.moveaxis(recording.frames[done].astype(int), -1, 0)
    assert np.sum((r > 200) & (g > 150) & (b < 90)) >= 5


@pytest.mark.subprocess
def test_two_workers_write_the_same_bytes_as_one(collected, tmp_path):
    script.main(replace(SMALL, root=str(tmp_path / "two"), workers=2))
    assert content(tmp_path / "two") == content(collected.root)


def test_another_seed_takes_other_actions(collected):
    repeated = script.play_level(SMALL, 7)
    np.testing.assert_array_equal(
        repeated.actions, data.read_segment(collected, collected.segments[0]).actions
    )
    assert (script.play_level(replace(SMALL, seed=1), 7).actions != repeated.actions).any()
    assert (script.choose_actions(SMALL, 8, 15) != repeated.actions).any()


def test_appending_equals_collecting_at_once_and_a_complete_dataset_is_kept(
    collected, tmp_path, capsys
):
    cfg = replace(SMALL, root=str(tmp_path / "grown"))
    script.main(replace(cfg, num_levels=1))
    script.main(cfg)
    assert content(cfg.root) == content(collected.root)
    times = [path.stat().st_mtime_ns for path in Path(cfg.root).rglob("*")]
    capsys.readouterr()
    script.main(replace(cfg, workers=2, verify=True))
    assert "nothing to collect" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in Path(cfg.root).rglob("*")] == times


LONG = script.Config(num_levels=20, policy="random", workers=1)  # long enough to be killed half-way


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted") / "store"
    script.main(replace(LONG, root=str(root)))
    return content(root)


@pytest.mark.subprocess
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes_to_the_same_bytes(uninterrupted, tmp_path, sign):
    root, workers = tmp_path / "killed", 2 if sign == signal.SIGINT else 1
    flags = (
        "--cfg.num-levels",
        20,
        "--cfg.policy",
        "random",
        "--cfg.workers",
        workers,
        "--cfg.root",
        root,
    )
    process = subprocess.Popen(
        command(*flags),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore Ctrl-C
    )
    manifest, deadline = root / data.MANIFEST, time.monotonic() + 60
    while time.monotonic() < deadline and not (
        manifest.exists() and '"level":1,' in manifest.read_text()
    ):
        time.sleep(0.005)
    os.killpg(process.pid, sign) if sign == signal.SIGINT else process.kill()
    output, _ = process.communicate(timeout=30)
    kept = len(json.loads(manifest.read_text())["segments"])
    assert 2 <= kept < 20
    assert process.returncode == (130 if sign == signal.SIGINT else -signal.SIGKILL)
    assert sign == signal.SIGKILL or f"Kept {kept} levels" in output
    assert data.verify(data.open_store(root)) == kept * 1000
    script.main(
        replace(LONG, root=str(root), num_levels=kept)
    )  # what was kept is a whole dataset of its own
    script.main(replace(LONG, root=str(root)))
    assert content(root) == uninterrupted


@pytest.mark.subprocess
def test_workers_end_with_a_killed_parent(tmp_path):
    process = subprocess.Popen(
        command("--cfg.num-levels", 500, "--cfg.workers", 2, "--cfg.root", tmp_path / "s"),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("s/frames/c/*")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("workers outlived their parent")


def test_the_explorer_completes_many_more_levels_and_uses_every_action():
    cfg = script.Config(steps_per_level=1000)
    completed = {
        policy: sum(
            script.play_level(replace(cfg, policy=policy), level).info["completed"]
            for level in range(8)
        )
        for policy in ("explorer", "random")
    }
    assert completed["explorer"] > 3 * completed["random"] + 10
    actions = np.concatenate([script.choose_actions(cfg, level, 15) for level in range(20)])
    shares = np.bincount(actions, minlength=15) / len(actions)
    assert (
        shares[:3].sum() > 0.1
        and shares[4] > 0.05
        and shares[6:9].sum() > 0.4
        and shares[[2, 5, 8]].sum() > 0.2
    )
    changes = actions[1:] != actions[:-1]
    # The six transitions that a clip of four frames covers with a stride of two.
    in_clip = np.lib.stride_tricks.sliding_window_view(changes, 6)
    assert in_clip.any(1).mean() > 0.5


def test_actions_repeat_or_not():
    cfg = script.Config(policy="random", steps_per_level=5000)
    drawn = script.choose_actions(cfg, 0, 15)
    assert 0.05 < np.mean(drawn[1:] == drawn[:-1]) < 0.08
    never = script.choose_actions(replace(cfg, repeat_actions=False), 0, 15)
    assert (never[1:] != never[:-1]).all()
    assert (
        np.bincount(never, minlength=15).min() > 200
        and np.bincount(drawn, minlength=15).min() > 200
    )


@pytest.mark.parametrize(
    "game, mode", [("maze", "memory"), ("starpilot", "extreme"), ("bigfish", "easy")]
)
def test_other_games_play(game, mode):
    cfg = script.Config(env=game, distribution_mode=mode, steps_per_level=30)
    script.check(cfg)
    first, second = script.play_level(cfg, 3), script.play_level(cfg, 3)
    np.testing.assert_array_equal(first.frames, second.frames)
    assert first.frames.std() > 0


def test_exported_videos_equal_the_frames(collected):
    folder = collected.root.parent / "mp4"
    for segment in collected.segments:
        stored = data.read_segment(collected, segment)
        files = sorted((folder / segment.split).glob("*.mp4"))
        assert len(files) == stored.episode_starts.sum()
        videos = [iio.imread(file, plugin="pyav") for file in files]
        np.testing.assert_array_equal(np.concatenate(videos), stored.frames)


REFUSED = {
    "did you mean 'coinrun'": {"env": "Coinrunn"},
    "coinrun has no extreme mode": {"distribution_mode": "extreme"},
    "--cfg.num-levels is -1": {"num_levels": -1},
    "--cfg.steps-per-level is 0": {"steps_per_level": 0},
    "--cfg.start-level is -5": {"start_level": -5},
    "--cfg.seed is -1": {"seed": -1},
    "--cfg.workers is 0": {"workers": 0},
    "holds its actions": {"repeat_actions": False},
    "collected with seed 0, not 1": {"seed": 1},
    "collected with env coinrun, not maze": {"env": "maze"},
    "already holds 3 levels": {"num_levels": 2},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_refused_with_one_sentence(collected, sentence):
    with pytest.raises(UserError) as error:
        script.main(replace(SMALL, root=str(collected.root), **REFUSED[sentence]))
    message = str(error.value)
    assert sentence in message and "\n" not in message and not message.endswith(".")


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--cfg.env", "coinrum"), "did you mean 'coinrun'"),
        (("--cfg.policy", "random"), "collected with"),
    ],
)
def test_the_command_line_exits_with_2_and_one_sentence(collected, flags, sentence):
    small = ("--cfg.start-level", 7, "--cfg.steps-per-level", 300, "--cfg.num-levels", 3)
    done = subprocess.run(
        command("--cfg.root", collected.root, *small, *flags), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert sentence in done.stderr and done.stderr.count("\n") == 1
