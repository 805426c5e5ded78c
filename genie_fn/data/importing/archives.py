"""Recordings in the formats of robot learning and of reinforcement learning: episodes in few files.

HDF5 (as robomimic, ALOHA and Minari write it): every group that holds frames is an episode. LeRobot
(versions 2.1 and 3): a folder with meta/info.json, mp4 files and parquet. Parquet with a column of
pictures: successive rows with the same value in the column of episodes.

`Fields` name where frames and actions are. Files are untrusted input: what cannot be read is a UserError
when episodes are listed, and `Unreadable` when one is read.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from genie_fn.data import images
from genie_fn.data.importing.action_labels import LabelFile
from genie_fn.data.storage import MAX_ACTIONS
from genie_fn.errors import UserError

HDF5 = (".hdf5", ".h5", ".hdf")
PARQUET = ".parquet"
INFO = Path("meta") / "info.json"
MAX_INFO = 16 << 20
ACTION_NAMES = ("action", "actions")
EPISODE_NAMES = ("episode_index", "episode_id", "episode", "trajectory_id")
ROWS = 64
"""Rows and frames that are read at a time."""
NAMES = ("frames", "actions", "episode")
INSTALL = {"h5py": "hdf5", "pyarrow": "lerobot"}
"""The extra that installs a package."""
SHOWN = 12
"""Names in an error message."""


class Unreadable(Exception):
    """Why an episode, or the rest of it, cannot be read: a clause about it."""


class Fields(NamedTuple):
    """Where an archive holds what is read from it; empty: where it usually is, if only one is there."""

    frames: str = ""
    actions: str = ""
    episode: str = ""
    """The column of parquet files that tells episodes apart."""


ANYWHERE = Fields()
"""Nothing is named."""


class Episode(NamedTuple):
    """One episode of an archive."""

    name: str
    """What distinguishes it from the others of the archive."""
    files: tuple[Path, ...]
    """The files that hold its frames."""
    frames: str
    """Where in the file they are."""
    rows: tuple[int, int] | None = None
    """The rows of a parquet file."""
    seconds: tuple[float, float] | None = None
    """The part of a video file."""
    actions: "ActionsAt | None" = None
    note: str = ""
    """Why its actions are left out."""


class ActionsAt(NamedTuple):
    """Where the actions of an episode are."""

    file: Path
    field: str
    rows: tuple[int, int] | None = None


def parse_fields(text: str) -> Fields:
    """`"frames=obs/rgb,actions=action"` → Fields. Raises UserError for other names."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if name not in NAMES or not equals or not value:
            raise UserError(
                f"--cfg.fields {text!r} should name {', '.join(NAMES)}, as in "
                "frames=obs/rgb,actions=action"
            )
        found[name] = value
    return Fields(**found)


def is_archive(path: Path) -> bool:
    """Whether a file or folder is one of these formats, by its name."""
    if path.is_dir():
        return (path / INFO).is_file()
    return path.suffix.lower() in (*HDF5, PARQUET)


def episodes(path: Path, fields: Fields) -> list[Episode]:
    """The episodes of an archive in order. Raises UserError where there are none, or if the fields are
    not there."""
    try:
        if path.is_dir():
            return _lerobot_episodes(path, fields)
        if path.suffix.lower() == PARQUET:
            return _parquet_episodes(path, fields)
        return _hdf5_episodes(path, fields)
    except UserError:
        raise
    except Exception as error:  # the libraries raise many kinds
        kind = "LeRobot data" if path.is_dir() else path.suffix[1:]
        raise UserError(
            f"{path} cannot be read as {kind} ({_reason(error)}): check that it is complete"
        ) from error


def read(episode: Episode) -> Iterator[Callable[[], Image.Image]]:
    """The pictures of an episode of HDF5 or parquet, decoded when called. Raises Unreadable."""
    path = episode.files[0]
    try:
        if episode.rows is not None:
            yield from _parquet_frames(path, episode.frames, episode.rows)
        else:
            yield from _hdf5_frames(path, episode.frames)
    except Unreadable:
        raise
    except Exception as error:  # the libraries raise many kinds
        raise Unreadable(f"it is damaged ({_reason(error)})") from error


def labels(episode: Episode) -> LabelFile:
    """The actions of an episode, one per frame. Raises UserError if they cannot be read."""
    at = episode.actions
    assert at is not None, "asked only of episodes that have actions"
    try:
        values = _parquet_column(at.file, at.field, at.rows) if at.rows else _hdf5_array(at)
    except Exception as error:  # the libraries raise many kinds
        raise UserError(
            f"the actions {at.field} of {at.file} cannot be read ({_reason(error)}): import without "
            "them, by --cfg.no-actions"
        ) from error
    numbers = np.asarray(values).reshape(len(values), -1)[:, 0].astype(np.int64).tolist()
    rows = len(numbers)
    return LabelFile(at.file, "row", np.arange(rows, dtype=float), numbers, list(range(rows)))


def _module(name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{path} needs {name}, which cannot be imported ({error}): run "
            f"`pip install 'genie_fn[{INSTALL[name.partition('.')[0]]}]'`"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:100]


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _choose(names: list[str], wanted: str, usual: tuple[str, ...], what: str, path: Path) -> str:
    """The field of `names` that is wanted, or the only one, or a usual one; empty if there is none."""
    if wanted:
        if wanted in names:
            return wanted
        raise UserError(
            f"{path} has no {what} {wanted}: choose --cfg.fields {what}= one of "
            f"{_listed(names) or 'none that can be read'}"
        )
    for name in usual:
        if name in names:
            return name
    return names[0] if len(names) == 1 and not usual else ""


def _continuous(values: np.ndarray, width: int) -> str:
    """Why actions are left out; empty if they are numbers of actions."""
    if width > 1:
        return f"its actions are vectors of {width} numbers, which are left out"
    numbers = np.asarray(values, np.float64).ravel()
    if not np.all((numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < MAX_ACTIONS)):
        return "its actions are continuous numbers, which are left out"
    return ""


# HDF5


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    h5py = _module("h5py", path)
    with h5py.File(path, "r") as file:
        yield file


class _Tree(NamedTuple):
    """The datasets of an HDF5 file by their paths, with their shapes and kinds."""

    frames: dict[str, tuple[int, ...]]
    others: dict[str, tuple[tuple[int, ...], str]]


@lru_cache(maxsize=8)
def _hdf5_tree(path: Path, _modified: int) -> _Tree:
    frames: dict[str, tuple[int, ...]] = {}
    others: dict[str, tuple[tuple[int, ...], str]] = {}
    h5py = _module("h5py", path)

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return
        shape = tuple(item.shape)
        raw = item.dtype == np.uint8 and len(shape) == 4 and 3 in (shape[-1], shape[1])
        compressed = h5py.check_vlen_dtype(item.dtype) == np.uint8 and len(shape) == 1
        if raw or compressed:
            frames[name] = shape
        else:
            others[name] = (shape, item.dtype.kind)

    with _hdf5(path) as file:
        file.visititems(visit)
    return _Tree(frames, others)


def _split_path(name: str, field: str) -> str | None:
    """The group of a dataset whose path ends in `field`; None if it does not."""
    if name == field:
        return ""
    return name.removesuffix("/" + field) if name.endswith("/" + field) else None


def _hdf5_episodes(path: Path, fields: Fields) -> list[Episode]:
    found = _hdf5_tree(path, path.stat().st_mtime_ns)
    if not found.frames:
        raise UserError(
            f"{path} holds no frames, which are uint8 arrays of shape (T, H, W, 3): it holds "
            f"{_listed(dict(found.others)) or 'nothing'}"
        )
    depths = {name: _field_of(name, list(found.frames)) for name in found.frames}
    names = sorted(set(depths.values()))
    wanted = fields.frames.strip("/")
    if wanted:
        groups = {g: n for n in found.frames if (g := _split_path(n, wanted)) is not None}
        if not groups:
            _choose(names, wanted, (), "frames", path)
    elif len(names) == 1:
        wanted = names[0]
        groups = {_split_path(name, wanted) or "": name for name in found.frames}
    else:
        raise UserError(
            f"{path} holds several pictures per episode: choose one by --cfg.fields frames= "
            f"{_listed(names)}"
        )
    result: list[Episode] = []
    for group, name in groups.items():
        actions, note = _hdf5_actions(path, group, fields, found)
        where = f"{group}/{wanted}" if group else wanted
        assert where == name
        result.append(Episode(group, (path,), name, actions=actions, note=note))
    return result


def _field_of(name: str, names: list[str]) -> str:
    """The part of a path that all episodes share: without the first component that differs between
    paths that are otherwise alike."""
    parts = name.split("/")
    for i, part in enumerate(parts[:-1]):
        alike = [other.split("/") for other in names]
        differing = [
            other
            for other in alike
            if len(other) == len(parts)
            and other[i] != part
            and other[:i] + other[i + 1 :] == parts[:i] + parts[i + 1 :]
        ]
        if differing:
            return "/".join(parts[i + 1 :])
    return name


def _hdf5_actions(
    path: Path, group: str, fields: Fields, found: _Tree
) -> tuple[ActionsAt | None, str]:
    """The actions of the episode in a group, and why they are left out."""
    prefix = f"{group}/" if group else ""
    own = {
        name.removeprefix(prefix): shape
        for name, (shape, kind) in found.others.items()
        if name.startswith(prefix) and shape and kind in "iufb"
    }
    field = _choose(sorted(own), fields.actions.strip("/"), ACTION_NAMES, "actions", path)
    if not field:
        return None, ""
    where = ActionsAt(path, prefix + field)
    width = int(np.prod(own[field][1:]))
    note = _continuous(_hdf5_array(where) if width == 1 else np.zeros(0), width)
    return (None, note) if note else (where, "")


def _hdf5_array(at: ActionsAt) -> np.ndarray:
    with _hdf5(at.file) as file:
        return np.asarray(file[at.field][()])


def _hdf5_frames(path: Path, field: str) -> Iterator[Callable[[], Image.Image]]:
    with _hdf5(path) as file:
        array = file[field]
        for begin in range(0, len(array), ROWS):
            for frame in array[begin : begin + ROWS]:
                yield partial(_decoded, frame, f"{path.name}/{field}")


def _decoded(frame: np.ndarray, name: str) -> Image.Image:
    """A frame (H, W, 3) or (3, H, W), or the bytes of an image file."""
    if frame.ndim == 1:
        try:
            return images.open_image(frame.tobytes(), name)
        except UserError as error:
            raise Unreadable(str(error)) from error
    if frame.shape[-1] != 3:
        frame = frame.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(frame))


# Parquet


def _parquet(path: Path) -> Any:
    return _module("pyarrow.parquet", path).ParquetFile(path)


def _is_picture(kind: Any) -> bool:
    """Whether a column of this type may hold image files: their bytes, or a struct with them."""
    types = importlib.import_module("pyarrow.types")
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _parquet_column(path: Path, name: str, rows: tuple[int, int]) -> np.ndarray:
    """Some rows of a column of numbers, (rows,) or (rows, K)."""
    column = _whole_column(path, name, path.stat().st_mtime_ns)
    return np.array(column.slice(rows[0], rows[1] - rows[0]).to_pylist())


@lru_cache(maxsize=4)
def _whole_column(path: Path, name: str, _modified: int) -> Any:
    """A column of a file, which holds the rows of many episodes."""
    return _parquet(path).read(columns=[name]).column(0)


def _parquet_episodes(path: Path, fields: Fields) -> list[Episode]:
    file = _parquet(path)
    schema = file.schema_arrow
    pictures = [field.name for field in schema if _is_picture(field.type)]
    frames = _choose(pictures, fields.frames, (), "frames", path)
    if not frames:
        raise UserError(
            f"{path} holds {'several columns' if pictures else 'no column'} of pictures: choose one "
            f"by --cfg.fields frames= {_listed(pictures or schema.names)}"
        )
    episode = _choose(list(schema.names), fields.episode, EPISODE_NAMES, "episode", path)
    count = file.metadata.num_rows
    bounds = [0, count]
    if episode:
        values = np.asarray(file.read(columns=[episode]).column(0).to_pylist())
        bounds = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), count]
    actions = _choose(list(schema.names), fields.actions, ACTION_NAMES, "actions", path)
    result: list[Episode] = []
    for number in range(len(bounds) - 1):
        rows = (bounds[number], bounds[number + 1])
        if rows[0] == rows[1]:
            continue
        at, note = _parquet_actions(path, actions, rows)
        result.append(Episode(f"{number:06d}", (path,), frames, rows, actions=at, note=note))
    return result


def _parquet_actions(path: Path, field: str, rows: tuple[int, int]) -> tuple[ActionsAt | None, str]:
    if not field:
        return None, ""
    values = _parquet_column(path, field, rows)
    if values.dtype.kind not in "iufb":
        return None, "its actions are no numbers, and are left out"
    note = _continuous(values, int(np.prod(values.shape[1:])))
    return (None, note) if note else (ActionsAt(path, field, rows), "")


def _parquet_frames(
    path: Path, field: str, rows: tuple[int, int]
) -> Iterator[Callable[[], Image.Image]]:
    begin = 0
    for batch in _parquet(path).iter_batches(batch_size=ROWS, columns=[field]):
        end = begin + batch.num_rows
        if end > rows[0]:
            first, last = max(rows[0], begin) - begin, min(rows[1], end) - begin
            for item in batch.column(0).slice(first, last - first).to_pylist():
                content = item.get("bytes") if isinstance(item, dict) else item
                if not content:
                    raise Unreadable("a picture is not in the file")
                yield partial(_decoded, np.frombuffer(content, np.uint8), f"{path.name}/{field}")
        begin = end
        if begin >= rows[1]:
            return


# LeRobot


def _lerobot_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    try:
        content = path.read_bytes()
        if len(content) > MAX_INFO:
            raise ValueError(f"more than {MAX_INFO} bytes")
        info = json.loads(content)
        assert isinstance(info, dict) and isinstance(info["features"], dict)
        assert all(isinstance(feature, dict) for feature in info["features"].values())
        assert isinstance(info["data_path"], str)
        return info
    except (OSError, ValueError, KeyError, AssertionError, RecursionError) as error:
        raise UserError(
            f"{path} does not describe a LeRobot data set ({_reason(error)}): copy it again"
        ) from error


def _lerobot_episodes(folder: Path, fields: Fields) -> list[Episode]:
    info = _lerobot_info(folder)
    features = info["features"]
    cameras = [name for name, feature in features.items() if feature.get("dtype") == "video"]
    camera = _choose(cameras, fields.frames, (), "frames", folder)
    if not camera:
        stored = [name for name, feature in features.items() if feature.get("dtype") == "image"]
        if stored:
            raise UserError(
                f"{folder} holds pictures ({_listed(stored)}) in its parquet files: import these, as "
                f"in --cfg.src '{folder}/data/**/*.parquet' --cfg.fields frames={stored[0]}"
            )
        raise UserError(
            f"{folder} has {'several' if cameras else 'no'} cameras: choose one by --cfg.fields "
            f"frames= {_listed(cameras or list(features))}"
        )
    action = _choose(list(features), fields.actions, ACTION_NAMES, "actions", folder)
    width = 0
    if action:
        width = int(np.prod(features[action].get("shape") or [1]))
    if str(info.get("codebase_version", "")).startswith("v2"):
        return _lerobot_v2(folder, info, camera, action, width)
    return _lerobot_v3(folder, info, camera, action, width)


def _lerobot_v2(
    folder: Path, info: dict[str, Any], camera: str, action: str, width: int
) -> list[Episode]:
    """A video file and a parquet file per episode."""
    result: list[Episode] = []
    for number in range(int(info["total_episodes"])):
        chunk = number // int(info.get("chunks_size", 1000))
        where = {"episode_chunk": chunk, "episode_index": number, "video_key": camera}
        table = _inside(folder, info["data_path"].format(**where))
        at, note = None, ""
        if action:
            rows = (0, _parquet(table).metadata.num_rows)
            at, note = _parquet_actions_of(table, action, rows, width)
        video = _inside(folder, info["video_path"].format(**where))
        result.append(Episode(f"{number:06d}", (video,), "", actions=at, note=note))
    return result


def _lerobot_v3(
    folder: Path, info: dict[str, Any], camera: str, action: str, width: int
) -> list[Episode]:
    """Several episodes per file; meta/episodes says where each of them is."""
    prefix = f"videos/{camera}"
    columns = [
        *("episode_index", "dataset_from_index", "dataset_to_index"),
        *("data/chunk_index", "data/file_index"),
        *(f"{prefix}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")),
        f"{prefix}/to_timestamp",
    ]
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta" / "episodes").rglob("*.parquet")):
        rows += _parquet(path).read(columns=columns).to_pylist()
    first_of: dict[Path, int] = {}
    result: list[Episode] = []
    for row in rows:
        where = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = _inside(folder, info["data_path"].format(**where))
        first = first_of.setdefault(table, row["dataset_from_index"])
        inside = (row["dataset_from_index"] - first, row["dataset_to_index"] - first)
        at, note = None, ""
        if action:
            at, note = _parquet_actions_of(table, action, inside, width)
        where = {
            "video_key": camera,
            "chunk_index": row[f"{prefix}/chunk_index"],
            "file_index": row[f"{prefix}/file_index"],
        }
        video = _inside(folder, info["video_path"].format(**where))
        seconds = (row[f"{prefix}/from_timestamp"], row[f"{prefix}/to_timestamp"])
        name = f"{row['episode_index']:06d}"
        result.append(Episode(name, (video,), "", seconds=seconds, actions=at, note=note))
    return result


def _inside(folder: Path, name: str) -> Path:
    """A file of the data set. Its description must not lead out of its folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / INFO} names {name}, which is outside of {folder}: correct it")
    return path


def _parquet_actions_of(
    table: Path, action: str, rows: tuple[int, int], width: int
) -> tuple[ActionsAt | None, str]:
    """`_parquet_actions`, without reading those that are known to be vectors."""
    if width > 1:
        return None, _continuous(np.zeros(0), width)
    return _parquet_actions(table, action, rows)
