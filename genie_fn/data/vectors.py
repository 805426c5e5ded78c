"""Actions that are vectors, such as the velocities of a robot's joints.

A store keeps the vectors as they were recorded. Beside them it holds prototypes, the centres of clusters
(k-means), and each action's nearest one: with these numbers a world is played and evaluated like
one of named actions, while its dynamics model learns from the vectors themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from genie_fn.errors import UserError

ROUNDS = 30
"""The most rounds of k-means."""
MAX_SAMPLES = 100_000
"""Vectors from which prototypes are made, evenly spread over all."""


class Prototypes(NamedTuple):
    """What is known of the vectors of a store."""

    mean: np.ndarray
    """(A,) float32."""
    std: np.ndarray
    """(A,) float32, above 0."""
    centres: np.ndarray
    """(K, A) float32, standardised: (vector - mean) / std."""


def make(vectors: Sequence[np.ndarray], count: int) -> Prototypes:
    """At most `count` prototypes of the vectors (R_i, A) of some episodes.

    The result depends on the vectors alone. Raises UserError if they are not finite, or if episodes
    have vectors of different lengths.
    """
    sizes = {values.shape[1] for values in vectors}
    if len(sizes) > 1:
        raise UserError(
            f"the actions of episodes are vectors of {' and '.join(map(str, sorted(sizes)))} numbers: "
            "import them to datasets of their own, or without actions by --cfg.no-actions"
        )
    joined = np.concatenate(vectors).astype(np.float64)
    if not np.isfinite(joined).all():
        raise UserError(
            "some actions are not finite numbers: correct them, or import without actions by "
            "--cfg.no-actions"
        )
    mean = joined.mean(0)
    std = joined.std(0)
    std[std < 1e-6] = 1.0
    spread = np.linspace(0, len(joined) - 1, min(len(joined), MAX_SAMPLES)).astype(int)
    scaled = (joined[spread] - mean) / std
    centres = _k_means(scaled, min(count, len(np.unique(scaled, axis=0))))
    return Prototypes(*(x.astype(np.float32) for x in (mean, std, centres)))


def _k_means(rows: np.ndarray, count: int) -> np.ndarray:
    """Cluster centres (count, A), the first nearest to the mean; those after it are far apart at first."""
    centres = [rows[np.argmin((rows**2).sum(1))]]
    distance = ((rows - centres[0]) ** 2).sum(1)
    while len(centres) < count:
        centres.append(rows[np.argmax(distance)])
        distance = np.minimum(distance, ((rows - centres[-1]) ** 2).sum(1))
    found = np.stack(centres)
    for _ in range(ROUNDS):
        nearest = _nearest(rows, found)
        sums = np.zeros_like(found)
        np.add.at(sums, nearest, rows)
        counts = np.bincount(nearest, minlength=count)[:, None]
        moved = np.where(counts > 0, sums / np.maximum(counts, 1), found)
        if np.allclose(moved, found):
            break
        found = moved
    return found


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(R,) int64: the nearest centre of each row. Memory is that of one column at a time."""
    best = np.zeros(len(rows), np.int64)
    least = np.full(len(rows), np.inf)
    for number, centre in enumerate(centres):
        distance = ((rows - centre) ** 2).sum(1)
        closer = distance < least
        best[closer] = number
        least = np.minimum(distance, least)
    return best


def standardised(values: np.ndarray, prototypes: Prototypes) -> np.ndarray:
    """Vectors (..., A) in units of their standard deviation, float32."""
    return ((values - prototypes.mean) / prototypes.std).astype(np.float32)


def numbers(values: np.ndarray, prototypes: Prototypes) -> np.ndarray:
    """The nearest prototype of vectors (R, A), (R,) int64."""
    return _nearest(standardised(values, prototypes), prototypes.centres)


def to_meta(prototypes: Prototypes) -> dict[str, Any]:
    """What a store's `meta` keeps, under `prototypes`."""
    return {name: values.tolist() for name, values in prototypes._asdict().items()}


def prototypes_of(meta: Mapping[str, Any]) -> Prototypes:
    """The prototypes that a store's `meta` keeps. Raises UserError if they are not valid."""
    try:
        stored = meta["prototypes"]
        found = Prototypes(*(np.array(stored[name], np.float32) for name in Prototypes._fields))
        size = found.mean.shape[0]
        valid = found.std.shape == (size,) and (found.std > 0).all()
        if not valid or found.centres.ndim != 2 or found.centres.shape[1] != size:
            raise ValueError("their shapes do not fit")
        return found
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"the dataset does not say what its vectors of actions are ({error}): import it again"
        ) from error
