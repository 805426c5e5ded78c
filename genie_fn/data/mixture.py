"""Mixtures: several datasets presented as one store, from which clips are read.

On the time axis of a mixture the time axes of its datasets follow one another, each from its `base`
on. Segments are moved with them, and the arrays are read through a view that is joined from those
of the datasets. So whatever reads a store reads a mixture in the same way. Nothing writes to one.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from genie_fn.data import storage
from genie_fn.data.store import DTYPES, VECTORS, Part, Store, next_offset, open_store
from genie_fn.errors import UserError

CACHE_BYTES = 1 << 30
"""Of decoded frames, over all datasets."""


def open_stores(roots: Sequence[str | Path], weights: Sequence[float] = ()) -> Store:
    """The dataset at a folder, or the mixture of several with their `weights`, as `mix` makes it.

    Raises UserError as `open_store` and `mix` do.
    """
    return mix([open_store(root, CACHE_BYTES // len(roots)) for root in roots], weights)


def mix(stores: Sequence[Store], weights: Sequence[float] = ()) -> Store:
    """Several datasets as one store; of one dataset, that store itself.

    `weights`, one for each dataset, say in which proportion clips are drawn from them; without
    weights every clip is as likely as any other. A mixture has recorded actions if all datasets
    have the same ones. Raises UserError for frames of different sizes, for a dataset that is named
    twice, and for another number of weights than of datasets.
    """
    _check(stores, weights)
    first = stores[0]
    if len(stores) == 1:
        return first
    bases = [*accumulate(map(next_offset, stores[:-1]), initial=0)]
    same = all(store.has_actions_of(first) for store in stores)
    return replace(
        first,
        meta={},
        num_actions=first.num_actions if same else 0,
        action_size=first.action_size if same else 0,
        action_names=first.action_names if same else (),
        segments=tuple(
            segment._replace(offset=base + segment.offset)
            for store, base in zip(stores, bases, strict=True)
            for segment in store.segments
        ),
        data_hash=storage.sha256({"datasets": [store.data_hash for store in stores]}),
        arrays={
            name: storage.joined([store.arrays[name] for store in stores], bases)
            for name in (*DTYPES, *([VECTORS] if same and first.action_size else []))
        },
        parts=tuple(map(Part, stores, bases)),
        weights=tuple(map(float, weights)),
    )


def _check(stores: Sequence[Store], weights: Sequence[float]) -> None:
    """Raise UserError unless datasets can be mixed."""
    first = stores[0]
    if weights and len(weights) != len(stores):
        raise UserError(
            f"--cfg.data-weights has {len(weights)} numbers, and there are {len(stores)} datasets: "
            "give one number for each dataset"
        )
    seen = set()
    for store in stores:
        place = os.path.realpath(store.root)
        if place in seen:
            raise UserError(
                f"--cfg.data names {store.root} twice: name it once, and set its share of the clips "
                "with --cfg.data-weights"
            )
        seen.add(place)
        if (store.height, store.width) != (first.height, first.width):
            raise UserError(
                f"{first.root} has frames of {first.height}x{first.width} pixels and {store.root} of "
                f"{store.height}x{store.width}, but the datasets of a run need one size: import one "
                f"of them again, as with `python import_videos.py --cfg.size {first.height}`"
            )


def check_recorded_actions(store: Store, needed_by: str) -> None:
    """Raise UserError unless a dataset has recorded actions, and those of a mixture have the same
    ones in the same order. `needed_by` is the flag that uses them."""
    first = store.datasets[0]
    for dataset in store.datasets:
        if not dataset.num_actions:
            raise UserError(
                f"{dataset.root} has no recorded actions, which {needed_by} needs: leave it out, or "
                "import the videos with their actions"
            )
        if not dataset.has_actions_of(first):
            raise UserError(
                f"{first.root} and {dataset.root} have different recorded actions "
                f"({_difference(first, dataset)}): train on datasets with the same actions in the "
                f"same order, or leave {needed_by} out"
            )


def _difference(first: Store, other: Store) -> str:
    """The first difference between the recorded actions of two datasets."""
    if first.num_actions != other.num_actions:
        return f"{first.num_actions} and {other.num_actions} of them"
    for number, names in enumerate(zip(first.action_names, other.action_names, strict=False)):
        if names[0] != names[1]:
            return f"action {number} is {names[0]} and {names[1]}"
    return "not all of them have names"
