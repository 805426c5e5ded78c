"""What a run was made from: its dataset and its earlier stages, and where they are found again.

The record is stored with a run's configuration, in every checkpoint. Its paths are relative to the
run's folder, so that a run can be renamed or moved together with them, and used from any folder.
Its hashes tell whether what is found is what the run was made from.
"""

import os
from collections.abc import Iterable, Sequence
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
    """A dataset as a run found it."""

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
    weight: float = 0.0
    """Its share of the clips, in proportion to that of the run's other datasets; 0 without weights."""


@dataclass(frozen=True)
class StageInput:
    """The run of an earlier stage, and the model that it held."""

    path: str = ""
    """Relative to the run's folder; empty if there is none, or if it is not known."""
    fingerprint: str = ""
    """A hash of the model's parameters."""


@dataclass(frozen=True)
class Inputs:
    """Everything that a run was made from. The earliest versions of this program did not record
    it."""

    data: tuple[DataInput, ...] = ()
    """The dataset, or those of a mixture in their order."""
    tokenizer: StageInput = StageInput()
    lam: StageInput = StageInput()


class Record(NamedTuple):
    """What the configuration of a run says about its inputs."""

    run: Path
    """The run's folder."""
    inputs: Inputs
    given: dict[Kind, tuple[str, ...]]
    """The paths as they were given to the run, relative to the current directory of then."""
    stride: int = 1
    """Frames of the dataset from one frame of a clip to the next."""

    @property
    def datasets(self) -> tuple[DataInput, ...]:
        """The run's datasets, one at least; nothing is known of those that are not recorded."""
        return self.inputs.data or (DataInput(),) * max(1, len(self.given.get("data", ())))


def read(run: str | Path) -> Record | None:
    """The record in a run's newest checkpoint; None where there is no checkpoint."""
    config = checkpoint.read_config(run)
    return None if config is None else of_config(run, config)


def of_config(run: str | Path, config: dict[str, Any]) -> Record:
    """The record in the configuration of a run, which an earlier version may have stored."""
    stored = stored_config.from_dict(Inputs, config.get("inputs", {}), run)
    stride = config.get("stride", 1)
    if type(stride) is not int or stride < 1:
        raise UserError(f"the configuration of {run} has an impossible stride: train it again")
    given: dict[Kind, tuple[str, ...]] = {kind: _paths(config.get(kind)) for kind in NAMES}
    return Record(checkpoint.run_of(run), stored, given, stride)


def _paths(value: Any) -> tuple[str, ...]:
    """The paths in a field of a configuration, which holds one or several."""
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(path for path in values if path and isinstance(path, str))


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


def places(record: Record, kind: Kind, number: int = 0) -> list[str]:
    """Where an input of a run may be, the likeliest place first; `number` counts its datasets.

    It is looked for as stored, relative to the run's folder; beside the run, under its own name;
    and as it was given to the run, relative to the current directory.
    """
    entry = record.datasets[number] if kind == "data" else getattr(record.inputs, kind)
    given = record.given.get(kind, ())[number : number + 1]
    folder = os.path.abspath(record.run)
    found = []
    if entry.path:
        found += [os.path.join(base, entry.path) for base in (folder, os.path.realpath(folder))]
    for path in given:
        beside = os.path.join(os.path.dirname(folder), os.path.basename(os.path.normpath(path)))
        found += [beside, path]
    return list(dict.fromkeys(map(shown, found)))


def not_found(record: Record, kind: Kind, where: Iterable[str]) -> UserError:
    """The error for an input that is in none of its places."""
    looked = "; it was looked for at " + ", ".join(where) if where else ""
    several = kind == "data" and len(record.datasets) > 1
    folder = "its folder, to train the folders of all datasets," if several else "its folder"
    return UserError(
        f"the {NAMES[kind]} that {record.run} was made with cannot be found{looked}: "
        f"move it to one of these places, or name {folder} with --cfg.{kind}"
    )


# Datasets


def describe(store: data.Store, run: str | Path) -> tuple[DataInput, ...]:
    """The record of a dataset, or of those of a mixture, for a run."""
    weights = store.weights or (0.0,) * len(store.datasets)
    entries = []
    for dataset, weight in zip(store.datasets, weights, strict=True):
        count = len(dataset.segments)
        hashed = data.content_hash(dataset, count)
        actions = dataset.num_actions, dataset.action_names
        entries.append(DataInput(relative(dataset.root, run), hashed, count, *actions, weight))
    return tuple(entries)


def open_dataset(run: str | Path, given: str | Path = "") -> data.Store:
    """One dataset for a use of a run: the one that is `given`, or else the run's first, with the
    run's stride.

    A line is printed where the run has several; for a given dataset that the run was not made from;
    and for one that has grown. Raises UserError for a dataset that cannot be found, or was
    replaced, and for other recorded actions.
    """
    record = read(run)
    if record is None:
        if given:
            return data.open_store(given)
        raise UserError(f"there is no checkpoint in {run}: name a dataset with --cfg.data")
    store = data.open_store(given) if given else _open_recorded(record, 0)
    number = _check_one(record, store)
    if number is not None and len(record.datasets) > 1:
        say(
            f"{record.run} was made from {_all_shown(record)}: {shown(store.root)} is used; "
            "--cfg.data names another"
        )
    return replace(store, stride=record.stride)


def open_datasets(run: str | Path, weights: Sequence[float] = ()) -> data.Store:
    """All datasets that a run was made from, as one, with the run's weights or those given.

    Lines are printed and errors raised as by `open_dataset`.
    """
    record = read(run)
    if record is None:
        raise UserError(f"there is no checkpoint in {run}: name a dataset with --cfg.data")
    stores = [_open_recorded(record, number) for number in range(len(record.datasets))]
    recorded = [entry.weight for entry in record.datasets]
    store = data.mix(stores, weights or (recorded if all(recorded) else ()))
    check_datasets(record, store)
    return store


def _open_recorded(record: Record, number: int) -> data.Store:
    """The dataset of a run with this number. Raises UserError where it cannot be found, or was
    replaced."""
    where = places(record, "data", number)
    found = [data.open_store(place) for place in where if data.is_store(place)]
    if not found:
        raise not_found(record, "data", where)
    for store in found:
        if compare(record.datasets[number], store) != "other":
            return store
    raise UserError(
        f"{shown(found[0].root)} no longer holds the dataset that {record.run} was made from: "
        "restore it, or name the dataset to use with --cfg.data"
    )


def compare(
    recorded: DataInput, store: data.Store
) -> Literal["same", "grown", "other", "not recorded"]:
    """How a dataset differs from a recorded one."""
    if not recorded.hash:
        return "not recorded"
    count = len(store.segments)
    if count < recorded.segments or data.content_hash(store, recorded.segments) != recorded.hash:
        return "other"
    return "grown" if count > recorded.segments else "same"


def check_datasets(record: Record, store: data.Store) -> None:
    """Print a line for each dataset of `store` that a run was not made from, or that has grown
    since, and one if `store` lacks some of the run's datasets or has them in another order.

    Raises UserError for other recorded actions than those of the run's datasets.
    """
    numbers = [_check_one(record, dataset, i) for i, dataset in enumerate(store.datasets)]
    if None not in numbers and numbers != [*range(len(record.datasets))]:
        now = _listed(shown(dataset.root) for dataset in store.datasets)
        say(f"{record.run} was made from {_all_shown(record)}; this run takes {now}")


def _check_one(record: Record, store: data.Store, preferred: int = 0) -> int | None:
    """The number of a dataset among those of a run, `preferred` if several are alike; None, and a
    line, if it is not one of them. A line is printed, too, if it has grown.

    Raises UserError for other recorded actions.
    """
    differences = [compare(entry, store) for entry in record.datasets]
    order = sorted(range(len(differences)), key=lambda number: number != preferred)
    for number in order:
        if differences[number] == "same":
            return number
    for number in order:
        if differences[number] == "grown":
            _say_grown(record, number, store)
            return number
        if differences[number] == "not recorded" and _may_be_at(record, number, store.root):
            return number
    known = [(entry.num_actions, entry.action_names) for entry in record.datasets]
    if not any(_same_actions(*actions, store) for actions in known):
        check_actions(*known[0], store, record.run)
    _say_other(record, shown(store.root))
    return None


def _may_be_at(record: Record, number: int, root: Path) -> bool:
    """Whether the dataset in a folder may be one of a run that recorded no hash of it."""
    where = places(record, "data", number)
    return not where or os.path.realpath(root) in map(os.path.realpath, where)


def _say_grown(record: Record, number: int, store: data.Store) -> None:
    say(
        f"{shown(store.root)} has grown since {record.run} was made from it: it has "
        f"{len(store.segments)} segments, and had {record.datasets[number].segments}"
    )


def _say_other(record: Record, root: str) -> None:
    if len(record.datasets) > 1:
        say(f"{root} is not one of the datasets that {record.run} was made from")
        return
    was = places(record, "data")[0]
    moved = "" if was == root else f", which was {was}"
    say(f"{root} is not the dataset that {record.run} was made from{moved}")


def _all_shown(record: Record) -> str:
    """The likeliest places of a run's datasets."""
    numbers = range(len(record.datasets))
    return _listed(next(iter(places(record, "data", number)), "?") for number in numbers)


def _listed(names: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def check_actions(count: int, names: tuple[str, ...], store: data.Store, run: str | Path) -> None:
    """Raise UserError if a dataset has other recorded actions than the `count` of a run.

    Either may have none, and either may have no names for them.
    """
    if _same_actions(count, names, store):
        return
    raise UserError(
        f"{shown(store.root)} has other recorded actions ({_list(store.num_actions, store.action_names)}) "
        f"than the dataset that {run} was made from ({_list(count, names)}): "
        "name a dataset with the same actions with --cfg.data"
    )


def _same_actions(count: int, names: tuple[str, ...], store: data.Store) -> bool:
    """Whether a dataset's recorded actions are these, as far as that is known."""
    if not count or not store.num_actions:
        return True
    same_names = not names or not store.action_names or tuple(names) == store.action_names
    return count == store.num_actions and same_names


def _list(count: int, names: tuple[str, ...]) -> str:
    """The number of actions, and the first of their names."""
    first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{count}: {first}" if names else str(count)


def say(sentence: str) -> None:
    """Print one line."""
    console.print(sentence, soft_wrap=True, markup=False)
