"""Stores whose actions are vectors: what is on disk, their prototypes, and clips of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from genie_fn import data
from genie_fn.data import clips, storage, vectors
from genie_fn.errors import UserError

SIZE = 3


def recording(level, count=40, seed=0):
    rng = np.random.default_rng([seed, level])
    values = rng.integers(0, 4, (count, 1)) + rng.normal(0, 0.01, (count, SIZE))
    frames = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    starts = np.arange(count) % 20 == 0
    return values.astype(np.float32), frames, starts


def made(root, seed=0):
    values = {level: recording(level, seed=seed) for level in (7, 8, 9)}
    prototypes = vectors.make([v for v, _, _ in values.values()], 4)
    names = tuple(map(str, range(4)))
    meta = {"prototypes": vectors.to_meta(prototypes)}
    store = data.create(root, meta, 8, 8, 4, names, SIZE)
    recordings = [
        data.Recording(
            level,
            frames,
            vectors.numbers(own, prototypes),
            np.zeros(len(frames)),
            starts,
            action_vectors=own,
        )
        for level, (own, frames, starts) in values.items()
    ]
    return data.append_segments(store, recordings)


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "s")


def test_vectors_are_kept_to_the_bit(store):
    assert (store.action_size, store.num_actions) == (SIZE, 4)
    for segment in store.segments:
        own, frames, _ = recording(segment.level)
        kept = data.read_segment(store, segment)
        np.testing.assert_array_equal(kept.action_vectors, own)
        np.testing.assert_array_equal(kept.frames, frames)
    assert data.verify(store) == 120


def test_prototypes_are_the_clusters(store):
    prototypes = vectors.prototypes_of(store.meta)
    centres = prototypes.centres * prototypes.std + prototypes.mean
    assert sorted(np.round(centres.mean(1)).tolist()) == [0, 1, 2, 3]
    for segment in store.segments:
        kept = data.read_segment(store, segment)
        nearest = centres[kept.actions]
        assert np.abs(nearest - kept.action_vectors).max() < 0.1


def test_clips_have_numbers_or_vectors(store):
    strided = replace(store, stride=2)
    offsets = data.eval_clips(strided, "train", 4, 3)
    numbers = data.read_clips(strided, offsets, 4).actions
    clips = data.read_clips(replace(strided, as_vectors=True), offsets, 4)
    assert (numbers.shape, clips.actions.shape) == ((3, 3), (3, 3, SIZE))
    assert clips.actions.dtype == np.float32
    prototypes = vectors.prototypes_of(store.meta)
    raw = clips.actions * prototypes.std + prototypes.mean
    np.testing.assert_array_equal(
        vectors.numbers(raw.reshape(-1, SIZE), prototypes).reshape(3, 3), numbers
    )
    own, _, _ = recording(7)
    first = offsets[0] - store.segments[0].offset
    np.testing.assert_allclose(raw[0], own[first : first + 6 : 2], atol=1e-5)


def test_only_such_stores_have_the_new_version(store, tmp_path):
    manifest = json.loads((store.root / "store.json").read_text())
    assert (manifest["version"], manifest["action_size"]) == (2, SIZE)
    data.create(tmp_path / "plain", {}, 8, 8, 4)
    data.create(tmp_path / "many", {}, 8, 8, 257)
    assert json.loads((tmp_path / "many" / "store.json").read_text())["version"] == 2
    manifest = json.loads((tmp_path / "plain" / "store.json").read_text())
    assert manifest["version"] == 1
    assert "action_size" not in manifest
    assert data.open_store(tmp_path / "plain").action_size == 0


def test_damaged_vectors_are_found(store):
    file = store.root / "action_vectors" / "c" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="in the file .*action_vectors/c/0/0"):
        data.verify(data.open_store(store.root))


def test_clips_with_damaged_vectors_are_named(tmp_path):
    store = replace(made(tmp_path / "store"), as_vectors=True)
    last = store.segments[-1].offset
    assert last >= storage.BLOCK
    (store.root / "action_vectors" / "c" / str(last // storage.BLOCK) / "0").unlink()
    store = replace(data.open_store(store.root), as_vectors=True)
    for read in (data.read_clips, clips.read_actions):
        with pytest.raises(data.DamagedClips, match="is missing, in the file") as error:
            read(store, np.array([0, last, 1]), 3)
        assert list(error.value.lost) == [1]


def test_mixtures_need_the_same_prototypes(store, tmp_path):
    same = made(tmp_path / "same")
    mixture = data.open_stores([store.root, same.root])
    assert mixture.action_size == SIZE
    clips = data.read_clips(replace(mixture, as_vectors=True), np.array([0, 3000]), 3).actions
    np.testing.assert_array_equal(clips[0], clips[1])
    other = made(tmp_path / "other", seed=1)
    mixture = data.open_stores([store.root, other.root])
    assert (mixture.action_size, mixture.num_actions) == (0, 0)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        {},
        {"mean": [0], "std": [1], "centres": [0]},
        {"mean": [0], "std": [0], "centres": [[0]]},
        {"mean": [0, 1], "std": [1, 1], "centres": [[0]]},
        {"mean": "no", "std": [1], "centres": [[0]]},
    ],
)
def test_prototypes_that_are_not_valid_are_a_sentence(stored):
    with pytest.raises(UserError, match="import it again"):
        vectors.prototypes_of({} if stored is None else {"prototypes": stored})


def test_vectors_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        vectors.make([np.array([[0.0], [np.nan]])], 2)


def test_there_are_no_more_prototypes_than_different_vectors():
    same = np.ones((5, 2), np.float32)
    prototypes = vectors.make([same], 8)
    assert prototypes.centres.shape == (1, 2)
    assert vectors.numbers(same, prototypes).tolist() == [0] * 5
