"""Parquet files with a column of pictures: successive rows with the same value in the column of
episodes are an episode."""

import importlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from genie_fn.data.importing.archives import common
from genie_fn.data.importing.archives.common import (
    ACTION_NAMES,
    ROWS,
    ActionsAt,
    Episode,
    Fields,
    Unreadable,
)
from genie_fn.errors import UserError

EPISODE_NAMES = ("episode_index", "episode_id", "episode", "trajectory_id")


def episodes(path: Path, fields: Fields) -> list[Episode]:
    """The episodes of a file. Raises UserError if the fields are not there."""
    file = opened(path)
    schema = file.schema_arrow
    pictures = [field.name for field in schema if _is_picture(field.type)]
    frames = common.choose(pictures, fields.frames, (), "frames", path)
    if not frames:
        raise UserError(
            f"{path} holds {'several columns' if pictures else 'no column'} of pictures: choose one "
            f"by --cfg.fields frames= {common.listed(pictures or schema.names)}"
        )
    episode = common.choose(list(schema.names), fields.episode, EPISODE_NAMES, "episode", path)
    count = file.metadata.num_rows
    bounds = [0, count]
    if episode:
        values = np.asarray(file.read(columns=[episode]).column(0).to_pylist())
        bounds = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), count]
    actions = common.choose(list(schema.names), fields.actions, ACTION_NAMES, "actions", path)
    result: list[Episode] = []
    for number in range(len(bounds) - 1):
        rows = (bounds[number], bounds[number + 1])
        if rows[0] == rows[1]:
            continue
        at, note = actions_at(path, actions, rows)
        result.append(Episode(f"{number:06d}", (path,), frames, rows, actions=at, note=note))
    return result


def frames(path: Path, field: str, rows: tuple[int, int]) -> Iterator[np.ndarray]:
    """The bytes of the image files in some rows, of which only the row groups are read."""
    file = opened(path)
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


def actions_at(path: Path, field: str, rows: tuple[int, int]) -> tuple[ActionsAt | None, str]:
    """The actions of some rows, and why they are left out."""
    if not field:
        return None, ""
    values = column(path, field, rows)
    if values.dtype.kind not in "iufb":
        return None, "its actions are no numbers, and are left out"
    is_vector = common.is_vector(values, int(np.prod(values.shape[1:])))
    return ActionsAt(path, field, rows, is_vector), ""


def column(path: Path, name: str, rows: tuple[int, int]) -> np.ndarray:
    """Some rows of a column of numbers, (rows,) or (rows, K)."""
    column = whole_column(path, name, path.stat().st_mtime_ns)
    return np.array(column.slice(rows[0], rows[1] - rows[0]).to_pylist())


@lru_cache(maxsize=4)
def whole_column(path: Path, name: str, _modified: int) -> Any:
    """A column of a file, which holds the rows of many episodes."""
    return opened(path).read(columns=[name]).column(0)


def opened(path: Path) -> Any:
    """A file whose description has been read. Raises UserError without pyarrow."""
    return common.module("pyarrow.parquet", path).ParquetFile(path)


def _is_picture(kind: Any) -> bool:
    """Whether a column of this type may hold image files: their bytes, or a struct with them."""
    types = importlib.import_module("pyarrow.types")
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)
