"""Behaviour cloning from an expert's video without its actions, evaluated in the real game.

    python clone.py                          # the demo's latent actions, 5 seeds: twenty minutes
    python clone.py --cfg.run runs/small/dynamics --cfg.levels 500 --cfg.steps 5000

Genie (arXiv 2402.15391), section 3.3. The expert searches in the real game: it plays levels of the
game that the world was made from, and their video is kept as a dataset in the folder of the
results. (With --cfg.expert dataset it is the policy that collected the dataset.) Of its episodes
the solved ones are kept. A policy learns to predict the next latent action; 50 to 200 transitions
with recorded actions translate latent actions. It plays held-out levels of the real game beside the
expert, an oracle, trained on recorded actions, and policies that ignore the frames: one draws
actions with the expert's frequencies, one always takes the expert's commonest, one is random.
Finished seeds are kept: the same command continues.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from genie_fn import bundle, data, random
from genie_fn import world as worlds
from genie_fn.data.procgen import ACTIONS, ProcgenGame
from genie_fn.errors import UserError
from genie_fn.evaluation import clone_record, cloning, inverse_dynamics
from genie_fn.evaluation.clone_record import CloneRecord, ExpertSummary, Seed
from genie_fn.evaluation.cloning import Episode, Examples, Expert, Policy
from genie_fn.evaluation.report import pages, tables
from genie_fn.runtime import backend, files, provenance
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import results
from genie_fn.runtime.progress import Progress
from genie_fn.training.config import RunConfig
from genie_fn.world import World

COUNTS = ("seeds", "demonstrations", "levels", "steps", "batch_size", "dim", "episodes", "frames")
PAGE = "clone.html"
DEMONSTRATIONS = "demonstrations"
"""The folder of the expert's video, within that of the results."""
NOT_COMPARED = ("seeds", "out", "device", "run", "data", "tokenizer", "lam")
"""Options that may differ when a record is continued. Of the models and the dataset hashes are
compared, not the paths."""


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run, or a world file, whose latent actions are used."""
    data: str = ""
    """The dataset of a game; by default the one that the run was made from."""
    expert: Literal["search", "dataset"] = "search"
    """Who plays: `search` in the real game, which looks ahead, or the policy that collected the
    `dataset`, which need not look at all."""
    distribution_mode: Literal["easy", "hard"] = "easy"
    """Procgen's variant of the levels that `search` plays; a dataset has its own."""
    demonstrations: int = 300
    """Levels of the train split that `search` plays."""
    tokenizer: str = ""
    """The folder of the tokenizer's run, where it is not where the dynamics run expects it."""
    lam: str = ""
    """The folder of the latent action model's run, likewise."""
    out: str = ""
    """The folder of clone.json and clone.html; by default the run's, or one beside the file."""
    seeds: int = 5
    """Repetitions, each with other initial parameters and other labelled transitions."""
    levels: int = 100
    """Held-out levels that every policy plays once."""
    samples: tuple[int, ...] = (50, 100, 200)
    """Numbers of labelled transitions to translate latent actions with."""
    steps: int = 600
    """Training steps of each policy."""
    batch_size: int = 64
    """Moments per training step."""
    dim: int = 16
    """Channels of the policy's first layer."""
    episodes: int = 1000
    """Solved episodes to learn from, at most."""
    frames: int = 1000
    """Frames after which a level counts as not solved; the game itself ends after 1000."""
    device: str = "auto"
    """The device to train on."""

    def __post_init__(self):
        for name in COUNTS:
            if getattr(self, name) < 1:
                flag = f"--cfg.{name.replace('_', '-')}"
                raise UserError(f"{flag} is {getattr(self, name)}, but must be at least 1")
        if not self.samples or min(self.samples) < 1:
            raise UserError("--cfg.samples are numbers of labelled transitions, each at least 1")


class Task(NamedTuple):
    """What every seed works with."""

    world: World
    store: data.Store
    expert: Expert
    levels: list[tuple[ProcgenGame, bytes]]
    solved: list[int]
    """Of the levels, which the expert solves (0 or 1 each); empty if it cannot be asked."""


def main(cfg: Config) -> None:
    out = Path(cfg.out or bundle.results_folder(cfg.run))
    files.check_outputs("--cfg.out", out / clone_record.FILE, out / PAGE)
    device = backend.pick_device(cfg.device)
    loaded = bundle.load(cfg.run, device, tokenizer=cfg.tokenizer, lam=cfg.lam)
    world = loaded.world
    if world.lam is None:
        raise UserError(
            f"{cfg.run} was trained on recorded actions, and cloning needs a world of latent ones: "
            "name another --cfg.run"
        )
    store = bundle.open_dataset(loaded, cfg.data)
    cfg = replace(cfg, data=str(store.root))
    if cfg.expert == "search":
        store = cloning.demonstrations(
            store, out / DEMONSTRATIONS, cfg.distribution_mode, cfg.demonstrations
        )
    record = open_record(cfg, out, bundle.fingerprint(world.lam), store.data_hash)
    missing = [seed for seed in range(cfg.seeds) if str(seed) not in record.seeds]
    if missing:
        with Progress() as progress:
            known = record.expert.solved_held_out if record.expert else []
            task, summary = prepare(cfg, world, store, known, progress)
            record = replace(record, expert=summary)
            for seed in missing:
                record = with_seed(record, seed, evaluate_seed(cfg, task, seed, progress))
                record = replace(record, machine=provenance.describe(device))
                write(record, out)
    print_table(record)
    print("written:", out / clone_record.FILE, out / PAGE)


def open_record(cfg: Config, out: Path, lam: str, data_hash: str) -> CloneRecord:
    """The record to continue, or a new one.

    Raises UserError if other options made the existing one.
    """
    config = json.loads(json.dumps(asdict(cfg)))
    new = CloneRecord(config=config, lam=lam, data=data_hash)
    stored = clone_record.read(out)
    if stored is None:
        return new
    same_options = compared(stored.config) == compared(config)
    if not same_options or (stored.lam, stored.data) != (lam, data_hash):
        raise UserError(
            f"{out / clone_record.FILE} comes from other options, data or models: "
            "delete it, or choose another --cfg.out"
        )
    return stored


def compared(config: dict[str, Any]) -> dict[str, Any]:
    """The options that must be the same for a record to be continued."""
    return {name: value for name, value in config.items() if name not in NOT_COMPARED}


def prepare(
    cfg: Config, world: World, store: data.Store, known: list[int], progress: Progress
) -> tuple[Task, ExpertSummary]:
    """The levels to play and the expert's labelled moments, with a summary of the expert.

    `known` is which of the levels it solves, if it was asked before.
    """
    levels = cloning.open_levels(cfg.levels, store.meta, store.stride)
    episodes = cloning.episodes(store)
    expert = label(cfg, world, store, episodes, progress)
    solved = known
    if cfg.expert == "search" and not known:
        tracked = progress.track(levels, "the expert plays held-out levels, level")
        solved = cloning.solved_by_search(store, tracked, cfg.frames)
    return Task(world, store, expert, levels, solved), summarise_expert(episodes, expert, solved)


def label(
    cfg: Config, world: World, store: data.Store, episodes: list[Episode], progress: Progress
) -> Expert:
    """The expert's moments with their latent actions."""
    labelling = progress.task("labelling the expert's video, transition")

    def infer(frames: Tensor, recorded: Tensor) -> Tensor:
        labelling.advance(parts=frames.shape[0] * (frames.shape[1] - 1))
        return worlds.infer_actions(world, frames)

    with torch.no_grad():
        device = backend.pick_device(cfg.device)
        expert = cloning.label(store, episodes, infer, device, cfg.episodes)
    labelling.end()
    return expert


def summarise_expert(episodes: list[Episode], expert: Expert, held_out: list[int]) -> ExpertSummary:
    """Shares of episodes and of first attempts that the expert solved."""
    complete = [episode.solved for episode in episodes if episode.complete or held_out]
    first = [episode.solved for episode in episodes if episode.first]
    return ExpertSummary(
        solved=round(float(np.mean(complete)), 4),
        levels_solved=round(float(np.mean(first)), 4),
        episodes=len(complete),
        levels=len(first),
        transitions=len(expert.recorded),
        solved_held_out=held_out,
    )


def evaluate_seed(cfg: Config, task: Task, seed: int, progress: Progress) -> Seed:
    """Train the policies of a seed and play every level with each."""
    began = time.monotonic()
    chance = np.random.default_rng([seed, 1]).random((cfg.levels, cfg.frames))
    policies = train_policies(cfg, task, seed, progress)
    solved = {"expert": task.solved} if task.solved else {}
    for name, policy in progress.track(policies.items(), f"seed {seed}: playing, policy"):
        solved[name] = cloning.play(policy, task.levels, chance).astype(int).tolist()
    return Seed(solved, round(time.monotonic() - began, 1))


def train_policies(cfg: Config, task: Task, seed: int, progress: Progress) -> dict[str, Policy]:
    """Every policy of a seed by name."""
    expert = task.expert
    assert task.world.lam is not None
    codes = task.world.lam.cfg.actions
    settings = policy_settings(cfg, seed)

    def steps(what: str) -> Iterable[int]:
        return progress.track(range(cfg.steps), f"seed {seed}: learning {what}, step")

    def fit(target: np.ndarray, kinds: int, what: str) -> Policy:
        examples = Examples(expert.offsets, target, kinds)
        return cloning.fit(task.store, examples, cfg.dim, settings, steps(what))

    latent = fit(expert.latent, codes, "latent actions")
    oracle = fit(expert.recorded, len(ACTIONS), "recorded actions")
    labelled = np.random.default_rng(seed).permutation(len(expert.recorded))
    policies = constant_policies(expert.recorded[labelled[: max(cfg.samples)]])
    policies["oracle"] = oracle
    for count in cfg.samples:
        rows = labelled[:count]
        for name, commonest in ((f"clone {count}", False), (f"clone {count}, commonest", True)):
            translation = cloning.translation(
                expert.latent[rows], expert.recorded[rows], codes, commonest=commonest
            )
            policies[name] = cloning.translated(latent, translation)
    return policies


def policy_settings(cfg: Config, seed: int) -> RunConfig:
    """How a policy is trained."""
    settings = inverse_dynamics.settings(cfg.steps, seed, backend.pick_device(cfg.device))
    return replace(settings, batch_size=cfg.batch_size, num_frames=1)


def constant_policies(recorded: np.ndarray) -> dict[str, Policy]:
    """Policies that ignore the frames, from labelled transitions."""
    counts = torch.from_numpy(np.bincount(recorded, minlength=len(ACTIONS)))
    uniform = torch.ones(len(ACTIONS)) / len(ACTIONS)
    return {
        "random": cloning.constant(uniform),
        "frequencies": cloning.constant(counts / counts.sum()),
        "commonest": cloning.constant(torch.eye(len(ACTIONS))[counts.argmax()]),
    }


def with_seed(record: CloneRecord, number: int, seed: Seed) -> CloneRecord:
    """The record with one more seed, and shares and gains over all of them."""
    seeds = record.seeds | {str(number): seed}
    ordered = [seeds[name].solved for name in sorted(seeds, key=int)]
    solved = {name: torch.tensor([run[name] for run in ordered]) for name in ordered[0]}
    key = random.key(0)
    shares = {name: cloning.share(values, key) for name, values in solved.items()}
    gains = {
        name: cloning.share(values - solved["random"], key)
        for name, values in solved.items()
        if name != "random"
    }
    return replace(record, seeds=seeds, shares=shares, gains=gains)


def write(record: CloneRecord, out: Path) -> None:
    """Write the page and the record."""
    files.write_text(out / PAGE, pages.clone(record))
    clone_record.write(record, out)


def print_table(record: CloneRecord) -> None:
    """Shares of levels solved by every policy."""
    table = Table("policy", "levels solved", "more than random")
    for row in tables.cloning(record):
        table.add_row(*row)
    results.print(table)


if __name__ == "__main__":
    run(main)
