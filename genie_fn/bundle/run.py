"""The folder of a training run: its trained model, its world, and their fingerprint."""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from genie_fn import dynamics, lam, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.runtime import stored_config
from genie_fn.runtime.backend import AUTO
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import checkpoint, inputs
from genie_fn.training.inputs import Record
from genie_fn.tree import Tree
from genie_fn.world import Stage, World

MODELS = {
    "tokenizer": (tokenizer, TokenizerConfig),
    "lam": (lam, LamConfig),
    "dynamics": (dynamics, DynamicsConfig),
}
"""The module and the configuration of each stage's model."""
EarlierStage = Literal["tokenizer", "lam"]
"""The stages that a dynamics model is made from."""


def load_stage(
    run: str | Path, stage: str, device: torch.device | str = "cpu", compiled: bool = False
) -> tuple[Stage, dict]:
    """A trained stage (`tokenizer`, `lam` or `dynamics`) and the stored configuration of its run.

    The implementation is chosen for `device` and for `compiled`, whatever the run was trained with.
    """
    loaded = checkpoint.load(run, stage=stage, device=device)
    model = loaded.config.get("model")
    weights = checkpoint.weights(loaded)
    if not isinstance(model, dict):
        raise UserError(
            f"{run} does not hold a {stage}: pass the folder of a run of train_{stage}.py"
        )
    _check_stage(run, loaded.config, stage)
    if stage == "lam" and loaded.config.get("train_lam"):  # trained jointly with the dynamics
        model = loaded.config["lam_model"]
        weights = weights["lam"]
    cfg, spec = read_config(stage, model, run)
    # A run may also have trained other networks, such as a discriminator.
    params = {name: weights[name] for name in spec.keys() & weights.keys()}
    params = checkpoint.check(params, spec, f"the {stage} in {run}")
    return Stage(cfg, params, AUTO.resolve(device, compiled)), loaded.config


OWN_OPTIONS = {"tokenizer": "adversarial", "lam": "label_weight", "dynamics": "train_lam"}
"""An option that only the runs of a stage have, today."""


def _check_stage(run: str | Path, config: dict[str, Any], stage: str) -> None:
    """Raise UserError for the run of another stage. A run of earlier versions may lack the option."""
    others = [name for name, option in OWN_OPTIONS.items() if option in config and name != stage]
    jointly = stage == "lam" and config.get("train_lam")
    if others and not jointly:
        raise UserError(
            f"{run} is a run of train_{others[0]}.py: pass the folder of a run of train_{stage}.py"
        )


def read_config(
    stage: str, model: dict, run: str | Path
) -> tuple[TokenizerConfig | LamConfig | DynamicsConfig, Tree]:
    """The configuration of a stage's model as stored by a run, and the spec of its parameters."""
    module, config = MODELS[stage]
    try:
        cfg = stored_config.from_dict(config, model, run)
        return cfg, module.spec(cfg)
    except UserError:
        raise
    except Exception as error:  # impossible numbers fail wherever they are first used
        raise UserError(
            f"the configuration of the {stage} in {run} is impossible: train it again"
        ) from error


def load_world(
    run: str | Path,
    device: torch.device | str = "cpu",
    compiled: bool = False,
    *,
    tokenizer: str | Path = "",
    lam: str | Path = "",
) -> World:
    """The world of a dynamics run, with the models that it was trained with.

    `tokenizer` and `lam` name the runs of these, where they are not where the run expects them.
    """
    stage, config = load_stage(run, "dynamics", device, compiled)
    record = inputs.of_config(run, config)
    actions = None
    if config["actions"] == "latent":
        if config["train_lam"]:
            actions, _ = load_stage(run, "lam", device, compiled)
        else:
            actions = load_earlier(record, "lam", lam, device, compiled).stage
    frames = load_earlier(record, "tokenizer", tokenizer, device, compiled).stage
    return World(frames, stage, actions)


class Earlier(NamedTuple):
    """An earlier stage of a run."""

    run: str
    """The folder of its own run."""
    stage: Stage


def load_earlier(
    record: Record,
    name: EarlierStage,
    given: str | Path = "",
    device: torch.device | str = "cpu",
    compiled: bool = False,
) -> Earlier:
    """The tokenizer or the latent action model that a run was made with.

    It is looked for in the run that is `given`, or else where the record of the later run says.
    Raises UserError if there is none, and if it is not the model that the later run was made with.
    """
    where = [str(given)] if given else inputs.places(record, name)
    found = [place for place in where if checkpoint.latest(place) is not None]
    if not found:
        raise inputs.not_found(record, name, where)
    expected = getattr(record.inputs, name).fingerprint
    for place in found:
        stage, _ = load_stage(place, name, device, compiled)
        if not expected or weights_fingerprint(stage) == expected:
            return Earlier(place, stage)
    raise _changed(record, name, found)


def _changed(record: Record, name: EarlierStage, found: Iterable[str]) -> UserError:
    """The error for an earlier stage that is not the one that a run was made with."""
    expected = getattr(record.inputs, name).fingerprint
    kept = [
        f"{place}/{checkpoint.FOLDER}/{step}"
        for place in found
        for step in checkpoint.steps_of(checkpoint.run_of(place))
    ]
    matching = [
        path for path in kept if weights_fingerprint(_stage_or_none(path, name)) == expected
    ]
    place = next(iter(found))
    earlier = (
        f"use its earlier checkpoint with --cfg.{name} {matching[0]}"
        if matching
        else f"name a copy of the one of then with --cfg.{name}"
    )
    meaning = "token ids" if name == "tokenizer" else "latent actions"
    return UserError(
        f"{place} is not the {inputs.NAMES[name]} that {record.run} was made with: it was trained "
        f"further or replaced, so that {meaning} have another meaning; {earlier}, or train the "
        "dynamics model again in another --cfg.out"
    )


def _stage_or_none(path: str, name: EarlierStage) -> Stage | None:
    try:
        return load_stage(path, name)[0]
    except UserError:
        return None


def check_resolution(stage: Stage | None, height: int, width: int, run: str | Path) -> None:
    """Raise UserError if a trained stage expects frames of another size."""
    if stage is None:
        return
    expected = (stage.cfg.height, stage.cfg.width)
    if expected != (height, width):
        raise UserError(
            f"the model in {run} was trained on {expected[0]}x{expected[1]} frames, "
            f"but these are {height}x{width}: train it on this data, or pass data of its size"
        )


def check_framewise(stage: Stage, run: str | Path) -> None:
    """Raise UserError if a tokenizer compresses time, since every action needs its own frame."""
    if stage.cfg.time_factor != 1:
        raise UserError(
            f"the tokenizer in {run} encodes {stage.cfg.time_factor} frames together, but every "
            "action needs a frame of its own: train a tokenizer that does not compress time, "
            "such as --cfg.preset magvit2-framewise"
        )


LATER_FIELDS = {
    "flow",
    "sphere",
    "pairs",
    "neighbourhood",
    "neighbour_dim",
    "pointer",
    "distilled",
    "columns",
}
"""Fields that models did not have at first. Where they have their default they do not count, so that
the fingerprints of older models stay the same (but those of latent action models that were trained
while LamConfig had a further field, `facing`)."""


def _identity(value: Any) -> str:
    """The text that `repr` makes of a configuration, without later fields that have their default."""
    if not dataclasses.is_dataclass(value):
        return repr(value)
    shown = [
        f"{field.name}={_identity(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if field.name not in LATER_FIELDS or getattr(value, field.name) != _default(field)
    ]
    return f"{type(value).__qualname__}({', '.join(shown)})"


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def fingerprint(*stages: Stage | None) -> str:
    """A hash of what models compute: their configurations, and their parameters bit for bit.

    Another version of this program may have another hash of the same models.
    """
    digest = hashlib.sha256()
    for stage in stages:
        if stage is not None:
            digest.update(_identity(stage.cfg).encode())
            for path, value in sorted(tree.paths(stage.params).items()):
                digest.update(path.encode() + value.detach().cpu().numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def weights_fingerprint(stage: Stage | None) -> str:
    """A hash of a model's parameters alone, bit for bit, which runs store; empty without a model."""
    if stage is None:
        return ""
    digest = hashlib.sha256()
    for path, value in sorted(tree.paths(stage.params).items()):
        digest.update(f"{path} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
