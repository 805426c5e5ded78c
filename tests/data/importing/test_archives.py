"""HDF5, parquet and LeRobot data: the right episodes, frames and actions, and sentences for the rest."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import import_videos as script
from genie_fn import data
from genie_fn.data import vectors
from genie_fn.data.importing import archives, readers, sources
from genie_fn.data.importing.archives import Fields, Unreadable
from genie_fn.errors import UserError
from tests import films

h5py = pytest.importorskip("h5py")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

LENGTHS = (17, 18, 19)


def frames_of(number, count, height=16, width=24):
    """Frames of two colours: which episode it is, and which frame."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = 40 * number + 20
    frames[:, :, width // 2 :, 1] = np.arange(count)[:, None, None] * 8
    return frames


def actions_of(number, count):
    return (np.arange(count) + number) % 5


def png(frame):
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "PNG")
    return content.getvalue()


def robomimic(path):
    """Groups of demonstrations with two cameras and vectors of actions."""
    with h5py.File(path, "w") as file:
        for i, count in enumerate(LENGTHS):
            group = file.create_group(f"data/demo_{i}")
            group["obs/agentview_image"] = frames_of(i, count)
            group["obs/robot0_eye_in_hand_image"] = frames_of(5, count)
            group["obs/joints"] = np.zeros((count, 7), np.float32)
            group["actions"] = np.full((count, 7), 0.5, np.float32)
            group["choice"] = actions_of(i, count)
            group["rewards"] = np.zeros(count)


def minari(path):
    """One more observation than actions; and pictures with the channels first."""
    with h5py.File(path, "w") as file:
        for i, count in enumerate(LENGTHS):
            group = file.create_group(f"episode_{i}")
            group["observations"] = frames_of(i, count).transpose(0, 3, 1, 2)
            group["actions"] = actions_of(i, count - 1)


def aloha(path):
    """One episode per file, of compressed pictures."""
    with h5py.File(path, "w") as file:
        kind = h5py.vlen_dtype(np.uint8)
        images = file.create_dataset("observations/images/top", (LENGTHS[0],), kind)
        for i, frame in enumerate(frames_of(0, LENGTHS[0])):
            images[i] = np.frombuffer(png(frame), np.uint8)
        file["action"] = np.zeros((LENGTHS[0], 14), np.float32)


def parquet(path):
    """Pictures as Hugging Face's datasets store them."""
    rows = [
        {"image": {"bytes": png(frame), "path": None}, "action": int(action), "episode_index": i}
        for i, count in enumerate(LENGTHS)
        for frame, action in zip(frames_of(i, count), actions_of(i, count), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def _features(shape):
    video = {"dtype": "video", "shape": [16, 24, 3], "names": ["height", "width", "channels"]}
    return {
        "observation.images.top": video,
        "observation.state": {"dtype": "float32", "shape": [2]},
        "action": {"dtype": "int64" if shape == [1] else "float32", "shape": shape},
    }


def _rows(numbers, shape):
    return [
        {
            "action": [int(a)] * shape[0] if shape == [1] else [float(a) + 0.5] * shape[0],
            "episode_index": i,
            "frame_index": t,
        }
        for i in numbers
        for t, a in enumerate(actions_of(i, LENGTHS[i]))
    ]


def lerobot_v2(folder, shape=(1,)):
    shape = list(shape)
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "total_episodes": len(LENGTHS),
        "chunks_size": 2,
        "features": _features(shape),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    _write_info(folder, info)
    for i, count in enumerate(LENGTHS):
        table = folder / f"data/chunk-{i // 2:03d}/episode_{i:06d}.parquet"
        table.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(_rows([i], shape)), table)
        video = folder / f"videos/chunk-{i // 2:03d}/observation.images.top/episode_{i:06d}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        films.write(video, frames_of(i, count), fps=10, pixels="yuv444p")


def lerobot_v3(folder, shape=(1,)):
    """All episodes in one file of each kind."""
    shape = list(shape)
    info = {
        "codebase_version": "v3.0",
        "fps": 10,
        "total_episodes": len(LENGTHS),
        "features": _features(shape),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    _write_info(folder, info)
    for name in ("data/chunk-000", "videos/observation.images.top/chunk-000"):
        (folder / name).mkdir(parents=True)
    table = pa.Table.from_pylist(_rows(range(len(LENGTHS)), shape))
    pq.write_table(table, folder / "data/chunk-000/file-000.parquet")
    joined = np.concatenate([frames_of(i, count) for i, count in enumerate(LENGTHS)])
    video = folder / "videos/observation.images.top/chunk-000/file-000.mp4"
    films.write(video, joined, fps=10, pixels="yuv444p", gop_size=8)
    ends = np.cumsum(LENGTHS)
    key = "videos/observation.images.top"
    rows = [
        {
            "episode_index": i,
            "length": count,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": int(ends[i] - count),
            "dataset_to_index": int(ends[i]),
            f"{key}/chunk_index": 0,
            f"{key}/file_index": 0,
            f"{key}/from_timestamp": float(ends[i] - count) / 10,
            f"{key}/to_timestamp": float(ends[i]) / 10,
        }
        for i, count in enumerate(LENGTHS)
    ]
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")


def _write_info(folder, info):
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))


ARCHIVES = {
    "robomimic.hdf5": (robomimic, "frames=obs/agentview_image,actions=choice"),
    "minari.h5": (minari, ""),
    "pictures.parquet": (parquet, ""),
    "lerobot2": (lerobot_v2, ""),
    "lerobot3": (lerobot_v3, ""),
}


def imported(path, fields, root, **options):
    options = {"size": (16, 24), "cuts": 0, "workers": 2, "fields": fields} | options
    script.main(script.Config(src=str(path), root=str(root), **options))
    return data.open_store(root)


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_episode_is_imported_with_its_frames_and_actions(name, tmp_path):
    write, fields = ARCHIVES[name]
    write(tmp_path / name)
    store = imported(tmp_path / name, fields, tmp_path / "store")
    assert store.num_actions == 5
    assert [segment.length for segment in store.segments] == list(LENGTHS)
    for i, segment in enumerate(store.segments):
        recording = data.read_segment(store, segment)
        difference = np.abs(recording.frames.astype(int) - frames_of(i, segment.length))
        assert difference.max() <= (8 if "lerobot" in name else 0)
        expected = actions_of(i, segment.length)
        if "minari" in name:  # the action at the last frame is not recorded
            expected[-1] = expected[-2]
        np.testing.assert_array_equal(recording.actions, expected)
    again = imported(tmp_path / name, fields, tmp_path / "store")
    assert again.data_hash == store.data_hash, "episodes are imported twice"


def test_one_compressed_episode_per_file(tmp_path):
    for name in "abc":
        aloha(tmp_path / f"{name}.hdf5")
        with h5py.File(tmp_path / f"{name}.hdf5", "a") as file:
            file["mark"] = ord(name)  # files with the same content are imported once
    store = imported(tmp_path / "*.hdf5", "", tmp_path / "store")
    assert [segment.info["file"] for segment in store.segments] == ["a.hdf5", "b.hdf5", "c.hdf5"]
    np.testing.assert_array_equal(
        data.read_segment(store, store.segments[0]).frames, frames_of(0, LENGTHS[0])
    )


@pytest.mark.parametrize("write", [lerobot_v2, lerobot_v3, robomimic])
def test_vectors_of_actions_are_kept_as_they_are(write, tmp_path):
    if write is robomimic:
        write(tmp_path / "set.hdf5")
        store = imported(tmp_path / "set.hdf5", "frames=obs/agentview_image", tmp_path / "store")
    else:
        write(tmp_path / "set", shape=(2,))
        store = imported(tmp_path / "set", "", tmp_path / "store")
    kinds = 1 if write is robomimic else 5
    assert store.action_size == (7 if write is robomimic else 2)
    assert store.action_names == tuple(map(str, range(kinds)))
    prototypes = vectors.prototypes_of(store.meta)
    for i, segment in enumerate(store.segments):
        recording = data.read_segment(store, segment)
        expected = np.full((segment.length, 7), 0.5)
        if write is not robomimic:
            expected = np.repeat(actions_of(i, segment.length)[:, None] + 0.5, 2, 1)
        np.testing.assert_array_equal(recording.action_vectors, expected.astype(np.float32))
        nearest = prototypes.centres[recording.actions] * prototypes.std + prototypes.mean
        np.testing.assert_allclose(nearest, expected, atol=1e-5)
    assert data.verify(store) == sum(LENGTHS)
    more = imported(store.root.parent / ("set.hdf5" if write is robomimic else "set"),
                    "frames=obs/agentview_image" if write is robomimic else "", store.root)  # fmt: skip
    assert more.data_hash == store.data_hash


def test_vectors_and_numbers_are_not_mixed(tmp_path):
    lerobot_v2(tmp_path / "in" / "a", shape=(2,))
    minari(tmp_path / "in" / "b.h5")
    with pytest.raises(UserError, match="some actions are vectors and others are not"):
        imported(tmp_path / "in", "", tmp_path / "store")
    lerobot_v2(tmp_path / "both" / "a", shape=(2,))
    lerobot_v2(tmp_path / "both" / "b", shape=(3,))
    with pytest.raises(UserError, match="vectors of 2 and 3 numbers"):
        imported(tmp_path / "both", "", tmp_path / "store")


def test_several_sets_in_a_folder_have_names_of_their_own(tmp_path):
    lerobot_v2(tmp_path / "in" / "one")
    minari(tmp_path / "in" / "two.h5")
    names = [s.name for s in sources.find(str(tmp_path / "in"), tmp_path / "out").sources]
    assert names[:3] == ["one/000000", "one/000001", "one/000002"]
    assert names[3:] == ["two.h5/episode_0", "two.h5/episode_1", "two.h5/episode_2"]


@pytest.mark.parametrize("write", [lerobot_v2, lerobot_v3])
def test_data_in_the_cache_of_the_hub_is_read(write, tmp_path):
    """Whose files are links to a folder beside."""
    write(tmp_path / "real")
    for path in (tmp_path / "real").rglob("*"):
        if path.is_file():
            link = tmp_path / "snapshot" / path.relative_to(tmp_path / "real")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    assert len(archives.episodes(tmp_path / "snapshot", Fields())) == 3


def test_rows_are_found_by_their_episode(tmp_path):
    """Not by their order: here metadata does not list the first episode of the file."""
    lerobot_v3(tmp_path / "set")
    path = tmp_path / "set" / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    found = archives.episodes(tmp_path / "set", Fields())
    assert [episode.name for episode in found] == ["000001", "000002"]
    for i, episode in enumerate(found, 1):
        assert archives.labels(episode).actions == actions_of(i, LENGTHS[i]).tolist()


def test_an_episode_keeps_its_name_and_its_actions_when_others_are_added(tmp_path):
    path = tmp_path / "a.hdf5"
    robomimic(path)
    fields = Fields("obs/agentview_image", "choice")
    names = [episode.name for episode in archives.episodes(path, fields)]
    with h5py.File(path, "a") as file:
        del file["data/demo_1"], file["data/demo_2"]
    archives.hdf5._tree.cache_clear()
    (alone,) = archives.episodes(path, fields)
    assert alone.name == names[0] == "data/demo_0"
    assert alone.actions is not None


@pytest.mark.parametrize("views", [("image", "wrist/image"), ("front/rgb", "wrist/rgb")])
@pytest.mark.parametrize("count", [1, 3])
def test_cameras_are_no_episodes(views, count, tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(count):
            for view in views:
                file[f"demo_{i}/{view}"] = frames_of(i, 16)
            file[f"demo_{i}/actions"] = actions_of(i, 16)
    with pytest.raises(UserError, match="several pictures per episode"):
        archives.episodes(path, Fields())
    found = archives.episodes(path, Fields(views[0]))
    assert [episode.name for episode in found] == [f"demo_{i}" for i in range(count)]
    assert [episode.frames for episode in found] == [f"demo_{i}/{views[0]}" for i in range(count)]


def test_what_is_continuous_in_one_episode_is_so_in_all(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for i, steering in enumerate((0.0, 0.5)):
            file[f"demo_{i}/frames"] = frames_of(i, 16)
            file[f"demo_{i}/actions"] = np.full(16, steering)
    found = archives.episodes(path, Fields())
    assert [episode.actions.is_vector for episode in found] == [True, True]
    np.testing.assert_array_equal(archives.labels(found[1]).vectors, np.full((16, 1), 0.5))


def test_no_other_file_is_read(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(48))
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        outside = [(str(tmp_path / "secret"), 0, 48)]
        file.create_dataset("frames", (1, 4, 4, 3), np.uint8, external=outside)
    with pytest.raises(UserError, match="holds no frames"):
        archives.episodes(path, Fields())


def test_pictures_with_zeros_behind_them(tmp_path):
    path = tmp_path / "a.hdf5"
    pictures = [np.frombuffer(png(frame), np.uint8) for frame in frames_of(1, 16)]
    padded = np.zeros((16, 4096), np.uint8)
    for row, picture in zip(padded, pictures, strict=True):
        row[: len(picture)] = picture
    with h5py.File(path, "w") as file:
        file["observations/images/top"] = padded
        file["observations/qpos"] = np.zeros((16, 14))
        file["action"] = np.zeros((16, 14), np.float32)
    (episode,) = archives.episodes(path, Fields())
    shown = [np.array(picture()) for picture in archives.read(episode)]
    np.testing.assert_array_equal(shown, frames_of(1, 16))


def test_frames_of_absurd_size_are_not_read(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", (64, 16000, 16000, 3), np.uint8, chunks=(1, 64, 64, 3))
    (episode,) = archives.episodes(path, Fields())
    with pytest.raises(Unreadable, match="16000x16000 pixels"):
        list(archives.read(episode))


def test_one_bad_file_among_others_is_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    minari(tmp_path / "in" / "b.h5")
    (tmp_path / "in" / "a.hdf5").write_bytes(b"no")
    found = sources.find(str(tmp_path / "in"), tmp_path / "out")
    assert len(found.sources) == 3
    assert "cannot be read as hdf5" in found.left_out["a.hdf5"]


def _two_cameras(folder):
    lerobot_v2(folder)
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.wrist"] = {"dtype": "video", "shape": [16, 24, 3]}
    path.write_text(json.dumps(info))


def _outside(folder):
    lerobot_v2(folder)
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"video_path": "../../etc/{episode_index}.mp4"}))


def _empty_hdf5(path):
    with h5py.File(path, "w") as file:
        file["joints"] = np.zeros((3, 7))


REFUSED = {
    "several pictures per episode: choose one by --cfg.fields frames= obs/agentview_image, obs/robot0": (
        "a.hdf5",
        robomimic,
        "",
    ),
    "no frames obs/wrist: choose --cfg.fields frames= one of obs/agentview": (
        "a.hdf5",
        robomimic,
        "frames=obs/wrist",
    ),
    "no actions choices: choose --cfg.fields actions= one of actions, choice": (
        "a.hdf5",
        robomimic,
        "frames=obs/agentview_image,actions=choices",
    ),
    "holds no frames, which are uint8 arrays of shape (T, H, W, 3): it holds joints": (
        "a.h5",
        _empty_hdf5,
        "",
    ),
    "no episode run: choose --cfg.fields episode= one of": ("a.parquet", parquet, "episode=run"),
    "no frames pixels: choose --cfg.fields frames= one of image": (
        "a.parquet",
        parquet,
        "frames=pixels",
    ),
    "several cameras: choose one by --cfg.fields frames= observation.images.top, observation.images.wr": (
        "set",
        _two_cameras,
        "",
    ),
    "no frames front: choose --cfg.fields frames= one of observation.images.top": (
        "set",
        lerobot_v3,
        "frames=front",
    ),
    "which is outside of": ("set", _outside, ""),
    "cannot be read as hdf5": ("a.hdf5", lambda path: path.write_bytes(b"no"), ""),
    "cannot be read as parquet": ("a.parquet", lambda path: path.write_bytes(b"no"), ""),
    "should name frames, actions, episode": ("a.hdf5", robomimic, "images=obs"),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_wrong_fields_are_answered_with_those_that_exist(sentence, tmp_path):
    name, write, fields = REFUSED[sentence]
    write(tmp_path / name)
    with pytest.raises(UserError) as error:
        imported(tmp_path / name, fields, tmp_path / "store")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("minari.h5", "h5py", "hdf5"), ("pictures.parquet", "pyarrow.parquet", "lerobot")],
)
def test_a_missing_package_is_named(name, package, extra, tmp_path, monkeypatch):
    ARCHIVES[name][0](tmp_path / name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'genie_fn\[{extra}\]'"):
        archives.episodes(tmp_path / name, Fields())


# Damaged files


class Contents(dict):
    """Bytes by name, which a failing test does not print."""

    def __repr__(self):
        return "contents"


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The bytes of one archive of each kind."""
    folder = tmp_path_factory.mktemp("archives")
    robomimic(folder / "a.hdf5")
    parquet(folder / "a.parquet")
    lerobot_v3(folder / "set")
    episodes = Path("meta/episodes/chunk-000/file-000.parquet")
    files = {
        "a.hdf5": (folder / "a.hdf5").read_bytes(),
        "a.parquet": (folder / "a.parquet").read_bytes(),
        "info.json": (folder / "set" / "meta" / "info.json").read_bytes(),
        "episodes": (folder / "set" / episodes).read_bytes(),
    }
    return Contents(files)


@pytest.fixture(scope="module")
def lerobot_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "set"
    lerobot_v3(folder)
    return folder


EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),
        st.sampled_from(["cut", "flip", "zero", "drop"]),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content, edits):
    changed = bytearray(content)
    for where, how, length in edits:
        at = where % max(1, len(changed))
        if how == "cut":
            del changed[at:]
        elif how == "flip":
            changed[at : at + length] = bytes(b ^ 255 for b in changed[at : at + length])
        elif how == "zero":
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        else:
            del changed[at : at + length]
    return bytes(changed)


def read_everything(path, fields):
    """Every episode's frames and actions. What cannot be read is one of the two errors."""
    try:
        for episode in archives.episodes(path, fields):
            if episode.actions:
                archives.labels(episode)
            source = sources.Source("a", "video" if path.is_dir() else "archive", episode.files)
            for frame in readers.read(source._replace(episode=episode)):
                frame.image()
    except (UserError, Unreadable) as error:
        assert "\n" not in str(error)


FUZZED = settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZED
@given(EDITS)
def test_damaged_hdf5_is_a_sentence(contents, tmp_path, edits):
    path = tmp_path / "a.hdf5"
    path.write_bytes(damaged(contents["a.hdf5"], edits))
    read_everything(path, Fields("obs/agentview_image", "choice"))


@FUZZED
@given(EDITS)
def test_damaged_parquet_is_a_sentence(contents, tmp_path, edits):
    path = tmp_path / "a.parquet"
    path.write_bytes(damaged(contents["a.parquet"], edits))
    read_everything(path, Fields())


@pytest.mark.parametrize(
    ("name", "place"),
    [("info.json", "meta/info.json"), ("episodes", "meta/episodes/chunk-000/file-000.parquet")],
)
@FUZZED
@given(edits=EDITS)
def test_damaged_lerobot_data_is_a_sentence(contents, lerobot_folder, name, place, edits):
    path = lerobot_folder / place
    try:
        path.write_bytes(damaged(contents[name], edits))
        read_everything(lerobot_folder, Fields())
    finally:
        path.write_bytes(contents[name])
