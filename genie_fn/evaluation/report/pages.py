"""The HTML pages: one evaluation, several side by side, and behaviour cloning.

Each is one file that needs nothing else: no script, no request, pictures and charts within it.
Jinja2 escapes texts.
"""

import base64
import json
from dataclasses import asdict
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from genie_fn.data import video
from genie_fn.evaluation import record_file
from genie_fn.evaluation.clone_record import CloneRecord
from genie_fn.evaluation.record import Actions, Evaluation, Protocol, Scores
from genie_fn.evaluation.report import charts, headlines, tables
from genie_fn.evaluation.report.charts import Bar, Line
from genie_fn.evaluation.report.methods import METHODS
from genie_fn.evaluation.report.pictures import Picture
from genie_fn.evaluation.report.verdicts import (
    held_codes,
    held_keys,
    long_rollouts,
    transfer,
    verdicts,
)


class Pictures(NamedTuple):
    """The pictures of a report."""

    clips: list[Picture]
    """Rollouts, from those that change most to those that change least."""
    worst: list[Picture]
    """Rollouts of the lowest PSNR."""
    actions: list[Picture]
    """Examples of transitions by action."""
    reconstruction: Picture
    held_keys: list[Picture] = []  # noqa: RUF012, never changed


def data_uri(picture: Picture, fps: int = 5) -> str:
    """A picture's content as the source of an <img>: a GIF of several frames, a PNG of one."""
    moving = len(picture.frames) > 1
    content = video.gif_bytes(picture.frames, fps) if moving else video.png_bytes(picture.frames[0])
    kind = "gif" if moving else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


environment = jinja2.Environment(
    loader=jinja2.PackageLoader("genie_fn.evaluation.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
environment.filters["data_uri"] = data_uri
environment.globals |= {
    "METHODS": METHODS,
    "charts": charts,
    "headlines": headlines,
    "held_codes_sentence": held_codes,
    "held_keys_sentence": held_keys,
    "tables": tables,
    "long_rollouts_sentence": long_rollouts,
    "transfer_sentence": transfer,
    "verdicts": verdicts,
}


def report(evaluation: Evaluation, pictures: Pictures, cloned: CloneRecord | None = None) -> str:
    """The page of one world, with the record of clone.py if there is one."""
    collection = evaluation.data.meta.get("collection", {})
    origin = asdict(evaluation)
    provenance = {name: origin[name] for name in ("config", "models", "data", "machine", "seconds")}
    return environment.get_template("report.html").render(
        title=f"Evaluation of {evaluation.config['run']}",
        evaluation=evaluation,
        pictures=pictures,
        record=cloned,
        clone_chart=cloned and clone_chart(cloned),
        is_coinrun=collection.get("env") == "coinrun",
        protocol_charts=protocol_charts,
        share_chart=share_chart(evaluation.actions),
        configuration=json.dumps(provenance, indent=1),
    )


def compare(evaluations: dict[str, Evaluation]) -> str:
    """Several evaluations side by side: the table, then the curves of each."""
    return environment.get_template("compare.html").render(
        title="Worlds side by side",
        evaluations=evaluations,
        warnings=warnings(evaluations),
        comparison_charts=comparison_charts,
    )


def warnings(evaluations: dict[str, Evaluation]) -> list[str]:
    """Sentences on why evaluations cannot be compared."""
    sentences = []
    clips = {(e.data.hash, e.data.split, e.data.clips) for e in evaluations.values()}
    if len(clips) > 1:
        sentences.append(
            "These worlds were not measured on the same clips: their numbers can hardly be compared."
        )
    earlier = [name for name, e in evaluations.items() if e.of_schema < record_file.SCHEMA]
    if 0 < len(earlier) < len(evaluations):
        sentences.append(
            f"{', '.join(earlier)}: made by an earlier version, which chose moving clips, random "
            "actions, keys and intervals in another way; evaluate again to compare these."
        )
    return sentences


def clone(record: CloneRecord) -> str:
    """The page of a record of clone.py."""
    return environment.get_template("clone.html").render(
        title=f"Cloning with {record.config['run']}",
        record=record,
        clone_chart=clone_chart(record),
    )


def protocol_charts(protocol: Protocol) -> list[Markup]:
    """PSNR of every method, and the PSNR lost with other actions.

    The first two are of the moving half, the others of all clips.
    """
    drawn = []
    for scores, clips in ((protocol.moving, "moving half"), (protocol.all, "all clips")):
        methods = [method for method in METHODS if method in scores.psnr]
        drawn.append(_psnr_chart(scores, methods, f"PSNR, {clips}"))
        drawn.append(_delta_chart(scores, f"Δ_t PSNR: loss with other actions, {clips}"))
    return drawn


def comparison_charts(prompt: str, protocol: Protocol) -> list[Markup]:
    """The same on the moving half, with fewer methods."""
    scores = protocol.moving
    frames = f"{prompt} → {len(scores.psnr['own_actions'].mean)}, moving half"
    methods = ["own_actions", "shuffled", "random", "copy_last"]
    return [
        _psnr_chart(scores, methods, f"PSNR, {frames}"),
        _delta_chart(scores, f"Δ_t, {frames}"),
    ]


def _psnr_chart(scores: Scores, methods: list, title: str) -> Markup:
    """The clip's own actions with their interval.

    The others are without, because intervals would hide each other.
    """
    curves = [charts.line("own_actions", scores.psnr["own_actions"])]
    curves += [
        Line(method, scores.psnr[method].mean) for method in methods if method != "own_actions"
    ]
    return charts.lines(curves, title, "dB")


def _delta_chart(scores: Scores, title: str) -> Markup:
    curves = [charts.line(method, scores.delta[method]) for method in ("random", "shuffled")]
    return charts.lines(curves, title, "dB", zero=True)


def share_chart(actions: Actions) -> Markup:
    """How often each action occurs."""
    rows = [Bar(*pair) for pair in zip(actions.names, actions.share, strict=True)]
    return charts.bars(rows, "share of transitions", "own_actions")


def clone_chart(record: CloneRecord) -> Markup:
    """The share of levels that each policy solves."""
    rows = [Bar(tables.policy_name(name), *share) for name, share in record.shares.items()]
    return charts.bars(rows, "share of levels solved", "own_actions", left=190)
