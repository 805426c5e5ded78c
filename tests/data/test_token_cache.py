"""The token cache: its content, that it is encoded once, continues when interrupted, and sees changes."""

import json
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from genie_fn import data
from genie_fn.data import token_cache
from genie_fn.errors import UserError
from tests.data.test_data import make, recording

FRAMES = 5


def sums(frames):
    """Ids (B, T, 2) that depend on the frame and on the number of frames before it in the clip."""
    own = frames.astype(np.int64).sum((2, 3, 4)) % 30_000
    return np.stack((own, np.broadcast_to(np.arange(frames.shape[1]), own.shape)), -1)


def differences(frames):
    pixels = frames[:, :, 0, 0, 0].astype(np.int64)
    return (pixels[:, 1:] - pixels[:, :-1]) % 200


def of_frames(encode=sums, identity="one", source="past"):
    return token_cache.Encoder(encode, identity, source, shape=(2,), choices=2**15)


def of_transitions(encode=differences, identity="one"):
    return token_cache.Encoder(encode, identity, "transition", shape=(), choices=200)


def reader(store):
    return data.ClipReader(store, "train", FRAMES)


def filled(store, encoder, root=""):
    cache = token_cache.open_cache(store, FRAMES, encoder, root)
    return token_cache.fill(cache, reader(store), encoder)


def clips_of(store):
    """The starts of all clips, and the clips."""
    starts = data.clip_starts(store, "train", FRAMES)
    return starts, data.read_clips(store, starts, FRAMES)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "store"
    return make(root, [recording(0, 1000), recording(8, 30), recording(1, 345), recording(2, 3)])


@pytest.fixture(scope="module")
def cache(store):
    return filled(store, of_frames())


@pytest.fixture(scope="module")
def actions_cache(store):
    return filled(store, of_transitions())


def test_clips_from_the_cache_are_the_clips_encoded(store, cache, actions_cache):
    starts, clips = clips_of(store)
    ids = token_cache.read(cache, starts)
    np.testing.assert_array_equal(ids[..., 0], sums(clips.frames)[..., 0])
    actions = token_cache.read(actions_cache, starts)
    np.testing.assert_array_equal(actions, differences(clips.frames))
    assert (ids[:, 0, 1] == 0).all(), "a first frame is encoded without a past"
    # A frame is encoded with as much past as a training clip has, where its episode has as much.
    episode = np.cumsum(
        data.open_store(store.root).arrays["episode_starts"][: starts[-1] + FRAMES].read().result()
    )
    begins = np.searchsorted(episode, episode[starts], side="left")
    fresh = starts == begins
    assert fresh.any() and (ids[fresh, :, 1] == np.arange(FRAMES)).all()
    assert ids[:, 1:, 1].min() >= 1 and ids[..., 1].max() == FRAMES - 1


def test_clips_with_a_stride_are_the_clips_encoded(store):
    strided = replace(store, stride=3)
    starts, clips = clips_of(strided)
    for encoder in (of_frames(), of_transitions()):
        cache = filled(strided, encoder)
        assert cache.root != filled(store, encoder).root
        expected = encoder.encode(clips.frames)
        read = token_cache.read(cache, starts)
        if encoder.source == "past":  # of the second number see above
            read, expected = read[..., 0], expected[..., 0]
        np.testing.assert_array_equal(read, expected)


def own_sums(frames):
    """Ids (B, T, 2) that depend on the frame alone."""
    own = frames.astype(np.int64).sum((2, 3, 4)) % 30_000
    return np.stack((own, own % 7), -1)


def test_an_encoder_of_single_frames_encodes_each_of_them_once(store, tmp_path):
    lengths = []

    def recording_lengths(frames):
        lengths.append(frames.shape[1])
        return own_sums(frames)

    cache = filled(store, of_frames(recording_lengths, source="frame"), tmp_path)
    assert set(lengths) == {1}
    assert not (cache.root / "first").exists()
    starts, clips = clips_of(store)
    np.testing.assert_array_equal(token_cache.read(cache, starts), own_sums(clips.frames))


def test_the_ids_of_single_frames_serve_clips_of_any_length_and_stride(store, tmp_path):
    encoder = of_frames(own_sums, source="frame")
    cache = filled(store, encoder, tmp_path)
    strided = replace(store, stride=2)
    other = token_cache.open_cache(strided, 3, encoder, tmp_path)
    assert other.root == cache.root and other.encoded == cache.encoded
    starts = data.clip_starts(strided, "train", 3)
    frames = data.read_clips(strided, starts, 3).frames
    np.testing.assert_array_equal(token_cache.read(other, starts), own_sums(frames))


def test_a_cache_is_filled_once_and_only_with_its_split(store, cache):
    def fail(frames):
        raise AssertionError("encoded again")

    reopened = token_cache.open_cache(store, FRAMES, of_frames())
    assert reopened.root == cache.root and reopened.encoded == cache.encoded
    assert token_cache.fill(reopened, reader(store), of_frames(fail)).encoded == cache.encoded
    levels = {s.level for s in store.segments if cache.holds(s)}
    assert levels == {0, 1, 2}


def test_another_model_or_length_has_another_cache(store, cache):
    others = [
        token_cache.open_cache(store, FRAMES, of_frames(identity="two")),
        token_cache.open_cache(store, 4, of_frames()),
    ]
    assert len({cache.root, *(other.root for other in others)}) == 3
    assert not others[0].encoded and not others[1].encoded


def test_an_interrupted_build_continues(store, tmp_path):
    made = []

    def stop(frames):
        made.append(len(frames))
        if len(made) == 32:
            raise KeyboardInterrupt
        return sums(frames)

    with pytest.raises(KeyboardInterrupt):
        filled(store, of_frames(stop), tmp_path)
    partial = token_cache.open_cache(store, FRAMES, of_frames(), tmp_path)
    assert 0 < len(partial.encoded) < 3
    whole = token_cache.fill(partial, reader(store), of_frames())
    starts, clips = clips_of(store)
    ids = token_cache.read(whole, starts)
    np.testing.assert_array_equal(ids[..., 0], sums(clips.frames)[..., 0])


def test_appended_levels_are_added_and_replaced_ones_encoded_anew(tmp_path):
    store = make(tmp_path / "s", [recording(0, 20)])
    filled(store, of_frames())
    store = data.append_segments(store, [recording(1, 20)])
    cache = filled(store, of_frames())
    assert len(cache.encoded) == 2
    shutil.copytree(cache.root.parent, tmp_path / "kept")
    other = make(tmp_path / "t", [recording(3, 20)])  # another recording where the first one was
    shutil.copytree(tmp_path / "kept", other.root / "tokens")
    opened = token_cache.open_cache(other, FRAMES, of_frames())
    assert len(opened.encoded) == 2
    complete = token_cache.fill(opened, reader(other), of_frames())
    frames = data.read_clips(other, np.array([0]), FRAMES).frames
    uncut = not other.arrays["episode_starts"][1:FRAMES].read().result().any()
    assert len(complete.encoded) == 3 and uncut
    np.testing.assert_array_equal(
        token_cache.read(complete, np.array([0]))[..., 0], sums(frames)[..., 0]
    )


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_batches_come_in_the_order_of_the_dataset(store, latent, stride):
    """Without a cache of actions they are the recorded ones."""
    strided = replace(store, stride=stride)
    order = {"batch_size": 6, "seed": 3, "start_step": 2}
    inferred = filled(strided, of_transitions()) if latent else None
    cached = token_cache.cached_reader(
        filled(strided, of_frames()), inferred, reader(strided), lambda *arrays: arrays
    )
    pairs = zip(cached.batches(**order), reader(strided).batches(**order), strict=False)
    for (ids, actions), clips in islice(pairs, 3):
        np.testing.assert_array_equal(ids[..., 0], sums(clips.frames)[..., 0])
        expected = differences(clips.frames) if latent else clips.actions
        np.testing.assert_array_equal(actions, expected)


def test_clips_are_drawn_from_what_all_caches_hold(tmp_path):
    store = make(tmp_path / "s", [recording(0, 20), recording(1, 20)])
    ids, actions = filled(store, of_frames()), filled(store, of_transitions())
    lacking = actions._replace(encoded=frozenset([*actions.encoded][:1]))
    cached = token_cache.cached_reader(ids, lacking, reader(store), lambda *arrays: arrays)
    assert len(ids.encoded) == 2 and len(cached.store.segments) == 1


def test_segments_that_cannot_be_read_are_left_out_if_damage_is_skipped(tmp_path):
    store = make(tmp_path / "s", [recording(0, 20), recording(1, 20)])
    (store.root / "frames/c/1/0/0/0").unlink()
    opened = token_cache.open_cache(store, FRAMES, of_frames())
    with pytest.raises(UserError, match="level 1 of .*--cfg.damaged skip"):
        token_cache.fill(opened, reader(store), of_frames())
    skipping = data.ClipReader(store, "train", FRAMES, "skip")
    cache = token_cache.fill(opened, skipping, of_frames())
    assert [cache.holds(segment) for segment in store.segments] == [True, False]
    assert len(skipping.reported) == 1


def test_a_damaged_cache_is_refused(store, tmp_path):
    cache = filled(store, of_frames(), tmp_path)
    for path in (cache.root / "values").rglob("c/*/0"):
        path.write_bytes(path.read_bytes()[:-40])
    opened = token_cache.open_cache(store, FRAMES, of_frames(), tmp_path)
    with pytest.raises(UserError, match="delete that folder"):
        token_cache.read(opened, np.array([0]))
    (cache.root / token_cache.MANIFEST).write_text(json.dumps([[0]])[:3])
    with pytest.raises(UserError, match="delete that folder"):
        token_cache.open_cache(store, FRAMES, of_frames(), tmp_path)
