"""Evaluate a latent action model by itself on held-out levels, before a world is trained with it.

    python evaluate_lam.py                             # the demo's
    python evaluate_lam.py --cfg.run runs/mine/lam --cfg.split val

Writes latent_actions.json and actions.png, which shows recorded transitions with every action: the
frame, the next frame, and their difference. docs/evaluation.md defines every number. What a world
makes of the actions is measured by evaluate.py.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from genie_fn import data, lam, metrics, random, tree
from genie_fn.bundle import action_effects
from genie_fn.bundle import run as runs
from genie_fn.data import Store, video
from genie_fn.errors import UserError
from genie_fn.evaluation import actions, few_labels, inverse_dynamics, latent_actions
from genie_fn.evaluation.latent_actions import LatentActions
from genie_fn.evaluation.record import Actions, Dataset
from genie_fn.evaluation.report import headlines, pictures
from genie_fn.runtime import backend, files, provenance
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import results
from genie_fn.runtime.progress import stage
from genie_fn.training import inputs, setup
from genie_fn.world import Stage

PICTURE = "actions.png"
EXAMPLES = 8
"""Transitions of each action in the picture."""


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/lam"
    """The folder of the latent action model's run, or of a dynamics run that trained it jointly."""
    data: str = ""
    """The dataset to evaluate on; by default the one that the run was made from."""
    split: Literal["train", "val", "test"] = "test"
    """The split of the dataset to evaluate on."""
    clips: int = 64
    """Clips of 11 frames whose frames are predicted."""
    action_clips: int = 1000
    """Clips of 11 frames that actions are analysed on; fewer if the split has fewer."""
    probe_steps: int = 400
    """Training steps of the supervised inverse dynamics model, the reference; 0: none."""
    out: str = ""
    """The folder of the results; by default `evaluation` in the run's folder."""
    seed: int = 0
    """Seed of the clips and of all random numbers."""
    device: str = "auto"
    """The device to compute on."""

    def __post_init__(self):
        if min(self.clips, self.action_clips) < 2:
            raise UserError("--cfg.clips and --cfg.action-clips must be at least 2")
        if self.probe_steps < 0:
            raise UserError("--cfg.probe-steps must be at least 0")


def main(cfg: Config) -> None:
    out = Path(cfg.out or Path(cfg.run) / "evaluation")
    files.check_outputs("--cfg.out", out / latent_actions.FILE, out / PICTURE)
    record, picture = evaluate(cfg)
    out.mkdir(parents=True, exist_ok=True)
    path = latent_actions.write(record, out)
    video.write_png(out / PICTURE, picture)
    results.print(summary(record))
    print("written:", path, out / PICTURE)


@torch.no_grad()
def evaluate(cfg: Config) -> tuple[LatentActions, np.ndarray]:
    """All measurements of one model, and the picture of its actions."""
    device = backend.pick_device(cfg.device)
    model, _ = runs.load_stage(cfg.run, "lam", device)
    store = inputs.open_dataset(cfg.run, cfg.data)
    runs.check_resolution(model, store.height, store.width, cfg.run)
    keys = random.split(random.key(cfg.seed, device), 3)
    choices = model.cfg.quantizer.codes
    with stage("measuring predictions"):
        starts = data.eval_clips(store, cfg.split, actions.CLIP, cfg.clips, cfg.seed, "--cfg.clips")
        frames, _ = setup.to_device(data.read_clips(store, starts, actions.CLIP), device)
        levels = np.asarray(store.arrays["level_seeds"][starts].read().result())
        predictions = latent_actions.shuffling(
            model.params, frames, model.cfg, keys[2], model.backend
        )
    with stage("measuring actions"):
        infer = partial(infer_actions, model)
        offsets = actions.spread_clips(store, cfg.split, actions.CLIP, cfg.action_clips)
        codes = actions.map_clips(store, offsets, actions.CLIP, infer, device)
        found = actions.gather(store, offsets, actions.CLIP, codes)
        report = actions.describe(found, choices, store.action_names, True, keys[0].cpu())
    if report.recorded is not None:
        report = compare_with_recorded(cfg, model, store, found, report, keys[1])
    horizontal, vertical = latent_actions.motion_nmi(found)
    record = LatentActions(
        config=asdict(cfg),
        machine=provenance.describe(device),
        parameters=tree.count(model.params),
        stride=store.stride,
        data=Dataset(
            root=str(store.root),
            hash=store.data_hash,
            split=cfg.split,
            clips=cfg.clips,
            levels=len(np.unique(levels)),
            meta=store.meta,
        ),
        predictions=predictions,
        directions=latent_actions.directions(found, choices),
        horizontal_nmi=horizontal,
        vertical_nmi=vertical,
        actions=report,
    )
    return record, draw(store, offsets, found, report)


def infer_actions(model: Stage, frames: Tensor, recorded: Tensor) -> Tensor:
    """The latent actions (B, T-1) of frames; recorded actions are not looked at."""
    return lam.infer_actions(model.params, frames, model.cfg, backend=model.backend)


def compare_with_recorded(
    cfg: Config,
    model: Stage,
    store: Store,
    found: actions.Transitions,
    report: Actions,
    key: Tensor,
) -> Actions:
    """The report with what a supervised model, and maps from a few labels, reach."""
    assert report.recorded is not None
    device = key.device
    if cfg.probe_steps and store.count("train"):
        size = tree.count(lam.encoder(model.params))
        settings = inverse_dynamics.settings(cfg.probe_steps, cfg.seed, device)
        with stage("training the supervised inverse dynamics model"):
            probe = inverse_dynamics.measure(
                store, cfg.split, size, settings, found, report.recorded
            )
        report = replace(report, inverse_dynamics=probe)
    if store.count("train"):
        with stage("measuring maps from labelled transitions"):
            infer = partial(infer_actions, model)
            labels = few_labels.measure(
                store, infer, found, report.actions, cfg.action_clips, device, key
            )
        report = replace(report, few_labels=labels)
    return report


def draw(
    store: Store, offsets: np.ndarray, found: actions.Transitions, report: Actions
) -> np.ndarray:
    """A picture of recorded transitions with every action that occurs, one below the other."""
    every = torch.arange(report.actions)
    displacement = metrics.mean_displacement(found.codes, found.shift, every)
    motions = metrics.agent_motion(displacement).tolist()
    examples = actions.examples(found.codes, report.actions, EXAMPLES)
    rows = []
    for action, pairs in enumerate(examples):
        if pairs:
            strip = pictures.transitions(store, offsets, pairs)
            motion = action_effects.in_words(motions[action])
            text = f"action {action}, {report.share[action]:.0%}: {motion}"
            rows.append(pictures.captioned(strip, text))
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)


def summary(record: LatentActions) -> Table:
    """The numbers for the terminal."""
    table = Table(f"{record.data.split} levels", record.config["run"])
    for row in latent_actions.ROWS:
        value = row.read(record)
        if value is not None:
            table.add_row(row.label, headlines.show(value, row.digits, row.unit))
    for name, direction in record.directions.items():
        label = f"the action that moves furthest {name.lower()}"
        table.add_row(label, "–" if direction is None else latent_actions.show(direction))
    return table


if __name__ == "__main__":
    run(main)
