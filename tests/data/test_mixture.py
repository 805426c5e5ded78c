"""Mixtures: their clips are those of their datasets, drawn in the proportions that were asked for."""

import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from genie_fn import data
from genie_fn.data import token_cache
from genie_fn.errors import UserError
from tests.data.test_data import SIDE, make, recording
from tests.data.test_token_cache import FRAMES, differences, of_frames, of_transitions, sums

ONE = [recording(0, 300), recording(8, 30), recording(1, 1345)]
TWO = [recording(3, 90), recording(18, 20), recording(4, 3)]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    home = tmp_path_factory.mktemp("mixture")
    return [make(home / "one", ONE).root, make(home / "two", TWO).root]


@pytest.fixture
def mixture(roots):
    return data.open_stores(roots)


def own(mixture, offset):
    """The dataset of a clip of a mixture, and where the clip begins in it."""
    part = mixture.part_at(offset)
    return replace(part.store, stride=mixture.stride), offset - part.base


@pytest.mark.parametrize("stride", [1, 3])
def test_the_clips_of_a_mixture_are_those_of_its_datasets(mixture, stride):
    mixture = replace(mixture, stride=stride)
    for split in ("train", "val"):
        starts = data.clip_starts(mixture, split, 4)
        found = [own(mixture, start) for start in starts.tolist()]
        for dataset in mixture.datasets:
            strided = replace(dataset, stride=stride)
            expected = data.clip_starts(strided, split, 4)
            assert [at for store, at in found if store.root == dataset.root] == expected.tolist()
    starts = data.clip_starts(mixture, "train", 4)[::37]
    for start, *clip in zip(starts.tolist(), *data.read_clips(mixture, starts, 4), strict=True):
        store, at = own(mixture, start)
        for read, expected in zip(clip, data.read_clips(store, np.array([at]), 4), strict=True):
            np.testing.assert_array_equal(read, expected[0])


def test_segments_are_read_as_written(mixture):
    read = [data.read_segment(mixture, segment) for segment in mixture.segments]
    for found, written in zip(read, [*ONE, *TWO], strict=True):
        np.testing.assert_array_equal(found.frames, written.frames)
        np.testing.assert_array_equal(found.actions, written.actions)
    assert data.verify(mixture) == sum(len(x.frames) for x in [*ONE, *TWO])
    assert mixture.count("val") == 50 and (mixture.num_actions, mixture.action_names) == (
        15,
        ("LEFT",),
    )


def test_one_dataset_is_drawn_from_as_ever(roots):
    """Numbers that an earlier version drew, which runs that are resumed rely on."""
    assert data.open_stores(roots[:1], [3.0]).parts == ()
    draw = data.clip_offsets(np.arange(1000), seed=3, step=5, batch_size=6)
    assert draw.tolist() == [630, 89, 433, 331, 854, 165]
    starts = data.clip_starts(data.open_store(roots[0]), "train", 4)
    batch = next(data.ClipReader(data.open_stores(roots[:1]), "train", 4).batches(6, 3, 5))
    expected = data.read_clips(data.open_store(roots[0]), data.clip_offsets(starts, 3, 5, 6), 4)
    np.testing.assert_array_equal(batch.frames, expected.frames)


def share_of_second(mixture, **options):
    """The share of the second dataset in a hundred batches, by the level of a clip's first frame."""
    reader = data.ClipReader(mixture, "train", 4, load=lambda offsets: offsets, **options)
    offsets = np.concatenate([*islice(reader.batches(32, seed=1), 100)])
    assert np.isin(offsets, data.clip_starts(mixture, "train", 4)).all()
    return np.mean(offsets >= mixture.parts[1].base)


@pytest.mark.parametrize("weights", [(), (1, 1), (1, 3), (0.3, 0.1)])
def test_clips_are_drawn_in_proportion(roots, weights):
    mixture = data.open_stores(roots, weights)
    counts = [len(data.clip_starts(dataset, "train", 4)) for dataset in mixture.datasets]
    expected = np.divide(weights or counts, sum(weights or counts))[1]
    deviation = np.sqrt(expected * (1 - expected) / 3200)
    assert abs(share_of_second(mixture) - expected) < 4 * deviation


def test_each_process_reads_its_share_of_the_same_batch(roots):
    reader = data.ClipReader(data.open_stores(roots, (1, 2)), "train", 4)
    whole = next(reader.batches(6, seed=2, start_step=9))
    parts = [next(reader.batches(6, 2, 9, share=slice(i, i + 3))) for i in (0, 3)]
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole.frames)


def test_a_dataset_without_clips_is_named(roots, tmp_path):
    short = make(tmp_path / "short", [recording(5, 3), recording(8, 40)])
    mixture = replace(data.open_stores([*roots, short.root]), stride=2)
    with pytest.raises(UserError, match=f"^{short.root} has no train clip of 4 frames, 2 frames"):
        data.ClipReader(mixture, "train", 4).batches(2, 0)
    assert data.ClipReader(mixture, "val", 4).fixed_batch(3).frames.shape[:2] == (3, 4)
    with pytest.raises(UserError, match="^the mixture of .* and .* has no test clip"):
        data.clip_starts(mixture, "test", 4)
    empty = make(tmp_path / "empty", [])
    for order in ([empty.root, *roots], [*roots, empty.root]):
        with pytest.raises(UserError, match=f"^{empty.root} has no train clip"):
            data.ClipReader(data.open_stores(order), "train", 4).batches(2, 0)


def test_what_cannot_be_mixed_is_refused(roots, tmp_path):
    frames = np.zeros((9, 4, 6, 3), np.uint8)
    other = data.create(tmp_path / "other", {}, 4, 6, 0)
    data.append_segments(other, [recording(0, 9)._replace(frames=frames)])
    sizes = f"{roots[0]} has frames of 8x8 .*{other.root} of 4x6.*--cfg.size 8"
    with pytest.raises(UserError, match=sizes):
        data.open_stores([roots[0], other.root])
    with pytest.raises(UserError, match="names .*one twice.*--cfg.data-weights"):
        data.open_stores([*roots, f"{roots[0]}/../one"])
    for weights in ((1,), (1, 2, 3)):
        with pytest.raises(UserError, match=f"{len(weights)} numbers.* 2 datasets"):
            data.open_stores(roots, weights)


def with_actions(root, *names):
    store = data.create(root, {}, SIDE, SIDE, len(names), names)
    actions = np.full(9, max(len(names) - 1, 0))
    return data.append_segments(store, [recording(0, 9)._replace(actions=actions)])


def test_recorded_actions_have_to_be_the_same(tmp_path):
    left = with_actions(tmp_path / "left", "LEFT", "RIGHT")
    same = with_actions(tmp_path / "same", "LEFT", "RIGHT")
    data.check_recorded_actions(data.mix([left, same]), "--cfg.labels")
    for name, names, words in (
        ("swapped", ("RIGHT", "LEFT"), "action 0 is LEFT and RIGHT"),
        ("more", ("LEFT", "RIGHT", "UP"), "2 and 3 of them"),
        ("none", (), "none has no recorded actions"),
    ):
        mixture = data.mix([left, same, with_actions(tmp_path / name, *names)])
        assert (mixture.num_actions, mixture.action_names) == (0, ())
        with pytest.raises(UserError, match=f"{words}.*--cfg.labels"):
            data.check_recorded_actions(mixture, "--cfg.labels")


def test_actions_of_one_byte_and_of_two_are_mixed(tmp_path):
    few = with_actions(tmp_path / "few", "LEFT", "RIGHT")
    many = with_actions(tmp_path / "many", *map(str, range(1000)))
    mixture = data.mix([few, many])
    assert [store.arrays["actions"].dtype.name for store in (few, many)] == ["uint8", "uint16"]
    base = mixture.parts[1].base
    for start, action in ((0, 1), (base, 999)):
        assert data.read_clips(mixture, np.array([start]), 5).actions.tolist() == [[action] * 4]


def test_damage_is_named_in_its_dataset_and_skipped(roots, tmp_path):
    copies = [shutil.copytree(root, tmp_path / root.name) for root in roots]
    (copies[1] / "frames/c/0/0/0/0").unlink()
    mixture = data.open_stores(copies)
    damaged = data.clip_starts(mixture, "train", 4)[-1:]
    with pytest.raises(data.DamagedClips, match=f"level 3 of {copies[1]} is missing.*{copies[1]}"):
        data.read_clips(mixture, damaged, 4)
    (copies[0] / "episode_starts/c/2").write_bytes(b"")
    mixture = data.open_stores(copies, (1, 1))
    with pytest.raises(data.DamagedClips, match=f"level 1 of {copies[0]} is damaged"):
        data.clip_starts(mixture, "train", 4)
    reader = data.ClipReader(mixture, "train", 4, "skip")
    assert next(reader.batches(8, 0)).frames.shape[0] == 8 and len(reader.reported) == 2


def reader(store):
    return data.ClipReader(store, "train", FRAMES)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_clips_from_the_cache_of_a_mixture(roots, tmp_path, shared, stride):
    copies = [shutil.copytree(root, tmp_path / root.name) for root in roots]
    folder = tmp_path / "tokens" if shared else ""
    alone = replace(data.open_store(copies[1]), stride=stride)
    opened = token_cache.open_cache(alone, FRAMES, of_frames(), folder)
    before = token_cache.fill(opened, reader(alone), of_frames())
    mixture = replace(data.open_stores(copies), stride=stride)
    opened = token_cache.open_cache(mixture, FRAMES, of_frames(), folder)
    assert len(opened.encoded) == len(before.encoded) == 2, "it is shared with the run before"
    cache = token_cache.fill(opened, reader(mixture), of_frames())
    assert [cache.holds(x) for x in mixture.segments] == [
        x.split == "train" for x in mixture.segments
    ]
    opened = token_cache.open_cache(mixture, FRAMES, of_transitions(), folder)
    inferred = token_cache.fill(opened, reader(mixture), of_transitions())
    cached = token_cache.cached_reader(cache, inferred, reader(mixture), lambda *arrays: arrays)
    pairs = zip(cached.batches(16, 3), reader(mixture).batches(16, 3), strict=False)
    for (ids, actions), clips in islice(pairs, 4):
        np.testing.assert_array_equal(ids[..., 0], sums(clips.frames)[..., 0])
        np.testing.assert_array_equal(actions, differences(clips.frames))
    for path in (cache.parts[1].root / "values").rglob("c/*/0"):
        path.write_bytes(path.read_bytes()[:-40])
    damaged = token_cache.open_cache(mixture, FRAMES, of_frames(), folder)
    with pytest.raises(UserError, match=f"{cache.parts[1].root} is damaged"):
        token_cache.read(damaged, data.clip_starts(mixture, "train", FRAMES))


def test_one_folder_of_caches_serves_several_datasets(roots, tmp_path):
    """They do not overwrite each other."""
    stores = [data.open_store(root) for root in roots]
    for store in (*stores, *stores):
        opened = token_cache.open_cache(store, FRAMES, of_frames(), tmp_path)
        cache = token_cache.fill(opened, reader(store), of_frames())
        starts = data.clip_starts(store, "train", FRAMES)[:5]
        frames = data.read_clips(store, starts, FRAMES).frames
        ids = token_cache.read(cache, starts)
        np.testing.assert_array_equal(ids[..., 0], sums(frames)[..., 0])
