"""Evaluate a trained world on held-out levels: metrics.json, and a page that explains it.

    python evaluate.py                                  # the demo's world
    python evaluate.py --cfg.run runs/small/dynamics --cfg.clips 256
    python evaluate.py --cfg.world coinrun.safetensors                # a file of export_world.py
    python evaluate.py --cfg.compare runs/a/dynamics runs/b/dynamics  # side by side

Every PSNR is reported beside that of copying the last prompt frame and that under other actions:
where little moves, a high PSNR alone says nothing. "moving" is the half of the clips in which the
image moves furthest. docs/evaluation.md defines every number.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from genie_fn import bundle, data, lam, random, tree
from genie_fn.bundle import Bundle, action_effects, action_map, hub
from genie_fn.errors import UserError
from genie_fn.evaluation import (
    actions,
    clone_record,
    few_labels,
    held_codes,
    held_keys,
    inverse_dynamics,
    long_rollouts,
    perceptual,
    prediction,
    reconstruction,
    record_file,
    rollouts,
    transfer,
)
from genie_fn.evaluation.clips import Clips, conditioning, encode, from_frame
from genie_fn.evaluation.perceptual import Networks, WeightsConfig
from genie_fn.evaluation.record import (
    Actions,
    Dataset,
    Evaluation,
    HeldCodes,
    HeldKeys,
    LongRollouts,
    Perceptual,
    Protocol,
)
from genie_fn.evaluation.report import headlines, pages, pictures
from genie_fn.evaluation.report.pages import Pictures
from genie_fn.evaluation.report.pictures import Picture
from genie_fn.evaluation.report.verdicts import verdicts
from genie_fn.evaluation.rollouts import Videos
from genie_fn.maskgit import SampleConfig
from genie_fn.runtime import backend, files, provenance
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console, results
from genie_fn.runtime.progress import stage
from genie_fn.training import setup
from genie_fn.world import World

FILES = (record_file.FILE, "report.html", "rollouts.gif", "strip.png", "held.gif")
"""What `write` writes."""


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run; it names the tokenizer and the latent action model."""
    world: str = ""
    """A world file to evaluate instead of a run; hf://owner/name is one on the Hugging Face Hub."""
    data: str = ""
    """The dataset to evaluate on; by default the one that the run was made from."""
    tokenizer: str = ""
    """The folder of the tokenizer's run, where it is not where the dynamics run expects it."""
    lam: str = ""
    """The folder of the latent action model's run, likewise."""
    split: Literal["train", "val", "test"] = "test"
    """The split of the dataset to evaluate on."""
    clips: int = 64
    """Held-out clips that rollouts are scored on."""
    frames: int = 10
    """Frames to generate after the prompt."""
    prompts: tuple[int, ...] = (1, 4)
    """Numbers of prompt frames; each is a protocol of its own, and all generate the same frames."""
    action_clips: int = 1000
    """Clips of 11 frames that actions are analysed on; fewer if the split has fewer."""
    long_frames: int = 200
    """Frames of rollouts that show whether the world dissolves; 0: none."""
    held: int = 20
    """Frames from which one action is held: every frequent action, and LEFT and RIGHT for data of a game
    with such keys; 0: neither."""
    probe_steps: int = 400
    """Training steps of the supervised inverse dynamics model, for latent actions; 0: none."""
    extra_methods: bool = True
    """Also evaluate joint decoding and teacher forcing, which are not in the headlines."""
    brief: bool = False
    """Leave out what takes long and is not in the headlines: joint decoding, teacher forcing, long
    rollouts, held keys and actions, and the inverse dynamics model, whatever --cfg.extra-methods,
    --cfg.long-frames, --cfg.held and --cfg.probe-steps say."""
    out: str = ""
    """The folder of the results; by default `evaluation` in the run's folder, or in a folder named
    like the world file."""
    compare: tuple[str, ...] = ()
    """Folders of runs or evaluations to print side by side, and write to compare.html; nothing is
    measured."""
    seed: int = 0
    """Seed of the clips and of all random numbers."""
    device: str = "auto"
    """The device to compute on."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)

    def __post_init__(self):
        if self.clips < 2 or self.frames < rollouts.HEADLINE:
            raise UserError(
                f"evaluation needs at least 2 --cfg.clips and {rollouts.HEADLINE} --cfg.frames, "
                f"not {self.clips} and {self.frames}"
            )
        if not self.prompts or min(self.prompts) < 1:
            raise UserError("--cfg.prompts are numbers of frames, each at least 1")
        if self.action_clips < 2:
            raise UserError("--cfg.action-clips must be at least 2")
        if min(self.probe_steps, self.held, self.long_frames) < 0:
            raise UserError(
                "--cfg.probe-steps, --cfg.held and --cfg.long-frames must be at least 0"
            )


class Subject(NamedTuple):
    """What is evaluated, and on what."""

    loaded: Bundle
    store: data.Store
    device: torch.device

    @property
    def world(self) -> World:
        return self.loaded.world


class HeldOut(NamedTuple):
    """The clips that the tokenizer, the dynamics model and rollouts are scored on."""

    clips: Clips
    recorded: Tensor
    """(B, T-1) recorded actions."""
    levels: np.ndarray
    """(B,)."""


class Measured(NamedTuple):
    """The clips of a split that actions are analysed on."""

    split: str
    offsets: np.ndarray
    transitions: actions.Transitions


class Stopwatch:
    """Displays what is being measured, and records the seconds that it takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        with stage(f"measuring {name}"):
            yield
        elapsed = time.perf_counter() - began
        self.seconds[name] = round(self.seconds.get(name, 0) + elapsed, 1)


def main(cfg: Config) -> None:
    if cfg.compare:
        return compare(cfg)
    cfg = replace(cfg, run=cfg.world or cfg.run)
    if hub.is_address(cfg.run):
        results = cfg.out or f"{hub.name_of(cfg.run)}/evaluation"
        cfg = replace(cfg, run=hub.fetch(cfg.run), out=results)
    if cfg.brief:
        cfg = replace(cfg, held=0, probe_steps=0, long_frames=0, extra_methods=False)
    out = Path(cfg.out or bundle.results_folder(cfg.run) / "evaluation")
    files.check_outputs("--cfg.out", *(out / name for name in FILES))
    evaluation, images = evaluate(cfg)
    write(out, evaluation, images)


@torch.no_grad()
def evaluate(cfg: Config) -> tuple[Evaluation, Pictures]:
    """All measurements of one world, and the pictures of its report."""
    watch = Stopwatch()
    subject = load(cfg)
    cfg = replace(cfg, data=str(subject.store.root))
    networks = perceptual.load(cfg.weights, subject.device)
    keys = random.split(random.key(cfg.seed, subject.device), 5)
    with watch("tokenizer"):
        held_out = read_clips(cfg, subject)
        frames = held_out.clips.frames
        quality, decoded = reconstruction.evaluate(subject.world, held_out.clips)
        loss = prediction.evaluate(subject.world, held_out.clips, keys[0])
        likeness = {"reconstruction": perceptual.measure(networks, frames, decoded)}
    protocols: dict[str, Protocol] = {}
    videos: dict[int, Videos] = {}
    for prompt in cfg.prompts:
        with watch(f"{prompt} → {cfg.frames} frames"):
            name = str(prompt)
            protocols[name], likeness[name], videos[prompt] = evaluate_protocol(
                cfg, subject, networks, held_out, prompt, keys[1:3]
            )
    first = cfg.prompts[0]
    with watch("transferred actions"):
        prompted = frames[:, max(cfg.prompts) - first :]
        level = torch.from_numpy(held_out.levels)
        transferred = transfer.evaluate(
            prompted, videos[first], first, level, random.fold_in(keys[2], 1)
        )
    with watch("actions"):
        measured = read_transitions(cfg, subject, cfg.split)
    report, examples = evaluate_actions(cfg, subject, measured, keys[3], watch)
    with watch("keys"):
        loaded = choose_keys(cfg, subject, measured, random.fold_in(keys[4], 1))
        subject = subject._replace(loaded=loaded)
    with watch("held keys"):
        held, films = evaluate_held_keys(cfg, subject, keys[4])
    evaluation = Evaluation(
        config=asdict(cfg),
        machine=provenance.describe(subject.device),
        models=count_parameters(subject.world),
        data=describe_data(cfg, subject.store, held_out.levels),
        seconds=watch.seconds,
        reconstruction=quality,
        prediction=loss,
        rollouts=protocols,
        actions=replace(report, held_keys=held, transfer=transferred),
        perceptual=likeness,
        of_schema=record_file.SCHEMA,
    )
    last_prompt = frames[:, max(cfg.prompts) - 1 :]
    best, worst = pictures.choose_clips(last_prompt, videos[cfg.prompts[0]], held_out.levels)
    rows = pictures.rows(frames[:8, 0], decoded[:8, 0])
    comparison = Picture(rows[None], "Recorded frames above, reconstructed ones below")
    return evaluation, Pictures(best, worst, examples, comparison, films)


def load(cfg: Config) -> Subject:
    """The world and the dataset. Raises UserError if they do not fit."""
    device = backend.pick_device(cfg.device)
    loaded = bundle.load(cfg.run, device, tokenizer=cfg.tokenizer, lam=cfg.lam)
    store = bundle.open_dataset(loaded, cfg.data)
    if not bundle.is_world_file(cfg.run):
        loaded = loaded._replace(action_names=store.action_names)
    return Subject(loaded, store, device)


def read_clips(cfg: Config, subject: Subject) -> HeldOut:
    """Held-out clips of the longest prompt and the frames after it."""
    store = subject.store
    length = cfg.frames + max(cfg.prompts)
    flags = "--cfg.clips, --cfg.frames or --cfg.prompts"
    offsets = data.eval_clips(store, cfg.split, length, cfg.clips, cfg.seed, flags)
    frames, recorded = setup.to_device(data.read_clips(store, offsets, length), subject.device)
    levels = np.asarray(store.arrays["level_seeds"][offsets].read().result())
    return HeldOut(encode(subject.world, frames, recorded), recorded, levels)


def evaluate_protocol(
    cfg: Config,
    subject: Subject,
    networks: Networks,
    held_out: HeldOut,
    prompt: int,
    keys: Tensor,
) -> tuple[Protocol, Perceptual, Videos]:
    """Scores of rollouts from one number of prompt frames, and the generated frames."""
    world = subject.world
    start = max(cfg.prompts) - prompt
    clips = from_frame(world, held_out.clips, start, held_out.recorded)
    videos = rollouts.generate_all(world, clips, prompt, keys[0], cfg.sample, cfg.extra_methods)
    future = clips.frames[:, prompt:]
    likeness = perceptual.measure(networks, future, videos["own_actions"])
    level = torch.from_numpy(held_out.levels)
    return rollouts.score(future, videos, level, keys[1]), likeness, videos


def evaluate_actions(
    cfg: Config, subject: Subject, measured: Measured, key: Tensor, watch: Stopwatch
) -> tuple[Actions, list[Picture]]:
    """Statistics of the actions, and pictures of examples of each."""
    world, store = subject.world, subject.store
    choices = world.dynamics.cfg.actions
    _, offsets, transitions = measured
    with watch("actions"):
        latent = world.lam is not None
        report = actions.describe(transitions, choices, store.action_names, latent, key.cpu())
    if world.lam is not None and report.recorded is not None and cfg.probe_steps:
        size = tree.count(lam.encoder(world.lam.params))
        settings = inverse_dynamics.settings(cfg.probe_steps, cfg.seed, subject.device)
        with watch("inverse dynamics"):
            model = inverse_dynamics.measure(
                store, cfg.split, size, settings, transitions, report.recorded
            )
        report = replace(report, inverse_dynamics=model)
    if report.recorded is not None and store.count("train"):
        with watch("labelled transitions"):
            labels = few_labels.measure(
                store,
                partial(conditioning, world),
                transitions,
                choices,
                cfg.action_clips,
                subject.device,
                random.fold_in(key, 2),
            )
        report = replace(report, few_labels=labels)
    if cfg.held:
        with watch("held actions"):
            held = evaluate_held_codes(cfg, subject, transitions, random.fold_in(key, 1))
        report = replace(report, held_codes=held)
    if cfg.long_frames:
        with watch("long rollouts"):
            found = evaluate_long_rollouts(cfg, subject, transitions, random.fold_in(key, 3))
        report = replace(report, long_rollouts=found)
    examples = actions.examples(transitions.codes, choices, 8)
    strips = [pictures.transitions(store, offsets, pairs) for pairs in examples]
    images = [
        Picture(strip[None], name)
        for strip, name in zip(strips, report.names, strict=True)
        if strip.size
    ]
    return report, images


def read_transitions(cfg: Config, subject: Subject, split: str) -> Measured:
    """Clips that are spread over a split, and the world's actions in them."""
    store = subject.store
    infer = partial(conditioning, subject.world)
    offsets = actions.spread_clips(store, split, actions.CLIP, cfg.action_clips)
    codes = actions.map_clips(store, offsets, actions.CLIP, infer, subject.device)
    return Measured(split, offsets, actions.gather(store, offsets, actions.CLIP, codes))


def choose_keys(cfg: Config, subject: Subject, measured: Measured, key: Tensor) -> Bundle:
    """The world with the keys of play. A world file, and a world of recorded actions, has its own.

    For a run of latent actions, the effects of the actions, and the map between them and recorded
    ones if there are any, are measured on the split of `action_effects.split_of`, and written to the
    run's folder. A folder that cannot be written ends nothing.
    """
    loaded, store, _ = subject
    if loaded.world.lam is None or bundle.is_world_file(cfg.run):
        return loaded
    choices = loaded.world.dynamics.cfg.actions
    split = action_effects.split_of(store)
    if split != measured.split:
        measured = read_transitions(cfg, subject, split)
    _, offsets, transitions = measured
    found = actions.compare(transitions, choices, store.action_names, key.cpu())
    effects = action_effects.describe(store, offsets, transitions.codes, transitions.shift, choices)
    mapping = None if found is None else actions.to_map(found)
    try:
        action_effects.save(effects, loaded.world, cfg.run)
        if mapping is not None:
            action_map.save(mapping, cfg.run)
    except UserError as error:
        console.print(f"the keys keep the actions that they had: {error}", soft_wrap=True)
    return loaded._replace(effects=effects, action_map=mapping or loaded.action_map)


def evaluate_held_codes(
    cfg: Config, subject: Subject, transitions: actions.Transitions, key: Tensor
) -> HeldCodes | None:
    """Whether generated pictures move under each held action as recorded ones do under it."""
    world, store = subject.world, subject.store
    count = min(cfg.held, store.count(cfg.split))
    offsets = data.eval_clips(store, cfg.split, 1, count, cfg.seed)
    starts = torch.from_numpy(data.read_clips(store, offsets, 1).frames)
    used = held_codes.tested(transitions.codes, world.dynamics.cfg.actions)
    if not len(used):
        return None
    held = held_codes.hold(world, starts, used, key, cfg.sample)
    return held_codes.score(world, held, transitions.codes, transitions.shift, key.cpu())


def evaluate_long_rollouts(
    cfg: Config, subject: Subject, transitions: actions.Transitions, key: Tensor
) -> LongRollouts:
    """What becomes of rollouts of many frames."""
    world, store = subject.world, subject.store
    count = min(long_rollouts.STARTS, store.count(cfg.split))
    start = long_rollouts.find_starts(store, cfg.split, cfg.long_frames, count, cfg.seed)
    return long_rollouts.evaluate(
        world, start, transitions.codes, transitions.shift, cfg.long_frames, key, cfg.sample
    )


def evaluate_held_keys(
    cfg: Config, subject: Subject, key: Tensor
) -> tuple[HeldKeys | None, list[Picture]]:
    """Displacement of the agent while keys are held, and videos.

    Both are empty for data without such keys, and for a world in which they select no action.
    """
    loaded, store, _ = subject
    key_actions = bundle.key_actions(loaded)
    if not cfg.held or not set(held_keys.KEYS) <= key_actions.keys():
        return None, []
    starts = held_keys.find_starts(store, cfg.split, cfg.held, cfg.seed)
    if starts is None:
        return None, []
    generated = held_keys.hold(loaded.world, starts, key_actions, key, cfg.sample)
    films = pictures.held_keys(starts.frames, generated, held_keys.KEYS)
    return held_keys.score(starts, generated), films


def count_parameters(world: World) -> dict[str, int]:
    """Parameters by model."""
    return {
        name: tree.count(stage.params)
        for name, stage in world._asdict().items()
        if stage is not None
    }


def describe_data(cfg: Config, store: data.Store, levels: np.ndarray) -> Dataset:
    """What was evaluated on."""
    return Dataset(
        root=cfg.data,
        hash=store.data_hash,
        split=cfg.split,
        clips=cfg.clips,
        levels=len(np.unique(levels)),
        meta=store.meta,
    )


def write(out: Path, evaluation: Evaluation, images: Pictures) -> None:
    """Write all files, and print the summary."""
    out.mkdir(parents=True, exist_ok=True)
    path = record_file.write(evaluation, out)
    name = evaluation.config["run"]
    cloned = clone_record.read_complete(bundle.results_folder(name))
    page = out / "report.html"
    files.write_text(page, pages.report(evaluation, images, cloned))
    height = images.clips[0].frames.shape[1] // 3
    images_written = pictures.write(out, images.clips, height, images.held_keys)
    for sentence in verdicts(evaluation):
        print("-", sentence)
    print_table({name: evaluation})
    print("written:", page, path, *images_written)  # a path broken over two lines cannot be copied


def print_table(evaluations: dict[str, Evaluation]) -> None:
    """The headlines of every evaluation."""
    table = Table("held-out levels", *evaluations)
    for row in headlines.table(evaluations):
        table.add_row(*row)
    results.print(table)


def compare(cfg: Config) -> None:
    """Print evaluations side by side, from their metrics.json, and write compare.html."""
    path = Path(cfg.out) / "compare.html"
    files.check_outputs("--cfg.out", path)
    evaluations = {folder: record_file.read(folder) for folder in cfg.compare}
    print_table(evaluations)
    for warning in pages.warnings(evaluations):
        console.print(warning, soft_wrap=True)
    files.write_text(path, pages.compare(evaluations))
    print("written:", path)


if __name__ == "__main__":
    run(main)
