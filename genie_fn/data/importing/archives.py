"""Recordings in the formats of robot learning and of reinforcement learning: episodes in few files.

HDF5 (as robomimic, ALOHA and Minari write it): every group that holds frames is an episode. LeRobot
(versions 2.1 and 3): a folder with meta/info.json, mp4 files and parquet. Parquet with a column of
pictures: successive rows with the same value in the column of episodes.

`Fields` name where frames and actions are. Files are untrusted input: what cannot be read is a UserError
when episodes are listed, and `Unreadable` when one is read.
"""

import importlib
import os.path
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from genie_fn.data import images
from genie_fn.data.images import Background
from genie_fn.data.importing import containers
from genie_fn.data.importing.action_labels import LabelFile
from genie_fn.data.storage import BYTE_ACTIONS, MAX_ACTIONS
from genie_fn.errors import UserError
from genie_fn.runtime import files

HDF5 = (".hdf5", ".h5", ".hdf")
PARQUET = ".parquet"
INFO = Path("meta") / "info.json"
MAX_INFO = 16 << 20
ACTION_NAMES = ("action", "actions")
EPISODE_NAMES = ("episode_index", "episode_id", "episode", "trajectory_id")
ROWS = 64
"""Rows that are read at a time, at most."""
READ_BYTES = 16 << 20
"""Bytes of frames that are read at a time, or one frame."""
MISSING = 1000
"""Missing videos of a LeRobot data set after which no more are looked for."""
PICTURE_BEGINS = (b"\xff\xd8\xff", b"\x89PNG")
"""The first bytes of JPEG and PNG files."""
PLACE = re.compile(r"\{\w+(:0?\d{1,2}d)?\}")
"""What a name in the description of a LeRobot data set may hold."""
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
    is_vector: bool = False
    """Whether they are vectors, or continuous numbers, and not numbers of actions."""


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
    """Whether a file is one of these formats, by its name."""
    return path.suffix.lower() in (*HDF5, PARQUET)


def episodes(path: Path, fields: Fields) -> list[Episode]:
    """The episodes of an archive in order. Raises UserError where there are none, or if the fields are
    not there."""
    try:
        if path.is_dir():
            found = _lerobot_episodes(path, fields)
        elif path.suffix.lower() == PARQUET:
            found = _parquet_episodes(path, fields)
        else:
            found = _hdf5_episodes(path, fields)
        return _alike(found)
    except UserError:
        raise
    except Exception as error:  # the libraries raise many kinds
        kind = "LeRobot data" if path.is_dir() else path.suffix[1:]
        raise UserError(
            f"{path} cannot be read as {kind} ({_reason(error)}): check that it is complete"
        ) from error


def _alike(found: list[Episode]) -> list[Episode]:
    """Episodes whose actions are all vectors, or all numbers of actions: what is continuous in one
    episode may look like numbers of actions in another."""
    if not any(episode.actions and episode.actions.is_vector for episode in found):
        return found
    return [
        episode._replace(actions=episode.actions and episode.actions._replace(is_vector=True))
        for episode in found
    ]


def read(episode: Episode, background: Background = "black") -> Iterator[Callable[[], Image.Image]]:
    """The pictures of an episode of HDF5 or parquet, decoded when called. Raises Unreadable."""
    path = episode.files[0]
    try:
        if episode.rows is not None:
            frames = _parquet_frames(path, episode.frames, episode.rows)
        else:
            frames = _hdf5_frames(path, episode.frames)
        for frame in frames:
            yield partial(_decoded, frame, f"{path.name}/{episode.frames}", background)
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
    table = np.asarray(values).reshape(len(values), -1)
    rows = len(table)
    places = np.arange(rows, dtype=float)
    if at.is_vector:
        return LabelFile(at.file, "row", places, [], [], table.astype(np.float32))
    numbers = table[:, 0].astype(np.int64).tolist()
    return LabelFile(at.file, "row", places, numbers, list(range(rows)))


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


def _listed(names: list[str]) -> str:
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


def _is_vector(values: np.ndarray, width: int) -> bool:
    """Whether actions of so many numbers each are vectors, or continuous numbers. Whole numbers are
    those of actions: floats only below BYTE_ACTIONS, since larger ones are rather measurements."""
    if width > 1:
        return True
    limit = MAX_ACTIONS if np.issubdtype(np.asarray(values).dtype, np.integer) else BYTE_ACTIONS
    numbers = np.asarray(values, np.float64).ravel()
    whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < limit)
    return not np.all(whole)


# HDF5


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    h5py = _module("h5py", path)
    with h5py.File(path, "r") as file:
        yield file


class _Tree(NamedTuple):
    """The datasets of an HDF5 file by their paths."""

    frames: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]
    """Arrays of numbers, and their shapes."""
    others: tuple[str, ...]


@lru_cache(maxsize=8)
def _hdf5_tree(path: Path, _modified: int) -> _Tree:
    frames: list[str] = []
    numbers: dict[str, tuple[int, ...]] = {}
    others: list[str] = []
    h5py = _module("h5py", path)

    def visit(name: str, item: Any) -> None:
        is_array = isinstance(item, h5py.Dataset) and item.shape
        if not is_array or item.external or item.is_virtual:  # which would read other files
            return
        if _holds_frames(item):
            frames.append(name)
        elif item.dtype.kind in "iufb":
            numbers[name] = tuple(item.shape)
        else:
            others.append(name)

    with _hdf5(path) as file:
        file.visititems(visit)
    return _Tree(tuple(frames), numbers, tuple(others))


def _holds_frames(item: Any) -> bool:
    """Whether an array is frames (T, H, W, 3) or (T, 3, H, W), or T files of pictures."""
    h5py = importlib.import_module("h5py")
    shape = item.shape
    if not shape[0]:
        return False
    if h5py.check_vlen_dtype(item.dtype) == np.uint8 and len(shape) == 1:
        return True
    if item.dtype != np.uint8 or 0 in shape:
        return False
    if len(shape) == 2:  # files of pictures with zeros after their end
        return bytes(item[0, :4]).startswith(PICTURE_BEGINS)
    return len(shape) == 4 and 3 in (shape[-1], shape[1])


def _hdf5_episodes(path: Path, fields: Fields) -> list[Episode]:
    found = _hdf5_tree(path, path.stat().st_mtime_ns)
    if not found.frames:
        raise UserError(
            f"{path} holds no frames, which are uint8 arrays of shape (T, H, W, 3): it holds "
            f"{_listed([*found.numbers, *found.others]) or 'nothing'}"
        )
    places = _places(found, fields)
    names = sorted({place.field for place in places})
    frames = _choose(names, fields.frames.strip("/"), (), "frames", path)
    if not frames:
        raise UserError(
            f"{path} holds several pictures per episode: choose one by --cfg.fields frames= "
            f"{_listed(names)}"
        )
    result: list[Episode] = []
    for place in places:
        if place.field == frames:
            actions = _hdf5_actions(path, place.group, fields, found)
            where = "/".join(filter(None, place))
            result.append(Episode(place.group, (path,), where, actions=actions))
    return result


class _Place(NamedTuple):
    """Where frames are: the group of their episode, and the path below it."""

    group: str
    field: str


def _places(found: _Tree, fields: Fields) -> list[_Place]:
    """The groups of the frames of a file.

    An episode is the group that holds the actions. In a file without actions, it is what differs
    between paths that are otherwise alike, or else the group of the frames itself.
    """
    wanted = fields.actions.strip("/")
    usual = (wanted,) if wanted else ACTION_NAMES
    holders = {g for name in found.numbers for u in usual if (g := _group_of(name, u)) is not None}
    places: list[_Place] = []
    for name in found.frames:
        parents = [name[:i] for i, letter in enumerate(name) if letter == "/"]
        group = next((parent for parent in reversed(["", *parents]) if parent in holders), None)
        if group is not None:
            places.append(_Place(group, name[len(group) + 1 :] if group else name))
    return places or _places_by_difference(found.frames)


def _group_of(name: str, field: str) -> str | None:
    """The group of a path that ends in `field`; None if it does not."""
    if name == field:
        return ""
    return name.removesuffix(f"/{field}") if name.endswith(f"/{field}") else None


def _places_by_difference(names: tuple[str, ...]) -> list[_Place]:
    """The first component in which paths differ that are otherwise alike ends the group."""
    paths = [tuple(name.split("/")) for name in names]
    alike = Counter((i, p[:i], p[i + 1 :]) for p in paths for i in range(len(p) - 1))
    places: list[_Place] = []
    for path in paths:
        differing = [i for i in range(len(path) - 1) if alike[i, path[:i], path[i + 1 :]] > 1]
        end = differing[0] + 1 if differing else len(path) - 1
        places.append(_Place("/".join(path[:end]), "/".join(path[end:])))
    return places


def _hdf5_actions(path: Path, group: str, fields: Fields, found: _Tree) -> ActionsAt | None:
    """The actions of the episode in a group."""
    prefix = f"{group}/" if group else ""
    own = {
        name.removeprefix(prefix): shape
        for name, shape in found.numbers.items()
        if name.startswith(prefix)
    }
    field = _choose(sorted(own), fields.actions.strip("/"), ACTION_NAMES, "actions", path)
    if not field or not own[field][0]:
        return None
    where = ActionsAt(path, prefix + field)
    width = int(np.prod(own[field][1:]))
    is_vector = _is_vector(_hdf5_array(where) if width == 1 else np.zeros(0), width)
    return where._replace(is_vector=is_vector)


def _hdf5_array(at: ActionsAt) -> np.ndarray:
    with _hdf5(at.file) as file:
        return np.asarray(file[at.field][()])


def _hdf5_frames(path: Path, field: str) -> Iterator[np.ndarray]:
    """Frames, or the bytes of image files."""
    with _hdf5(path) as file:
        array = file[field]
        if array.ndim == 4:
            height, width = sorted(array.shape[1:])[1:]  # in either order: only the size matters
            check_size(width, height)
        rows = max(1, min(ROWS, READ_BYTES // max(1, int(np.prod(array.shape[1:])))))
        for begin in range(0, len(array), rows):
            yield from array[begin : begin + rows]


def check_size(width: int, height: int) -> None:
    """Raise Unreadable for frames that are too large to be decoded."""
    limit = containers.MAX_PIXELS
    if width * height > limit:
        raise Unreadable(
            f"its frames have {width}x{height} pixels, more than {limit:,}: make it smaller first"
        )


def _decoded(frame: np.ndarray, name: str, background: Background) -> Image.Image:
    """A frame (H, W, 3) or (3, H, W), or the bytes of an image file."""
    if frame.ndim == 1:
        try:
            return images.open_image(frame.tobytes(), name, background)
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
    """The actions of some rows, and why they are left out."""
    if not field:
        return None, ""
    values = _parquet_column(path, field, rows)
    if values.dtype.kind not in "iufb":
        return None, "its actions are no numbers, and are left out"
    is_vector = _is_vector(values, int(np.prod(values.shape[1:])))
    return ActionsAt(path, field, rows, is_vector), ""


def _parquet_frames(path: Path, field: str, rows: tuple[int, int]) -> Iterator[np.ndarray]:
    """The bytes of the image files in some rows, of which only the row groups are read."""
    file = _parquet(path)
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    first, last = np.searchsorted(ends, (rows[0], rows[1] - 1), side="right").tolist()
    begin = int(ends[first - 1]) if first else 0
    groups = list(range(first, last + 1))
    for batch in file.iter_batches(batch_size=ROWS, row_groups=groups, columns=[field]):
        start = max(rows[0] - begin, 0)
        stop = min(rows[1] - begin, batch.num_rows)
        begin += batch.num_rows
        if start >= stop:
            continue
        for item in batch.column(0).slice(start, stop - start).to_pylist():
            content = item.get("bytes") if isinstance(item, dict) else item
            if not content:
                raise Unreadable("a picture is not in the file")
            yield np.frombuffer(content, np.uint8)


# LeRobot


def _lerobot_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    try:
        info = files.read_json(path, MAX_INFO)
        assert isinstance(info, dict) and isinstance(info["features"], dict)
        assert all(isinstance(feature, dict) for feature in info["features"].values())
        for name in ("data_path", "video_path"):
            text = info.get(name)
            assert text is None or isinstance(text, str) and "{" not in PLACE.sub("", text)
        return info
    except (OSError, ValueError, KeyError, AssertionError) as error:
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
    missing = 0
    for number in range(int(info["total_episodes"])):
        chunk = number // int(info.get("chunks_size", 1000))
        where = {"episode_chunk": chunk, "episode_index": number, "video_key": camera}
        video = _inside(folder, info["video_path"].format(**where))
        missing += not video.is_file()
        if missing > MISSING:
            break
        table = _inside(folder, info["data_path"].format(**where))
        at, note = None, ""
        if action:
            rows = (0, _parquet(table).metadata.num_rows)
            at, note = _parquet_actions_of(table, action, rows, width)
        result.append(Episode(f"{number:06d}", (video,), "", actions=at, note=note))
    return result


def _lerobot_v3(
    folder: Path, info: dict[str, Any], camera: str, action: str, width: int
) -> list[Episode]:
    """Several episodes per file; meta/episodes says where each of them is."""
    prefix = f"videos/{camera}"
    columns = [
        *("episode_index", "length", "data/chunk_index", "data/file_index"),
        *(f"{prefix}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")),
        f"{prefix}/to_timestamp",
    ]
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta" / "episodes").rglob("*.parquet")):
        rows += _parquet(path).read(columns=columns).to_pylist()
    result: list[Episode] = []
    for row in rows:
        where = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = _inside(folder, info["data_path"].format(**where))
        at, note = None, ""
        if action:
            inside = _rows_of(table, int(row["episode_index"]), int(row["length"]))
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


def _rows_of(table: Path, episode: int, length: int) -> tuple[int, int]:
    """The rows of an episode in a file. Raises UserError unless there are as many as described."""
    values = _episode_column(table, table.stat().st_mtime_ns)
    rows = np.flatnonzero(values == episode)
    if len(rows) != length or not length or rows[-1] - rows[0] + 1 != length:
        raise UserError(
            f"{table} holds {len(rows)} rows of episode {episode}, which has {length} frames: copy "
            "the data set again, or import without actions by --cfg.no-actions"
        )
    return int(rows[0]), int(rows[-1]) + 1


@lru_cache(maxsize=4)
def _episode_column(table: Path, modified: int) -> np.ndarray:
    """The number of the episode of every row of a file."""
    return np.asarray(_whole_column(table, "episode_index", modified).to_pylist())


def _inside(folder: Path, name: str) -> Path:
    """A file of the data set. Its description must not lead out of its folder (its files may be links:
    those of the Hub's cache are)."""
    path = folder / name
    if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
        raise UserError(f"{folder / INFO} names {name}, which is outside of {folder}: correct it")
    return path


def _parquet_actions_of(
    table: Path, action: str, rows: tuple[int, int], width: int
) -> tuple[ActionsAt | None, str]:
    """`_parquet_actions`, without reading those that are known to be vectors."""
    if width > 1:
        return ActionsAt(table, action, rows, is_vector=True), ""
    return _parquet_actions(table, action, rows)
