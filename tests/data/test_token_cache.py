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


def encoder(infer_actions=differences, identity="one"):
    return token_cache.Encoder(sums, infer_actions, identity, tokens=2, codes=2**15)


def reader(store):
    return data.ClipReader(store, "train", FRAMES)


def filled(store, models, root=""):
    cache = token_cache.open_cache(store, FRAMES, models, root)
    return token_cache.fill(cache, reader(store), models)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "store"
    return make(root, [recording(0, 1000), recording(8, 30), recording(1, 345), recording(2, 3)])


@pytest.fixture(scope="module")
def cache(store):
    return filled(store, encoder())


def test_clips_from_the_cache_are_the_clips_encoded(store, cache):
    starts = data.clip_starts(store, "train", FRAMES)
    ids, actions = token_cache.read(cache, starts)
    frames = data.read_clips(store, starts, FRAMES).frames
    np.testing.assert_array_equal(ids[..., 0], sums(frames)[..., 0])
    np.testing.assert_array_equal(actions, differences(frames))
    assert (ids[:, 0, 1] == 0).all(), "a first frame is encoded without a past"
    # A frame is encoded with as much past as a training clip has, where its episode has as much.
    episode = np.cumsum(
        data.open_store(store.root).arrays["episode_starts"][: starts[-1] + FRAMES].read().result()
    )
    begins = np.searchsorted(episode, episode[starts], side="left")
    fresh = starts == begins
    assert fresh.any() and (ids[fresh, :, 1] == np.arange(FRAMES)).all()
    assert ids[:, 1:, 1].min() >= 1 and ids[..., 1].max() == FRAMES - 1


@pytest.mark.parametrize("latent", [True, False])
def test_clips_with_a_stride_are_the_clips_encoded(store, latent):
    strided = replace(store, stride=3)
    models = encoder(differences if latent else None, identity=str(latent))
    cache = filled(strided, models)
    starts = data.clip_starts(strided, "train", FRAMES)
    ids, actions = token_cache.read(cache, starts)
    clips = data.read_clips(strided, starts, FRAMES)
    np.testing.assert_array_equal(ids[..., 0], sums(clips.frames)[..., 0])
    np.testing.assert_array_equal(actions, differences(clips.frames) if latent else clips.actions)
    assert cache.root != filled(store, models).root


def test_an_encoder_of_single_frames_encodes_each_of_them_once(store, tmp_path):
    lengths = []

    def own_sums(frames):
        lengths.append(frames.shape[1])
        own = frames.astype(np.int64).sum((2, 3, 4)) % 30_000
        return np.stack((own, own % 7), -1)

    models = encoder()._replace(tokenize=own_sums, framewise=True)
    cache = filled(store, models, tmp_path)
    assert set(lengths) == {1}
    starts = data.clip_starts(store, "train", FRAMES)
    ids, actions = token_cache.read(cache, starts)
    frames = data.read_clips(store, starts, FRAMES).frames
    np.testing.assert_array_equal(ids, own_sums(frames))
    np.testing.assert_array_equal(actions, differences(frames))


def test_a_cache_is_filled_once_and_only_with_its_split(store, cache):
    def fail(frames):
        raise AssertionError("encoded again")

    reopened = token_cache.open_cache(store, FRAMES, encoder())
    assert reopened.root == cache.root and reopened.encoded == cache.encoded
    failing = encoder()._replace(tokenize=fail)
    assert token_cache.fill(reopened, reader(store), failing).encoded == cache.encoded
    levels = {s.level for s in store.segments if cache.holds(s)}
    assert levels == {0, 1, 2}


def test_another_model_or_length_has_another_cache(store, cache):
    others = [
        token_cache.open_cache(store, FRAMES, encoder(identity="two")),
        token_cache.open_cache(store, 4, encoder()),
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
        filled(store, encoder()._replace(tokenize=stop), tmp_path)
    partial = token_cache.open_cache(store, FRAMES, encoder(), tmp_path)
    assert 0 < len(partial.encoded) < 3
    whole = token_cache.fill(partial, reader(store), encoder())
    starts = data.clip_starts(store, "train", FRAMES)
    frames = data.read_clips(store, starts, FRAMES).frames
    np.testing.assert_array_equal(token_cache.read(whole, starts)[0][..., 0], sums(frames)[..., 0])


def test_appended_levels_are_added_and_replaced_ones_encoded_anew(tmp_path):
    store = make(tmp_path / "s", [recording(0, 20)])
    filled(store, encoder())
    store = data.append_segments(store, [recording(1, 20)])
    cache = filled(store, encoder())
    assert len(cache.encoded) == 2
    shutil.copytree(cache.root.parent, tmp_path / "kept")
    other = make(tmp_path / "t", [recording(3, 20)])  # another recording where the first one was
    shutil.copytree(tmp_path / "kept", other.root / "tokens")
    opened = token_cache.open_cache(other, FRAMES, encoder())
    assert len(opened.encoded) == 2
    complete = token_cache.fill(opened, reader(other), encoder())
    frames = data.read_clips(other, np.array([0]), FRAMES).frames
    uncut = not other.arrays["episode_starts"][1:FRAMES].read().result().any()
    assert len(complete.encoded) == 3 and uncut
    np.testing.assert_array_equal(
        token_cache.read(complete, np.array([0]))[0][..., 0], sums(frames)[..., 0]
    )


def test_recorded_actions_are_kept_without_a_latent_action_model(store, tmp_path):
    cache = filled(store, encoder(infer_actions=None), tmp_path)
    starts = data.clip_starts(store, "train", FRAMES)
    recorded = data.read_clips(store, starts, FRAMES).actions
    np.testing.assert_array_equal(token_cache.read(cache, starts)[1], recorded)


def test_batches_come_in_the_order_of_the_dataset(store, cache):
    order = {"batch_size": 6, "seed": 3, "start_step": 2}
    cached = token_cache.cached_reader(cache, reader(store), lambda ids, actions: (ids, actions))
    pairs = zip(cached.batches(**order), reader(store).batches(**order), strict=False)
    for (ids, actions), clips in islice(pairs, 3):
        np.testing.assert_array_equal(ids[..., 0], sums(clips.frames)[..., 0])
        np.testing.assert_array_equal(actions, differences(clips.frames))


def test_segments_that_cannot_be_read_are_left_out_if_damage_is_skipped(tmp_path):
    store = make(tmp_path / "s", [recording(0, 20), recording(1, 20)])
    (store.root / "frames/c/1/0/0/0").unlink()
    opened = token_cache.open_cache(store, FRAMES, encoder())
    with pytest.raises(UserError, match="level 1 of .*--cfg.damaged skip"):
        token_cache.fill(opened, reader(store), encoder())
    skipping = data.ClipReader(store, "train", FRAMES, "skip")
    cache = token_cache.fill(opened, skipping, encoder())
    assert [cache.holds(segment) for segment in store.segments] == [True, False]
    assert len(skipping.reported) == 1


def test_a_damaged_cache_is_refused(store, tmp_path):
    cache = filled(store, encoder(), tmp_path)
    for path in (cache.root / "ids").rglob("c/*/0"):
        path.write_bytes(path.read_bytes()[:-40])
    opened = token_cache.open_cache(store, FRAMES, encoder(), tmp_path)
    with pytest.raises(UserError, match="delete that folder"):
        token_cache.read(opened, np.array([0]))
    (cache.root / token_cache.MANIFEST).write_text(json.dumps([[0]])[:3])
    with pytest.raises(UserError, match="delete that folder"):
        token_cache.open_cache(store, FRAMES, encoder(), tmp_path)
