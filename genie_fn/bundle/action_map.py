"""A map between recorded and latent actions, from their co-occurrence in labelled transitions.

Genie (arXiv 2402.15391), section 3.3, maps latent actions to real ones with a few labelled samples.
Playing with the arrow keys needs the inverse map. It is stored as `actions.json` in the folder of
the dynamics run.
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genie_fn.runtime import files

FILE = "actions.json"
FILE_BYTES = 1 << 20


class ActionMap(NamedTuple):
    """The counts and the map that follows from them."""

    names: list[str]
    """The names of the recorded actions."""
    table: list[list[int]]
    """How often each recorded action (rows) occurred with each latent one (columns)."""
    to_latent: list[int]
    """For each recorded action, the latent one that stands for it in play."""
    agreement: float
    """Held-out accuracy of the best map from latent to recorded actions.

    It is fitted on one half of the levels and measured on the other.
    """
    chance: float
    """Held-out accuracy of always predicting the most frequent recorded action."""


def lift(table: Tensor, smoothing: float = 10.0) -> Tensor:
    """p(latent | recorded) / p(latent) for each recorded action (rows) and latent one (columns).

    Where recorded actions say little about latent ones, the likeliest latent action is the same for
    all of them, but the one with the largest lift is not. `smoothing` counts are added in the
    marginal proportions, so that rare actions are not decided by noise.
    """
    marginal = (table.sum(0) + 1) / (table.sum() + table.shape[1])
    conditional = (table + smoothing * marginal) / (table.sum(1, keepdim=True) + smoothing)
    return conditional / marginal


def restricted(mapping: ActionMap, candidates: Sequence[set[int]]) -> ActionMap:
    """The map in which each recorded action has the candidate with the largest lift, if it has any
    candidates."""
    chosen = []
    rows = zip(lift(torch.tensor(mapping.table)), mapping.to_latent, candidates, strict=True)
    for row_A, latent, allowed in rows:
        chosen.append(max(sorted(allowed), key=lambda action: row_A[action].item(), default=latent))
    return mapping._replace(to_latent=chosen)


def make(names: list[str], table: list[list[int]], agreement: float, chance: float) -> ActionMap:
    """The map that follows from a table of counts."""
    return ActionMap(names, table, lift(torch.tensor(table)).argmax(1).tolist(), agreement, chance)


def save(mapping: ActionMap, run: str | Path) -> Path:
    """Write the map to a run's folder; returns the file."""
    path = Path(run) / FILE
    files.write_atomically(path, (json.dumps(mapping._asdict(), indent=1) + "\n").encode())
    return path


def load(run: str | Path, latent_actions: int = 0) -> ActionMap | None:
    """The map in a run's folder; None where there is none, or no valid one to `latent_actions`."""
    try:
        mapping = ActionMap(**files.read_json(Path(run) / FILE, FILE_BYTES))
        return mapping if is_valid(mapping, latent_actions) else None
    except (OSError, ValueError, TypeError):
        return None


def is_valid(mapping: ActionMap, latent_actions: int = 0) -> bool:
    """Whether names, counts and shares are valid; 0 allows any number of `latent_actions`."""
    widths = {len(row) for row in mapping.table}
    return (
        len(mapping.names) == len(mapping.table) == len(mapping.to_latent)
        and len(widths) == 1
        and latent_actions in (0, *widths)
        and type(mapping.names) is list
        and all(type(name) is str for name in mapping.names)
        and all(type(count) is int and 0 <= count < 2**53 for count in chain(*mapping.table))
        and all(type(latent) is int and 0 <= latent < min(widths) for latent in mapping.to_latent)
        and _is_share(mapping.agreement)
        and _is_share(mapping.chance)
    )


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)
