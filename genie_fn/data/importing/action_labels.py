"""Recorded actions in a file beside a video: clip.jsonl or clip.csv, checked line by line.

Each row is one action, a name or a number. Without a position, rows belong to one frame after
another. With a `frame` (from 0) or a `time` (seconds after the first frame), an action holds from
there until the next row. In JSONL a row is a bare value or an object, such as
{"time": 0.5, "action": "JUMP"}. In CSV it is a line below a header that names the columns (a single
column needs none).
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from genie_fn.data import vectors
from genie_fn.data.storage import MAX_ACTIONS
from genie_fn.data.vectors import Prototypes
from genie_fn.errors import UserError

MAX_BYTES = 64 << 20
MAX_NAME = 40
MAX_TUPLES = 64  # different actions that are several numbers, such as the states of six keys
TIME_TOLERANCE = 1e-3  # seconds by which a rounded time may come too late

Position = Literal["row", "frame", "time"]


class LabelFile(NamedTuple):
    """The R rows of a file of actions."""

    path: Path
    by: Position
    """What tells where a row begins."""
    at: np.ndarray
    """(R,) float64: where each row begins, in the unit of `by`."""
    actions: list[str | int]
    lines: list[int]
    """The line of each row in the file."""
    vectors: np.ndarray | None = None
    """(R, A) float32, where actions are vectors; `actions` is then empty."""


class ActionTrack(NamedTuple):
    """The R rows of a file of actions, with ids instead of names."""

    path: Path
    by: Position
    at: np.ndarray
    """(R,) float64."""
    ids: np.ndarray
    """(R,) int64."""
    vectors: np.ndarray | None = None
    """(R, A) float32, where actions are vectors; `ids` are then their nearest prototypes."""


def read(path: Path) -> LabelFile:
    """Parse a file of actions. Raises UserError with the file and the line of what is wrong."""
    text = _read_text(path)
    rows = list(_csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text))
    if not rows:
        raise UserError(f"{path} holds no actions: write one per frame, or delete it")
    first_line, first_row = rows[0]
    by: Position = "frame" if "frame" in first_row else "time" if "time" in first_row else "row"
    positions: list[float] = []
    actions: list[str | int] = []
    for number, (line, row) in enumerate(rows):
        if row.keys() != first_row.keys():
            what = f"has other fields than line {first_line}"
            raise _line_error(path, line, what, "give every line the same ones")
        if by == "row":
            positions.append(number)
        else:
            previous = positions[-1] if positions else None
            positions.append(_position(path, line, by, row[by], previous))
        actions.append(_action(path, line, row["action"]))
    return LabelFile(path, by, np.array(positions, float), actions, [line for line, _ in rows])


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} is larger than {MAX_BYTES >> 20} MB: write one short line per frame"
            )
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8: write it again") from error


def _line_error(path: Path, line: int, what: str, remedy: str) -> UserError:
    return UserError(f"{path} line {line} {what}: {remedy}")


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file with their lines."""
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            remedy = 'write a row such as {"frame": 0, "action": "LEFT"}'
            raise _line_error(path, line, "is not JSON", remedy) from error
        row = row if isinstance(row, dict) else {"action": row}
        yield line, _known_fields(path, line, row)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file with their lines."""
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    try:
        for row in table:
            line = table.line_num
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if columns is None:
                columns = _header(path, line, cells)
                if columns is not None:
                    continue
                columns = ["action"]
            if len(cells) != len(columns):
                what = f"has {len(cells)} cells for {len(columns)} columns"
                raise _line_error(path, line, what, "correct it")
            yield line, _known_fields(path, line, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise _line_error(path, table.line_num, f"is not CSV ({error})", "correct it") from error


def _header(path: Path, line: int, cells: list[str]) -> list[str] | None:
    """The names of the columns if the first row is a header; None if it is an action."""
    names = [cell.lower() for cell in cells]
    if "action" in names:
        return names
    if len(cells) > 1:
        remedy = "begin with a line such as frame,action"
        raise _line_error(path, line, "names no column for the action", remedy)
    return None


def _known_fields(path: Path, line: int, row: dict[str, Any]) -> dict[str, Any]:
    """The row without columns of other programs."""
    known = {name: row[name] for name in ("frame", "time", "action") if name in row}
    if "action" not in known or len(known) == 3:
        what = "needs an action, and a frame or a time or neither"
        raise _line_error(path, line, what, "name the fields so")
    return known


def _position(path: Path, line: int, by: str, value: object, previous: float | None) -> float:
    """The frame or time of a row. Positions begin at 0 and rise."""
    at = _to_number(value)
    if not 0 <= at < 2**53 or (by == "frame" and at != int(at)):
        what = f"has the {by} {_abbreviated(value)}"
        raise _line_error(path, line, what, "write a number from 0 on")
    if previous is None and at > 0:
        what = f"is the first, and begins at {by} {value}"
        raise _line_error(path, line, what, f"add the action at {by} 0")
    if previous is not None and at <= previous:
        what = f"has the {by} {_abbreviated(value)}, not after the line before"
        raise _line_error(path, line, what, "sort the lines")
    return at


def _to_number(value: object) -> float:
    """A number or its text as a float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    if isinstance(value, str) and "_" in value:  # which Python ignores between digits
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _action(path: Path, line: int, value: object) -> str | int:
    numbers = _numbers_in(value)
    if any(number != math.floor(number) for number in numbers if math.isfinite(number)):
        what = f"has the action {_abbreviated(value)}, a continuous value"
        remedy = "actions are discrete: divide the range into a few named actions, as in LEFT, NONE"
        raise _line_error(path, line, what, remedy)
    if not isinstance(value, list) and len(numbers) == 1 and numbers[0] in range(MAX_ACTIONS):
        return int(numbers[0])
    is_name = isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()
    if isinstance(value, str) and is_name and len(numbers) != 1:
        return value
    limits = f"a name of at most {MAX_NAME} letters or a number from 0 to {MAX_ACTIONS - 1}"
    what = f"has the action {_abbreviated(value)}"
    raise _line_error(path, line, what, f"write {limits}")


def _numbers_in(value: object) -> list[float]:
    """The numbers that a number, a list or a text consists of; empty if it holds anything else."""
    if isinstance(value, str):
        value = [word for word in re.split(r"[\s,;|()\[\]]+", value) if word]
    numbers = [_to_number(part) for part in (value if isinstance(value, list) else [value])]
    return [] if any(map(math.isnan, numbers)) else numbers


def _abbreviated(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**20:
        return "of many digits"
    text = repr(value)
    return text if len(text) <= MAX_NAME else text[:MAX_NAME] + "…"


def action_names(files: Sequence[LabelFile]) -> tuple[str, ...]:
    """The names of all actions of some files, in the order of their ids.

    Numbers are their own ids and names. Raises UserError if there are numbers and names, if the
    actions look like vectors of continuous values, or if there are too many.
    """
    path_of: dict[str | int, Path] = {}
    for file in files:
        path_of |= dict.fromkeys(file.actions, file.path)
    numbers = [action for action in path_of if isinstance(action, int)]
    names = [action for action in path_of if isinstance(action, str)]
    if numbers and names:
        raise UserError(
            f"the actions of {path_of[numbers[0]]} are numbers and those of {path_of[names[0]]} "
            "names: write all of them as names"
        )
    tuples = [name for name in names if _numbers_in(name)]
    if len(tuples) > MAX_TUPLES:
        raise UserError(
            f"the actions of {path_of[tuples[0]]} are {len(tuples)} different groups of numbers, "
            f"such as {tuples[0]!r}: actions are discrete, so name a few of them instead"
        )
    if len(path_of) > MAX_ACTIONS:
        raise UserError(
            f"there are {len(path_of)} different actions, and a dataset holds at most "
            f"{MAX_ACTIONS}: merge some"
        )
    return tuple(map(str, range(max(numbers) + 1))) if numbers else tuple(sorted(names))


def to_ids(file: LabelFile, names: Sequence[str]) -> ActionTrack:
    """The rows of a file with the ids of `names`. Raises UserError for an action not among them."""
    id_of = {name: i for i, name in enumerate(names)}
    for line, action in zip(file.lines, file.actions, strict=True):
        if str(action) not in id_of:
            listed = ", ".join(names[:20])
            what = f"has the action {action!r}, which is none of {listed}"
            raise _line_error(file.path, line, what, "import to a new folder")
    ids = np.array([id_of[str(action)] for action in file.actions])
    return ActionTrack(file.path, file.by, file.at, ids)


def nearest_prototypes(file: LabelFile, prototypes: Prototypes) -> ActionTrack:
    """The rows of a file of vectors, with the number of the prototype nearest to each."""
    assert file.vectors is not None, "asked only of files of vectors"
    ids = vectors.numbers(file.vectors, prototypes)
    return ActionTrack(file.path, file.by, file.at, ids, file.vectors)


def rows_at(track: ActionTrack, first: int, times: np.ndarray) -> np.ndarray:
    """(n,) int64: the rows that hold at frames first, first + 1, … of a video.

    `times` (n,) are the seconds at which these frames appear after the first frame of the video.
    """
    by_time = track.by == "time"
    where = times + TIME_TOLERANCE if by_time else first + np.arange(len(times))
    return np.clip(np.searchsorted(track.at, where, side="right") - 1, 0, None)


def per_frame(track: ActionTrack, first: int, times: np.ndarray) -> np.ndarray:
    """(n,) int64: the actions at these frames; the arguments are those of `rows_at`."""
    return track.ids[rows_at(track, first, times)]


def mismatch(track: ActionTrack, count: int) -> str:
    """Why the rows do not fit a video of `count` frames; empty if they do."""
    rows = len(track.ids)
    # The action at the last frame leads nowhere and may be left out.
    if track.by == "row" and rows not in (count, count - 1):
        return (
            f"{track.path.name} has {rows} rows, and the video {count} frames: give it one row "
            "per frame"
        )
    if track.by == "frame" and track.at[-1] >= count:
        last = f"{track.at[-1]:.0f}"
        return f"{track.path.name} has a row for frame {last}, and the video {count} frames"
    return ""
