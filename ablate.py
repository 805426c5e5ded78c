"""Ablations: one choice at a time, everything else as in the demo, several seeds.

Tables go to docs/ablations.md. A run that was stopped continues with the same command.

    python ablate.py                          # every choice: hours on two CPU cores
    python ablate.py --cfg.choices actions    # one of them
    python ablate.py --cfg.choices order steps --cfg.worlds runs/a/dynamics runs/b/dynamics
                                              # choices of sampling, in trained worlds
    python ablate.py --cfg.choices table      # the tables, from earlier measurements

Variants share the stages that their choice does not affect: a choice of sampling trains nothing,
one of the dynamics model uses the same tokenizer and latent actions. Every world is evaluated on
the same held-out clips. Choices of the latent action model are measured in that model alone, as by
evaluate_lam.py, since a world takes ten times as long.
"""

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import torch

from benchmarks import report
from genie_fn import data
from genie_fn.errors import UserError
from genie_fn.evaluation import latent_actions, record_file, rollouts
from genie_fn.evaluation.report import headlines
from genie_fn.evaluation.report.headlines import Row
from genie_fn.runtime import files, provenance
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console
from genie_fn.training import checkpoint, setup

ROOT = Path(__file__).parent
SPLIT = "val"
"""The levels on which choices are compared: those of the test split are for published numbers."""
MARKS = ("<!-- ablations: python ablate.py -->", "<!-- end of ablations -->")

Stage = Literal["dataset", "tokenizer", "lam", "lam_evaluation", "dynamics", "evaluation"]
INPUTS: dict[Stage, tuple[Stage, ...]] = {
    "dataset": (),
    "tokenizer": ("dataset",),
    "lam": ("dataset",),
    "lam_evaluation": ("lam",),
    "dynamics": ("dataset", "tokenizer", "lam"),
    "evaluation": ("dynamics",),
}
"""The stages that each stage reads, in the order in which they are run."""

ChoiceName = Literal[
    "actions",
    "quantizer",
    "lam",
    "stride",
    "flips",
    "codes",
    "labels",
    "history",
    "neighbourhood",
    "pointer",
    "code-init",
    "masks",
    "wrong-tokens",
    "codebook",
    "codebooks",
    "order",
    "steps",
    "temperature",
    "guidance",
    "data",
]


class Choice(NamedTuple):
    """What is varied."""

    stage: Stage
    """The stage that it changes."""
    about: str
    """Its heading."""
    variants: dict[str, str]
    """The flags of every variant; the demo's come first."""

    @property
    def measured_in(self) -> Stage:
        """The stage whose results are compared."""
        return "lam_evaluation" if self.stage == "lam" else "evaluation"


PAINTS = "--cfg.preset conv-demo --cfg.batch-size 9"
"""The latent action model that paints, with batches that take as long as the demo's."""
CHOICES: dict[ChoiceName, Choice] = {
    "actions": Choice(
        "dynamics",
        "How an action enters the dynamics model",
        {"add": "", "prepend": "--cfg.model.action-mode prepend"},
    ),
    "quantizer": Choice(
        "tokenizer",
        "The tokenizer's quantizer",
        {"vq": "", "lfq": "--cfg.model.quantizer.kind lfq --cfg.model.quantizer.entropy 0.1"},
    ),
    "lam": Choice(
        "lam",
        "The latent action model: one that moves pixels, or one that paints, in as much time",
        {"moves": "", "paints": PAINTS},
    ),
    "stride": Choice(
        "lam",
        "Frames of the game per transition (of the numbers, PSNR and NMI with recorded actions are of "
        "different tasks, and the others can be compared)",
        {"2": "", "1": "--cfg.stride 1", "4": "--cfg.stride 4"},
    ),
    "flips": Choice("lam", "Horizontal-flip augmentation", {"on": "", "off": "--cfg.no-flip"}),
    "codes": Choice(
        "lam",
        "How many latent actions, how many of them in pairs of mirror images; a product of two codebooks",
        {
            "10-with-3-pairs": "",
            "6-with-2-pairs": "--cfg.model.quantizer.codes 6 --cfg.model.quantizer.pairs 2",
            "8-with-3-pairs": "--cfg.model.quantizer.codes 8",
            "10-with-4-pairs": "--cfg.model.quantizer.pairs 4",
            "10": "--cfg.model.quantizer.pairs 0",
            "3-times-3": "--cfg.model.quantizer.codes 9 --cfg.model.quantizer.pairs 0"
            " --cfg.model.quantizer.books 2",
        },
    ),
    "labels": Choice(
        "lam",
        "Labelled transitions that the latent action model is trained with",
        {
            "0": "",
            "50": "--cfg.labels 50",
            "200": "--cfg.labels 200",
            "1000": "--cfg.labels 1000",
        },
    ),
    "history": Choice(
        "lam",
        "Whether the decoder of a latent action model that paints sees more than the last frame",
        {
            "seen": PAINTS,
            "masked": f"{PAINTS} --cfg.model.no-history",
        },
    ),
    "neighbourhood": Choice(
        "dynamics",
        "Side of the square of unmasked tokens of the frame before that every token sees",
        {
            "3": "",
            "none": "--cfg.model.neighbourhood 0 --cfg.model.no-pointer",
            "1": "--cfg.model.neighbourhood 1",
            "5": "--cfg.model.neighbourhood 5",
        },
    ),
    "pointer": Choice(
        "dynamics",
        "Whether every token's logits are raised at the ids around its place in the frame before",
        {"yes": "", "no": "--cfg.model.no-pointer"},
    ),
    "code-init": Choice(
        "dynamics",
        "Whether embeddings and head are initialised from the tokenizer's codes, or at random",
        {"codes": "", "random": "--cfg.no-code-init"},
    ),
    "masks": Choice(
        "dynamics",
        "The smallest share of hidden tokens in training",
        {"0.5": "", "0.1": "--cfg.model.mask-low 0.1"},
    ),
    "wrong-tokens": Choice(
        "dynamics",
        "The largest share of visible tokens that become random in training",
        {"0": "", "0.1": "--cfg.model.corrupt 0.1", "0.3": "--cfg.model.corrupt 0.3"},
    ),
    "codebooks": Choice(
        "tokenizer",
        "Codebooks of 1024 codes that each token is a code of",
        {
            "3": "",
            "2": "--cfg.model.quantizer.books 2 --cfg.model.quantizer.codes 1048576 "
            "--cfg.model.quantizer.latent-dim 16",
            "1": "--cfg.model.quantizer.books 1 --cfg.model.quantizer.codes 1024 "
            "--cfg.model.quantizer.latent-dim 16",
        },
    ),
    "codebook": Choice(
        "tokenizer",
        "How soon unused codes are moved onto inputs: from the first step and after 22, or after 114",
        {
            "first-and-22": "",
            "22": "--cfg.model.quantizer.no-from-inputs",
            "first-and-114": "--cfg.model.quantizer.use-rate 0.02",
            "114": "--cfg.model.quantizer.no-from-inputs --cfg.model.quantizer.use-rate 0.02",
        },
    ),
    "order": Choice(
        "evaluation",
        "Which tokens a MaskGIT step reveals",
        {
            "confidence": "",
            "random": "--cfg.sample.order random",
        },
    ),
    "steps": Choice(
        "evaluation",
        "MaskGIT steps per frame",
        {
            "8": "",
            "2": "--cfg.sample.steps 2",
            "4": "--cfg.sample.steps 4",
            "25": "--cfg.sample.steps 25",
        },
    ),
    "temperature": Choice(
        "evaluation",
        "Temperature of the sampled tokens",
        {
            "1": "",
            "0.0": "--cfg.sample.temperature 0.0",
            "0.3": "--cfg.sample.temperature 0.3",
            "0.6": "--cfg.sample.temperature 0.6",
        },
    ),
    "guidance": Choice(
        "evaluation",
        "Scale of classifier-free guidance on the action",
        {"0": "", "1": "--cfg.sample.guidance 1"},
    ),
    "data": Choice(
        "dataset",
        "Policy that played the training videos (all are evaluated on the explorer's)",
        {"explorer": "", "random": "--cfg.policy random"},
    ),
}

COLUMNS = (
    Row("tokenizer, dB", headlines.TOKENIZER_PSNR.read),
    Row("t = 1, moving, dB", headlines.score("psnr", "own_actions", 1)),
    Row("t = 4, moving, dB", headlines.score("psnr", "own_actions", 4)),
    Row("mean of the frames, all, dB", headlines.score("psnr", "own_actions", "average", "all")),
    Row("Δ₄ shuffled, moving, dB", headlines.score("delta", "shuffled", 4)),
    Row("actions' NMI", headlines.NMI.read, 3),
    Row("map from 200 labels, accuracy", headlines.few_labels(200), 3),
)


@dataclass(frozen=True)
class Config:
    choices: tuple[ChoiceName | Literal["table"], ...] = field(
        default_factory=lambda: tuple(CHOICES)
    )
    """What to vary; `table` writes the tables from earlier measurements."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The seeds, not their number. Once the dataset exists, several processes can train one each,
    with the same `out`; afterwards, one command that names them all writes the tables."""
    worlds: tuple[str, ...] = ()
    """Runs of dynamics models to evaluate instead of training; for choices of sampling only."""
    data: str = ""
    """A dataset to train and evaluate on; by default data/coinrun, which is collected here. Given
    worlds are by default evaluated on the datasets that they were made from."""
    tokenizer: str = ""
    """The run of a tokenizer for all variants and seeds, except for choices that change it, instead of
    training one for every seed: faster, but the seeds then differ in less."""
    lam: str = ""
    """The run of a latent action model, likewise."""
    levels: int = 200
    """Levels of a dataset that is collected here."""
    tokenizer_steps: int = 1000
    """Training steps of each tokenizer."""
    lam_steps: int = 400
    """Training steps of each latent action model."""
    dynamics_steps: int = 350
    """Training steps of each dynamics model."""
    clips: int = 64
    """Held-out clips of each evaluation."""
    frames: int = 10
    """Frames to generate from each clip."""
    action_clips: int = 300
    """Clips that actions are analysed on."""
    out: str = "runs/ablations"
    """The folder of all runs."""
    results: str = "benchmarks/ablations.json"
    """The file of all measurements."""
    docs: str = "docs/ablations.md"
    """The page with the tables."""

    def __post_init__(self):
        steps = (self.tokenizer_steps, self.lam_steps, self.dynamics_steps)
        if not self.seeds or min(self.levels, *steps) < 1:
            raise UserError(
                "--cfg.seeds must name at least one seed, and --cfg.levels and all steps "
                "must be at least 1"
            )
        if min(self.clips, self.action_clips) < 2 or self.frames < rollouts.HEADLINE:
            raise UserError(
                "--cfg.clips and --cfg.action-clips must be at least 2 and --cfg.frames "
                f"{rollouts.HEADLINE}, as for evaluate.py"
            )
        if self.worlds and (self.tokenizer or self.lam):
            raise UserError(
                "--cfg.worlds have their own models: leave --cfg.tokenizer and --cfg.lam out"
            )
        trained = [name for name in self.choices if _needs_training(name)]
        if self.worlds and trained:
            raise UserError(
                f"--cfg.worlds are trained already, but {trained[0]} changes training: "
                "leave it out of --cfg.choices"
            )

    @property
    def measured(self) -> tuple[ChoiceName, ...]:
        """The choices without `table`."""
        return tuple(name for name in self.choices if name != "table")


def _needs_training(name: ChoiceName | Literal["table"]) -> bool:
    return name != "table" and CHOICES[name].stage != "evaluation"


class Variant(NamedTuple):
    """A choice, the variant's name, and the training's seed (or a trained world's index)."""

    choice: ChoiceName
    name: str
    seed: int

    def flags(self, stage: Stage) -> str:
        """The flags of a stage that differ from the demo's."""
        choice = CHOICES[self.choice]
        return choice.variants[self.name] if choice.stage == stage else ""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What has to be run for it, in order."""
        needed: list[Stage] = [CHOICES[self.choice].measured_in]
        for stage in reversed(INPUTS):
            if any(stage in INPUTS[later] for later in needed):
                needed.append(stage)
        return tuple(reversed(needed))

    def changes(self, stage: Stage) -> bool:
        """Whether a stage, or one that it reads, has other flags than the demo's."""
        return bool(self.flags(stage)) or any(map(self.changes, INPUTS[stage]))


def main(cfg: Config) -> None:
    path = Path(cfg.results)
    files.check_folder("--cfg.out", cfg.out)
    files.check_outputs("--cfg.results", path)
    files.check_outputs("--cfg.docs", cfg.docs)
    if cfg.data and not data.is_store(cfg.data):
        raise UserError(
            f"there is no dataset at {cfg.data}: make one with generate_dataset.py or "
            "import_videos.py, or leave --cfg.data out, so that one is collected"
        )
    for flag, run_folder in (("tokenizer", cfg.tokenizer), ("lam", cfg.lam)):
        if run_folder and checkpoint.latest(run_folder) is None:
            raise UserError(f"--cfg.{flag} {run_folder} holds no checkpoint: name a trained run")
    report.parts(Path(cfg.docs), *MARKS)  # refuses a page without a place for the tables
    records = read_records(path)
    if cfg.measured:
        measure(cfg)
        records |= {choice: collect(cfg, choice) for choice in cfg.measured}
        files.write_text(path, json.dumps(records, indent=1) + "\n")
    digits = {column.label: column.digits for column in (*COLUMNS, *latent_actions.COLUMNS)}
    report.put(Path(cfg.docs), *MARKS, report.ablations(records, digits))


def read_records(path: Path) -> dict[str, Any]:
    """Earlier measurements, by choice. Raises UserError for a damaged file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it, or name another --cfg.results") from error


def variants(cfg: Config) -> Iterator[Variant]:
    """Every variant, seed by seed, so that an early stop leaves all of them with equally many."""
    for seed in range(len(cfg.worlds)) if cfg.worlds else cfg.seeds:
        for choice in cfg.measured:
            for name in CHOICES[choice].variants:
                yield Variant(choice, name, seed)


def folder(cfg: Config, variant: Variant, stage: Stage) -> Path:
    """The folder of a stage of a variant; variants that do not change the stage share it."""
    tag = f"-{variant.choice}-{variant.name}" if variant.changes(stage) else ""
    out = Path(cfg.out)
    if cfg.worlds:
        world = cfg.worlds[variant.seed]
        if stage == "dynamics":
            return Path(world)
        return out / "worlds" / world.replace("/", "-") / f"{stage}{tag}"
    if stage == "dataset":
        return out / f"dataset{tag}" if tag else Path(cfg.data or setup.DATA)
    given = given_runs(cfg, variant.choice)
    if stage in given:
        return Path(given[stage])
    scale = f"{cfg.tokenizer_steps}-{cfg.lam_steps}-{cfg.dynamics_steps}"
    if given and stage in ("dynamics", "evaluation", "lam_evaluation"):
        known = [(name, run, checkpoint.latest(run)) for name, run in sorted(given.items())]
        runs = zlib.crc32(repr(known).encode())  # another after a run was continued
        scale += f"-of-{runs:08x}"
    return out / scale / f"seed{variant.seed}" / f"{stage}{tag}"


def given_runs(cfg: Config, choice: ChoiceName) -> dict[Stage, str]:
    """The runs that are used instead of training a stage, for a choice that needs it and does not
    change it."""
    named: dict[Stage, str] = {"tokenizer": cfg.tokenizer, "lam": cfg.lam}
    variants = [Variant(choice, name, 0) for name in CHOICES[choice].variants]
    needed = {stage for variant in variants for stage in variant.stages}
    changed = {stage for stage in named for variant in variants if variant.changes(stage)}
    usable = needed - changed
    return {stage: run for stage, run in named.items() if run and stage in usable}


def command(cfg: Config, variant: Variant, stage: Stage) -> list[str]:
    """The command line that produces a stage."""
    at = {name: str(folder(cfg, variant, name)) for name in INPUTS}
    if stage == "dataset":
        script = "generate_dataset"
        flags: dict[str, Any] = {"root": at["dataset"], "num-levels": cfg.levels}
        switches = []
    elif stage == "evaluation":
        script = "evaluate"
        dataset = cfg.data or ("" if cfg.worlds else setup.DATA)
        flags = {"run": at["dynamics"], "out": at["evaluation"], "prompts": 1}
        flags |= {"data": dataset} if dataset else {}
        flags |= {"clips": cfg.clips, "frames": cfg.frames, "action-clips": cfg.action_clips}
        switches = ["--cfg.brief", f"--cfg.split={SPLIT}"]
    elif stage == "lam_evaluation":
        script = "evaluate_lam"
        flags = {"run": at["lam"], "out": at[stage], "data": cfg.data or setup.DATA}
        flags |= {"clips": cfg.clips, "action-clips": cfg.action_clips, "probe-steps": 0}
        switches = [f"--cfg.split={SPLIT}"]
    else:
        script = f"train_{stage}"
        steps = training_steps(cfg, stage)
        flags = {"data": at["dataset"], "out": at[stage], "steps": steps, "seed": variant.seed}
        flags |= {"save-every": steps, "sample-every": steps}
        flags |= {name: at[name] for name in INPUTS[stage] if name != "dataset"}
        switches = ["--cfg.resume"]
    words = [word for name, value in flags.items() for word in (f"--cfg.{name}", str(value))]
    own = variant.flags(stage).split()
    return [sys.executable, str(ROOT / f"{script}.py"), *words, *switches, *own]


def training_steps(cfg: Config, stage: Stage) -> int:
    """Steps of a stage that is trained."""
    steps = {"tokenizer": cfg.tokenizer_steps, "lam": cfg.lam_steps, "dynamics": cfg.dynamics_steps}
    return steps[stage]


def is_done(cfg: Config, variant: Variant, stage: Stage) -> bool:
    """Whether a stage of a variant exists."""
    at = folder(cfg, variant, stage)
    if stage == "evaluation":
        return is_evaluated(cfg, at)
    if stage == "lam_evaluation":
        return is_lam_evaluated(cfg, at)
    if cfg.worlds:
        return True
    if stage == "dataset":
        return bool(cfg.data) and at == Path(cfg.data)
    if stage in given_runs(cfg, variant.choice):
        return True
    return checkpoint.latest(at) == training_steps(cfg, stage)


def is_evaluated(cfg: Config, at: Path) -> bool:
    """Whether a folder holds an evaluation of as many clips and frames."""
    if not (at / record_file.FILE).is_file():
        return False
    config = record_file.read(at).config
    wanted = {"clips": cfg.clips, "frames": cfg.frames, "action_clips": cfg.action_clips}
    wanted |= {"split": SPLIT}
    return wanted.items() <= config.items()


def is_lam_evaluated(cfg: Config, at: Path) -> bool:
    """Whether a folder holds an evaluation of a latent action model on as many clips."""
    if not (at / latent_actions.FILE).is_file():
        return False
    wanted = {"clips": cfg.clips, "action_clips": cfg.action_clips, "split": SPLIT}
    return wanted.items() <= latent_actions.read(at).config.items()


def measure(cfg: Config) -> None:
    """Run every stage that is missing."""
    every = list(variants(cfg))
    for number, variant in enumerate(every, 1):
        for stage in variant.stages:
            if not is_done(cfg, variant, stage):
                progress = f"variant {number} of {len(every)}"
                console.rule(
                    f"{progress}: {variant.choice} {variant.name}, seed {variant.seed}: {stage}"
                )
                run_stage(command(cfg, variant, stage), stage)


def run_stage(words: list[str], stage: Stage) -> None:
    """Run a script. Raises KeyboardInterrupt if it was interrupted, UserError if it failed."""
    code = subprocess.run(words).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError(
            f"the {stage} failed for the reason above: "
            "correct it and run the same command, which continues"
        )


def collect(cfg: Config, choice: ChoiceName) -> dict[str, Any]:
    """The numbers of every variant of a choice, for JSON."""
    rows = [
        {"name": variant.name, "seed": variant.seed} | numbers(cfg, variant)
        for variant in variants(replace(cfg, choices=(choice,)))
    ]
    if CHOICES[choice].measured_in == "lam_evaluation":
        options = ("lam_steps", "clips", "action_clips")
    elif cfg.worlds:
        options = ("clips", "frames")
    else:
        options = ("tokenizer_steps", "lam_steps", "dynamics_steps", "clips", "frames")
    given = given_runs(cfg, choice)
    scale = {name: getattr(cfg, name) for name in options if name[: -len("_steps")] not in given}
    scale |= {str(stage): "given" for stage in given} | {"split": SPLIT}
    machine = provenance.describe(torch.device("cpu"))
    return machine | {"about": CHOICES[choice].about, "scale": scale, "rows": rows}


def numbers(cfg: Config, variant: Variant) -> dict[str, float]:
    """The numbers of a variant by the labels of the table's columns."""
    stage = CHOICES[variant.choice].measured_in
    at = folder(cfg, variant, stage)
    if stage == "lam_evaluation":
        record = latent_actions.read(at)
        values = {column.label: column.read(record) for column in latent_actions.COLUMNS}
    else:
        evaluation = record_file.read(at)
        values = {column.label: headlines.value(evaluation, column) for column in COLUMNS}
    return {label: value[0] for label, value in values.items() if value is not None}


if __name__ == "__main__":
    run(main)
