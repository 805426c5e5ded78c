"""How video stores and token caches lie on disk, and what a manifest and an array's metadata may say.

Nothing that they claim is believed, or given memory, before it has been checked here.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore as ts

from genie_fn.errors import UserError
from genie_fn.runtime.files import exclusive, read_json

MANIFEST, VERSION = "store.json", 1
MANIFEST_BYTES, METADATA_BYTES = (
    1 << 26,
    1 << 16,
)  # the most that is read of a manifest, of an array's metadata
SPLITS = ("train", "val", "test")
BLOCK = 1000  # frames in a shard (one file); segments start at multiples of it
MAX_SIDE = 4096  # pixels: ten frames, which are compressed together, then take half a gigabyte
MAX_ACTIONS = 256  # they are stored in a byte
CHUNK = 10  # frames compressed together: longer is smaller on disk, shorter wastes less when a short clip is read
HEADER = (
    "meta",
    "height",
    "width",
    "num_actions",
    "action_names",
)  # what the manifest says of the store as a whole


class Segment(NamedTuple):
    """One entry of the manifest: frames [offset, offset + length) of the flat time axis."""

    level: int
    split: str
    offset: int
    length: int
    crc: int  # over the arrays named in `data.CHECKED`, in that order
    info: dict


def canonical(manifest: dict) -> bytes:
    """The bytes of a manifest as it is written and hashed."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def sha256(manifest: dict) -> str:
    """The hash that a manifest holds of the rest of itself."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


def signed(header: dict, segments: Iterable[Segment]) -> dict:
    """A manifest with its own hash."""
    manifest = {name: header[name] for name in HEADER}
    manifest |= {"version": VERSION, "segments": [segment._asdict() for segment in segments]}
    return manifest | {"sha256": sha256(manifest)}


def damaged(what: str, root: Path) -> UserError:
    return UserError(f"{what}: restore the folder from a copy, or delete {root} and collect again.")


def read_manifest(root: Path) -> tuple[dict, tuple[Segment, ...], str]:
    """Header, segments and hash of a store's manifest. A `UserError` says what is wrong with it."""
    path = root / MANIFEST
    if not path.is_file():
        raise UserError(
            f"There is no dataset at {root}: make one with `python generate_dataset.py --cfg.root {root}`."
        )
    try:
        content = read_json(path, MANIFEST_BYTES)
        if (version := content["version"]) != VERSION:
            raise UserError(
                f"{path} is of version {version!r:.20} and this program reads {VERSION}: collect it again."
            )
        return *parse(content), content["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(f"{path} is damaged ({ascii(str(error)):.100})", root) from error


def parse(manifest: Any) -> tuple[dict, tuple[Segment, ...]]:
    """The header and the segments of a manifest of this version. ValueError says what is wrong with it."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if sha256(content) != manifest.get("sha256"):
        raise ValueError("its hash is another's")
    header = {name: content[name] for name in HEADER}
    check_header(header)
    segments, end = [], 0
    for entry in content["segments"]:
        segments.append(_segment(entry, end))
        end = segments[-1].offset + segments[-1].length
    return header | {"action_names": tuple(header["action_names"])}, tuple(segments)


def check_header(header: dict) -> None:
    """ValueError unless sizes, names and `meta` are what a store can hold."""
    for side in ("height", "width"):
        _number(header[side], side, 1, MAX_SIDE)
    _number(header["num_actions"], "num_actions", 0, MAX_ACTIONS)
    names = header["action_names"]
    if (
        not isinstance(names, list | tuple)
        or len(names) > MAX_ACTIONS
        or not all(isinstance(n, str) for n in names)
    ):
        raise ValueError(f"action_names is not a list of at most {MAX_ACTIONS} names")
    if not isinstance(header["meta"], dict):
        raise ValueError("meta is not an object")


def _segment(entry: Any, end: int) -> Segment:
    """A segment that begins at `end` or later."""
    segment = Segment(**entry)
    what = f"of segment {segment.level!r:.20}"
    _number(segment.level, f"level {what}", -(2**31), 2**31 - 1)
    _number(segment.offset, f"offset {what}", end, 2**62)
    _number(segment.length, f"length {what}", 1, 2**62)
    _number(segment.crc, f"checksum {what}", 0, 2**32 - 1)
    if segment.offset % BLOCK or segment.split not in SPLITS or not isinstance(segment.info, dict):
        raise ValueError(f"offset, split or info {what}")
    return segment


def _number(value: Any, name: str, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {value!r:.20}, not a whole number from {low} to {high}")


def array_spec(path: Path, dtype: str, entry: tuple[int, ...] = (), chunk: int = BLOCK) -> dict:
    """tensorstore's description of a new array along the time axis, of entries of shape `entry`: zarr3, zstd.

    One file per block; `chunk` entries are compressed together.
    """
    zstd = {"name": "zstd", "configuration": {"level": 1}}
    little, sums = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
    shard = {
        "chunk_shape": [chunk, *entry],
        "codecs": [little, zstd, sums],
        "index_codecs": [little, sums],
    }
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "shape": [0, *entry],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [BLOCK, *entry]}},
            "codecs": [{"name": "sharding_indexed", "configuration": shard}],
        },
        "store_data_equal_to_fill_value": True,  # so that a chunk that is not there is an error, never zeros
    }


@contextmanager
def alone(root: str | Path, names: Iterable[str], doing: str, instead: str) -> Iterator[None]:
    """`files.exclusive` for who writes the arrays `names` of a folder, without what a killed writer has left there.

    tensorstore writes a file as `….__lock` and renames it. One that is left is written over but not shortened: the end
    of a longer one would stay behind the new content.
    """
    with exclusive(root, doing, instead):
        for name in names:
            for path in (Path(root) / name).rglob("*.__lock"):
                path.unlink(missing_ok=True)
        yield


def open_arrays(
    root: Path, kinds: Mapping[str, tuple[str, tuple, int]], cache_bytes: int
) -> dict[str, ts.TensorStore]:
    """Arrays made by `array_spec`, for reading and writing; `kinds` gives dtype, entry and chunk of each by its name.

    Raises UserError where one is missing, damaged, or of another kind.
    """
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    arrays = {}
    for name, (dtype, entry, chunk) in kinds.items():
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(root / name)},
            "recheck_cached_data": "open",
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }
        try:
            read_json(
                root / name / "zarr.json", METADATA_BYTES
            )  # ours is small, and tensorstore sets no limit
            arrays[name] = array = ts.open(spec, context=context).result()
        except Exception as error:  # tensorstore raises several kinds
            raise damaged(f"{root / name} is missing or damaged", root) from error
        layout = array.chunk_layout
        shapes = array.shape[1:], layout.read_chunk.shape, layout.write_chunk.shape
        if array.dtype.name != dtype or shapes != (entry, (chunk, *entry), (BLOCK, *entry)):
            raise damaged(
                f"{root / name} does not hold entries of {dtype} {entry} as {root} promises", root
            )
    return arrays
