"""From real actions to latent ones and back, by counting how they met in labelled transitions.

Genie (arXiv 2402.15391), section 3.3, maps latent actions to real ones with a few labelled samples; play needs the
other way too, for the arrow keys. The map is kept beside the world, as `actions.json` in the dynamics run's folder.
"""

import json
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from genie_fn.runtime import files

FILE, FILE_BYTES = "actions.json", 1 << 20


class ActionMap(NamedTuple):
    """What was counted, and what follows from it."""

    names: list[str]
    """The real actions'."""
    table: list[list[int]]
    """How often each real action (rows) went with each latent one."""
    to_latent: list[int]
    """Per real action, the latent one that stands for it in play."""
    agreement: float
    """How often the best map from latent to real actions, fitted on half of the levels, is right on the other half."""
    chance: float
    """How often always naming the commonest real action is right there."""


def by_lift(table: Tensor, smoothing: float = 10.0) -> Tensor:
    """Per real action the latent one that it makes most likelier than usual: argmax p(latent | real) / p(latent).

    Where real actions tell little of latent ones, the likeliest latent action is the same for all; what it is raised by
    is not. `smoothing` counts are added in the usual proportions, against chance in rare actions.
    """
    usual = (table.sum(0) + 1) / (table.sum() + table.shape[1])
    lift = (table + smoothing * usual) / (table.sum(1, keepdim=True) + smoothing) / usual
    return lift.argmax(1)


def make(names: list[str], table: list[list[int]], agreement: float, chance: float) -> ActionMap:
    """The map that follows from a table of counts."""
    return ActionMap(names, table, by_lift(torch.tensor(table)).tolist(), agreement, chance)


def save(found: ActionMap, run: str | Path) -> Path:
    """Write the map beside the world; returns the file."""
    path = Path(run) / FILE
    files.write_atomically(path, (json.dumps(found._asdict(), indent=1) + "\n").encode())
    return path


def load(run: str | Path, choices: int = 0) -> ActionMap | None:
    """The map of a run, None where none was measured or what is there is no map (to `choices` latent actions)."""
    try:
        found = ActionMap(**files.read_json(Path(run) / FILE, FILE_BYTES))
        return found if sensible(found, choices) else None
    except (OSError, ValueError, TypeError):
        return None


def sensible(found: ActionMap, choices: int) -> bool:
    """Whether names, counts and shares are such, and fit together."""
    widths, shares = {len(row) for row in found.table}, (found.agreement, found.chance)
    return (
        len(found.names) == len(found.table) == len(found.to_latent)
        and len(widths) == 1
        and choices in (0, *widths)
        and type(found.names) is list
        and all(type(name) is str for name in found.names)
        and all(type(count) is int and 0 <= count < 2**53 for count in chain(*found.table))
        and all(type(latent) is int and 0 <= latent < min(widths) for latent in found.to_latent)
        and all(
            type(share) in (int, float) and 0 <= share <= 1 for share in shares if share is not None
        )
    )
