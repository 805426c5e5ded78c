"""The import as a user runs it: the store holds what the files show, whatever happens to the process."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

import evaluate
import import_videos as script
import play
import train_dynamics
import train_lam
import train_tokenizer
from genie_fn import bundle, data
from genie_fn.data import framing
from genie_fn.data.importing import readers, sources
from genie_fn.data.importing.pipeline import End, VideoPart
from genie_fn.errors import UserError
from genie_fn.runtime.progress import Progress
from tests import films
from tests.scripts import test_training as test_scripts

ROOT = Path(script.__file__).parent
COUNT = 12


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Twelve small videos, and files that are none."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(COUNT):
        films.write(folder / f"clip_{i}.mkv", films.squares(18 + i, colour=i))
    films.write(folder / "short.mp4", films.squares(5))
    (folder / "notes.txt").write_text("no video")
    frames = np.random.default_rng(0).integers(0, 256, (60, 24, 32, 3), np.uint8)
    content = bytearray(films.write(folder / "torn.mp4", frames, pixels="yuv420p").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 900] = bytes(900)
    (folder / "torn.mp4").write_bytes(content)
    return folder


def config(src, root, **options):
    return script.Config(src=str(src), root=str(root), **{"size": 16, "workers": 2} | options)


@pytest.fixture(scope="module")
def imported(videos, tmp_path_factory) -> data.Store:
    root = tmp_path_factory.mktemp("imported") / "store"
    script.main(config(videos, root))
    return data.open_store(root)


def content(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def test_the_store_holds_what_the_files_show(videos, imported):
    names = [segment.info["file"] for segment in imported.segments]
    assert names == [*(f"clip_{i}.mkv" for i in range(COUNT)), "torn.mp4"]
    assert data.verify(imported) == imported.count("train") + imported.count(
        "val"
    ) + imported.count("test")
    for segment in imported.segments[:-1]:
        source = next(
            s
            for s in sources.find(str(videos), imported.root).sources
            if s.name == segment.info["file"]
        )
        seen = np.stack([framing.fit(frame.image(), 16, "crop") for frame in readers.read(source)])
        stored = data.read_segment(imported, segment)
        np.testing.assert_array_equal(stored.frames, seen)
        assert (
            stored.episode_starts.tolist() == [True] + [False] * (len(seen) - 1)
            and not stored.actions.any()
        )
    assert imported.num_actions == 0 and {segment.split for segment in imported.segments} == set(
        data.SPLITS
    )


def test_files_left_out_are_reported_with_the_reason(imported):
    content = json.loads((imported.root / script.REPORT).read_text())
    assert {entry["file"]: entry["why"].split(" (")[0] for entry in content["skipped"]} == {
        "notes.txt": "it cannot be read as a video",
        "short.mp4": "it has 5 frames, fewer than --cfg.min-frames 16",
    }
    assert len(content["imported"]) == COUNT + 1
    torn = content["imported"][-1]
    assert (
        torn["note"].startswith(f"after {torn['frames']} frames: it is damaged")
        and 16 <= torn["frames"] < 60
    )


def test_more_workers_write_the_same_bytes(videos, imported, tmp_path):
    script.main(config(videos, tmp_path / "one", workers=1))
    assert content(tmp_path / "one") == content(imported.root)


def test_a_second_import_adds_only_new_videos(videos, imported, tmp_path, capsys):
    for path in videos.iterdir():
        if path.name != "torn.mp4":
            (tmp_path / "src").mkdir(exist_ok=True)
            (tmp_path / "src" / path.name).write_bytes(path.read_bytes())
    cfg = config(tmp_path / "src", tmp_path / "store")
    script.main(cfg)
    before = {path: path.stat().st_mtime_ns for path in Path(cfg.root).rglob("c/*")}
    first = data.open_store(cfg.root)
    script.main(cfg)
    assert before == {path: path.stat().st_mtime_ns for path in Path(cfg.root).rglob("c/*")}
    (tmp_path / "src" / "torn.mp4").write_bytes((videos / "torn.mp4").read_bytes())
    (tmp_path / "src" / "twin.mkv").write_bytes((videos / "clip_3.mkv").read_bytes())
    (tmp_path / "src" / "clip_4.mkv").write_bytes((videos / "clip_5.mkv").read_bytes())
    capsys.readouterr()
    script.main(cfg)
    output = capsys.readouterr().out
    assert "twin.mkv: it is the same as clip_3.mkv" in output
    assert "clip_4.mkv: it has changed" in output
    store = data.open_store(cfg.root)
    assert store.segments[:COUNT] == first.segments  # and so their splits
    same = [segment._replace(split="") for segment in imported.segments]
    assert [segment._replace(split="") for segment in store.segments] == same and data.verify(store)


def test_episodes_that_agree_at_both_ends_are_all_imported(tmp_path):
    (tmp_path / "v").mkdir()
    episode = np.zeros((20, 120, 160, 3), np.uint8)
    for i in range(4):
        episode[10, 60, 80] = i
        np.save(tmp_path / "v" / f"{i}.npy", episode)
    np.save(tmp_path / "v" / "copy.npy", episode)
    script.main(config(tmp_path / "v", tmp_path / "s"))
    report = json.loads((tmp_path / "s" / script.REPORT).read_text())
    assert len(report["imported"]) == 4
    assert [entry["why"] for entry in report["skipped"]] == ["it is the same as 3.npy"]


def test_flashes_leave_no_video_out_and_reasons_name_the_flag(tmp_path):
    for i in range(3):
        frames = films.squares(60, colour=i)
        frames[::12] = 255
        films.write(tmp_path / f"{i}.mkv", frames)
    scenes = np.concatenate([films.squares(10, colour=i) for i in range(5)])
    films.write(tmp_path / "scenes.mkv", scenes)
    script.main(config(tmp_path / "*.mkv", tmp_path / "s"))
    report = json.loads((tmp_path / "s" / script.REPORT).read_text())
    assert [entry["frames"] for entry in report["imported"]] == [60] * 3
    reason = report["skipped"][0]["why"]
    assert "5 scenes has 10 frames" in reason
    assert "--cfg.min-frames 16" in reason and "--cfg.cuts above 0.4" in reason


def test_animations_are_videos_and_thumbnails_are_reported(tmp_path):
    for i in range(3):
        first, *others = map(Image.fromarray, films.squares(17, colour=i))
        path = tmp_path / "v" / f"{i}.webp"
        path.parent.mkdir(exist_ok=True)
        first.save(path, save_all=True, append_images=others, lossless=True)
        first.save(tmp_path / "v" / f"{i}.jpg")
    script.main(config(tmp_path / "v", tmp_path / "s"))
    report = json.loads((tmp_path / "s" / script.REPORT).read_text())
    assert [entry["frames"] for entry in report["imported"]] == [17] * 3
    assert [entry["file"] for entry in report["skipped"]] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize("background", ["black", "white"])
def test_the_background_of_transparent_frames_is_an_option(tmp_path, background):
    for name in "abc":
        (tmp_path / "v" / name).mkdir(parents=True)
        for t in range(16):
            frame = Image.new("RGBA", (16, 16), (10 * t, 0, 0, 0))
            frame.paste((0, 0, 10 + ord(name), 255), (0, 0, 8, 16))
            frame.save(tmp_path / "v" / name / f"{t}.png")
    cfg = config(tmp_path / "v", tmp_path / "s", background=background)
    script.main(cfg)
    store = data.open_store(cfg.root)
    for segment in store.segments:
        frames = data.read_segment(store, segment).frames
        assert (frames[:, :, 8:] == (255 if background == "white" else 0)).all()
        assert (frames[:, :, :8, 2] > 100).all()
    other = "white" if background == "black" else "black"
    with pytest.raises(UserError, match=f"background {background}, not {other}"):
        script.main(replace(cfg, background=other))


def test_frames_may_be_rectangles(tmp_path, capsys):
    for name in "abc":
        films.write(tmp_path / f"{name}.mkv", films.squares(20, 24, 32))
    cfg = config(tmp_path / "*.mkv", tmp_path / "s", size=(12, 16), cuts=0)
    script.main(cfg)
    store = data.open_store(cfg.root)
    assert (store.height, store.width) == (12, 16)
    assert "another shape" not in capsys.readouterr().out
    script.main(cfg)  # the options are read back as they were
    with pytest.raises(UserError, match="imported with size"):
        script.main(replace(cfg, size=12))


def test_one_long_recording_is_split_by_time(tmp_path, capsys):
    films.write(tmp_path / "day.mkv", films.squares(110, 24, 32), fps=10)
    cfg = config(tmp_path / "day.mkv", tmp_path / "s", split_seconds=2.0)
    script.main(cfg)
    store = data.open_store(cfg.root)
    lengths: dict[int, int] = {}
    for segment in store.segments:
        lengths[segment.level] = lengths.get(segment.level, 0) + segment.length
    assert lengths == {0: 20, 1: 20, 2: 20, 3: 20, 4: 30}  # the rest of 10 frames is no piece
    assert {segment.split for segment in store.segments} == set(data.SPLITS)
    assert len({(s.level, s.split) for s in store.segments}) == 5
    shape = "1 videos have another shape than 16x16: the middle was kept and up to 25%"
    assert shape in capsys.readouterr().out
    before = content(cfg.root)
    script.main(cfg)
    assert content(cfg.root) == before
    with pytest.raises(UserError, match=r"fewer frames than --cfg\.min-frames 16"):
        replace(cfg, fps=5)


SLOWLY = """
import sys, time
import import_videos as script
write = script.pipeline.write
script.pipeline.write = lambda *arguments: (time.sleep(0.3), write(*arguments))[1]
script.main(script.Config(src=sys.argv[1], root=sys.argv[2], size=16, workers=2))
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_import_continues_to_the_same_bytes(videos, imported, tmp_path, sign):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(videos), str(tmp_path / "s")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    manifest, deadline = tmp_path / "s" / data.MANIFEST, time.monotonic() + 60
    while time.monotonic() < deadline and not (
        manifest.exists() and "clip_1.mkv" in manifest.read_text()
    ):
        time.sleep(0.005)
    process.send_signal(sign)
    output, _ = process.communicate(timeout=30)
    kept = len(json.loads(manifest.read_text())["segments"])
    assert 2 <= kept < COUNT and (sign == signal.SIGKILL or f"Kept {kept} videos" in output)
    script.main(config(videos, tmp_path / "s"))
    assert content(tmp_path / "s") == content(imported.root)


def test_scenes_and_frame_rate(tmp_path):
    frames = np.concatenate([films.squares(40, colour=1), films.squares(50, colour=2)])
    for name in "abc":
        films.write(tmp_path / f"{name}.mkv", frames)
        frames = frames[:-1]
    script.main(config(tmp_path / "*.mkv", tmp_path / "s", fps=15))
    store = data.open_store(tmp_path / "s")
    starts = [
        np.flatnonzero(data.read_segment(store, segment).episode_starts).tolist()
        for segment in store.segments
    ]
    assert [segment.length for segment in store.segments] == [45, 45, 44] and starts == [
        [0, 20]
    ] * 3


def test_actions_beside_videos_are_stored_and_checked(tmp_path):
    (tmp_path / "v").mkdir()
    for i in range(4):
        films.write(tmp_path / "v" / f"{i}.mkv", films.squares(20, colour=i))
        rows = ["UP" if t % 3 == i % 3 else "LEFT" for t in range(20)]
        (tmp_path / "v" / f"{i}.csv").write_text("action\n" + "\n".join(rows) + "\n")
    cfg = config(tmp_path / "v", tmp_path / "s")
    script.main(cfg)
    store = data.open_store(tmp_path / "s")
    assert store.action_names == ("LEFT", "UP") and store.num_actions == 2
    for i, segment in enumerate(store.segments):
        assert data.read_segment(store, segment).actions.tolist() == [
            int(t % 3 == i % 3) for t in range(20)
        ]
    films.write(tmp_path / "v" / "5.mkv", films.squares(20, colour=5))
    films.write(tmp_path / "v" / "6.mkv", films.squares(20, colour=6))
    (tmp_path / "v" / "6.csv").write_text("action\nUP\n")
    script.main(cfg)
    skipped = json.loads((tmp_path / "s" / script.REPORT).read_text())["skipped"]
    assert [entry["file"] for entry in skipped] == ["5.mkv", "6.mkv"]
    assert "it has none" in skipped[0]["why"]
    assert "1 rows, and the video 20 frames" in skipped[1]["why"]
    (tmp_path / "v" / "6.csv").write_text("action\nJUMP\n")
    with pytest.raises(
        UserError, match=r"6\.csv line 2 has the action 'JUMP', which is none of LEFT, UP"
    ):
        script.main(cfg)
    with pytest.raises(UserError, match="imported with actions True, not False"):
        script.main(replace(cfg, actions=False))


def test_layouts_of_other_projects_are_imported(tmp_path):
    episodes = [films.squares(17, 64, 64, colour=i) for i in range(6)]
    for i, (split, episode) in enumerate(zip(("train", "val", "test"), episodes, strict=False)):
        folder = tmp_path / "Coinrun" / split
        folder.mkdir(parents=True)
        films.write(folder / f"episode_{i}.mp4", episode)
    script.main(config(tmp_path / "Coinrun", tmp_path / "seed"))
    assert [segment.split for segment in data.open_store(tmp_path / "seed").segments] == [
        "test",
        "train",
        "val",
    ]
    (tmp_path / "jafar").mkdir()
    paths = [tmp_path / "jafar" / f"episode_{i}.npy" for i in range(3)]
    for path, episode in zip(paths, episodes, strict=False):
        np.save(path, episode)
    np.save(
        tmp_path / "jafar" / "metadata.npy",
        np.array([{"path": str(path)} for path in paths], object),
    )
    for t, frame in enumerate(episodes[3]):
        (tmp_path / "jafar" / "pictures" / "run").mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "jafar" / "pictures" / "run" / f"{t}.png")
    script.main(config(tmp_path / "jafar", tmp_path / "arrays", size=64))
    store = data.open_store(tmp_path / "arrays")
    assert [segment.info["file"] for segment in store.segments] == [
        *(path.name for path in paths),
        "pictures/run",
    ]
    for segment, episode in zip(store.segments, episodes, strict=False):
        np.testing.assert_array_equal(data.read_segment(store, segment).frames, episode)


REFUSED = {
    "imported with fps 0, not 5": {"fps": 5},
    "imported with fit crop, not pad": {"fit": "pad"},
    "--cfg.size is 4": {"size": 4},
    "--cfg.size is (64, 600)": {"size": (64, 600)},
    "--cfg.cuts is 2": {"cuts": 2},
    "--cfg.fps is -1": {"fps": -1},
    "--cfg.fps is 0.01": {"fps": 0.01},
    "--cfg.fps is nan": {"fps": float("nan")},
    "there is no nowhere": {"src": "nowhere"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_refused_with_one_sentence(videos, imported, sentence):
    with pytest.raises(UserError) as error:
        script.main(config(**{"src": videos, "root": imported.root} | REFUSED[sentence]))
    assert (
        sentence in str(error.value)
        and "\n" not in str(error.value)
        and not str(error.value).endswith(".")
    )


@pytest.mark.subprocess
def test_too_few_videos_are_kept_and_reported(tmp_path):
    (tmp_path / "v").mkdir()
    films.write(tmp_path / "v" / "a.mkv", films.squares(20))
    command = [
        sys.executable,
        str(ROOT / "import_videos.py"),
        "--cfg.src",
        str(tmp_path / "v"),
        "--cfg.root",
    ]
    done = subprocess.run([*command, str(tmp_path / "s")], capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "2 more videos are needed" in done.stderr
        and done.stderr.count("error:") == 1
    )
    films.write(tmp_path / "v" / "b.mkv", films.squares(20, colour=1))
    films.write(tmp_path / "v" / "c.mkv", films.squares(20, colour=2))
    script.main(config(tmp_path / "v", tmp_path / "s", size=64))
    assert {segment.split for segment in data.open_store(tmp_path / "s").segments} == set(
        data.SPLITS
    )


def test_a_collected_dataset_is_refused(videos, tmp_path):
    data.create(tmp_path / "s", {"collection": {}}, 16, 16, 15)
    with pytest.raises(UserError, match="was not imported"):
        script.main(config(videos, tmp_path / "s"))


@pytest.fixture(scope="module")
def own_world(tmp_path_factory) -> Path:
    """A world from a folder of MP4 files, as test_scripts trains one, but without anybody's actions."""
    home = tmp_path_factory.mktemp("own")
    (home / "videos").mkdir()
    for i in range(6):
        film = films.squares(40, 64, 96, colour=i)
        iio.imwrite(home / "videos" / f"clip {i}.mp4", film, plugin="pyav", codec="libx264", fps=15)
    script.main(config(home / "videos", home / "data", size=64))
    for stage, trainer in (
        ("tokenizer", train_tokenizer),
        ("lam", train_lam),
        ("dynamics", train_dynamics),
    ):
        trainer.main(replace(test_scripts.config(home, stage, stage), steps=6, save_every=50))
    return home


def test_a_world_from_a_folder_of_videos_is_trained_evaluated_and_played(own_world):
    evaluate.main(test_scripts.evaluation(own_world, "dynamics", prompts=(1,)))
    told = json.loads((own_world / "dynamics" / "evaluation" / "metrics.json").read_text())
    assert (
        told["actions"]["kind"] == "latent"
        and told["actions"]["recorded"] is None
        and told["actions"]["inverse_dynamics"] is None
    )
    assert not (own_world / "dynamics" / "actions.json").exists()
    page = (own_world / "dynamics" / "evaluation" / "report.html").read_text()
    assert "CoinRun" not in page and "recorded actions" not in page
    output = own_world / "out.png"
    play.main(
        play.Config(
            str(own_world / "dynamics"),
            data=str(own_world / "data"),
            actions="0,5",
            output=str(output),
            scale=1,
        )
    )
    assert np.array(Image.open(output)).shape == (64, 3 * 64 + 2, 3)


def test_recorded_actions_of_a_dataset_without_any_are_refused(own_world):
    with pytest.raises(UserError, match="no recorded actions"):
        train_dynamics.main(
            replace(test_scripts.config(own_world, "dynamics", "true"), actions="recorded")
        )
    assert bundle.load(own_world / "dynamics").world.lam is not None


def test_frames_are_counted_as_they_pass(capsys):
    """One long video is in progress, too."""
    part = VideoPart(np.zeros((5, 8, 8, 3), "u1"), np.zeros(5, "u1"), np.zeros(5, bool))
    with Progress() as progress:
        task = progress.task("importing, video", 1)
        count = script.FrameCount(task)
        assert len([*count.watch([part, part, End()])]) == 3
    assert "importing, video: 0 of 1, 10 frames, " in capsys.readouterr().err
