"""Measure a trained world on held-out levels: numbers to metrics.json, and a page that shows what they are worth.

    python evaluate.py                                  # the demo's world
    python evaluate.py --cfg.run runs/small/dynamics --cfg.clips 256
    python evaluate.py --cfg.world coinrun.safetensors                    # a file of export_world.py
    python evaluate.py --cfg.compare runs/a/dynamics runs/b/dynamics      # side by side what was measured before

Next to every PSNR stand what copying the last real frame scores and what wrong actions score: where little moves, a
high PSNR alone says nothing. "moving" is the half of the clips in which the picture changes most. docs/evaluation.md
says what every number means.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genie_fn import bundle, data, lam, random, tree, world
from genie_fn.bundle import action_map
from genie_fn.dynamics import SampleConfig
from genie_fn.errors import UserError
from genie_fn.evaluation import (
    action_report,
    fidelity,
    held_keys,
    inverse_dynamics,
    perceptual,
    rollouts,
)
from genie_fn.evaluation.perceptual import WeightsConfig
from genie_fn.evaluation.report import headlines, pictures, report_page
from genie_fn.evaluation.report.pictures import Picture
from genie_fn.evaluation.report.report_page import Pictures
from genie_fn.runtime import backend, provenance
from genie_fn.runtime.cli import run
from genie_fn.training import setup
from genie_fn.world import World

console = Console(stderr=True)


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run; it names the tokenizer and the latent actions."""
    world: str = ""
    """A world file, in the place of a run."""
    data: str = "data/coinrun"
    split: str = "test"
    clips: int = 64
    frames: int = 10
    """Frames to dream after the prompt."""
    prompts: tuple[int, ...] = (1, 4)
    """Real frames before the dream; each is a protocol of its own, and all dream the same frames."""
    action_clips: int = 1000
    """Clips of 11 frames for the report on actions, which needs many transitions; fewer where the split has fewer."""
    held: int = 20
    """Starts from which left and right are held, if the data is of a game with such keys; 0 leaves it out."""
    probe_steps: int = 400
    """Training steps of the supervised probe beside latent actions; 0 leaves it out."""
    brief: bool = False
    """Leave out what takes long beside the headlines: dreams in one go and from the true past, held keys and the probe,
    whatever --cfg.held and --cfg.probe-steps say."""
    out: str = ""
    """Where the results go; by default `evaluation` in the run's folder, or in one named like the world file."""
    compare: tuple[str, ...] = ()
    """Folders of runs or of evaluations: print them side by side, write compare.html to `out`, and measure nothing."""
    seed: int = 0
    device: str = "auto"
    sample: SampleConfig = field(default_factory=SampleConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)

    def __post_init__(self):
        if self.clips < 2 or self.frames < rollouts.HEADLINE:
            raise UserError(
                f"evaluation needs 2 clips and 4 frames or more, not {self.clips} and {self.frames}"
            )
        if (
            not self.prompts
            or min(self.prompts) < 1
            or self.action_clips < 2
            or min(self.probe_steps, self.held) < 0
        ):
            raise UserError(
                "evaluation needs prompts of 1 frame or more, 2 --cfg.action-clips, 0 --cfg.probe-steps and "
                "--cfg.held or more"
            )


@contextmanager
def timed(seconds: dict, name: str) -> Iterator[None]:
    """Show what is being done, and add the seconds that it takes."""
    began = time.perf_counter()
    with console.status(name):
        yield
    seconds[name] = round(time.perf_counter() - began, 1)


def actions_between(dream: World, frames: Tensor, true: Tensor) -> Tensor:
    """The actions that this world takes for a clip."""
    return true if dream.lam is None else world.infer_actions(dream, frames)


def measure_actions(
    dream: World, store: data.Store, cfg: Config, device, key: Tensor, seconds: dict
):
    """The report on actions, and a strip of examples for each."""
    offsets, choices = (
        action_report.spread_clips(store, cfg.split, 11, cfg.action_clips),
        dream.dynamics.cfg.actions,
    )
    with timed(seconds, "actions"):
        codes = action_report.label(
            store, offsets, 11, lambda *clip: actions_between(dream, *clip), device
        )
        found = action_report.gather(store, offsets, 11, codes)
        report = action_report.describe(
            found, choices, store.action_names, dream.lam is not None, key.cpu()
        )
    if "true" in report and cfg.probe_steps:
        size = tree.count(lam.encoder(dream.lam.params))
        with timed(seconds, "probe"), torch.enable_grad():
            judge = inverse_dynamics.fit(
                store, size, inverse_dynamics.settings(cfg.probe_steps, cfg.seed, device)
            )
        guess = action_report.label(
            store, offsets, 11, lambda *clip: inverse_dynamics.guess(judge, clip[0]), device
        )
        report["probe"] = inverse_dynamics.measure(
            judge, size, found, guess, report["true"], store.action_names
        )
        report["probe"] |= {"steps": cfg.probe_steps, "seconds": seconds["probe"]}
    if "true" in report and not Path(cfg.run).is_file():  # which holds its own
        action_map.save(action_report.to_map(report), cfg.run)
    strips = [
        pictures.strip(store, offsets, pairs) for pairs in action_report.examples(codes, choices, 8)
    ]
    return report, [
        Picture(x[None], name) for x, name in zip(strips, report["names"], strict=True) if x.size
    ]


def hold_keys(
    dream: World, store: data.Store, cfg: Config, report: dict, key: Tensor, seconds: dict
):
    """How left and right are obeyed, and a film of it; nothing where there is no such key to hold."""
    with timed(seconds, "held keys"):
        found = action_report.to_map(report) if "true" in report else None
        pressed = bundle.recorded_actions(
            bundle.Bundle(dream, action_names=store.action_names, action_map=found)
        )
        start = (
            held_keys.moments(store, cfg.split, cfg.held, cfg.seed)
            if cfg.held and pressed
            else None
        )
        if start is None:
            return None, []
        dreamed = held_keys.hold(dream, start, pressed, key, cfg.sample)
    return held_keys.score(start, dreamed), pictures.held(start.frames, dreamed, held_keys.KEYS)


def main(cfg: Config) -> None:
    if cfg.compare:
        return compare(cfg)
    cfg = replace(
        cfg, run=cfg.world or cfg.run, **({"held": 0, "probe_steps": 0} if cfg.brief else {})
    )
    device, seconds = backend.pick_device(cfg.device), {}
    dream, nets = bundle.load(cfg.run, device).world, perceptual.load(cfg.weights, device)
    store, longest = data.open_store(cfg.data), max(cfg.prompts)
    bundle.check_resolution(dream.tokenizer, store.height, store.width, cfg.run)
    offsets = data.eval_clips(store, cfg.split, cfg.frames + longest, cfg.clips, cfg.seed)
    frames, true = setup.to_device(data.read_clips(store, offsets, cfg.frames + longest), device)
    levels = np.asarray(store.arrays["level_seeds"][offsets].read().result())
    keys = random.split(random.key(cfg.seed, device), 5)
    with torch.no_grad():
        with timed(seconds, "tokenizer"):
            made, ids, again = fidelity.reconstruction(dream, frames)
            model = fidelity.prediction(dream, ids, actions_between(dream, frames, true), keys[0])
        scores, dreams, likeness = (
            {},
            {},
            {"reconstruction": perceptual.measure(nets, frames, again)},
        )
        for prompt in cfg.prompts:
            clip, pressed = frames[:, longest - prompt :], true[:, longest - prompt :]
            with timed(seconds, f"{prompt} → {cfg.frames} frames"):
                actions = actions_between(dream, clip, pressed)
                dreams[prompt] = rollouts.dream_all(
                    dream, clip, actions, prompt, keys[1], cfg.sample, cfg.brief
                )
                scores[str(prompt)] = rollouts.score(clip[:, prompt:], dreams[prompt], keys[2])
                likeness[str(prompt)] = perceptual.measure(
                    nets, clip[:, prompt:], dreams[prompt]["own"]
                )
        report, strips = measure_actions(dream, store, cfg, device, keys[3], seconds)
        report["held"], films = hold_keys(dream, store, cfg, report, keys[4], seconds)
    models = {name: tree.count(stage.params) for name, stage in dream._asdict().items() if stage}
    about = {"root": cfg.data, "hash": store.data_hash, "split": cfg.split, "clips": cfg.clips}
    record = {
        "schema": headlines.SCHEMA,
        "config": asdict(cfg),
        "machine": provenance.describe(device),
        "models": models,
    }
    record |= {
        "data": about | {"levels": len(np.unique(levels)), "meta": store.meta},
        "seconds": seconds,
    }
    record |= {
        "reconstruction": made,
        "dynamics": model,
        "rollouts": scores,
        "actions": report,
        "perceptual": likeness,
    }
    clips, worst = pictures.choose(frames[:, longest - 1 :], dreams[cfg.prompts[0]], levels)
    shown = Picture(
        pictures.rows(frames[:8, 0], again[:8, 0])[None],
        "Frames above, decoded from their codes below",
    )
    write(
        Path(cfg.out or bundle.results_folder(cfg.run) / "evaluation"),
        record,
        Pictures(clips, worst, strips, shown, films),
        store.height,
    )


def write(out: Path, record: dict, shown: Pictures, side: int) -> None:
    """All files, and the summary on the console."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")
    cloned = headlines.read_clone(bundle.results_folder(record["config"]["run"]))
    (out / "report.html").write_text(report_page.page(record, shown, cloned), encoding="utf-8")
    pictures.write(out, shown.clips, side, shown.held)
    for sentence in headlines.verdicts(record):
        print("-", sentence)
    tell({record["config"]["run"]: record})
    names = (
        "report.html",
        "metrics.json",
        "dream.gif",
        "strip.png",
        *(("held.gif",) if shown.held else ()),
    )
    print(
        "written:", *(out / name for name in names)
    )  # a path broken over two lines cannot be copied


def tell(records: dict[str, dict]) -> None:
    """The headlines of every record as a table."""
    table = Table("held-out levels", *records)
    for row in report_page.comparison(records):
        table.add_row(*row)
    Console().print(table)


def compare(cfg: Config) -> None:
    """Evaluations side by side, from their metrics.json."""
    records = {folder: headlines.read(folder) for folder in cfg.compare}
    tell(records)
    path = Path(cfg.out) / "compare.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_page.compare_page(records), encoding="utf-8")
    print("written:", path)


if __name__ == "__main__":
    run(main)
