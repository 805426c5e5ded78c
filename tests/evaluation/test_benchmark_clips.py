"""Clips for other programs, and the scores of the frames that these generate."""

import json
from dataclasses import replace

import numpy as np
import pytest

import evaluate_frames
from genie_fn import data
from genie_fn.errors import UserError
from genie_fn.evaluation import benchmark_clips

SIDE = 16
CFG = evaluate_frames.Config(clips_to="unused", clips=3, frames=4, prompt=2, stride=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> data.Store:
    """Noise of 10 levels, with three actions of which two occur."""
    root = tmp_path_factory.mktemp("benchmark") / "data"
    store = data.create(root, {}, SIDE, SIDE, 3)
    rng = np.random.default_rng(0)
    for level in range(10):
        frames = rng.integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
        actions = rng.integers(0, 2, 40)
        store = data.append_segments(
            store, [data.Recording(level, frames, actions, np.zeros(40), np.arange(40) == 0)]
        )
    return store


@pytest.fixture
def folder(store, tmp_path):
    """A folder with clips."""
    evaluate_frames.main(
        replace(CFG, clips_to=str(tmp_path / "b"), data=str(store.root), split="train")
    )
    return tmp_path / "b"


def scored(folder):
    """The record of the frames in a folder."""
    evaluate_frames.main(evaluate_frames.Config(frames_from=str(folder)))
    return json.loads((folder / evaluate_frames.SCORES).read_text())


def test_perfect_frames_and_copies_have_the_scores_of_perfect_frames_and_copies(folder, capsys):
    task = benchmark_clips.read(folder)
    assert task.frames.shape == (3, 6, SIDE, SIDE, 3) and task.prompt == 2
    own, shuffled, random = (task.actions[method] for method in benchmark_clips.METHODS)
    assert own.shape == (3, 5) and (own[:, :1] == shuffled[:, :1]).all()
    assert (shuffled[:, 1:] == np.roll(own, 1, 0)[:, 1:]).all() and random.max() <= 1
    future = task.frames[:, 2:]
    np.save(folder / "own_actions.npy", future)
    perfect = scored(folder)
    assert perfect["all"]["psnr"]["own_actions"]["average"][0] == 100
    assert "shuffled" not in perfect["all"]["delta"] and "reconstruction_psnr" not in perfect
    assert perfect["clips"].startswith("data, train, stride 2")

    copies = np.repeat(task.frames[:, 1:2], 4, 1)
    np.save(folder / "own_actions.npy", copies)
    np.save(folder / "shuffled.npy", future)
    np.save(folder / "reconstruction.npy", task.frames)
    copied = scored(folder)
    psnr = copied["all"]["psnr"]
    assert psnr["own_actions"] == psnr["copy_last"] and psnr["copy_last"]["average"][0] < 20
    assert copied["all"]["delta"]["shuffled"]["average"][0] < -80
    assert copied["reconstruction_psnr"] == 100
    printed = capsys.readouterr().out
    assert "Δ₄ PSNR, shuffled" in printed and "random actions" not in printed


def test_the_clips_depend_on_the_arguments_alone(store):
    args = ("val", 2, 1, 4, 7)
    a, b = (benchmark_clips.make(store, *args) for _ in range(2))
    assert (a.frames == b.frames).all() and (a.actions["random"] == b.actions["random"]).all()


def test_data_without_actions_has_frames_alone(tmp_path):
    store = data.create(tmp_path / "data", {}, SIDE, SIDE, 0)
    frames = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    nothing = np.zeros(40)
    for level in range(10):
        store = data.append_segments(
            store, [data.Recording(level, frames, nothing, nothing, nothing)]
        )
    task = benchmark_clips.make(store, "train", 2, 1, 4, 0)
    benchmark_clips.write(task, tmp_path / "b")
    assert benchmark_clips.read(tmp_path / "b").actions == {}


HUGE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999,)}".ljust(117) + b"\n"
CLAIMS_TOO_MUCH = b"\x93NUMPY\x01\x00\x76\x00" + HUGE


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"x" * 100, CLAIMS_TOO_MUCH])
def test_damaged_files_are_a_sentence(folder, content):
    (folder / "own_actions.npy").write_bytes(content)
    with pytest.raises(
        UserError, match=r"own_actions\.npy .* save an array of \(3, 4, 16, 16, 3\)"
    ):
        scored(folder)
    (folder / benchmark_clips.FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"clips\.npz is damaged: write it again"):
        scored(folder)


def test_missing_files_and_other_shapes_are_a_sentence(folder, tmp_path):
    with pytest.raises(UserError, match=r"no .*own_actions\.npy: save the generated frames there"):
        scored(folder)
    with pytest.raises(UserError, match="--cfg.clips-to"):
        scored(tmp_path)
    for wrong in (np.zeros((3, 4, 16, 16, 3)), np.zeros((3, 5, 16, 16, 3), np.uint8)):
        np.save(folder / "own_actions.npy", wrong)
        with pytest.raises(UserError, match="holds .* save an array"):
            scored(folder)
    with pytest.raises(UserError, match=r"holds an archive|cannot be read"):
        np.savez(folder / "own_actions.npz", a=np.zeros(3))
        (folder / "own_actions.npz").rename(folder / "own_actions.npy")
        scored(folder)


def test_bad_configs_are_a_sentence():
    wrong = ({}, {"clips_to": "a", "frames_from": "b"}, {"clips_to": "a", "clips": 1})
    ignored = {"frames_from": "a", "stride": 2}
    for options in (
        *wrong,
        ignored,
        {"clips_to": "a", "frames": 3},
        {"clips_to": "a", "prompt": 0},
    ):
        with pytest.raises(UserError):
            evaluate_frames.Config(**options)
