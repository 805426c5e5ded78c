"""What a run was made from: its dataset and its earlier stages, and where they are found again.

The record is stored with a run's configuration, in every checkpoint. Its paths are relative to the
run's folder, so that a run can be renamed or moved together with them, and used from any folder.
Its hashes tell whether what is found is what the run was made from.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from genie_fn import data
from genie_fn.errors import UserError
from genie_fn.runtime import stored_config
from genie_fn.runtime.console import console
from genie_fn.training import checkpoint

Kind = Literal["data", "tokenizer", "lam"]
NAMES: dict[Kind, str] = {
    "data": "dataset",
    "tokenizer": "tokenizer",
    "lam": "latent action model",
}


@dataclass(frozen=True)
class DataInput:
    """A dataset as a run found it. Earlier versions of this program did not record it."""

    path: str = ""
    """Relative to the run's folder; empty if it is not known."""
    hash: str = ""
    """`data.content_hash` of the segments that it had."""
    segments: int = 0
    """How many these were."""
    num_actions: int = 0
    """The number of recorded actions; 0 if the dataset has none, or if it is not known."""
    action_names: tuple[str, ...] = ()
    """The names of the recorded actions."""


@dataclass(frozen=True)
class StageInput:
    """The run of an earlier stage, and the model that it held."""

    path: str = ""
    """Relative to the run's folder; empty if there is none, or if it is not known."""
    fingerprint: str = ""
    """A hash of the model's parameters."""


@dataclass(frozen=True)
class Inputs:
    """Everything that a run was made from."""

    data: DataInput = DataInput()
    tokenizer: StageInput = StageInput()
    lam: StageInput = StageInput()


class Record(NamedTuple):
    """What the configuration of a run says about its inputs."""

    run: Path
    """The run's folder."""
    inputs: Inputs
    given: dict[Kind, str]
    """The paths as they were given to the run, relative to the current directory of then."""
    stride: int = 1
    """Frames of the dataset from one frame of a clip to the next."""


def read(run: str | Path) -> Record | None:
    """The record in a run's newest checkpoint; None where there is no checkpoint."""
    config = checkpoint.read_config(run)
    return None if config is None else of_config(run, config)


def of_config(run: str | Path, config: dict[str, Any]) -> Record:
    """The record in the configuration of a run, which an earlier version may have stored."""
    stored = stored_config.from_dict(Inputs, config.get("inputs", {}))
    given: dict[Kind, str] = {
        kind: config[kind] for kind in NAMES if isinstance(config.get(kind), str)
    }
    stride = config.get("stride", 1)
    if type(stride) is not int or stride < 1:
        raise UserError(f"the configuration of {run} has an impossible stride: train it again")
    return Record(checkpoint.run_of(run), stored, given, stride)


# Paths


def relative(path: str | Path, run: str | Path) -> str:
    """The path of an input as it is stored by a run."""
    try:
        return Path(os.path.relpath(os.path.realpath(path), os.path.realpath(run))).as_posix()
    except ValueError:  # on another drive of Windows
        return str(Path(path).absolute())


def shown(path: str | Path) -> str:
    """A path in its shortest form: relative to the current directory if it lies below it."""
    absolute = os.path.abspath(path)
    here = os.path.join(os.getcwd(), "")
    return absolute.removeprefix(here) if absolute.startswith(here) else absolute


def places(record: Record, kind: Kind) -> list[str]:
    """Where an input of a run may be, the likeliest place first.

    It is looked for as stored, relative to the run's folder; beside the run, under its own name;
    and as it was given to the run, relative to the current directory.
    """
    stored = getattr(record.inputs, kind).path
    given = record.given.get(kind, "")
    folder = os.path.abspath(record.run)
    found = []
    if stored:
        found += [os.path.join(base, stored) for base in (folder, os.path.realpath(folder))]
    if given:
        beside = os.path.join(os.path.dirname(folder), os.path.basename(os.path.normpath(given)))
        found += [beside, given]
    return list(dict.fromkeys(map(shown, found)))


def not_found(record: Record, kind: Kind, where: Iterable[str]) -> UserError:
    """The error for an input that is in none of its places."""
    looked = "; it was looked for at " + ", ".join(where) if where else ""
    return UserError(
        f"the {NAMES[kind]} that {record.run} was made with cannot be found{looked}: "
        f"move it to one of these places, or name its folder with --cfg.{kind}"
    )


# Datasets


def describe(store: data.Store, run: str | Path) -> DataInput:
    """The record of a dataset, for a run."""
    count = len(store.segments)
    return DataInput(
        relative(store.root, run),
        data.content_hash(store, count),
        count,
        store.num_actions,
        store.action_names,
    )


def open_dataset(run: str | Path, given: str | Path = "") -> data.Store:
    """The dataset that a run was made from, or the one that is `given`, with the run's stride.

    A line is printed for a given dataset that is another one, and for one that has grown. Raises
    UserError for a dataset that cannot be found, or was replaced, and for other recorded actions.
    """
    record = read(run)
    if given:
        store = data.open_store(given)
        if record is None:
            return store
        check_dataset(record, store)
        return replace(store, stride=record.stride)
    if record is None:
        raise UserError(f"there is no checkpoint in {run}: name a dataset with --cfg.data")
    where = places(record, "data")
    found = [data.open_store(place) for place in where if data.is_store(place)]
    if not found:
        raise not_found(record, "data", where)
    for store in found:
        if compare(record.inputs.data, store) != "other":
            check_dataset(record, store)
            return replace(store, stride=record.stride)
    raise UserError(
        f"{shown(found[0].root)} no longer holds the dataset that {record.run} was made from: "
        "restore it, or name the dataset to use with --cfg.data"
    )


def compare(
    recorded: DataInput, store: data.Store
) -> Literal["same", "grown", "other", "not recorded"]:
    """How a dataset differs from the recorded one."""
    if not recorded.hash:
        return "not recorded"
    count = len(store.segments)
    if count < recorded.segments or data.content_hash(store, recorded.segments) != recorded.hash:
        return "other"
    return "grown" if count > recorded.segments else "same"


def check_dataset(record: Record, store: data.Store) -> None:
    """Print a line if a dataset is not the one that a run was made from, or has grown since.

    Raises UserError if both have recorded actions, and these differ.
    """
    recorded = record.inputs.data
    root = shown(store.root)
    difference = compare(recorded, store)
    if difference == "other":
        check_actions(recorded.num_actions, recorded.action_names, store, record.run)
        _say_other(record, root)
    elif difference == "grown":
        say(
            f"{root} has grown since {record.run} was made from it: it has "
            f"{len(store.segments)} segments, and had {recorded.segments}"
        )
    elif difference == "not recorded" and record.given.get("data"):
        where = {os.path.realpath(place) for place in places(record, "data")}
        if os.path.realpath(store.root) not in where:
            _say_other(record, root)


def _say_other(record: Record, root: str) -> None:
    was = places(record, "data")[0]
    moved = "" if was == root else f", which was {was}"
    say(f"{root} is not the dataset that {record.run} was made from{moved}")


def check_actions(count: int, names: tuple[str, ...], store: data.Store, run: str | Path) -> None:
    """Raise UserError if a dataset has other recorded actions than the `count` of a run.

    Either may have none, and either may have no names for them.
    """
    if not count or not store.num_actions:
        return
    same_names = not names or not store.action_names or tuple(names) == store.action_names
    if count == store.num_actions and same_names:
        return
    raise UserError(
        f"{shown(store.root)} has other recorded actions ({_list(store.num_actions, store.action_names)}) "
        f"than the dataset that {run} was made from ({_list(count, names)}): "
        "name a dataset with the same actions with --cfg.data"
    )


def _list(count: int, names: tuple[str, ...]) -> str:
    """The number of actions, and the first of their names."""
    first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{count}: {first}" if names else str(count)


def say(sentence: str) -> None:
    """Print one line."""
    console.print(sentence, soft_wrap=True, markup=False)
