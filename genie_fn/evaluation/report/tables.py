"""Tables of the report, as rows of texts."""

from typing import NamedTuple

from genie_fn.evaluation.clone_record import CloneRecord
from genie_fn.evaluation.record import (
    Actions,
    Correlation,
    Curve,
    Displacement,
    Evaluation,
    FewLabels,
    HeldCodes,
    HeldKeys,
    LongRollouts,
    Protocol,
    Recorded,
    Scores,
    Transfer,
    Values,
)
from genie_fn.evaluation.report import headlines
from genie_fn.evaluation.report.methods import METHODS
from genie_fn.evaluation.report.references import REFERENCES

Rows = list[list[str]]


class Average(NamedTuple):
    """A score in the table of averages: its label, where it is, and how it is printed."""

    label: str
    kind: headlines.Kind
    digits: int = 2
    interval: bool = True


AVERAGES = (
    Average("PSNR", "psnr"),
    Average("pooled PSNR", "pooled", interval=False),
    Average("SSIM", "ssim", 3, interval=False),
    Average("edges", "edges"),
    Average("PSNR where aligned", "aligned"),
    Average("position error, px", "position_error"),
)


def tiles(evaluation: Evaluation) -> Rows:
    """Label, value and interval of the first numbers of the page."""
    rows = (
        headlines.DELTA_RANDOM,
        headlines.PSNR_MOVING,
        headlines.PSNR_COPY,
        headlines.NMI,
        headlines.TOKENIZER_PSNR,
    )
    numbers = [(row, headlines.value(evaluation, row)) for row in rows]
    return [
        [
            row.label,
            headlines.show(values[:1], row.digits, row.unit),
            headlines.show(values, row.digits).partition(" ")[2],
        ]
        for row, values in numbers
        if values is not None
    ]


def published(evaluation: Evaluation) -> Rows:
    """Published numbers and this world's."""
    rows = []
    for reference in REFERENCES:
        ours = "another kind of world"
        if reference.actions in ("any", evaluation.actions.kind):
            values = reference.read(evaluation)
            ours = headlines.show(values, reference.digits, reference.unit)
        rows.append([reference.what, reference.published, ours, reference.source])
    return rows


def averages(protocol: Protocol) -> tuple[list[str], Rows]:
    """Head and rows of the means over the frames: a column for every method."""
    methods = {name: style for name, style in METHODS.items() if name in protocol.all.psnr}
    rows = [
        [f"{average.label}, {subset}", *(_average(scores, average, method) for method in methods)]
        for average in AVERAGES
        for subset, scores in _subsets(protocol).items()
    ]
    return ["mean over the frames", *(style.name for style in methods.values())], rows


def _subsets(protocol: Protocol) -> dict[str, Scores]:
    return {"moving": protocol.moving, "all": protocol.all}


def _average(scores: Scores, average: Average, method: str) -> str:
    values = headlines.at(scores, average.kind, method, "average")
    if values is not None and not average.interval:
        values = values[:1]
    return headlines.show(values, average.digits)


def by_frame(protocol: Protocol) -> tuple[list[str], Rows]:
    """Head and rows of PSNR and its gains at every frame."""
    rows = [
        row
        for subset, scores in _subsets(protocol).items()
        for row in _psnr_by_frame(subset, scores)
    ]
    rows += [
        row
        for subset, scores in _subsets(protocol).items()
        for row in _gains_by_frame(subset, scores)
    ]
    return ["", *(f"t = {t}" for t in range(1, len(rows[0])))], rows


def _psnr_by_frame(subset: str, scores: Scores) -> Rows:
    return [
        _curve(f"PSNR, own actions, {subset}", scores.psnr["own_actions"]),
        _curve(f"PSNR, copy-last, {subset}", scores.psnr["copy_last"]),
    ]


def _gains_by_frame(subset: str, scores: Scores) -> Rows:
    return [
        _curve(f"gain over random actions, {subset}", scores.delta["random"]),
        _curve(f"gain over another clip's actions, {subset}", scores.delta["shuffled"]),
        _curve(f"gain over copy-last, pooled, {subset}", scores.delta["copy_last"]),
    ]


def _curve(label: str, curve: Curve) -> list[str]:
    points = zip(curve.mean, curve.low, curve.high, strict=True)
    return [label, *(headlines.show(list(point)) for point in points)]


def held_keys(held: HeldKeys) -> Rows:
    """Displacements of the agent from each start."""
    return [
        [f"{key}, {source}", ", ".join(f"{x:+d}" for x in pixels)]
        for source, by_key in (("recorded", held.recorded), ("generated", held.generated))
        for key, pixels in by_key.items()
    ]


def held_codes(held: HeldCodes, names: list[str]) -> Rows:
    """By held action, how recorded and generated pictures move."""
    columns = zip(held.actions, held.expected, held.recorded, held.followed, strict=True)
    return [
        [names[action], f"{dx:+.2f}", f"{dy:+.2f}", f"{recorded:.0%}", f"{followed:.0%}"]
        for action, (dx, dy), recorded, followed in columns
    ]


def transfer(found: Transfer) -> Rows:
    """Correlations of displacements: of transferred actions, their chance level and ceiling."""

    def row(label: str, correlation: Correlation) -> list[str]:
        values = (correlation.dx, correlation.dy, correlation.both)
        return [label, *(headlines.show(x) for x in values)]

    return [
        row("another clip's actions", found.transferred),
        row("chance: clips permuted", found.permuted),
        row("ceiling: the clip's own actions", found.own),
    ]


def long_rollouts(found: LongRollouts) -> Rows:
    """By frame, how pictures and the effect of actions change in long rollouts."""
    columns = zip(
        found.times,
        found.psnr,
        found.edges,
        found.perplexity,
        found.kept or [None] * len(found.times),
        found.followed,
        strict=True,
    )
    return [
        [
            f"t = {t}",
            "–" if psnr is None else f"{psnr:.2f} dB",
            f"{edges:.2f}",
            f"{perplexity:.1f}",
            "–" if kept is None else f"{kept:.0%}",
            "–" if followed is None else f"{followed:.0%}",
        ]
        for t, psnr, edges, perplexity, kept, followed in columns
    ]


def few_labels(found: FewLabels) -> tuple[list[str], Rows]:
    """Head and rows of the accuracy of maps by the number of labelled transitions."""
    head = ["accuracy", "most frequent action", *(f"{number} labels" for number in found.numbers)]
    head.append(f"{found.transitions} labels")
    curves = (("all recorded actions", found.all), ("left / none / right", found.sides))
    rows = []
    for label, curve in curves:
        if curve is not None:
            accuracies = [headlines.show(values, 3) for values in curve.accuracy]
            rows.append([label, f"{curve.majority:.3f}", *accuracies, f"{curve.all_labels:.3f}"])
    return head, rows


def per_action(actions: Actions) -> tuple[list[str], Rows]:
    """Head and rows of what each action does."""
    moves = actions.displacement
    head = ["", "share", "dx", "dy", "further to the"]
    head += ["most often means"] if actions.recorded else []
    rows = []
    for i, name in enumerate(actions.names):
        row = [name, f"{actions.share[i]:.1%}", *moved(moves, i), _side(moves, i)]
        rows.append([*row, _meaning(actions.recorded, i)] if actions.recorded else row)
    return head, rows


def _side(moves: Displacement, action: int) -> str:
    if action in moves.left:
        return "left"
    return "right" if action in moves.right else ""


def moved(moves: Displacement, action: int) -> list[str]:
    """dx and dy of an action with their standard errors."""
    pairs = (
        (moves.dx[action], moves.dx_error[action]),
        (moves.dy[action], moves.dy_error[action]),
    )
    return [_with_error(mean, error) for mean, error in pairs]


def _with_error(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:+.2f}" if error is None else f"{mean:+.2f} ± {error:.2f}"


def _meaning(recorded: Recorded, code: int) -> str:
    column = [row[code] for row in recorded.all.table]
    if not sum(column):
        return "–"
    best = column.index(max(column))
    return f"{recorded.names[best]} ({column[best] / sum(column):.0%})"


def agreement(actions: Actions, recorded: Recorded) -> tuple[list[str], Rows]:
    """Head and rows of the dependence between latent and recorded actions."""
    head = ["", "NMI", "permuted", "p", f"NMI in halves of the {recorded.all.halves_of}"]
    head += ["accuracy of the best map", "of the most frequent action", "stable"]
    model = actions.inverse_dynamics
    pairs = (
        ("all recorded actions", recorded.all, model and model.all),
        ("left / none / right", recorded.sides, model and model.sides),
    )
    rows = []
    for label, dependence, guesses in pairs:
        if dependence is None:
            continue
        row = [
            label,
            f"{dependence.nmi:.3f}",
            f"{dependence.permuted_nmi:.3f}",
            f"{dependence.p:.3f}",
        ]
        row += [", ".join(f"{nmi:.3f}" for nmi in dependence.halves_nmi)]
        row += [
            f"{dependence.accuracy:.3f}",
            f"{dependence.majority_accuracy:.3f}",
            f"{dependence.stability:.0%}",
        ]
        rows.append(row)
        if guesses is not None:
            nmi, accuracy = f"{guesses.nmi:.3f}", f"{guesses.accuracy:.3f}"
            rows.append(["— supervised inverse dynamics", nmi, "", "", "", accuracy, "", ""])
    return head, rows


def ratios(actions: Actions) -> str:
    """NMI of the latent actions over that of the inverse dynamics model."""
    model = actions.inverse_dynamics
    if model is None:
        return ""
    pairs = (("all", model.all), ("left / none / right", model.sides))
    all_ratios = [(label, guesses.ratio) for label, guesses in pairs if guesses is not None]
    return ", ".join(f"{ratio:.2f} ({label})" for label, ratio in all_ratios if ratio is not None)


def tokenizer(evaluation: Evaluation) -> Rows:
    """Numbers of the tokenizer and of the dynamics model on their own."""
    quality, loss = evaluation.reconstruction, evaluation.prediction
    used = f"{quality.codes_used} of {quality.codes}, {quality.perplexity:.1f}"
    rows = [
        ["PSNR, SSIM", f"{quality.psnr:.2f} dB, {quality.ssim:.3f}"],
        [
            "edges relative to recorded frames",
            headlines.show(headlines.reconstructed_edges(evaluation)),
        ],
        ["codes used, perplexity", used],
        ["unigram entropy of the codes", f"{quality.unigram_entropy:.2f} nats per token"],
        ["dynamics, cross-entropy of masked tokens", f"{loss.cross_entropy:.2f} nats per token"],
        ["dynamics, accuracy on masked tokens", f"{loss.accuracy:.1%}"],
    ]
    frames = evaluation.config["frames"]
    for of, scores in evaluation.perceptual.items():
        what = "tokenizer" if of == "reconstruction" else f"{of} → {frames} frames"
        for name, value in (("LPIPS", scores.lpips), ("FID", scores.fid), ("FVD", scores.fvd)):
            if value is not None:
                rows.append([f"{name}, {what}", f"{value:.3f}"])
    return rows


def origin(evaluation: Evaluation) -> Rows:
    """What was measured, and where."""
    machine, data = evaluation.machine, evaluation.data
    rows = [
        ["commit", machine["commit"] or "unknown"],
        ["data", f"{data.root}, sha256 {data.hash}"],
        [
            "machine",
            f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        ],
    ]
    rows += [[f"parameters, {name}", f"{count:,}"] for name, count in evaluation.models.items()]
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in evaluation.seconds.items())
    return [*rows, ["seconds", seconds]]


def facts(evaluations: dict[str, Evaluation]) -> Rows:
    """What was measured on which data, side by side."""
    every = evaluations.values()
    return [
        ["data", *(f"{e.data.hash[:12]}, {e.data.split}" for e in every)],
        ["clips", *(str(e.data.clips) for e in every)],
        ["commit", *((e.machine["commit"] or "unknown")[:12] for e in every)],
    ]


POLICIES = {
    "expert": "expert",
    "random": "random",
    "frequencies": "expert's frequencies",
    "commonest": "expert's commonest action",
    "oracle": "oracle, of recorded actions",
}


def policy_name(name: str) -> str:
    """`clone 50` and `clone 50, commonest` in words."""
    if name in POLICIES:
        return POLICIES[name]
    labelled, _, commonest = name.removeprefix("clone ").partition(", ")
    return f"latent, {labelled} labels" + (f", {commonest}" if commonest else "")


def cloning(record: CloneRecord) -> Rows:
    """The policy, the share of levels solved, and its difference to the random policy's."""

    def percent(values: Values | None) -> str:
        return headlines.show(values and [100 * x for x in values], 1, " %")

    return [
        [policy_name(name), percent(share), percent(record.gains.get(name))]
        for name, share in record.shares.items()
    ]
