"""How the options of a run that is continued differ from those that it was saved with."""

import json
from dataclasses import asdict
from typing import Any, NamedTuple

from genie_fn.errors import UserError
from genie_fn.training.config import RunConfig

PLACES = ("out", "resume", "data", "tokenizer", "lam", "tokens", "inputs", "teacher")
"""Options that say where things are. What is there is compared by its content (see inputs)."""
MACHINE = ("device", "compile", "cuda_graph", "sharding", "accumulate", "deterministic", "backend")
OUTPUT = ("save_every", "sample_every", "sample", "log", "profile")
NOT_COMPARED = {*PLACES, *MACHINE, *OUTPUT}
"""Options that do not change what is learned, up to rounding."""
DETERMINED = {
    "height": "--cfg.data",
    "width": "--cfg.data",
    "codes": "--cfg.tokenizer",
    "tokens": "--cfg.tokenizer",
    "columns": "--cfg.tokenizer",
    "actions": "--cfg.actions or --cfg.lam",
    "occurring": "--cfg.data",
    "distilled": "--cfg.teacher and --cfg.distill-guidance",
}
"""Fields of a model's configuration that something else determines, and the flag of that."""
MODELS = ("model", "lam_model")
FORMER = {
    "stride": 1,
    "flip": False,
    "labels": 0,
    "code_init": False,
    "model.neighbourhood": 0,
    "model.pointer": False,
    "model.chain": False,
    "model.quantizer.use_rate": 0.02,
    "model.quantizer.from_inputs": False,
}
"""What runs did before these were options."""
SHOWN = 5
"""The largest number of options that a sentence lists."""


class Difference(NamedTuple):
    """An option that has changed."""

    name: str
    """The fields that lead to it, with dots, as in model.encoder.dim."""
    before: Any
    now: Any

    @property
    def flag(self) -> str:
        """Its flag; the fields of a model that something else determines have none."""
        model, _, field = self.name.rpartition(".")
        if model in MODELS and field in DETERMINED:
            return f"{self.name} (from {DETERMINED[field]})"
        return f"--cfg.{self.name.replace('_', '-')}"


def differences(stored: dict[str, Any], cfg: RunConfig) -> list[Difference]:
    """The options that differ from the stored ones, the preset first.

    An option that is not stored is new in this version of the program, and is not compared, except
    those of FORMER.
    """
    before = FORMER | _flat(stored)
    now = _flat(json.loads(json.dumps(asdict(cfg))))
    changed = [
        Difference(name, before[name], value)
        for name, value in now.items()
        if name in before and before[name] != value and name.split(".")[0] not in NOT_COMPARED
    ]
    return sorted(changed, key=lambda difference: difference.name != "preset")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by names with dots."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def describe(changed: list[Difference]) -> str:
    """`--cfg.steps 20 (was 10), --cfg.seed 1 (was 0)`."""
    parts = [f"{x.flag} {_short(x.now)} (was {_short(x.before)})" for x in changed[:SHOWN]]
    more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return ", ".join(parts + more)


def _short(value: Any) -> str:
    text = "''" if value == "" else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def misfit(run: str, changed: list[Difference]) -> UserError:
    """The error for a saved state that does not fit the options with which it is continued."""
    preset = [x for x in changed if x.name == "preset"]
    if not preset and any(x.name.endswith(".arch") for x in changed):
        return UserError(
            f"the model saved in {run} has another architecture, as the preset had in an earlier "
            "version of this program: train another model with another --cfg.out"
        )
    structure = [
        x for x in changed if "." in x.name or x.name in ("train_lam", "actions", "labels")
    ]
    different = f": {describe(preset or structure)}" if preset or structure else ""
    return UserError(
        f"the model saved in {run} has other sizes{different}; "
        "give the same options as before, or train another model with another --cfg.out"
    )
