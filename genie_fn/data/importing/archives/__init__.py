"""Recordings in the formats of robot learning and of reinforcement learning: episodes in few files.

HDF5 (as robomimic, ALOHA and Minari write it): every group that holds frames is an episode. LeRobot
(versions 2.1 and 3): a folder with meta/info.json, mp4 files and parquet. Parquet with a column of
pictures: successive rows with the same value in the column of episodes.

`Fields` name where frames and actions are. Files are untrusted input: what cannot be read is a UserError
when episodes are listed, and `Unreadable` when one is read.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from genie_fn.data import images
from genie_fn.data.images import Background
from genie_fn.data.importing.action_labels import LabelFile
from genie_fn.data.importing.archives import common, hdf5, lerobot, parquet
from genie_fn.data.importing.archives.common import (
    ANYWHERE,
    Episode,
    Fields,
    Unreadable,
    check_size,
)
from genie_fn.data.importing.archives.lerobot import INFO
from genie_fn.errors import UserError

__all__ = [
    "ANYWHERE",
    "INFO",
    "Episode",
    "Fields",
    "Unreadable",
    "check_size",
    "episodes",
    "is_archive",
    "labels",
    "parse_fields",
    "read",
]

HDF5 = (".hdf5", ".h5", ".hdf")
PARQUET = ".parquet"


def parse_fields(text: str) -> Fields:
    """`"frames=obs/rgb,actions=action"` → Fields. Raises UserError for other names."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if name not in common.NAMES or not equals or not value:
            raise UserError(
                f"--cfg.fields {text!r} should name {', '.join(common.NAMES)}, as in "
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
            found = lerobot.episodes(path, fields)
        elif path.suffix.lower() == PARQUET:
            found = parquet.episodes(path, fields)
        else:
            found = hdf5.episodes(path, fields)
        return _alike(found)
    except UserError:
        raise
    except Exception as error:  # the libraries raise many kinds
        kind = "LeRobot data" if path.is_dir() else path.suffix[1:]
        raise UserError(
            f"{path} cannot be read as {kind} ({common.reason(error)}): check that it is complete"
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
            frames = parquet.frames(path, episode.frames, episode.rows)
        else:
            frames = hdf5.frames(path, episode.frames)
        for frame in frames:
            yield partial(_decoded, frame, f"{path.name}/{episode.frames}", background)
    except Unreadable:
        raise
    except Exception as error:  # the libraries raise many kinds
        raise Unreadable(f"it is damaged ({common.reason(error)})") from error


def labels(episode: Episode) -> LabelFile:
    """The actions of an episode, one per frame. Raises UserError if they cannot be read."""
    at = episode.actions
    assert at is not None, "asked only of episodes that have actions"
    try:
        values = parquet.column(at.file, at.field, at.rows) if at.rows else hdf5.array(at)
    except Exception as error:  # the libraries raise many kinds
        raise UserError(
            f"the actions {at.field} of {at.file} cannot be read ({common.reason(error)}): import without "
            "them, by --cfg.no-actions"
        ) from error
    table = np.asarray(values).reshape(len(values), -1)
    rows = len(table)
    places = np.arange(rows, dtype=float)
    if at.is_vector:
        return LabelFile(at.file, "row", places, [], [], table.astype(np.float32))
    numbers = table[:, 0].astype(np.int64).tolist()
    return LabelFile(at.file, "row", places, numbers, list(range(rows)))


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
