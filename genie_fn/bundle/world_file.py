"""World files: a world as one safetensors file, complete for play.

The tensors are the models' parameters in bfloat16 and the frames to start from, in uint8; the file's metadata holds the
configurations and what is told about the world. A file may come from anywhere: nothing in it is run or unpickled, and
its header is read, bounded and compared with what its configurations ask for before a tensor is allocated.
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

FORMAT, VERSION = "genie_fn world", "1"
LENGTH = 1 << 20  # bytes that a header may have
LARGEST = 1 << 20  # what no number in a configuration exceeds
BYTES = {"BF16": 2, "U8": 1}  # safetensors' names
METADATA = {"format", "version", "sha256", "content"}


class Spec(NamedTuple):
    """What a tensor has to be: safetensors' name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """What a file says of itself: the models' configurations by name, as nested dicts; what is told about the world;
    its tensors by name; the hash of their content; the bytes that they take."""

    models: dict
    about: dict
    tensors: dict[str, Spec]
    sha256: str
    size: int


def damaged(path: str | Path, what: str) -> UserError:
    """The refusal of a file that is not what it says it is; `what` may quote it, so it is made safe for a terminal."""
    what = "".join(c if c.isprintable() else "?" for c in what[:300])
    return UserError(
        f"{path} is damaged ({what}): fetch it again, or make it anew with `python export_world.py`"
    )


def pack(models: dict, about: dict, tensors: dict[str, Tensor]) -> bytes:
    """The content of a world file; `tensors` are bfloat16 and uint8, on the CPU."""
    tensors = {name: x.contiguous() for name, x in tensors.items()}
    content = json.dumps({"models": models, "about": about}, allow_nan=False)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": _digest(tensors),
        "content": content,
    }
    made = save(tensors, metadata)
    if (length := int.from_bytes(made[:8], "little")) > LENGTH:
        raise UserError(
            f"a world file's header has at most {LENGTH:,} bytes, and this world's would have {length:,}"
        )
    return made


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)};".encode())
        digest.update(x.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def header(path: str | Path) -> Header:
    """Read a file's header. Raises UserError for anything but a world file of this version."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 2 <= length <= LENGTH else b""
            size = file.seek(0, 2) - 8 - length
        fields = json.loads(text)
        metadata = fields.pop("__metadata__")
        kind, version = metadata["format"], metadata["version"]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a world file") from error
    except (
        Exception
    ) as error:  # anything else may be in there: no JSON, or too deep, or no objects in it
        raise _foreign(path) from error
    if kind != FORMAT:
        raise _foreign(path)
    if version != VERSION:
        raise UserError(
            f"{path} is of format version {version!r} and this program reads version {VERSION!r}: "
            "export that world again, or use the version of genie_fn that wrote it"
        )
    return _understood(path, metadata, fields, size)


def _foreign(path: str | Path) -> UserError:
    return UserError(f"{path} is not a world file: make one with `python export_world.py`")


def _understood(path: str | Path, metadata: dict, fields: dict, size: int) -> Header:
    try:
        content = json.loads(metadata["content"])
        models, about = content["models"], content["about"]
        tensors = {
            name: Spec(entry["dtype"], tuple(entry["shape"])) for name, entry in fields.items()
        }
    except Exception as error:  # as above
        raise damaged(path, "its header cannot be understood") from error
    if metadata.keys() != METADATA or content.keys() != {"models", "about"}:
        raise damaged(path, "its header has other keys than a world file's")
    if not isinstance(models, dict) or not isinstance(about, dict) or not _moderate(models):
        raise damaged(path, "its configurations hold what no configuration does")
    return Header(models, about, tensors, metadata["sha256"], size)


def _moderate(value: Any) -> bool:
    """Whether all numbers in nested dicts and lists are finite and of a size that occurs."""
    if isinstance(value, dict | list):
        return all(map(_moderate, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or math.isfinite(value) and abs(value) <= LARGEST


def tensors(path: str | Path, head: Header, wanted: dict[str, Spec]) -> dict[str, Tensor]:
    """The tensors of a file, if they are the `wanted` ones, of these dtypes and shapes, and as they were written."""
    if other := sorted(head.tensors.keys() ^ wanted.keys()):
        ours = "lacks" if other[0] in wanted else "holds an unknown tensor,"
        raise damaged(path, f"it {ours} {other[0][:100]!r}")
    for name, spec in wanted.items():
        if head.tensors[name] != spec:
            raise damaged(path, f"{name} is {_shown(head.tensors[name])}, not {_shown(spec)}")
    if (
        size := sum(math.prod(spec.shape) * BYTES[spec.dtype] for spec in wanted.values())
    ) != head.size:
        raise damaged(path, f"{head.size:,} bytes follow its header, not {size:,}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in wanted}
    except (safetensors.SafetensorError, OSError) as error:
        raise damaged(path, "its tensors do not lie as they should") from error
    if _digest(found) != head.sha256:
        raise damaged(path, "its content was changed")
    return found


def _shown(spec: Spec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"[:100]
