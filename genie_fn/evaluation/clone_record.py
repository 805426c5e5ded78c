"""The record of clone.py, stored as clone.json."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cattrs

from genie_fn.errors import UserError
from genie_fn.runtime import files, versions
from genie_fn.runtime.versions import NewerVersion

SCHEMA = 1
FILE = "clone.json"

converter = cattrs.Converter(forbid_extra_keys=True)


@dataclass(frozen=True)
class ExpertSummary:
    """The policy whose video was learnt from."""

    solved: float
    """Share of its complete episodes."""
    levels_solved: float
    """Share of its levels at the first attempt."""
    episodes: int
    levels: int
    transitions: int
    """From which policies learn."""
    solved_held_out: list[int] = field(default_factory=list)
    """Of the levels that the policies play, which it solves (0 or 1 each); empty if it was not
    asked."""


@dataclass(frozen=True)
class Seed:
    """By policy, which levels were solved (0 or 1 each)."""

    solved: dict[str, list[int]]
    seconds: float


@dataclass(frozen=True)
class CloneRecord:
    """What was measured by clone.py, seed by seed. Shares and gains are [mean, low, high]."""

    config: dict[str, Any]
    lam: str
    """Fingerprint of the latent action model."""
    data: str
    """Hash of the dataset."""
    seeds: dict[str, Seed] = field(default_factory=dict)
    expert: ExpertSummary | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    """By policy, the share of levels solved."""
    gains: dict[str, list[float]] = field(default_factory=dict)
    """By policy, the difference of that to the random policy's."""


def write(record: CloneRecord, folder: Path) -> None:
    """Write clone.json."""
    content = json.dumps({"schema": SCHEMA} | asdict(record)) + "\n"
    files.write_atomically(folder / FILE, content.encode())


def read(folder: str | Path) -> CloneRecord | None:
    """The record in a folder; None where there is none. Raises UserError for a damaged one."""
    path = Path(folder) / FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise _damaged(path) from error
    try:
        schema = stored.pop("schema")
        versions.check(path, schema, SCHEMA)
        if schema != SCHEMA:
            raise ValueError("schema")
        return converter.structure(stored, CloneRecord)
    except NewerVersion:
        raise
    except Exception as error:  # cattrs raises groups of errors
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or of another version: delete it, and clone again")


def read_complete(folder: str | Path) -> CloneRecord | None:
    """The record in a folder with at least one seed; None where there is none."""
    try:
        record = read(folder)
    except UserError:
        return None
    return record if record and record.shares and record.expert else None
