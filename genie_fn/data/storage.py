"""The on-disk format of video stores and token caches: manifests, and arrays of tensorstore.

Files are untrusted input. A manifest or the metadata of an array is checked here before anything
relies on it or allocates memory for it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from genie_fn.errors import UserError
from genie_fn.runtime import versions
from genie_fn.runtime.files import exclusive, read_json

MANIFEST = "store.json"
VERSION = 2
# Without the keys of OPTIONAL and with at most BYTE_ACTIONS actions; written where that suffices.
FIRST_VERSION = 1
MANIFEST_BYTES = 1 << 26  # the largest manifest that is read
METADATA_BYTES = 1 << 16  # the largest metadata of an array that is read
SPLITS = ("train", "val", "test")
BLOCK = 1000  # frames in a shard (one file); segments start at multiples of it
CHUNK = 10  # frames compressed together: more compress better, fewer are faster to read in part
MAX_SIDE = 4096  # pixels: a chunk of frames then takes half a gigabyte
BYTE_ACTIONS = 256  # up to so many actions are stored in a byte, more in two
MAX_ACTIONS = 65_536
MAX_ACTION_SIZE = 1024  # numbers of an action that is a vector
HEADER = ("meta", "height", "width", "num_actions", "action_names")  # keys about the whole store
OPTIONAL = {"action_size": 0}  # keys that only some stores have, and what their absence means


class Segment(NamedTuple):
    """One entry of the manifest: frames [offset, offset + length) of the time axis."""

    level: int
    split: str
    offset: int
    length: int
    crc: int  # over the arrays named in `store.CHECKED`, in that order
    info: dict


class ArrayKind(NamedTuple):
    """What an array along the time axis holds."""

    dtype: str
    entry: tuple[int, ...] = ()
    """The shape of one entry."""
    chunk: int = BLOCK
    """The number of entries compressed together."""


def action_dtype(num_actions: int) -> str:
    """The type of the numbers of so many actions."""
    return "uint8" if num_actions <= BYTE_ACTIONS else "uint16"


# Manifests


def canonical(manifest: dict) -> bytes:
    """A manifest as the bytes that are written and hashed."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def sha256(manifest: dict) -> str:
    """The hash of a manifest without its own `sha256`."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


def make_manifest(header: Mapping[str, Any], segments: Iterable[Segment]) -> dict:
    """A manifest with its hash; of `header` only the keys in HEADER and OPTIONAL are used."""
    manifest = {name: header[name] for name in HEADER}
    used = {name: header[name] for name, absent in OPTIONAL.items() if header[name] != absent}
    is_first = not used and header["num_actions"] <= BYTE_ACTIONS
    version = FIRST_VERSION if is_first else VERSION
    manifest |= used | {"version": version, "segments": [s._asdict() for s in segments]}
    return manifest | {"sha256": sha256(manifest)}


def damaged(what: str, root: Path) -> UserError:
    """The error for a damaged store; `what` is the damage, in words."""
    return UserError(f"{what}: restore the folder from a copy, or delete {root} and collect again")


def read_manifest(root: Path) -> tuple[dict[str, Any], tuple[Segment, ...], str]:
    """The header, the segments and the hash of a store's manifest.

    Raises UserError if there is none, or if it is damaged, and NewerVersion if it has a later
    version.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise UserError(
            f"there is no dataset at {root}: make one with "
            f"`python generate_dataset.py --cfg.root {root}`"
        )
    try:
        content = read_json(path, MANIFEST_BYTES)
        version = content["version"]
        versions.check(root, version, VERSION)
        if not FIRST_VERSION <= version <= VERSION:
            raise ValueError(f"its version is {version!r:.20}")
        return *parse(content), content["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(f"{path} is damaged ({ascii(str(error)):.100})", root) from error


def parse(manifest: Any) -> tuple[dict[str, Any], tuple[Segment, ...]]:
    """The header and the segments of a manifest of this version. Raises ValueError if invalid."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if sha256(content) != manifest.get("sha256"):
        raise ValueError("its hash does not match its content")
    header = {name: content[name] for name in HEADER}
    header |= {name: content.get(name, absent) for name, absent in OPTIONAL.items()}
    check_header(header)
    segments = []
    end = 0
    for entry in content["segments"]:
        segment = _parse_segment(entry, end)
        segments.append(segment)
        end = segment.offset + segment.length
    return header | {"action_names": tuple(header["action_names"])}, tuple(segments)


def check_header(header: Mapping[str, Any]) -> None:
    """Raise ValueError unless sizes, names and `meta` are valid."""
    for side in ("height", "width"):
        _check_number(header[side], side, 1, MAX_SIDE)
    _check_number(header["num_actions"], "num_actions", 0, MAX_ACTIONS)
    _check_number(header["action_size"], "action_size", 0, MAX_ACTION_SIZE)
    names = header["action_names"]
    is_list = isinstance(names, list | tuple) and len(names) <= MAX_ACTIONS
    if not is_list or not all(isinstance(name, str) for name in names):
        raise ValueError(f"action_names is not a list of at most {MAX_ACTIONS} names")
    if not isinstance(header["meta"], dict):
        raise ValueError("meta is not an object")


def _parse_segment(entry: Any, end: int) -> Segment:
    """A segment that starts at `end` or later. Raises ValueError if an entry is invalid."""
    segment = Segment(**entry)
    name = f"of segment {segment.level!r:.20}"
    _check_number(segment.level, f"level {name}", -(2**31), 2**31 - 1)
    _check_number(segment.offset, f"offset {name}", end, 2**62)
    _check_number(segment.length, f"length {name}", 1, 2**62)
    _check_number(segment.crc, f"checksum {name}", 0, 2**32 - 1)
    if segment.offset % BLOCK or segment.split not in SPLITS or not isinstance(segment.info, dict):
        raise ValueError(f"the offset, split or info {name} is invalid")
    return segment


def _check_number(value: Any, name: str, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {value!r:.20}, not a whole number from {low} to {high}")


# Arrays


def _file_store(path: Path) -> dict:
    """tensorstore's spec of a folder; it refuses paths that contain `..`."""
    return {"driver": "file", "path": os.path.realpath(path)}


def array_spec(path: Path, kind: ArrayKind) -> dict:
    """The tensorstore spec of a new, empty array: zarr3 and zstd, with one file per block."""
    zstd = {"name": "zstd", "configuration": {"level": 1}}
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum = {"name": "crc32c"}
    shard = {
        "chunk_shape": [kind.chunk, *kind.entry],
        "codecs": [little_endian, zstd, checksum],
        "index_codecs": [little_endian, checksum],
    }
    grid = {"name": "regular", "configuration": {"chunk_shape": [BLOCK, *kind.entry]}}
    return {
        "driver": "zarr3",
        "kvstore": _file_store(path),
        "metadata": {
            "shape": [0, *kind.entry],
            "data_type": kind.dtype,
            "chunk_grid": grid,
            "codecs": [{"name": "sharding_indexed", "configuration": shard}],
        },
        "store_data_equal_to_fill_value": True,  # a missing chunk is then an error, never zeros
    }


@contextmanager
def exclusive_writer(
    root: str | Path, names: Iterable[str], doing: str, instead: str
) -> Iterator[None]:
    """Lock a folder as `files.exclusive` does, and remove what a killed writer left in its arrays.

    tensorstore writes a file as `….__lock` and renames it. It overwrites such a file without
    shortening it, so the end of a longer one would remain after the new content.
    """
    with exclusive(root, doing, instead):
        for name in names:
            for path in (Path(root) / name).rglob("*.__lock"):
                path.unlink(missing_ok=True)
        yield


def open_arrays(
    root: Path, kinds: Mapping[str, ArrayKind], cache_bytes: int
) -> dict[str, ts.TensorStore]:
    """Open the arrays that `array_spec` made for reading and writing, by their names.

    Raises UserError if an array is missing, damaged, or of another kind.
    """
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    return {name: _open_array(root, name, kind, context) for name, kind in kinds.items()}


def joined(arrays: Sequence[ts.TensorStore], bases: Sequence[int]) -> ts.TensorStore:
    """A view of arrays for reading, in which entry i of each array is entry `base + i`.

    `bases` increase. The view has the entries of each array up to the base of the next one, as far
    as there are any. Its type holds those of all arrays: actions may have one byte in some, and two
    in others.
    """
    dtype = np.result_type(*(array.dtype.numpy_dtype for array in arrays))
    layers = []
    for array, base, end in zip(arrays, bases, [*bases[1:], None], strict=True):
        length = array.shape[0] if end is None else min(array.shape[0], end - base)
        if length:
            layers.append(ts.cast(array[:length], dtype)[ts.d[0].translate_by[base]])
    return ts.overlay(layers) if layers else arrays[0]


def _open_array(root: Path, name: str, kind: ArrayKind, context: ts.Context) -> ts.TensorStore:
    path = root / name
    spec = {
        "driver": "zarr3",
        "kvstore": _file_store(path),
        "recheck_cached_data": "open",
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }
    try:
        read_json(path / "zarr.json", METADATA_BYTES)  # tensorstore itself sets no limit
        array = ts.open(spec, context=context).result()
    except Exception as error:  # tensorstore raises several kinds
        raise damaged(f"{path} is missing or damaged", root) from error
    layout = array.chunk_layout
    shapes = (array.shape[1:], layout.read_chunk.shape, layout.write_chunk.shape)
    expected = (kind.entry, (kind.chunk, *kind.entry), (BLOCK, *kind.entry))
    if array.dtype.name != kind.dtype or shapes != expected:
        what = (
            f"{path} does not hold entries of {kind.dtype} {kind.entry} in chunks of {kind.chunk}"
        )
        raise damaged(what, root)
    return array
