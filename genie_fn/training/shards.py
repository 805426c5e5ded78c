"""Checkpoints that several processes write together: each writes and reads only its own part of the
state.

A checkpoint's folder holds `index.json`, with the shape and type of every leaf, and one safetensors
file per process that holds something no earlier process does. Each file lists its pieces: parts of
leaves, with their places in the whole leaf and checksums. So any number of processes, whatever its
layout, can read a checkpoint, each reading the files that overlap with its own part.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from genie_fn import tree
from genie_fn.runtime import files
from genie_fn.training import processes
from genie_fn.tree import Tree

INDEX = "index.json"
INDEX_BYTES = 1 << 24
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.int64)}


class Damaged(Exception):
    """The content of a checkpoint is not what was saved."""


class Part(NamedTuple):
    """A process's part of a leaf: the range [start, start + size) along each axis."""

    start: tuple[int, ...]
    size: tuple[int, ...]


Pieces = dict[str, tuple[tuple[int, ...], np.ndarray]]
"""Parts of leaves by path: where a part starts, along each axis, and its content."""


def part_of(leaf: Tensor) -> Part:
    """Which part of a leaf this process holds."""
    start = [0] * leaf.dim()
    size = list(leaf.shape)
    if isinstance(leaf, DTensor):
        (placement,) = leaf.placements
        assert isinstance(placement, Shard)
        axis = placement.dim
        longest = -(-leaf.shape[axis] // leaf.device_mesh.size())  # as torch.chunk divides
        start[axis] = min(leaf.device_mesh.get_local_rank() * longest, leaf.shape[axis])
        size[axis] = min(longest, leaf.shape[axis] - start[axis])
    return Part(tuple(start), tuple(size))


def own_pieces(state: Tree) -> Pieces:
    """A copy, in host memory, of what this process has to write: what no earlier process holds."""
    pieces = {}
    for path, leaf in tree.paths(state).items():
        holders = leaf.device_mesh.size() if isinstance(leaf, DTensor) else 1
        part = part_of(leaf)
        if processes.rank() < holders and 0 not in part.size:
            own = leaf.to_local() if isinstance(leaf, DTensor) else leaf
            pieces[path] = part.start, own.detach().cpu().numpy().copy()
    return pieces


def index_of(state: Tree) -> dict[str, Any]:
    """The content of `index.json`: nested dicts with [type, shape] as leaves."""
    leaves = tree.map(lambda x: [str(x.dtype).removeprefix("torch."), list(x.shape)], state)
    return {"tree": leaves, "checksum": _index_checksum(leaves)}


def _index_checksum(leaves: Tree) -> int:
    return zlib.crc32(json.dumps(leaves, sort_keys=True).encode())


def _checksum(path: str, start: tuple[int, ...], array: np.ndarray) -> int:
    place = f"{path} {start} {array.dtype} {array.shape}".encode()
    return zlib.crc32(np.ascontiguousarray(array).data, zlib.crc32(place))


def write_pieces(folder: Path, pieces: Pieces) -> None:
    """Write this process's file, if it has any pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    if not pieces:
        return
    listed = {
        path: {"start": start, "checksum": _checksum(path, start, array)}
        for path, (start, array) in pieces.items()
    }
    name = folder / f"{processes.rank():05d}.safetensors"
    arrays = {path: array for path, (_, array) in pieces.items()}
    save_file(arrays, name, {"pieces": json.dumps(listed)})
    with open(name, "rb") as file:
        os.fsync(file.fileno())


# Reading


def read_index(folder: Path) -> Tree:
    """The leaves of a checkpoint's state as tensors without content (on the device "meta")."""
    index = files.read_json(folder / INDEX, INDEX_BYTES)
    if index["checksum"] != _index_checksum(index["tree"]):
        raise Damaged(f"its {INDEX} is not as it was saved")
    return _empty(index["tree"])


def _empty(leaves: Any) -> Tree:
    if isinstance(leaves, dict):
        return {name: _empty(value) for name, value in leaves.items()}
    dtype, shape = leaves
    return torch.empty(shape, dtype=DTYPES[dtype], device="meta")


def read_parts(folder: Path, parts: dict[str, Part], leaves: Tree) -> dict[str, np.ndarray]:
    """The given parts of leaves by path, put together from the pieces that overlap with them.

    Raises Damaged if a piece is not what was saved, or if some are missing.
    """
    dtypes = {path: leaf.dtype for path, leaf in tree.paths(leaves).items()}
    arrays = {
        path: torch.empty(part.size, dtype=dtypes[path]).numpy() for path, part in parts.items()
    }
    missing = {path: array.size for path, array in arrays.items() if array.size}
    for file in _files(folder):
        if not missing:
            break
        for path, start, piece in _overlapping(file, {path: parts[path] for path in missing}):
            missing[path] -= _copy_overlap(start, piece, parts[path].start, arrays[path])
            if missing[path] == 0:
                del missing[path]
    if missing:
        raise Damaged(f"{ascii(min(missing))[:200]} is missing or not complete")
    return arrays


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint, first the one that is this process's own if the layout is the
    same."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        return []
    own = paths[processes.rank() % len(paths)]
    return sorted(paths, key=lambda path: (path != own, path))


def _overlapping(
    file: Path, parts: dict[str, Part]
) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """The pieces in a file that overlap with the parts: paths, starts and contents, checked."""
    with safe_open(file, "numpy") as stored:
        listed = json.loads(stored.metadata()["pieces"])
        for path in listed.keys() & parts.keys():
            start = tuple(listed[path]["start"])
            size = tuple(stored.get_slice(path).get_shape())
            if _overlap(Part(start, size), parts[path]) is None:
                continue
            piece = stored.get_tensor(path)
            if listed[path]["checksum"] != _checksum(path, start, piece):
                raise Damaged(f"{ascii(path)[:200]} is not as it was saved")
            yield path, start, piece


def _overlap(piece: Part, part: Part) -> list[tuple[int, int]] | None:
    """The ranges of the whole leaf that two parts have in common, by axis; None if there are
    none."""
    ranges = []
    for a, n, b, m in zip(piece.start, piece.size, part.start, part.size, strict=True):
        low = max(a, b)
        high = min(a + n, b + m)
        if low >= high:
            return None
        ranges.append((low, high))
    return ranges


def _copy_overlap(
    start: tuple[int, ...], piece: np.ndarray, part_start: tuple[int, ...], part: np.ndarray
) -> int:
    """Copy what a piece and a part have in common. Returns how many numbers that is."""
    ranges = _overlap(Part(start, piece.shape), Part(part_start, part.shape)) or []
    source = tuple(slice(low - a, high - a) for (low, high), a in zip(ranges, start, strict=True))
    target = tuple(
        slice(low - a, high - a) for (low, high), a in zip(ranges, part_start, strict=True)
    )
    part[target] = piece[source]
    return piece[source].size
