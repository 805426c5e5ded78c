"""LeRobot data sets, versions 2.1 and 3: a folder with meta/info.json, mp4 files and parquet files."""

import os.path
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from genie_fn.data.importing.archives import common, parquet
from genie_fn.data.importing.archives.common import ACTION_NAMES, ActionsAt, Episode, Fields
from genie_fn.errors import UserError
from genie_fn.runtime import files

INFO = Path("meta") / "info.json"
MAX_INFO = 16 << 20
MISSING = 1000
"""Missing videos of a LeRobot data set after which no more are looked for."""
PLACE = re.compile(r"\{\w+(:0?\d{1,2}d)?\}")
"""What a name in the description of a LeRobot data set may hold."""


def episodes(folder: Path, fields: Fields) -> list[Episode]:
    """The episodes of a data set. Raises UserError if its description is not valid, or if the fields are
    not there."""
    info = _read_info(folder)
    features = info["features"]
    cameras = [name for name, feature in features.items() if feature.get("dtype") == "video"]
    camera = common.choose(cameras, fields.frames, (), "frames", folder)
    if not camera:
        stored = [name for name, feature in features.items() if feature.get("dtype") == "image"]
        if stored:
            raise UserError(
                f"{folder} holds pictures ({common.listed(stored)}) in its parquet files: import these, as "
                f"in --cfg.src '{folder}/data/**/*.parquet' --cfg.fields frames={stored[0]}"
            )
        raise UserError(
            f"{folder} has {'several' if cameras else 'no'} cameras: choose one by --cfg.fields "
            f"frames= {common.listed(cameras or list(features))}"
        )
    action = common.choose(list(features), fields.actions, ACTION_NAMES, "actions", folder)
    width = 0
    if action:
        width = int(np.prod(features[action].get("shape") or [1]))
    if str(info.get("codebase_version", "")).startswith("v2"):
        return _version_2(folder, info, camera, action, width)
    return _version_3(folder, info, camera, action, width)


def _read_info(folder: Path) -> dict[str, Any]:
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
            f"{path} does not describe a LeRobot data set ({common.reason(error)}): copy it again"
        ) from error


def _version_2(
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
            rows = (0, parquet.opened(table).metadata.num_rows)
            at, note = _actions_at(table, action, rows, width)
        result.append(Episode(f"{number:06d}", (video,), "", actions=at, note=note))
    return result


def _version_3(
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
        rows += parquet.opened(path).read(columns=columns).to_pylist()
    result: list[Episode] = []
    for row in rows:
        where = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = _inside(folder, info["data_path"].format(**where))
        at, note = None, ""
        if action:
            inside = _rows_of(table, int(row["episode_index"]), int(row["length"]))
            at, note = _actions_at(table, action, inside, width)
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
    return np.asarray(parquet.whole_column(table, "episode_index", modified).to_pylist())


def _inside(folder: Path, name: str) -> Path:
    """A file of the data set. Its description must not lead out of its folder (its files may be links:
    those of the Hub's cache are)."""
    path = folder / name
    if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
        raise UserError(f"{folder / INFO} names {name}, which is outside of {folder}: correct it")
    return path


def _actions_at(
    table: Path, action: str, rows: tuple[int, int], width: int
) -> tuple[ActionsAt | None, str]:
    """`parquet.actions_at`, without reading those that are known to be vectors."""
    if width > 1:
        return ActionsAt(table, action, rows, is_vector=True), ""
    return parquet.actions_at(table, action, rows)
