"""Files that survive crashes: replaced atomically, read with a size limit, and folders with one
writer at a time."""

import errno
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genie_fn.errors import UserError

LOCK = ".lock"
TRIAL = ".trial"
"""A file that is created in a folder, and removed, to find out whether that is possible."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Within the context any error of the system or of tensorstore becomes a UserError that names
    `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tensorstore raises several kinds
        raise UserError(
            f"{what} cannot be written ({reason(error)}): free space or choose another place, "
            "and the same command continues from what is saved"
        ) from error


def check_outputs(flag: str, *paths: str | Path) -> None:
    """Raise UserError, which names `flag`, for a file that cannot be written; before the work, so
    that nothing is lost.

    Each file is tried: it is opened without a change, or created with the folders that it needs and
    removed again with them.
    """
    for path in map(Path, paths):
        try:
            _try_file(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be written ({reason(error)}): choose another place with {flag}"
            ) from error


def check_folder(flag: str, folder: str | Path) -> None:
    """`check_outputs` for files that are to be written to a folder, which may be missing."""
    check_outputs(flag, Path(folder) / TRIAL)


def _try_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        return  # a device or a pipe, which is not opened twice
    with _temporary_folders(path.parent):
        for name in (partial_name(path), path):
            is_new = not os.path.lexists(name)
            with open(name, "ab"):
                pass
            if is_new:
                name.unlink()


@contextmanager
def _temporary_folders(folder: Path) -> Iterator[None]:
    """Make the folders that are missing, and remove those again that are still empty."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            for made in missing:
                made.rmdir()


def sentence(error: OSError) -> str:
    """An error of the system that nothing has handled, and what to do."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
    if error.errno in DISK_FULL:
        return f"{name} cannot be written ({reason(error)}): free space and start again"
    return (
        f"{name} cannot be read or written ({reason(error)}): "
        "correct the path or its permissions, and start again"
    )


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Within the context an error of the system names `path`, unless it names another file."""
    try:
        yield
    except OSError as error:
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, reason(error), os.fspath(path)) from error


def reason(error: BaseException) -> str:
    """An error in a few words: the system's own, if it is known."""
    for number in DISK_FULL:
        if os.strerror(number) in str(error):
            return os.strerror(number)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def partial_name(path: Path) -> Path:
    """The file that is written before it replaces `path`; always the same, so that a killed process
    leaves only one."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader sees the old file or the new one, also after a
    crash."""
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
        if os.name == "posix":
            _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by UTF-8 text, and make its folder if that is missing.

    Parts of file names that are no text, which Python holds as surrogates, are written as escapes.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def read_json(path: Path, limit: int) -> Any:
    """The content of a JSON file of at most `limit` bytes.

    Raises ValueError if the file is larger, truncated, nested too deeply, or not JSON.
    """
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
    """Hold the lock of `folder`, which is created if missing; the operating system releases it when
    a process dies.

    A second process gets a UserError: "another process `doing` `folder`: …, or `instead`".
    """
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
