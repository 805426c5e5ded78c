"""What one looks at first in the record of an evaluation, what others have published, and what it comes to in words.

A record is the content of metrics.json. A path such as "rollouts.1.moving.delta.random@4" names a number in it; @4 is
that of frame t = 4, @average the mean over the frames, both with their interval.
"""

import json
from pathlib import Path
from typing import NamedTuple

from genie_fn.errors import UserError

SCHEMA = 1


class Row(NamedTuple):
    """A number: what it is called, where it is, how it is printed, and its unit."""

    label: str
    path: str
    digits: int = 2
    unit: str = ""


class Reference(NamedTuple):
    """A published number, and where ours of the same protocol is ("": there is none)."""

    what: str
    published: str
    source: str
    path: str = ""
    digits: int = 2
    unit: str = " dB"
    actions: str = ""
    """`latent` or `true`, where the number is of worlds of that kind alone."""


ROWS = (
    Row("tokenizer, PSNR", "reconstruction.psnr", 2, " dB"),
    Row("tokenizer, SSIM", "reconstruction.ssim", 3),
    Row("codes used", "reconstruction.codes_used", 0),
    Row("codes, perplexity", "reconstruction.perplexity", 1),
    Row("dynamics, cross-entropy per token", "dynamics.cross_entropy", 2, " nats"),
    Row("cross-entropy by frequency alone", "reconstruction.unigram_entropy", 2, " nats"),
    Row("Δ₄ PSNR, random actions, moving clips", "rollouts.1.moving.delta.random@4", 2, " dB"),
    Row("Δ₄ PSNR, shuffled actions, moving clips", "rollouts.1.moving.delta.shuffled@4", 2, " dB"),
    Row("Δ₄ PSNR, random actions, all clips", "rollouts.1.all.delta.random@4", 2, " dB"),
    Row("1st dreamed frame, moving clips", "rollouts.1.moving.psnr.own@1", 2, " dB"),
    Row("the 1st, copy-last", "rollouts.1.moving.psnr.copy_last@1", 2, " dB"),
    Row("2nd dreamed frame, moving clips", "rollouts.1.moving.psnr.own@2", 2, " dB"),
    Row("the 2nd, copy-last", "rollouts.1.moving.psnr.copy_last@2", 2, " dB"),
    Row("3rd dreamed frame, moving clips", "rollouts.1.moving.psnr.own@3", 2, " dB"),
    Row("the 3rd, copy-last", "rollouts.1.moving.psnr.copy_last@3", 2, " dB"),
    Row("4th dreamed frame, moving clips", "rollouts.1.moving.psnr.own@4", 2, " dB"),
    Row("the 4th, copy-last", "rollouts.1.moving.psnr.copy_last@4", 2, " dB"),
    Row("1 → 10 frames, moving clips", "rollouts.1.moving.psnr.own@average", 2, " dB"),
    Row("1 → 10 frames, shuffled actions", "rollouts.1.moving.psnr.shuffled@average", 2, " dB"),
    Row("1 → 10 frames, copy-last", "rollouts.1.moving.psnr.copy_last@average", 2, " dB"),
    Row(
        "gain over copy-last at t = 4, moving clips, pooled",
        "rollouts.1.moving.delta.copy_last@4",
        2,
        " dB",
    ),
    Row("1 → 10 frames, all clips", "rollouts.1.all.psnr.own@average", 2, " dB"),
    Row("4 → 10 frames, all clips", "rollouts.4.all.psnr.own@average", 2, " dB"),
    Row("actions used", "actions.used", 0),
    Row("actions, perplexity", "actions.perplexity", 2),
    Row("information with recorded actions (NMI)", "actions.true.all.information", 3),
    Row("information by chance", "actions.true.all.by_chance", 3),
    Row("information, supervised probe", "actions.probe.all.information", 3),
    Row("information with left / none / right", "actions.true.sides.information", 3),
    Row("left / none / right, supervised probe", "actions.probe.sides.information", 3),
    Row("accuracy of the best map to recorded actions", "actions.true.all.accuracy", 3),
    Row("accuracy by chance", "actions.true.all.chance", 3),
    Row("left and right held are both obeyed, share of starts", "actions.held.share"),
    Row("actions move the picture differently: p, sideways", "actions.displacement.dx_p", 3),
    Row("p, up and down", "actions.displacement.dy_p", 3),
)

FIRST = (
    "reconstruction.psnr",
    "rollouts.1.moving.delta.random@4",
    "rollouts.1.moving.psnr.own@average",
    "rollouts.1.all.psnr.own@average",
    "actions.true.all.information",
)
REDUX = "GenieRedux, arXiv 2409.06445"
REFERENCES = (
    Reference(
        "tokenizer, PSNR; random agent", "38.25 dB", f"{REDUX}, table 1", "reconstruction.psnr"
    ),
    Reference(
        "tokenizer, PSNR; trained agent", "40.62 dB", f"{REDUX}, table 3", "reconstruction.psnr"
    ),
    Reference(
        "tokenizer, SSIM; random agent", "0.96", f"{REDUX}, table 1", "reconstruction.ssim", 3, ""
    ),
    Reference(
        "tokenizer, SSIM; trained agent", "0.97", f"{REDUX}, table 3", "reconstruction.ssim", 3, ""
    ),
    Reference(
        "1 → 10 frames, latent actions, PSNR; random agent",
        "25.51 dB",
        f"{REDUX}, table 1",
        "rollouts.1.all.psnr.own@average",
        actions="latent",
    ),
    Reference(
        "1 → 10 frames, latent actions, PSNR; trained agent",
        "31.97 dB",
        f"{REDUX}, table 3",
        "rollouts.1.all.psnr.own@average",
        actions="latent",
    ),
    Reference(
        "1 → 10 frames, latent actions, SSIM; random, trained agent",
        "0.77, 0.90",
        f"{REDUX}, tables 1, 3",
        "rollouts.1.all.ssim.own@average",
        3,
        "",
        "latent",
    ),
    Reference(
        "1 → 10 frames, true actions, PSNR; trained agent",
        "34.44 dB",
        f"{REDUX}, table 3",
        "rollouts.1.all.psnr.own@average",
        actions="true",
    ),
    Reference(
        "4 → 10 frames, true actions, PSNR; trained agent",
        "38.31 dB",
        f"{REDUX}, table 3",
        "rollouts.4.all.psnr.own@average",
        actions="true",
    ),
    Reference(
        "Δ_t PSNR, true actions; random data, trained agent",
        "0.70 dB, 1.89 dB",
        REDUX,
        "rollouts.1.all.delta.random@4",
        actions="true",
    ),
    Reference(
        "Δ₄ PSNR, latent actions, on CoinRun",
        "none published",
        "defined in Genie, arXiv 2402.15391, section 3",
        "rollouts.1.all.delta.random@4",
        actions="latent",
    ),
)


def read(folder: str) -> dict:
    """The record in the folder of an evaluation, or of a run that was evaluated."""
    paths = [Path(folder) / "metrics.json", Path(folder) / "evaluation" / "metrics.json"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} holds no evaluation: make one with `python evaluate.py --cfg.run {folder}`"
        )
    try:
        record = json.loads(path.read_text())
        schema = record.get("schema")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: evaluate that world again") from error
    if schema != SCHEMA:
        raise UserError(
            f"{path} is of schema {schema} and this program reads {SCHEMA}: evaluate that world again"
        )
    return record


def read_clone(folder: str | Path) -> dict | None:
    """The record of clone.py in a folder; None where there is none, or none of this version."""
    try:
        record = json.loads((Path(folder) / "clone.json").read_text())
    except (OSError, ValueError):
        return None
    whole = (
        isinstance(record, dict)
        and {"config", "expert", "seeds", "shares", "gains"} <= record.keys()
    )
    return record if whole and record.get("schema") == SCHEMA else None


def brief(folder: str) -> dict[str, str]:
    """The first headlines of a run's evaluation as texts by their label; none where it was not evaluated, or by another
    version."""
    try:
        record = read(folder)
    except UserError:
        return {}
    found = {row.label: (find(record, row.path), row) for row in ROWS if row.path in FIRST}
    return {
        label: show(values, row.digits, row.unit)
        for label, (values, row) in found.items()
        if values is not None
    }


def find(record: dict, path: str) -> list[float] | None:
    """[value] or [mean, low, high] at a path; None where the record has no such number."""
    keys, _, frame = path.partition("@")
    value = record
    for key in keys.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None or frame == "":
        return None if value is None else [value]
    if frame == "average":
        return value["average"]
    at = int(frame) - 1
    return [value[end][at] for end in ("mean", "low", "high")] if at < len(value["mean"]) else None


def show(values: list[float] | None, digits: int = 2, unit: str = "") -> str:
    """`12.47 dB [11.90, 13.02]`, or a dash."""
    if values is None:
        return "–"
    mean, *ends = (f"{x:.{digits}f}" for x in values)
    return f"{mean}{unit}" + (f" [{', '.join(ends)}]" if ends else "")


def verdicts(record: dict) -> list[str]:
    """What the numbers come to, in sentences."""
    made = [
        _obeys(record),
        _dreams(record),
        _actions(record),
        _meaning(record),
        _movement(record),
        held(record),
    ]
    return [sentence for sentence in made if sentence]


def _obeys(record: dict) -> str:
    cost = find(record, "rollouts.1.moving.delta.shuffled@4")
    if cost is None:
        return ""
    costs = f"another clip's actions cost {show(cost, 2, ' dB')} at t = 4 on the moving half"
    if cost[1] > 0:
        return f"The world obeys: {costs}."
    return f"It is not shown that the world obeys: {costs}, and the interval holds 0."


def _dreams(record: dict) -> str:
    gain = record["rollouts"].get("1", {}).get("moving", {}).get("delta", {}).get("copy_last")
    if gain is None:
        return ""
    better = [t for t, low in enumerate(gain["low"], 1) if low > 0]
    if not better:
        return "On the moving half dreams are at no frame surely better than copying the last real frame."
    spans = (
        "at every frame"
        if len(better) == len(gain["low"])
        else "at t = " + ", ".join(map(str, better))
    )
    return f"On the moving half dreams are better than copying the last real frame {spans} (95% intervals)."


def _actions(record: dict) -> str:
    actions = record["actions"]
    if actions["kind"] == "true":
        return "This world takes the recorded actions."
    return f"Latent actions are {actions['state']} (perplexity {actions['perplexity']:.2f})."


def _meaning(record: dict) -> str:
    told, probe = (
        find(record, "actions.true.all.information"),
        find(record, "actions.probe.all.information"),
    )
    if told is None or record["actions"]["kind"] == "true":
        return ""
    chance = find(record, "actions.true.all.by_chance")
    says = f"What they tell of the recorded actions: NMI {told[0]:.3f}, of which {chance[0]:.3f} is chance"
    if probe is None or probe[0] <= 0:
        return says + "."
    steps = record["actions"]["probe"]["steps"]
    ceiling = f"a supervised probe of the same size tells after {steps} steps ({probe[0]:.3f})"
    return f"{says}; {told[0] / probe[0]:.0%} of what {ceiling}."


def held(record: dict) -> str:
    """What holding left and right does."""
    it = record["actions"].get("held")
    if not it:
        return ""
    return (
        f"Held left and right both move the agent their way from {it['right_way']} of {it['starts']} starts; from "
        f"{it['apart']} it ends further left under left than under right."
    )


def _movement(record: dict) -> str:
    moves = record["actions"]["displacement"]
    p = min(moves["dx_p"], moves["dy_p"])
    if p > 0.05:
        return f"It is not shown that actions move the picture differently (p = {p:.3f})."
    both = [
        f"further {side} under {', '.join(map(str, moves[side]))}"
        for side in ("left", "right")
        if moves[side]
    ]
    ways = "; than on average it moves " + " and ".join(both) if both else ""
    tests = f"p = {moves['dx_p']:.3f} sideways, {moves['dy_p']:.3f} up and down"
    return f"Actions move the picture differently ({tests}){ways}."
