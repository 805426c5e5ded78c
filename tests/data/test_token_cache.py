"""The token cache: what it holds, that it is made once, goes on after an interruption, and sees what changed."""

import io
import json
import shutil
from itertools import islice

import numpy as np
import pytest
from rich.console import Console

from genie_fn import data
from genie_fn.data import token_cache
from genie_fn.errors import UserError
from tests.data.test_data import make, recording

FRAMES = 5
QUIET = Console(file=io.StringIO())


def sums(frames):
    """Ids that tell the frame and, as causal attention would, how many frames of the clip came before it: (B, T, 2)."""
    own = frames.astype(np.int64).sum((2, 3, 4)) % 30_000
    return np.stack((own, np.broadcast_to(np.arange(frames.shape[1]), own.shape)), -1)


def differences(frames):
    pixels = frames[:, :, 0, 0, 0].astype(np.int64)
    return (pixels[:, 1:] - pixels[:, :-1]) % 200


def encoder(name=differences, identity="one"):
    return token_cache.Encoder(sums, name, identity, tokens=2, codes=2**15)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "store"
    return make(root, [recording(0, 1000), recording(8, 30), recording(1, 345), recording(2, 3)])


@pytest.fixture(scope="module")
def cache(store):
    return token_cache.fill(
        token_cache.open_cache(store, FRAMES, encoder()), store, "train", FRAMES, encoder(), QUIET
    )


def test_clips_from_the_cache_are_the_clips_encoded(store, cache):
    starts = data.clip_starts(store, "train", FRAMES)
    ids, actions = token_cache.read(cache, starts, FRAMES)
    frames = data.read_clips(store, starts, FRAMES).frames
    np.testing.assert_array_equal(ids[..., 0], sums(frames)[..., 0])
    np.testing.assert_array_equal(actions, differences(frames))
    assert (ids[:, 0, 1] == 0).all(), "the first frame is coded as one that has no past"
    # A frame is coded with all the past that a clip of training shows it, where its episode has as much.
    episode = np.cumsum(
        data.open_store(store.root).arrays["episode_starts"][: starts[-1] + FRAMES].read().result()
    )
    begins = np.searchsorted(episode, episode[starts], side="left")
    fresh = starts == begins
    assert fresh.any() and (ids[fresh, :, 1] == np.arange(FRAMES)).all()
    assert ids[:, 1:, 1].min() >= 1 and ids[..., 1].max() == FRAMES - 1


def test_a_cache_is_filled_once_and_only_with_its_split(store, cache):
    def fail(frames):
        raise AssertionError("encoded again")

    again = token_cache.open_cache(store, FRAMES, encoder())
    assert again.root == cache.root and again.done == cache.done
    assert (
        token_cache.fill(
            again, store, "train", FRAMES, encoder()._replace(tokenize=fail), QUIET
        ).done
        == cache.done
    )
    levels = {s.level for s in store.segments if (s.offset, s.crc) in cache.done}
    assert levels == {0, 1, 2}


def test_another_model_or_length_has_another_cache(store, cache):
    others = [
        token_cache.open_cache(store, FRAMES, encoder(identity="two")),
        token_cache.open_cache(store, 4, encoder()),
    ]
    assert len({cache.root, *(other.root for other in others)}) == 3
    assert not others[0].done and not others[1].done


def test_an_interrupted_build_goes_on_where_it_was(store, tmp_path):
    made = []

    def stop(frames):
        made.append(len(frames))
        if len(made) == 25:
            raise KeyboardInterrupt
        return sums(frames)

    with pytest.raises(KeyboardInterrupt):
        opened = token_cache.open_cache(store, FRAMES, encoder(), tmp_path)
        token_cache.fill(opened, store, "train", FRAMES, encoder()._replace(tokenize=stop), QUIET)
    part = token_cache.open_cache(store, FRAMES, encoder(), tmp_path)
    assert 0 < len(part.done) < 3
    whole = token_cache.fill(part, store, "train", FRAMES, encoder(), QUIET)
    starts = data.clip_starts(store, "train", FRAMES)
    frames = data.read_clips(store, starts, FRAMES).frames
    np.testing.assert_array_equal(
        token_cache.read(whole, starts, FRAMES)[0][..., 0], sums(frames)[..., 0]
    )


def test_levels_appended_later_are_added_and_replaced_ones_made_anew(tmp_path):
    store = make(tmp_path / "s", [recording(0, 20)])
    cache = token_cache.fill(
        token_cache.open_cache(store, FRAMES, encoder()), store, "train", FRAMES, encoder(), QUIET
    )
    store = data.append_segments(store, [recording(1, 20)])
    cache = token_cache.fill(
        token_cache.open_cache(store, FRAMES, encoder()), store, "train", FRAMES, encoder(), QUIET
    )
    assert len(cache.done) == 2
    kept = cache.root.parent
    shutil.copytree(kept, tmp_path / "kept")
    other = make(tmp_path / "t", [recording(3, 20)])  # another recording where the first one was
    shutil.copytree(tmp_path / "kept", other.root / "tokens")
    opened = token_cache.open_cache(other, FRAMES, encoder())
    assert len(opened.done) == 2
    filled = token_cache.fill(opened, other, "train", FRAMES, encoder(), QUIET)
    frames = data.read_clips(other, np.array([0]), FRAMES).frames
    episode_whole = not other.arrays["episode_starts"][1:FRAMES].read().result().any()
    assert len(filled.done) == 3 and episode_whole
    np.testing.assert_array_equal(
        token_cache.read(filled, np.array([0]), FRAMES)[0][..., 0], sums(frames)[..., 0]
    )


def test_recorded_actions_stay_where_no_model_names_them(store, tmp_path):
    plain = encoder(name=None)
    cache = token_cache.fill(
        token_cache.open_cache(store, FRAMES, plain, tmp_path), store, "train", FRAMES, plain, QUIET
    )
    starts = data.clip_starts(store, "train", FRAMES)
    np.testing.assert_array_equal(
        token_cache.read(cache, starts, FRAMES)[1], data.read_clips(store, starts, FRAMES).actions
    )


def test_batches_come_in_the_order_of_the_dataset(store, cache):
    order = {"batch_size": 6, "seed": 3, "start_step": 2}
    ours = token_cache.batches(
        cache, store, "train", FRAMES, lambda ids, actions: (ids, actions), **order
    )
    theirs = data.batches(store, "train", FRAMES, **order)
    for (ids, actions), clips in islice(zip(ours, theirs, strict=False), 3):
        np.testing.assert_array_equal(ids[..., 0], sums(clips.frames)[..., 0])
        np.testing.assert_array_equal(actions, differences(clips.frames))


def test_a_damaged_cache_is_named(store, tmp_path):
    cache = token_cache.fill(
        token_cache.open_cache(store, FRAMES, encoder(), tmp_path),
        store,
        "train",
        FRAMES,
        encoder(),
        QUIET,
    )
    for path in (cache.root / "ids").rglob("c/*/0"):
        path.write_bytes(path.read_bytes()[:-40])
    opened = token_cache.open_cache(store, FRAMES, encoder(), tmp_path)
    with pytest.raises(UserError, match="delete that folder"):
        token_cache.read(opened, np.array([0]), FRAMES)
    (cache.root / token_cache.MANIFEST).write_text(json.dumps([[0]])[:3])
    with pytest.raises(UserError, match="delete that folder"):
        token_cache.open_cache(store, FRAMES, encoder(), tmp_path)
