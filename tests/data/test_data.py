"""The store, clip sampling and the clip reader, on random recordings."""

import json
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from genie_fn import data
from genie_fn.data import storage
from genie_fn.errors import UserError

SIDE = 8


def recording(level, length, split=""):
    rng = np.random.default_rng(level)
    frames = rng.integers(0, 256, (length, SIDE, SIDE, 3), np.uint8)
    actions, starts = rng.integers(0, 15, length), rng.random(length) < 0.05
    return data.Recording(
        level, frames, actions, rng.random(length), starts, split, {"completed": level}
    )


RECORDINGS = [
    recording(0, 1000),
    recording(8, 300),
    recording(1, 2345),
    recording(18, 40),
    recording(2, 3),
]


def make(root, recordings=RECORDINGS):
    return data.append_segments(
        data.create(root, {"by": "test"}, SIDE, SIDE, 15, ["LEFT"]), recordings
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data") / "store")


def rewrite_manifest(root, **changes):
    """Change the manifest and update its hash."""
    path = root / data.MANIFEST
    manifest = json.loads(path.read_text()) | changes
    del manifest["sha256"]
    manifest["sha256"] = storage.sha256(manifest)
    path.write_bytes(storage.canonical(manifest))


def test_segments_are_read_as_written(store):
    for segment, written in zip(store.segments, RECORDINGS, strict=True):
        read = data.read_segment(store, segment)
        assert (segment.level, segment.length, segment.info) == (
            written.level,
            len(written.frames),
            written.info,
        )
        assert segment.offset % data.BLOCK == 0 and read.episode_starts[0]
        np.testing.assert_array_equal(read.frames, written.frames)
        np.testing.assert_array_equal(read.actions, written.actions)
        np.testing.assert_array_equal(read.rewards, written.rewards.astype(np.float32))
        np.testing.assert_array_equal(read.episode_starts[1:], written.episode_starts[1:])
    assert data.verify(store) == sum(len(written.frames) for written in RECORDINGS)
    assert (store.height, store.width, store.num_actions, store.action_names) == (
        SIDE,
        SIDE,
        15,
        ("LEFT",),
    )
    assert store.count("val") == 340 and store.meta == {"by": "test"}


def test_splits_are_disjoint_by_level_and_stable():
    splits = [data.split_of(level) for level in range(1000)]
    assert [splits.count(name) for name in data.SPLITS] == [800, 100, 100]
    assert splits == [data.split_of(level) for level in range(1000)]


def test_a_recording_can_name_its_split(tmp_path):
    assert make(tmp_path / "s", [recording(0, 5, "test")]).segments[0].split == "test"


@pytest.mark.parametrize("num_frames", [1, 2, 4, 16])
@pytest.mark.parametrize("split", ["train", "val"])
def test_clip_starts_are_exactly_the_uncut_clips(store, split, num_frames):
    expected = []
    for segment, written in zip(store.segments, RECORDINGS, strict=True):
        inside = range(segment.length - num_frames + 1) if segment.split == split else ()
        uncut = [o for o in inside if not written.episode_starts[o + 1 : o + num_frames].any()]
        expected += [segment.offset + o for o in uncut]
    np.testing.assert_array_equal(data.clip_starts(store, split, num_frames), expected)


def test_clips_hold_their_frames_and_the_actions_between_them(store):
    offsets = data.clip_offsets(data.clip_starts(store, "train", 6), 0, 0, 200)
    batch = data.read_clips(store, offsets, 6)
    assert batch.frames.shape == (200, 6, SIDE, SIDE, 3) and batch.frames.dtype == np.uint8
    assert batch.actions.shape == (200, 5) and batch.actions.dtype == np.int64
    for offset, frames, actions in zip(offsets, *batch, strict=True):
        k = max(k for k, segment in enumerate(store.segments) if segment.offset <= offset)
        o = offset - store.segments[k].offset
        np.testing.assert_array_equal(frames, RECORDINGS[k].frames[o : o + 6])
        np.testing.assert_array_equal(actions, RECORDINGS[k].actions[o : o + 5])
    assert data.read_clips(store, offsets, 1).actions.shape == (200, 0)


@pytest.mark.parametrize("stride", [2, 3])
def test_with_a_stride_clips_take_every_nth_frame_and_the_first_action(store, stride):
    strided = replace(store, stride=stride)
    span = 3 * stride + 1
    starts = data.clip_starts(strided, "train", 4)
    np.testing.assert_array_equal(starts, data.clip_starts(store, "train", span))
    frames, actions = data.read_clips(strided, starts[::7], 4)
    all_frames, all_actions = data.read_clips(store, starts[::7], span)
    np.testing.assert_array_equal(frames, all_frames[:, ::stride])
    np.testing.assert_array_equal(actions, all_actions[:, ::stride])


def test_clip_offsets_are_a_function_of_seed_and_step():
    starts = np.arange(1000) * 3
    draw = data.clip_offsets(starts, 1, 2, 64)
    assert draw.dtype == np.int64 and draw.shape == (64,) and np.isin(draw, starts).all()
    data.clip_offsets(starts, 5, 6, 7)
    np.testing.assert_array_equal(draw, data.clip_offsets(starts, 1, 2, 64))
    for seed, step in ((2, 1), (1, 3), (0, 2), (-1, 2)):
        assert (draw != data.clip_offsets(starts, seed, step, 64)).any()


def test_clip_offsets_cover_all_starts_evenly():
    draws = np.concatenate([data.clip_offsets(np.arange(10), 0, step, 100) for step in range(100)])
    assert (abs(np.bincount(draws) - 1000) < 150).all()


def test_eval_clips_differ_and_spread_over_levels(store):
    clips = data.eval_clips(store, "train", 2, 50)
    np.testing.assert_array_equal(clips, data.eval_clips(store, "train", 2, 50))
    assert len(set(clips)) == 50 and np.isin(clips, data.clip_starts(store, "train", 2)).all()
    assert (clips != data.eval_clips(store, "train", 2, 50, seed=1)).any()
    edges = [segment.offset for segment in store.segments]
    levels = np.searchsorted(edges, clips, side="right") - 1
    assert set(levels[:3]) == {0, 2, 4}
    assert abs(np.sum(levels == 0) - np.sum(levels == 2)) <= 1
    starts = data.clip_starts(store, "val", 4)
    assert sorted(data.eval_clips(store, "val", 4, len(starts))) == sorted(starts)
    with pytest.raises(UserError, match=f"fewer than {len(starts) + 1}: .* import more$"):
        data.eval_clips(store, "val", 4, len(starts) + 1)
    with pytest.raises(UserError, match="or lower --cfg.clips$"):
        data.eval_clips(store, "val", 4, len(starts) + 1, flags="--cfg.clips")
    reader = data.ClipReader(store, "val", 4, flags="--cfg.num-frames")
    assert len(reader.fixed_batch(len(starts) + 1).frames) == len(starts)
    with pytest.raises(UserError, match="within one episode: .* or lower --cfg.num-frames$"):
        replace(reader, num_frames=10_000).fixed_batch(1)


def test_batches_resume_at_any_step(store):
    reader = data.ClipReader(store, "train", 4)
    first = list(islice(reader.batches(8, seed=3), 7))
    later = list(islice(reader.batches(8, seed=3, start_step=4, threads=1), 3))
    for batch, resumed in zip(first[4:], later, strict=True):
        np.testing.assert_array_equal(batch.frames, resumed.frames)
        np.testing.assert_array_equal(batch.actions, resumed.actions)
    offsets = data.clip_offsets(data.clip_starts(store, "train", 4), 3, 6, 8)
    expected = data.read_clips(store, offsets, 4)
    np.testing.assert_array_equal(first[6].frames, expected.frames)


def test_batches_close_their_threads(store):
    iterator = data.ClipReader(store, "train", 4).batches(8, seed=0, threads=3)
    next(iterator)
    assert any(thread.name.startswith("clips") for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name.startswith("clips") for thread in threading.enumerate())


def reopened(store, on_damage="refuse"):
    """A reader whose store has nothing cached."""
    return data.ClipReader(data.open_store(store.root), "train", 4, on_damage)


def test_errors_of_reading_threads_are_raised_by_the_iterator(tmp_path):
    store = make(tmp_path / "s", [recording(0, 50)])
    iterator = data.ClipReader(store, "train", 4).batches(8, seed=0)
    next(data.ClipReader(store, "train", 4).batches(8, seed=0))
    (store.root / "frames/c/0/0/0/0").unlink()
    with pytest.raises(UserError, match="level 0 of .* is missing, in the file .*frames/c/0/0/0/0"):
        next(reopened(store).batches(8, seed=0))
    iterator.close()


def test_damaged_clips_are_replaced(tmp_path, capsys):
    """By the same clips at every reading; undamaged clips stay, and every file is reported once."""
    store = make(tmp_path / "s", [recording(level, 40) for level in (0, 1, 2)])
    undamaged = list(islice(data.ClipReader(store, "train", 4).batches(8, seed=0), 6))
    (store.root / "frames/c/1/0/0/0").unlink()
    episode_starts = (store.root / "episode_starts/c/2").read_bytes()
    (store.root / "episode_starts/c/2").write_bytes(b"")
    with pytest.raises(UserError, match="level 2 of .*episode_starts/c/2.*--cfg.damaged skip"):
        reopened(store).batches(8, seed=0)
    readers = [reopened(store, "skip") for _ in range(2)]
    first, second = (reader.batches(8, seed=0) for reader in readers)
    for batch, repeated in islice(zip(first, second, strict=True), 6):
        np.testing.assert_array_equal(batch.frames, repeated.frames)
    assert first.skipped == second.skipped > 0
    messages = capsys.readouterr().err
    for file in ("episode_starts/c/2", "frames/c/1/0/0/0"):
        assert messages.count(file) == 2
        assert [sum(file in text for text in reader.reported) for reader in readers] == [1, 1]
    (store.root / "episode_starts/c/2").write_bytes(episode_starts)
    third = reopened(store, "skip").batches(8, seed=0)
    kept = 0
    for before, after in islice(zip(undamaged, third, strict=False), 6):
        kept += sum((a == b).all() for a, b in zip(before.frames, after.frames, strict=True))
    assert third.skipped > 0 and kept >= 48 - third.skipped


def test_damaged_held_out_clips_are_replaced_by_the_others(tmp_path):
    store = make(tmp_path / "s", [recording(level, 40, "train") for level in (0, 1, 2)])
    undamaged = data.ClipReader(store, "train", 4).fixed_batch(6)
    (store.root / "frames/c/1/0/0/0").unlink()
    with pytest.raises(UserError, match="level 1 of .*--cfg.damaged skip"):
        reopened(store).fixed_batch(6)
    clips = reopened(store, "skip").fixed_batch(6)
    offsets = data.eval_clips(store, "train", 4, 6)
    readable = offsets // data.BLOCK != 1
    assert 0 < readable.sum() < 6
    np.testing.assert_array_equal(
        clips.frames, np.resize(undamaged.frames[readable], clips.frames.shape)
    )


def test_stores_that_could_not_be_opened_are_not_created(tmp_path):
    for sizes in ((0, 8, 3), (8, 10**9, 3), (8, 8, 65_537)):
        with pytest.raises(UserError, match="a dataset cannot be made"):
            data.create(tmp_path / "s", {}, *sizes)


def test_appending_keeps_old_files_and_equals_writing_at_once(tmp_path):
    whole, grown = make(tmp_path / "whole"), make(tmp_path / "grown", RECORDINGS[:2])
    before = {
        path: path.stat().st_mtime_ns
        for path in grown.root.rglob("*")
        if path.is_file() and "c" in path.parts
    }
    after = data.append_segments(data.open_store(grown.root), RECORDINGS[2:])
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert after.data_hash == whole.data_hash != grown.data_hash
    files = sorted(path.relative_to(whole.root) for path in whole.root.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(grown.root) for path in grown.root.rglob("*") if path.is_file()
    )
    assert all(
        (whole.root / file).read_bytes() == (grown.root / file).read_bytes() for file in files
    )


def test_a_segment_without_its_manifest_entry_does_not_exist(tmp_path):
    store = make(tmp_path / "s", [recording(0, 50)])
    store = data.reserve(store, 2 * data.BLOCK)
    data.write_segment(store, data.BLOCK, recording(1, 900))
    store = data.open_store(store.root)
    assert len(store.segments) == 1 and data.clip_starts(store, "train", 1).max() < 50
    store = data.append_segments(store, [recording(2, 20)])
    assert data.verify(store) == 70 and store.segments[1].offset == data.BLOCK


def test_files_left_by_a_killed_writer_are_removed(tmp_path):
    """tensorstore overwrites a `__lock` file without shortening it: the end of a longer one stays."""
    store = make(tmp_path / "s", [recording(0, 50)])
    for name in data.DTYPES:
        metadata = (store.root / name / "zarr.json").read_text()
        (store.root / name / "zarr.json.__lock").write_text(
            metadata.replace('"shape":[1000', '"shape":[500000')
        )
    for chunk in ("frames/c/1/0/0/0", "actions/c/1"):
        path = store.root / f"{chunk}.__lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * 10**6)
    store = data.append_segments(store, [recording(1, 60)])
    assert data.verify(data.open_store(store.root)) == 110


def test_a_missing_store_names_the_command(tmp_path):
    with pytest.raises(
        UserError, match=f"python generate_dataset.py --cfg.root {tmp_path / 'none'}"
    ):
        data.open_store(tmp_path / "none")


def test_a_path_may_lead_through_a_folder_above(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = make("../there/s", [recording(0, 9)])
    assert data.verify(store) == 9 and str(store.root) == "../there/s"
    assert data.open_store(tmp_path / "here/../there/s").data_hash == store.data_hash


@pytest.mark.parametrize("damage", ["truncated", "empty", "edited", "version", "not an object"])
def test_a_damaged_manifest_is_refused(tmp_path, damage):
    root = make(tmp_path / "s", [recording(0, 50)]).root
    path = root / data.MANIFEST
    content = path.read_text()
    if damage == "version":
        rewrite_manifest(root, version=99)
    else:
        edited = content.replace('"length":50', '"length":49')
        assert edited != content
        path.write_text(
            {"truncated": content[:-30], "empty": "", "edited": edited, "not an object": "[]"}[
                damage
            ]
        )
    with pytest.raises(
        UserError,
        match=f"^{root} was written by a newer version of genie_fn: update"
        if damage == "version"
        else "store.json is damaged",
    ):
        data.open_store(root)


def test_an_array_shorter_than_the_manifest_is_refused(tmp_path):
    root = make(tmp_path / "s", [recording(0, 50)]).root
    path = root / "actions" / "zarr.json"
    path.write_text(path.read_text().replace('"shape":[1000]', '"shape":[40]'))
    with pytest.raises(UserError, match="actions does not hold the 50 entries"):
        data.open_store(root)


@pytest.mark.parametrize("name", data.DTYPES)
def test_a_missing_array_is_refused(tmp_path, name):
    root = make(tmp_path / "s", [recording(0, 50)]).root
    (root / name / "zarr.json").unlink()
    with pytest.raises(UserError, match=f"{name} is missing or damaged"):
        data.open_store(root)


@pytest.mark.parametrize("name", ["frames/c/1/0/0/0", "actions/c/1"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_verify_names_the_damaged_level(tmp_path, name, damage):
    store = make(tmp_path / "s", [recording(0, 50), recording(7, 50), recording(2, 50)])
    path = store.root / name
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.unlink() if damage == "missing" else path.write_bytes(content)
    with pytest.raises(
        UserError,
        match=f"^level 7 of .* is {'damaged' if damage == 'flipped' else 'missing'}.* in the file .*{name}",
    ):
        data.verify(data.open_store(store.root))


def test_verify_detects_changed_data_that_can_be_read(tmp_path):
    store = make(tmp_path / "s", [recording(0, 50)])
    data.write_segment(store, 0, recording(0, 50)._replace(actions=np.zeros(50)))
    with pytest.raises(UserError, match="^level 0 of .* is damaged"):
        data.verify(data.open_store(store.root))


def test_create_refuses_a_folder_in_use(tmp_path):
    make(tmp_path / "s", [])
    with pytest.raises(UserError, match="already holds a dataset"):
        make(tmp_path / "s")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="already holds other files"):
        make(tmp_path)


def test_create_continues_after_a_killed_create(tmp_path):
    store = make(tmp_path / "s", [])
    (store.root / data.MANIFEST).rename(store.root / f".{data.MANIFEST}.partial")
    assert data.verify(make(tmp_path / "s")) > 0
    assert not [*store.root.glob("*.partial")]


def test_frames_of_another_size_are_refused(tmp_path):
    other = recording(0, 5)._replace(frames=np.zeros((5, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="resize it first"):
        make(tmp_path / "s", [other])


def test_the_recorded_actions_that_occur(tmp_path):
    frames = np.zeros((40, SIDE, SIDE, 3), np.uint8)
    starts = np.zeros(40, bool)

    def moves(level, actions, split):
        values = np.resize(actions, 40)
        return data.Recording(level, frames, values, np.zeros(40), starts, split)

    recordings = [moves(0, [3, 9], "train"), moves(1, [1], "test"), moves(2, [0], "train")]
    store = make(tmp_path / "s", recordings)
    assert data.occurring_actions(store) == (0, 3, 9)
    assert data.occurring_actions(store, "test") == (1,)
    (store.root / "actions/c/0").unlink()
    assert data.occurring_actions(data.open_store(tmp_path / "s")) == (0,)


@pytest.mark.parametrize("split, num_frames", [("val", 301), ("test", 1), ("dev", 4), ("train", 0)])
def test_impossible_clips_are_refused(store, split, num_frames):
    with pytest.raises(UserError):
        data.clip_starts(store, split, num_frames)
