"""Learn to play from an expert's video without its actions, and see how well that goes in the real game.

    python clone.py                                     # the demo's latent actions, 5 seeds: about twenty minutes
    python clone.py --cfg.run runs/small/dynamics --cfg.levels 500 --cfg.steps 5000

Genie (arXiv 2402.15391), section 3.3. The expert is the dataset's policy, of whose episodes the solved ones are kept. A
policy learns which latent action comes next; 50 to 200 labelled transitions tell what the latent actions mean. It plays
held-out levels of the real game beside an oracle, which was shown the real actions, and beside policies that do not
look: one draws actions as often as the expert takes them, one always takes the expert's commonest, one is random.
Seeds that are done are kept: the same command goes on.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from genie_fn import bundle, data, random, world
from genie_fn.data.procgen import ACTIONS
from genie_fn.errors import UserError
from genie_fn.evaluation import cloning, inverse_dynamics
from genie_fn.evaluation.cloning import Expert, Policy
from genie_fn.evaluation.report import headlines, report_page
from genie_fn.runtime import backend, files, provenance
from genie_fn.runtime.cli import run


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run, or a world file, whose latent actions are used."""
    data: str = "data/coinrun"
    """The expert's video."""
    out: str = ""
    """Where clone.json and clone.html go; by default the run's folder, or a folder beside the world file."""
    seeds: int = 5
    levels: int = 100
    """Held-out levels that every policy plays once."""
    samples: tuple[int, ...] = (50, 100, 200)
    """Numbers of labelled transitions that latent actions are translated by."""
    steps: int = 600
    batch_size: int = 64
    dim: int = 16
    """Channels of the policy's first layer."""
    episodes: int = 1000
    """Solved episodes to learn from, at most."""
    frames: int = 1000
    """After which a level counts as not solved; the game itself ends after 1000."""
    device: str = "auto"

    def __post_init__(self):
        for name in ("seeds", "levels", "steps", "batch_size", "dim", "episodes", "frames"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--cfg.{name.replace('_', '-')} is {getattr(self, name)}, but must be at least 1"
                )
        if not self.samples or min(self.samples) < 1:
            raise UserError("--cfg.samples are numbers of labelled transitions, each at least 1")


def begin(cfg: Config, path: Path, origin: dict) -> dict:
    """The record so far, or a new one; UserError if other options made what there is."""
    settings = {
        name: value for name, value in asdict(cfg).items() if name not in ("seeds", "out", "device")
    }
    wanted = json.loads(json.dumps({"schema": headlines.SCHEMA, "config": settings, **origin}))
    try:
        found = json.loads(path.read_text())
    except OSError:
        return wanted | {"seeds": {}}
    except ValueError as error:
        raise UserError(f"{path} is damaged: delete it, and clone again") from error
    if {name: found.get(name) for name in wanted} != wanted:
        raise UserError(
            f"{path} comes from other options, data or models: delete it, or choose another --cfg.out"
        )
    return found


def policies(
    cfg: Config, store: data.Store, expert: Expert, codes: int, seed: int, bar: Progress
) -> dict[str, Policy]:
    """All that play, by name."""
    settings = replace(
        inverse_dynamics.settings(cfg.steps, seed, backend.pick_device(cfg.device)),
        batch_size=cfg.batch_size,
        num_frames=1,
    )

    def learn(target: np.ndarray, kinds: int, what: str) -> Policy:
        steps = bar.track(range(cfg.steps), description=f"seed {seed}: learning {what}")
        return cloning.fit(store, expert.offsets, target, kinds, cfg.dim, settings, steps)

    latent, oracle = (
        learn(expert.latent, codes, "latent actions"),
        learn(expert.real, len(ACTIONS), "real actions"),
    )
    chosen = np.random.default_rng(seed).permutation(len(expert.real))
    overall = torch.from_numpy(
        np.bincount(expert.real[chosen[: max(cfg.samples)]], minlength=len(ACTIONS))
    )
    found = {"random": cloning.constant(torch.ones(len(ACTIONS)) / len(ACTIONS))}
    found |= {"frequencies": cloning.constant(overall / overall.sum())}
    found |= {
        "commonest": cloning.constant(torch.eye(len(ACTIONS))[overall.argmax()]),
        "oracle": oracle,
    }
    for count in cfg.samples:
        known = expert.latent[chosen[:count]], expert.real[chosen[:count]]
        for name, commonest in ((f"clone {count}", False), (f"clone {count}, commonest", True)):
            found[name] = cloning.translated(
                latent, cloning.meaning(*known, codes, commonest=commonest)
            )
    return found


def watch(
    cfg: Config, store: data.Store, dream: world.World, record: dict, bar: Progress
) -> Expert:
    """The expert's moments under latent names; what there is to know of it goes into the record."""
    found, device = cloning.episodes(store), backend.pick_device(cfg.device)
    task = bar.add_task("watching the expert", total=None)

    def name(frames, true):
        bar.advance(task, frames.shape[0] * (frames.shape[1] - 1))
        return world.infer_actions(dream, frames)

    with torch.no_grad():
        expert = cloning.watch(store, found, name, device, cfg.episodes)
    bar.update(task, total=bar.tasks[task].completed)
    shares = {
        "solved": found.solved[found.whole].mean(),
        "levels_solved": found.solved[found.first].mean(),
    }
    record["expert"] = {name: round(float(value), 4) for name, value in shares.items()} | {
        "episodes": int(found.whole.sum()),
        "levels": int(found.first.sum()),
        "transitions": len(expert.real),
    }
    return expert


def summarise(record: dict) -> None:
    """Shares of levels solved, and by how much they are more than the random policy's, with intervals."""
    runs = [record["seeds"][seed]["solved"] for seed in sorted(record["seeds"], key=int)]
    solved = {name: torch.tensor([run[name] for run in runs]) for name in runs[0]}
    key = random.key(0)
    record["shares"] = {name: cloning.share(values, key) for name, values in solved.items()}
    record["gains"] = {
        name: cloning.share(x - solved["random"], key)
        for name, x in solved.items()
        if name != "random"
    }


def write(record: dict, out: Path) -> None:
    files.write_atomically(out / "clone.html", report_page.clone_page(record).encode())
    files.write_atomically(out / "clone.json", (json.dumps(record) + "\n").encode())


def main(cfg: Config) -> None:
    dream = bundle.load(cfg.run, backend.pick_device(cfg.device)).world
    store = data.open_store(cfg.data)
    if dream.lam is None:
        raise UserError(
            f"{cfg.run} was trained on true actions: cloning needs a world of latent ones"
        )
    bundle.check_resolution(dream.lam, store.height, store.width, cfg.run)
    out = Path(cfg.out or bundle.results_folder(cfg.run))
    out.mkdir(parents=True, exist_ok=True)
    record = begin(
        cfg, out / "clone.json", {"lam": bundle.fingerprint(dream.lam), "data": store.data_hash}
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    if missing := [seed for seed in range(cfg.seeds) if str(seed) not in record["seeds"]]:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            levels, expert = (
                cloning.open_levels(cfg.levels, store.meta),
                watch(cfg, store, dream, record, bar),
            )
            for seed in missing:
                began, solved = time.monotonic(), {}
                chance = np.random.default_rng([seed, 1]).random((cfg.levels, cfg.frames))
                playing = policies(cfg, store, expert, dream.lam.cfg.actions, seed, bar).items()
                for name, policy in bar.track(playing, description=f"seed {seed}: playing"):
                    solved[name] = cloning.play(policy, levels, chance).astype(int).tolist()
                record["seeds"][str(seed)] = {
                    "solved": solved,
                    "seconds": round(time.monotonic() - began, 1),
                }
                record["machine"] = provenance.describe(backend.pick_device(cfg.device))
                summarise(record)
                write(record, out)
    table = Table("policy", "levels solved", "more than random")
    for row in report_page.clone_rows(record):
        table.add_row(*row)
    Console().print(table)
    print("written:", out / "clone.json", out / "clone.html")


if __name__ == "__main__":
    run(main)
