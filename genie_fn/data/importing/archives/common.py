"""What the formats of archives share: what is found in them, and the choice of fields."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from genie_fn.data.importing import containers
from genie_fn.data.storage import BYTE_ACTIONS, MAX_ACTIONS
from genie_fn.errors import UserError

ACTION_NAMES = ("action", "actions")
NAMES = ("frames", "actions", "episode")
INSTALL = {"h5py": "hdf5", "pyarrow": "lerobot"}
"""The extra that installs a package."""
SHOWN = 12
"""Names in an error message."""
ROWS = 64
"""Rows that are read at a time, at most."""


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


def module(name: str, path: Path) -> ModuleType:
    """A library that reads `path`. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{path} needs {name}, which cannot be imported ({error}): run "
            f"`pip install 'genie_fn[{INSTALL[name.partition('.')[0]]}]'`"
        ) from error


def reason(error: Exception) -> str:
    """An error of a library, in a few words."""
    return (str(error) or type(error).__name__).partition("\n")[0][:100]


def listed(names: list[str]) -> str:
    """Names for a message, at most SHOWN."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def choose(names: list[str], wanted: str, usual: tuple[str, ...], what: str, path: Path) -> str:
    """The field of `names` that is wanted, or the only one, or a usual one; empty if there is none."""
    if wanted:
        if wanted in names:
            return wanted
        raise UserError(
            f"{path} has no {what} {wanted}: choose --cfg.fields {what}= one of "
            f"{listed(names) or 'none that can be read'}"
        )
    for name in usual:
        if name in names:
            return name
    return names[0] if len(names) == 1 and not usual else ""


def is_vector(values: np.ndarray, width: int) -> bool:
    """Whether actions of so many numbers each are vectors, or continuous numbers. Whole numbers are
    those of actions: floats only below BYTE_ACTIONS, since larger ones are rather measurements."""
    if width > 1:
        return True
    limit = MAX_ACTIONS if np.issubdtype(np.asarray(values).dtype, np.integer) else BYTE_ACTIONS
    numbers = np.asarray(values, np.float64).ravel()
    whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < limit)
    return not np.all(whole)


def check_size(width: int, height: int) -> None:
    """Raise Unreadable for frames that are too large to be decoded."""
    limit = containers.MAX_PIXELS
    if width * height > limit:
        raise Unreadable(
            f"its frames have {width}x{height} pixels, more than {limit:,}: make it smaller first"
        )
