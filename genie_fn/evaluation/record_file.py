"""Reading and writing metrics.json, also of earlier schemas.

cattrs turns JSON into the dataclasses and refuses what does not fit their types.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cattrs

from genie_fn.errors import UserError
from genie_fn.evaluation.record import Evaluation
from genie_fn.runtime import files, versions

SCHEMA = 5
FILE = "metrics.json"

METHODS = {
    "own": "own_actions",
    "one_go": "joint",  # language: allow
    "true_past": "teacher_forcing",  # language: allow
}
AGREEMENT = {
    "information": "nmi",
    "by_chance": "permuted_nmi",
    "halves": "halves_nmi",
    "chance": "majority_accuracy",
}
HELD_KEYS = {
    "right_way": "correct",
    "apart": "separated",
    "dreamed": "generated",  # language: allow
    "real": "recorded",
}
"""Names of schema 1, and those of schema 2."""

converter = cattrs.Converter(forbid_extra_keys=True)


def write(evaluation: Evaluation, folder: Path) -> Path:
    """Write metrics.json; returns the file."""
    values = asdict(evaluation)
    schema = values.pop("of_schema")
    return write_json(folder / FILE, schema, values)


def write_json(path: Path, schema: int, values: dict[str, Any]) -> Path:
    """Write a record with its schema; returns the file."""
    content = json.dumps({"schema": schema} | values, indent=1, allow_nan=False)
    files.write_atomically(path, (content + "\n").encode())
    return path


def read_json(path: Path, newest: int, again: str) -> tuple[dict[str, Any], Any]:
    """A record without its schema, and the schema. Raises UserError, which advises to do `again`, for
    a damaged file, and NewerVersion for a schema above the `newest`."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        schema = stored.pop("schema", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged: {again}") from error
    versions.check(path, schema, newest)
    return stored, schema


def read(folder: str | Path) -> Evaluation:
    """The record in the folder of an evaluation, or of a run that was evaluated."""
    paths = [Path(folder) / FILE, Path(folder) / "evaluation" / FILE]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} holds no evaluation: make one with `python evaluate.py --cfg.run {folder}`"
        )
    stored, schema = read_json(path, SCHEMA, "evaluate that world again")
    if schema not in range(1, SCHEMA + 1):
        raise UserError(
            f"{path} is of schema {schema} and this program reads schemas up to {SCHEMA}: "
            "evaluate that world again"
        )
    try:
        return converter.structure(migrate(stored, schema), Evaluation)
    except Exception as error:  # cattrs raises groups of errors, and `migrate` meets any JSON
        raise UserError(f"{path} is damaged: evaluate that world again") from error


def migrate(stored: dict[str, Any], schema: int) -> dict[str, Any]:
    """A record of any schema in the names of the newest."""
    if schema == 1:
        stored = _from_schema_1(stored)
    if schema < 3:
        stored = _without_edges(stored)
    if schema < 4:
        stored = _without_kept_ids(stored)
    if schema < 5:
        stored = _without_scores(stored, "aligned", "position_error")
    return stored | {"of_schema": schema}


def _without_edges(old: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 2 with the fields that it lacks."""
    reconstruction = old["reconstruction"] | {"edges": None}
    return _without_scores(old, "edges") | {"reconstruction": reconstruction}


def _without_scores(old: dict[str, Any], *names: str) -> dict[str, Any]:
    """A record of an earlier schema, in which rollouts lack the scores of these names."""
    missing = {name: {} for name in names}
    rollouts = {
        prompt: {subset: scores | missing for subset, scores in protocol.items()}
        for prompt, protocol in old["rollouts"].items()
    }
    return old | {"rollouts": rollouts}


def _without_kept_ids(old: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 3 with the fields that it lacks."""
    actions = old["actions"]
    rollouts = actions.get("long_rollouts")
    if rollouts is not None:
        rollouts = rollouts | {"kept": None, "recorded_kept": None}
    return old | {"actions": actions | {"long_rollouts": rollouts}}


def _from_schema_1(old: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1 in the names of schema 2."""
    actions = dict(old["actions"])
    recorded, probe, held = (actions.pop(name, None) for name in ("true", "probe", "held"))
    actions["kind"] = "recorded" if actions["kind"] == "true" else actions["kind"]
    actions["recorded"] = recorded and _migrate_recorded(recorded)
    actions["inverse_dynamics"] = probe and _migrate_probe(probe)
    actions["held_keys"] = held and _renamed(held, HELD_KEYS)
    new = {name: value for name, value in old.items() if name != "dynamics"}
    new["prediction"] = old["dynamics"]
    new["actions"] = actions
    new["rollouts"] = {
        prompt: {subset: _migrate_scores(scores) for subset, scores in protocol.items()}
        for prompt, protocol in old["rollouts"].items()
    }
    return new


def _renamed(old: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in old.items()}


def _migrate_scores(scores: dict[str, Any]) -> dict[str, Any]:
    return {metric: _renamed(curves, METHODS) for metric, curves in scores.items()}


def _migrate_recorded(old: dict[str, Any]) -> dict[str, Any]:
    new: dict[str, Any] = {"sides": None} | old
    for name in ("all", "sides"):
        new[name] = new[name] and _renamed(new[name], AGREEMENT)
    return new


def _migrate_probe(old: dict[str, Any]) -> dict[str, Any]:
    new: dict[str, Any] = {"sides": None} | old
    ratio = new.pop("ratio")
    for name in ("all", "sides"):
        if new[name] is not None:
            new[name] = _renamed(new[name], AGREEMENT) | {"ratio": ratio[name]}
    return new
