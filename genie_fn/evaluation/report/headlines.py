"""The numbers of an evaluation that tables, comparisons and speedruns show."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from genie_fn.errors import UserError
from genie_fn.evaluation import record_file
from genie_fn.evaluation.record import (
    Actions,
    Agreement,
    Correlation,
    Curve,
    Evaluation,
    Guesses,
    HeldCodes,
    Method,
    Scores,
    Subset,
    Values,
)

Read = Callable[[Evaluation], Values | None]
"""Returns [value] or [mean, low, high]; None if the evaluation has no such number."""


class WithActions(Protocol):
    """A record with statistics of actions: of a world, or of a latent action model."""

    @property
    def actions(self) -> Actions: ...


ReadActions = Callable[[WithActions], Values | None]
"""The same of statistics of actions."""
Frame = int | Literal["average"]
Kind = Literal["psnr", "ssim", "pooled", "delta", "edges", "aligned", "position_error"]
"""A field of `Scores`."""


class Row(NamedTuple):
    """A number: its label, how to read it from an evaluation, and how it is printed."""

    label: str
    read: Read
    digits: int = 2
    unit: str = ""
    summary: bool = True
    """Whether it is part of the short table of speedruns."""


def value(evaluation: Evaluation, row: Row) -> Values | None:
    """The number that a row shows."""
    return row.read(evaluation)


def at(scores: Scores, kind: Kind, method: str, frame: Frame) -> Values | None:
    """A score of a method's frames; None if it was not measured. `delta` is the gain of the clip's own
    actions over the method."""
    curves: dict[str, Curve] = getattr(scores, kind)
    curve = curves.get(method)
    if curve is None:
        return None
    return curve.average if frame == "average" else curve.at(frame)


def score(
    kind: Kind, method: Method, frame: Frame, subset: Subset = "moving", prompt: int = 1
) -> Read:
    """Reads a score of a method's frames in the rollouts from `prompt` frames."""

    def read(evaluation: Evaluation) -> Values | None:
        scores = evaluation.scores(prompt, subset)
        return None if scores is None else at(scores, kind, method, frame)

    return read


def reconstructed_edges(evaluation: Evaluation) -> Values | None:
    """The edges of the tokenizer's reconstructions relative to those of the recorded frames."""
    ratio = evaluation.reconstruction.edges
    return None if ratio is None else [ratio]


def agreement(kind: Literal["all", "sides"], read: Callable[[Agreement], float]) -> ReadActions:
    """Reads a number of the agreement between latent and recorded actions."""

    def from_evaluation(evaluation: WithActions) -> Values | None:
        recorded = evaluation.actions.recorded
        if recorded is None:
            return None
        chosen = recorded.all if kind == "all" else recorded.sides
        return None if chosen is None else [read(chosen)]

    return from_evaluation


def guesses(kind: Literal["all", "sides"], read: Callable[[Guesses], float]) -> ReadActions:
    """Reads a number of the supervised inverse dynamics model."""

    def from_evaluation(evaluation: WithActions) -> Values | None:
        model = evaluation.actions.inverse_dynamics
        if model is None:
            return None
        chosen = model.all if kind == "all" else model.sides
        return None if chosen is None else [read(chosen)]

    return from_evaluation


def held_keys_share(evaluation: Evaluation) -> Values | None:
    """Share of starts from which the agent moves in the held direction under both keys."""
    held = evaluation.actions.held_keys
    return None if held is None else [held.share]


def held_codes(read: Callable[[HeldCodes], Values | None]) -> Callable[[Evaluation], Values | None]:
    """A number about held actions."""

    def from_evaluation(evaluation: Evaluation) -> Values | None:
        held = evaluation.actions.held_codes
        return None if held is None else read(held)

    return from_evaluation


def transfer(read: Callable[[Correlation], Values | None]) -> Read:
    """Reads a correlation of displacements under transferred actions."""

    def from_evaluation(evaluation: Evaluation) -> Values | None:
        found = evaluation.actions.transfer
        return None if found is None else read(found.transferred)

    return from_evaluation


def few_labels(number: int, kind: Literal["all", "sides"] = "all") -> ReadActions:
    """Reads the accuracy of the map that is fitted on a number of labelled transitions."""

    def from_evaluation(evaluation: WithActions) -> Values | None:
        found = evaluation.actions.few_labels
        if found is None or number not in found.numbers:
            return None
        chosen = found.all if kind == "all" else found.sides
        return None if chosen is None else chosen.accuracy[found.numbers.index(number)]

    return from_evaluation


TOKENIZER_PSNR = Row("tokenizer, PSNR", lambda e: [e.reconstruction.psnr], 2, " dB")
DELTA_RANDOM = Row("Δ₄ PSNR, random actions, moving clips", score("delta", "random", 4), 2, " dB")
DELTA_SHUFFLED = Row(
    "Δ₄ PSNR, shuffled actions, moving clips", score("delta", "shuffled", 4), 2, " dB"
)
PSNR_MOVING = Row(
    "PSNR, 1 → 10 frames, moving clips", score("psnr", "own_actions", "average"), 2, " dB"
)
PSNR_COPY = Row("PSNR, 1 → 10 frames, copy-last", score("psnr", "copy_last", "average"), 2, " dB")
PSNR_DISPLACED = Row(
    "PSNR, 1 → 10 frames, displaced copy", score("psnr", "copy_displaced", "average"), 2, " dB"
)
PSNR_ALL = Row(
    "PSNR, 1 → 10 frames, all clips", score("psnr", "own_actions", "average", "all"), 2, " dB"
)
NMI = Row("NMI with recorded actions", agreement("all", lambda a: a.nmi), 3)


def _first_frames() -> list[Row]:
    """PSNR at the first frames, beside that of copying the last prompt frame."""
    rows = []
    for t in (1, 2, 3, 4):
        rows.append(
            Row(f"PSNR at t = {t}, moving clips", score("psnr", "own_actions", t), 2, " dB")
        )
        rows.append(Row(f"PSNR at t = {t}, copy-last", score("psnr", "copy_last", t), 2, " dB"))
    return rows


ROWS = (
    TOKENIZER_PSNR,
    Row("tokenizer, SSIM", lambda e: [e.reconstruction.ssim], 3, summary=False),
    Row("tokenizer, edges relative to recorded ones", reconstructed_edges),
    Row("codes used", lambda e: [e.reconstruction.codes_used], 0),
    Row("codes, perplexity", lambda e: [e.reconstruction.perplexity], 1, summary=False),
    Row("dynamics, cross-entropy per token", lambda e: [e.prediction.cross_entropy], 2, " nats"),
    Row("unigram entropy of the codes", lambda e: [e.reconstruction.unigram_entropy], 2, " nats"),
    DELTA_RANDOM,
    DELTA_SHUFFLED,
    Row("Δ₄ PSNR, random actions, all clips", score("delta", "random", 4, "all"), 2, " dB"),
    *_first_frames(),
    PSNR_MOVING,
    Row("PSNR, 1 → 10 frames, shuffled actions", score("psnr", "shuffled", "average"), 2, " dB"),
    PSNR_COPY,
    PSNR_DISPLACED,
    Row(
        "gain over copy-last at t = 4, moving clips, pooled PSNR",
        score("delta", "copy_last", 4),
        2,
        " dB",
    ),
    PSNR_ALL,
    Row(
        "PSNR, 4 → 10 frames, all clips",
        score("psnr", "own_actions", "average", "all", 4),
        2,
        " dB",
    ),
    Row(
        "edges of rollouts relative to recorded ones, moving clips",
        score("edges", "own_actions", "average"),
    ),
    Row(
        "PSNR where aligned, 1 → 10 frames, moving clips",
        score("aligned", "own_actions", "average"),
        2,
        " dB",
    ),
    Row(
        "position error, 1 → 10 frames, moving clips",
        score("position_error", "own_actions", "average"),
        2,
        " px",
    ),
    Row("actions used", lambda e: [e.actions.used], 0),
    Row("actions, perplexity", lambda e: [e.actions.perplexity], 2),
    NMI,
    Row(
        "NMI with recorded actions, clips permuted",
        agreement("all", lambda a: a.permuted_nmi),
        3,
        summary=False,
    ),
    Row("NMI, supervised inverse dynamics", guesses("all", lambda g: g.nmi), 3),
    Row("NMI with left / none / right", agreement("sides", lambda a: a.nmi), 3),
    Row("NMI with left / none / right, supervised", guesses("sides", lambda g: g.nmi), 3),
    Row(
        "accuracy of the best map to recorded actions",
        agreement("all", lambda a: a.accuracy),
        3,
        summary=False,
    ),
    Row(
        "accuracy of the most frequent action",
        agreement("all", lambda a: a.majority_accuracy),
        3,
        summary=False,
    ),
    Row("accuracy of the map from 10 labelled transitions", few_labels(10), 3, summary=False),
    Row("accuracy of the map from 50 labelled transitions", few_labels(50), 3, summary=False),
    Row("accuracy of the map from 200 labelled transitions", few_labels(200), 3),
    Row("held keys, share of starts with both directions correct", held_keys_share),
    Row("held actions, share followed", held_codes(lambda held: held.average), 2),
    Row(
        "held actions, share followed under other actions",
        held_codes(lambda held: None if held.others is None else [held.others]),
        2,
    ),
    Row("held actions, share inferred again", held_codes(lambda held: held.reinferred), 2),
    Row("transferred actions, correlation of displacements", transfer(lambda c: c.both), 2),
    Row("transferred actions, horizontal", transfer(lambda c: c.dx), 2, summary=False),
    Row("transferred actions, vertical", transfer(lambda c: c.dy), 2, summary=False),
    Row(
        "image displacement by action, p, horizontal",
        lambda e: [e.actions.displacement.dx_p],
        3,
        summary=False,
    ),
    Row(
        "image displacement by action, p, vertical",
        lambda e: [e.actions.displacement.dy_p],
        3,
        summary=False,
    ),
)
CARD = (TOKENIZER_PSNR, DELTA_RANDOM, PSNR_MOVING, PSNR_ALL, NMI)
"""What is stored in a world file."""


def results(folder: str | Path) -> dict[str, Values]:
    """The headlines of a run's evaluation by label."""
    evaluation = record_file.read(folder)
    values = {row.label: value(evaluation, row) for row in ROWS}
    return {label: numbers for label, numbers in values.items() if numbers is not None}


def card(folder: str | Path) -> dict[str, str]:
    """The first headlines of a run's evaluation as texts by label.

    There are none for a run that was not evaluated.
    """
    try:
        values = results(folder)
    except UserError:
        return {}
    return {
        row.label: show(values[row.label], row.digits, row.unit)
        for row in CARD
        if row.label in values
    }


def show(values: Values | None, digits: int = 2, unit: str = "") -> str:
    """`12.47 dB [11.90, 13.02]`, or a dash."""
    if values is None:
        return "–"
    mean, *ends = (f"{x:.{digits}f}" for x in values)
    return f"{mean}{unit}" + (f" [{', '.join(ends)}]" if ends else "")


def table(evaluations: dict[str, Evaluation]) -> list[list[str]]:
    """Rows of texts: a headline's label, then its value in every evaluation."""
    rows = []
    for row in ROWS:
        values = [value(evaluation, row) for evaluation in evaluations.values()]
        if any(numbers is not None for numbers in values):
            rows.append([row.label, *(show(x, row.digits, row.unit) for x in values)])
    return rows
