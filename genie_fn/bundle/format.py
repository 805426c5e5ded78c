"""The format of world files: one safetensors file with everything that playing a world needs.

The tensors are the models' parameters in bfloat16 and the start frames in uint8. The file's
metadata holds the models' configurations and a description of the world, as JSON. A file may come
from anywhere: nothing in it is executed or unpickled, and its header is bounded, read and compared
with what its configurations require before any tensor is allocated.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from genie_fn.errors import UserError
from genie_fn.runtime import versions

FORMAT = "genie_fn world"
VERSION = 2
"""It rises when an earlier version of this program would misread a file."""
READABLE = range(1, VERSION + 1)
MAX_HEADER = 1 << 24  # bytes
MAX_NUMBER = 1 << 20  # no other number in a configuration is larger
MAX_CODES = 1 << 53  # the product of the sizes of codebooks; JavaScript has these ids exactly
DTYPE_BYTES = {"BF16": 2, "U8": 1}  # by safetensors' names
METADATA_KEYS = {"format", "version", "sha256", "content"}


class TensorSpec(NamedTuple):
    """The dtype, by safetensors' name, and the shape that a tensor must have."""

    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """What the header of a world file says."""

    models: dict
    """The models' configurations by name, as nested dicts."""
    about: dict
    """The description of the world."""
    tensors: dict[str, TensorSpec]
    sha256: str
    """Hash of the tensors' names, dtypes, shapes and values."""
    size: int
    """Bytes that follow the header."""


def damaged(path: str | Path, what: str) -> UserError:
    """The error for a damaged file. `what` may quote it, so control characters are removed."""
    what = "".join(c if c.isprintable() else "?" for c in what[:300])
    return UserError(
        f"{path} is damaged ({what}): download it again, "
        "or export it again with `python export_world.py`"
    )


def encode(models: dict, about: dict, tensors: dict[str, Tensor]) -> bytes:
    """The content of a world file; `tensors` are bfloat16 or uint8, on the CPU."""
    tensors = {name: x.contiguous() for name, x in tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "sha256": _digest(tensors),
        "content": json.dumps({"models": models, "about": about}, allow_nan=False),
    }
    content = save(tensors, metadata)
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER:
        raise UserError(
            f"the header of a world file has at most {MAX_HEADER:,} bytes, "
            f"and this world's would have {length:,}"
        )
    return content


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)};".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_header(path: str | Path) -> Header:
    """The header of a file. Raises UserError for anything but a world file that this version reads,
    and NewerVersion for one of a later version."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 2 <= length <= MAX_HEADER else b""
            size = file.seek(0, 2) - 8 - length
        fields = json.loads(text)
        metadata = fields.pop("__metadata__")
        kind = metadata["format"]
        version = _number(metadata["version"])
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a world file") from error
    except Exception as error:  # the file may be no JSON, nested too deeply, or not of objects
        raise _not_a_world_file(path) from error
    if kind != FORMAT:
        raise _not_a_world_file(path)
    versions.check(path, version, VERSION)
    if version not in READABLE:
        raise damaged(path, f"its format version is {metadata['version']!r:.20}")
    return _parse(path, metadata, fields, size)


def _number(version: Any) -> int | None:
    """The version of a header, where it is a number as text."""
    is_number = isinstance(version, str) and version.isascii() and version.isdecimal()
    return int(version[:9]) if is_number else None


def _not_a_world_file(path: str | Path) -> UserError:
    return UserError(f"{path} is not a world file: make one with `python export_world.py`")


def _parse(path: str | Path, metadata: dict, fields: dict, size: int) -> Header:
    try:
        content = json.loads(metadata["content"])
        models = content["models"]
        about = content["about"]
        tensors = {
            name: TensorSpec(entry["dtype"], tuple(entry["shape"]))
            for name, entry in fields.items()
        }
    except Exception as error:  # as in `read_header`
        raise damaged(path, "its header cannot be parsed") from error
    if metadata.keys() != METADATA_KEYS or content.keys() != {"models", "about"}:
        raise damaged(path, "its header has other keys than a world file's")
    if not isinstance(models, dict) or not isinstance(about, dict) or not _bounded(models):
        raise damaged(path, "its configurations hold impossible values")
    return Header(models, about, tensors, metadata["sha256"], size)


def _bounded(value: Any, largest: int = MAX_NUMBER) -> bool:
    """Whether all numbers in nested dicts and lists are finite and at most `largest`, `codes` MAX_CODES."""
    if isinstance(value, dict):
        limits = (MAX_CODES if key == "codes" else MAX_NUMBER for key in value)
        return all(map(_bounded, value.values(), limits))
    if isinstance(value, list):
        return all(map(_bounded, value))
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= largest
    return True


def read_tensors(
    path: str | Path, header: Header, expected: dict[str, TensorSpec]
) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises UserError unless names, dtypes, shapes and hash are as expected.
    """
    _check_specs(path, header, expected)
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in expected}
    except (safetensors.SafetensorError, OSError) as error:
        raise damaged(path, "its tensors are not laid out as they should be") from error
    if _digest(tensors) != header.sha256:
        raise damaged(path, "its content was changed")
    return tensors


def _check_specs(path: str | Path, header: Header, expected: dict[str, TensorSpec]) -> None:
    different = sorted(header.tensors.keys() ^ expected.keys())
    if different:
        problem = "lacks" if different[0] in expected else "holds an unknown tensor,"
        raise damaged(path, f"it {problem} {different[0][:100]!r}")
    for name, spec in expected.items():
        if header.tensors[name] != spec:
            actual = _describe(header.tensors[name])
            raise damaged(path, f"{name} is {actual}, not {_describe(spec)}")
    size = sum(math.prod(spec.shape) * DTYPE_BYTES[spec.dtype] for spec in expected.values())
    if size != header.size:
        raise damaged(path, f"{header.size:,} bytes follow its header, not {size:,}")


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"[:100]
