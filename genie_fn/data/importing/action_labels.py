"""Recorded actions beside a video: clip.jsonl or clip.csv, checked line by line.

Each row is one action, a name or a number: of one frame after another, or, with a `frame` (from 0) or a `time` (seconds
after the first frame) beside it, from there on until the next row. In JSONL a row is a bare value or an object such as
{"time": 0.5, "action": "JUMP"}; in CSV it is a line, below a header that names the columns (or of one column without).
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genie_fn.errors import UserError

MAX_BYTES = 64 << 20
MAX_ACTIONS = 256  # a store keeps an action in a byte
MAX_NAME = 40
SLACK = 1e-3  # seconds by which a time that was rounded may come too late


class Labels(NamedTuple):
    """The rows of one file. `by` is row, frame or time; `at` (R,) is where each begins; `actions` are names or ids."""

    path: Path
    by: str
    at: np.ndarray
    actions: list[str | int]
    lines: list[int]


class Known(NamedTuple):
    """The same with ids (R,) uint8."""

    path: Path
    by: str
    at: np.ndarray
    ids: np.ndarray


def read(path: Path) -> Labels:
    """Parse a file of actions. A UserError names the file and the line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} is larger than {MAX_BYTES >> 20} MB: it should hold a short line per frame."
            )
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8: write it again.") from error
    rows = list(_csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text))
    if not rows:
        raise UserError(f"{path} holds no actions: write one per frame, or delete it.")
    by = next(iter(rows[0][1].keys() - {"action"}), "row")
    at, actions = [], []
    for number, (line, row) in enumerate(rows):
        if row.keys() != rows[0][1].keys():
            raise _wrong(
                path,
                line,
                f"has other fields than line {rows[0][0]}",
                "give every line the same ones",
            )
        at.append(
            number if by == "row" else _position(path, line, by, row[by], at[-1] if at else None)
        )
        actions.append(_action(path, line, row["action"]))
    return Labels(path, by, np.array(at, float), actions, [line for line, _ in rows])


def _wrong(path: Path, line: int, what: str, cure: str) -> UserError:
    return UserError(f"{path} line {line} {what}: {cure}.")


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _wrong(
                path, line, "is not JSON", 'write a row such as {"frame": 0, "action": "LEFT"}'
            ) from error
        row = row if isinstance(row, dict) else {"action": row}
        yield line, _fields(path, line, row)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = None
    try:
        for row in table:
            cells, line = [cell.strip() for cell in row], table.line_num
            if not any(cells):
                continue
            if header is None:
                named = [cell.lower() for cell in cells]
                header = named if "action" in named else ["action"]
                if "action" in named:
                    continue
                if len(cells) > 1:
                    raise _wrong(
                        path,
                        line,
                        "names no column for the action",
                        "begin with a line such as frame,action",
                    )
            if len(cells) != len(header):
                raise _wrong(
                    path, line, f"has {len(cells)} cells for {len(header)} columns", "mend it"
                )
            yield line, _fields(path, line, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise _wrong(path, table.line_num, f"is not CSV ({error})", "mend it") from error


def _fields(path: Path, line: int, row: dict) -> dict:
    """The row without the columns that are somebody else's."""
    mine = {name: row[name] for name in ("frame", "time", "action") if name in row}
    if "action" not in mine or len(mine) == 3:
        raise _wrong(
            path, line, "needs an action, and a frame or a time or neither", "name the fields so"
        )
    return mine


def _position(path: Path, line: int, by: str, value: object, before: float | None) -> float:
    """The frame or time of a row, which begins at 0 and rises."""
    try:
        at = (
            float(value)
            if isinstance(value, int | float | str) and not isinstance(value, bool)
            else math.nan
        )
    except (ValueError, OverflowError):
        at = math.nan
    if not 0 <= at < 2**53 or (by == "frame" and at != int(at)):
        raise _wrong(path, line, f"has the {by} {_short(value)}", "write a number from 0 on")
    if before is None and at > 0:
        raise _wrong(
            path,
            line,
            f"is the first, and begins at {by} {value}",
            f"say what is done at {by} 0, too",
        )
    if before is not None and at <= before:
        raise _wrong(
            path, line, f"has the {by} {_short(value)}, not after the line before", "sort the lines"
        )
    return at


def _action(path: Path, line: int, value: object) -> str | int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_ACTIONS:
        return value
    if isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable():
        return value
    limits = f"a name of at most {MAX_NAME} letters or a number from 0 to {MAX_ACTIONS - 1}"
    raise _wrong(path, line, f"has the action {_short(value)}", f"write {limits}")


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "of many digits"
    return text if len(text) <= MAX_NAME else text[:MAX_NAME] + "…"


def names(labels: list[Labels]) -> tuple[str, ...]:
    """The names of all actions that occur, in the order of their ids. Numbers are their own ids and names."""
    found = {action for one in labels for action in one.actions}
    numbers = {action for action in found if isinstance(action, int)}
    if numbers and numbers != found:
        number, name = (
            {type(a): one.path for one in labels for a in one.actions}[kind] for kind in (int, str)
        )
        raise UserError(
            f"The actions of {number} are numbers and those of {name} names: write all of them as names."
        )
    if len(found) > MAX_ACTIONS:
        raise UserError(
            f"There are {len(found)} different actions, and at most {MAX_ACTIONS} can be kept: join some."
        )
    return tuple(map(str, range(max(numbers) + 1))) if numbers else tuple(sorted(found))


def to_ids(labels: Labels, known: tuple[str, ...]) -> Known:
    """The file with ids for names. Raises UserError where an action is not among the known ones."""
    place: Mapping[str, int] = {name: i for i, name in enumerate(known)}
    for line, action in zip(labels.lines, labels.actions, strict=True):
        if str(action) not in place:
            few = ", ".join(known[:20])
            raise _wrong(
                labels.path,
                line,
                f"has the action {action!r}, which is none of {few}",
                "import to a new folder",
            )
    ids = np.array([place[str(action)] for action in labels.actions], np.uint8)
    return Known(labels.path, labels.by, labels.at, ids)


def per_frame(known: Known, first: int, times: np.ndarray) -> np.ndarray:
    """(n,) uint8: the actions at frames first, first + 1, …, which appear at `times` (n,) after the first of all."""
    where = times + SLACK if known.by == "time" else first + np.arange(len(times))
    return known.ids[np.clip(np.searchsorted(known.at, where, side="right") - 1, 0, None)]


def objection(known: Known, count: int) -> str:
    """What speaks against these rows for a video of `count` frames; empty if nothing does."""
    rows = len(known.ids)
    if known.by == "row" and rows not in (
        count,
        count - 1,
    ):  # the last frame's action leads nowhere
        return f"{known.path.name} has {rows} rows, and the video {count} frames: give it one row per frame"
    if known.by == "frame" and known.at[-1] >= count:
        return f"{known.path.name} has a row for frame {known.at[-1]:.0f}, and the video {count} frames"
    return ""
