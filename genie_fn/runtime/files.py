"""Files that survive what happens to a process: written whole or not at all, read with care, held by one at a time."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genie_fn.errors import UserError

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Within it, whatever the system or tensorstore says against writing becomes a UserError that names `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tensorstore raises several kinds
        raise UserError(
            f"{what} cannot be written ({reason(error)}): free space or choose another place, "
            "and the same command goes on from what is kept"
        ) from error


def reason(error: BaseException) -> str:
    """An error in a few words: what the system said, where it is known."""
    known = (os.strerror(number) for number in FULL if os.strerror(number) in str(error))
    said = error.strerror if isinstance(error, OSError) else None
    return next(known, said or type(error).__name__)


def partial_name(path: Path) -> Path:
    """Where a file is written before it replaces `path`: always there, so that what a kill leaves is overwritten."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old file or the new one, nothing between."""
    partial = partial_name(path)
    with writing(path):
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        if os.name == "posix":  # make the rename itself survive a power cut
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


def read_json(path: Path, limit: int) -> Any:
    """What a JSON file of at most `limit` bytes holds. ValueError where it is larger, cut short, or something else."""
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@contextmanager
def exclusive(folder: str | Path, doing: str, instead: str) -> Iterator[None]:
    """Hold `folder`, made if it is not there, alone: the operating system drops the lock with its process, however that
    ends. The UserError of who comes second reads "another process `doing` `folder`: …, or `instead`"."""
    lock = FileLock(Path(folder) / LOCK, timeout=0)
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process {doing} {folder}: wait until it has ended, or {instead}"
            ) from None
    try:
        yield
    finally:
        lock.release()


def open_log(path: Path, step: int) -> Callable[[dict], None]:
    """What appends a row to the metrics file, from which the rows of steps that are to be trained again are removed.

    Rows that cannot be written, because the disk is full, are written with those after them.
    """
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = [line for line in lines if _step_of(line) <= step]
    write_atomically(path, "".join(line + "\n" for line in rows).encode())
    waiting: list[str] = []

    def append(row: dict[str, float]) -> None:
        # NaN is no JSON, and a reader that does not know it would stumble over the whole file.
        waiting.append(
            json.dumps({name: value for name, value in row.items() if math.isfinite(value)}) + "\n"
        )
        whole = path.stat().st_size
        try:
            with path.open("a") as log:
                log.write("".join(waiting))
            waiting.clear()
        except OSError:
            os.truncate(path, whole)

    return append


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short
