"""A latent action model by itself, before a world is trained with it.

Three questions are answered on held-out levels: does the model use its actions (the cost of
shuffling them), do they move the picture in distinct directions, and what do they say about recorded
actions, beside a supervised model of the same size.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genie_fn import lam, layers, metrics, random
from genie_fn.bundle.action_effects import DIRECTIONS, MIN_SHARE
from genie_fn.errors import UserError
from genie_fn.evaluation import record_file
from genie_fn.evaluation.actions import Transitions
from genie_fn.evaluation.record import Actions, Dataset, Values
from genie_fn.evaluation.report import headlines
from genie_fn.lam import LamConfig
from genie_fn.runtime.backend import AUTO, Backend
from genie_fn.tree import Tree

SCHEMA = 1
FILE = "latent_actions.json"
CHUNK = 8
"""Clips that are predicted at once."""
SHUFFLES = 4


@dataclass(frozen=True)
class Predictions:
    """PSNR in dB of held-out frames, of the squared error over all transitions together.

    Each frame is predicted from those before it, as far as the decoder sees them, and an action.
    """

    inferred: float
    shuffled: float
    """With the inferred actions shuffled across all transitions."""
    copied: float
    """Of the frame before itself."""

    @property
    def cost(self) -> float:
        """What shuffling costs, in dB."""
        return self.inferred - self.shuffled


@dataclass(frozen=True)
class Direction:
    """The action that moves the agent furthest in a direction, where the camera follows it."""

    action: int
    share: float
    """Of all transitions."""
    moves: float
    """The share of its transitions in which the agent moves in the direction."""
    pixels: float
    """The mean displacement in the direction, in pixels per step."""


@dataclass(frozen=True)
class LatentActions:
    """Everything that evaluate_lam.py measures of one latent action model."""

    config: dict[str, Any]
    machine: dict[str, Any]
    parameters: int
    stride: int
    """Frames of the dataset from one frame of a clip to the next."""
    data: Dataset
    predictions: Predictions
    directions: dict[str, Direction | None]
    """By the keys of DIRECTIONS; None where no action moves the agent in the direction."""
    horizontal_nmi: float
    """Normalised mutual information of the actions with left / still / right."""
    vertical_nmi: float
    actions: Actions


class Row(NamedTuple):
    """A number: its label, how to read it, and how it is printed."""

    label: str
    read: Callable[[LatentActions], Values | None]
    digits: int
    unit: str = ""


def _moves(name: str) -> Callable[[LatentActions], Values]:
    """Reads how often the action that moves furthest in a direction does; 0 if none does."""

    def from_record(record: LatentActions) -> Values:
        direction = record.directions[name]
        return [0.0 if direction is None else direction.moves]

    return from_record


PREDICTED = Row("next frame, PSNR", lambda r: [r.predictions.inferred], 2, " dB")
COPIED = Row("next frame, PSNR, copy-last", lambda r: [r.predictions.copied], 2, " dB")
COST = Row("shuffling the actions costs", lambda r: [r.predictions.cost], 2, " dB")
PERPLEXITY = Row("actions, perplexity", lambda r: [r.actions.perplexity], 2)
HORIZONTAL = Row("NMI with left / still / right motion", lambda r: [r.horizontal_nmi], 3)
VERTICAL = Row("NMI with up / still / down motion", lambda r: [r.vertical_nmi], 3)
LEFT = Row("moves left under the action for left", _moves("LEFT"), 2)
RIGHT = Row("moves right under the action for right", _moves("RIGHT"), 2)
NMI = Row("NMI with recorded actions", headlines.agreement("all", lambda a: a.nmi), 3)
SIDES = Row(
    "NMI with recorded left / none / right", headlines.agreement("sides", lambda a: a.nmi), 3
)
LABELS = Row("accuracy of the map from 200 labelled transitions", headlines.few_labels(200), 3)
ROWS = (
    PREDICTED,
    COPIED,
    COST,
    Row("actions used", lambda r: [r.actions.used], 0),
    PERPLEXITY,
    HORIZONTAL,
    VERTICAL,
    NMI,
    Row("NMI with recorded actions, supervised", headlines.guesses("all", lambda g: g.nmi), 3),
    SIDES,
    Row(
        "NMI with recorded left / none / right, supervised",
        headlines.guesses("sides", lambda g: g.nmi),
        3,
    ),
    LABELS,
    Row(
        "accuracy of the most frequent action",
        headlines.agreement("all", lambda a: a.majority_accuracy),
        3,
    ),
)
COLUMNS = (PREDICTED, COST, PERPLEXITY, HORIZONTAL, VERTICAL, LEFT, RIGHT, NMI, SIDES, LABELS)
"""The numbers in tables of ablations."""


def show(direction: Direction) -> str:
    """`action 3: 1.8 pixels per step, in the direction in 97%, 21% of transitions`."""
    return (
        f"action {direction.action}: {direction.pixels:.1f} pixels per step, in the direction in "
        f"{direction.moves:.0%}, {direction.share:.0%} of transitions"
    )


def write(record: LatentActions, folder: Path) -> Path:
    """Write latent_actions.json; returns the file."""
    return record_file.write_json(folder / FILE, SCHEMA, asdict(record))


def read(folder: str | Path) -> LatentActions:
    """The record in a folder. Raises UserError if there is none, or it is damaged."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {FILE}: make one with `python evaluate_lam.py --cfg.run` and the "
            "folder of a run of train_lam.py"
        )
    stored, _ = record_file.read_json(path, SCHEMA, "evaluate the run again")
    try:
        return record_file.converter.structure(stored, LatentActions)
    except Exception as error:  # cattrs raises groups of errors
        raise UserError(f"{path} is damaged: evaluate the run again") from error


@torch.no_grad()
def shuffling(
    params: Tree, frames: Tensor, model: LamConfig, key: Tensor, backend: Backend = AUTO
) -> Predictions:
    """The quality of predictions on uint8 clips (B, T, H, W, 3), with and without shuffling.

    All three numbers are of the same frames, so their differences are comparable between models and
    between strides, although frames that are further apart differ more.
    """
    chunks = frames.split(CHUNK)
    ids = torch.cat([lam.infer_actions(params, x, model, backend=backend) for x in chunks])

    def error(actions: Tensor) -> Tensor:
        """The mean squared error of the predictions with actions (B, T-1)."""
        errors = []
        for x, chosen in zip(chunks, actions.split(CHUNK), strict=True):
            video = layers.to_float(x)
            codes = lam.lookup(params, chosen, model)
            predicted = lam.decode(params, video[:, :-1], codes, model, backend=backend)
            errors.append((predicted - video[:, 1:]).square().mean((1, 2, 3, 4)))
        return torch.cat(errors).mean()

    orders = [
        random.uniform(random.fold_in(key, i), (ids.numel(),)).argsort() for i in range(SHUFFLES)
    ]
    shuffled = torch.stack([error(ids.flatten()[order].reshape(ids.shape)) for order in orders])
    copied = layers.to_float(frames).diff(dim=1).square().mean()
    return Predictions(
        inferred=metrics.psnr(error(ids)).item(),
        shuffled=metrics.psnr(shuffled.mean()).item(),
        copied=metrics.psnr(copied).item(),
    )


def directions(transitions: Transitions, actions: int) -> dict[str, Direction | None]:
    """For each of DIRECTIONS, the action that moves the agent furthest in it.

    The agent moves against the picture, which holds where the camera follows it.
    """
    codes, moved = transitions.codes, metrics.agent_motion(transitions.shift)
    every = torch.arange(actions)
    mean = metrics.agent_motion(metrics.mean_displacement(codes, transitions.shift, every))
    share = torch.bincount(codes.flatten(), minlength=actions) / codes.numel()
    mean = torch.where((share >= MIN_SHARE)[:, None], mean, 0)
    found: dict[str, Direction | None] = {}
    for name, unit in DIRECTIONS.items():
        along = mean @ mean.new_tensor(unit)
        action = int(along.argmax())
        if along[action] <= 0:
            found[name] = None
            continue
        step = moved[codes == action] @ moved.new_tensor(unit)
        found[name] = Direction(
            action=action,
            share=round(share[action].item(), 4),
            moves=round((step > 0).float().mean().item(), 4),
            pixels=round(along[action].item(), 4),
        )
    return found


def motion_nmi(transitions: Transitions) -> tuple[float, float]:
    """Normalised mutual information of the actions with the sign of the picture's displacement.

    The two numbers are of the horizontal and of the vertical displacement.
    """
    codes = transitions.codes.flatten()
    signs = transitions.shift.sign().long().flatten(0, 1) + 1
    horizontal, vertical = (metrics.mutual_information(codes, sign) for sign in signs.unbind(1))
    return round(horizontal, 4), round(vertical, 4)
