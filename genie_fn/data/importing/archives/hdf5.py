"""HDF5 files: every group that holds frames is an episode."""

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genie_fn.data.importing.archives import common
from genie_fn.data.importing.archives.common import ACTION_NAMES, ROWS, ActionsAt, Episode, Fields
from genie_fn.errors import UserError

READ_BYTES = 16 << 20
"""Bytes of frames that are read at a time, or one frame."""
PICTURE_BEGINS = (b"\xff\xd8\xff", b"\x89PNG")
"""The first bytes of JPEG and PNG files."""


def episodes(path: Path, fields: Fields) -> list[Episode]:
    """The episodes of a file. Raises UserError if there are none, or if the fields are not there."""
    found = _tree(path, path.stat().st_mtime_ns)
    if not found.frames:
        raise UserError(
            f"{path} holds no frames, which are uint8 arrays of shape (T, H, W, 3): it holds "
            f"{common.listed([*found.numbers, *found.others]) or 'nothing'}"
        )
    places = _places(found, fields)
    names = sorted({place.field for place in places})
    frames = common.choose(names, fields.frames.strip("/"), (), "frames", path)
    if not frames:
        raise UserError(
            f"{path} holds several pictures per episode: choose one by --cfg.fields frames= "
            f"{common.listed(names)}"
        )
    result: list[Episode] = []
    for place in places:
        if place.field == frames:
            actions = _actions(path, place.group, fields, found)
            where = "/".join(filter(None, place))
            result.append(Episode(place.group, (path,), where, actions=actions))
    return result


def frames(path: Path, field: str) -> Iterator[np.ndarray]:
    """Frames, or the bytes of image files."""
    with _open(path) as file:
        array = file[field]
        if array.ndim == 4:
            height, width = sorted(array.shape[1:])[1:]  # in either order: only the size matters
            common.check_size(width, height)
        rows = max(1, min(ROWS, READ_BYTES // max(1, int(np.prod(array.shape[1:])))))
        for begin in range(0, len(array), rows):
            yield from array[begin : begin + rows]


def array(at: ActionsAt) -> np.ndarray:
    """The actions at a place, (T, ...)."""
    with _open(at.file) as file:
        return np.asarray(file[at.field][()])


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    h5py = common.module("h5py", path)
    with h5py.File(path, "r") as file:
        yield file


class _Tree(NamedTuple):
    """The datasets of an HDF5 file by their paths."""

    frames: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]
    """Arrays of numbers, and their shapes."""
    others: tuple[str, ...]


@lru_cache(maxsize=8)
def _tree(path: Path, _modified: int) -> _Tree:
    frames: list[str] = []
    numbers: dict[str, tuple[int, ...]] = {}
    others: list[str] = []
    h5py = common.module("h5py", path)

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

    with _open(path) as file:
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


def _actions(path: Path, group: str, fields: Fields, found: _Tree) -> ActionsAt | None:
    """The actions of the episode in a group."""
    prefix = f"{group}/" if group else ""
    own = {
        name.removeprefix(prefix): shape
        for name, shape in found.numbers.items()
        if name.startswith(prefix)
    }
    field = common.choose(sorted(own), fields.actions.strip("/"), ACTION_NAMES, "actions", path)
    if not field or not own[field][0]:
        return None
    where = ActionsAt(path, prefix + field)
    width = int(np.prod(own[field][1:]))
    is_vector = common.is_vector(array(where) if width == 1 else np.zeros(0), width)
    return where._replace(is_vector=is_vector)
