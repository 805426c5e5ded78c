"""What an evaluation shows, in sentences."""

from genie_fn.evaluation.record import (
    Evaluation,
    FewLabels,
    HeldCodes,
    HeldKeys,
    LongRollouts,
    Transfer,
)
from genie_fn.evaluation.report import headlines

SIGNIFICANT = 0.05


def verdicts(evaluation: Evaluation) -> list[str]:
    """One sentence per question that the evaluation can answer."""
    held = evaluation.actions.held_keys
    codes = evaluation.actions.held_codes
    moved = evaluation.actions.transfer
    labels = evaluation.actions.few_labels
    long = evaluation.actions.long_rollouts
    sentences = [
        _controllability(evaluation),
        _copying(evaluation),
        _use(evaluation),
        _agreement(evaluation),
        _displacement(evaluation),
        None if held is None else held_keys(held),
        None if codes is None else held_codes(codes),
        None if moved is None else transfer(moved),
        None if labels is None else few_labels(labels),
        None if long is None else long_rollouts(long),
    ]
    return [sentence for sentence in sentences if sentence]


def _controllability(evaluation: Evaluation) -> str | None:
    cost = headlines.value(evaluation, headlines.DELTA_SHUFFLED)
    if cost is None:
        return None
    measured = (
        f"with another clip's actions PSNR is {headlines.show(cost, 2, ' dB')} lower "
        "at t = 4 on the moving half"
    )
    _, low, high = cost
    if low > 0:
        return f"Controllability is significant: {measured} (the 95% interval is above 0)."
    where = "contains 0" if high >= 0 else "is below 0"
    return f"Controllability is not significant: {measured} (the 95% interval {where})."


def _copying(evaluation: Evaluation) -> str | None:
    scores = evaluation.scores(1, "moving")
    if scores is None:
        return None
    lows = scores.delta["copy_last"].low
    better = [t for t, low in enumerate(lows, 1) if low > 0]
    compared = "better than copies of the last prompt frame"
    if not better:
        return f"On the moving half, rollouts are at no frame significantly {compared}."
    frames = "t = " + ", ".join(map(str, better))
    where = "every frame" if len(better) == len(lows) else frames
    return f"On the moving half, rollouts are significantly {compared} at {where} (95% intervals)."


def _use(evaluation: Evaluation) -> str:
    actions = evaluation.actions
    if actions.kind == "recorded":
        return "This world is conditioned on the recorded actions."
    return f"Latent actions are {actions.state} (perplexity {actions.perplexity:.2f})."


def _agreement(evaluation: Evaluation) -> str | None:
    recorded = evaluation.actions.recorded
    if recorded is None:
        return None
    nmi = recorded.all.nmi
    sentence = (
        f"Latent and recorded actions have an NMI of {nmi:.3f} "
        f"({recorded.all.permuted_nmi:.3f} with permuted clips)"
    )
    model = evaluation.actions.inverse_dynamics
    if model is None or model.all.nmi <= 0:
        return sentence + "."
    return (
        f"{sentence}, {nmi / model.all.nmi:.0%} of that of a supervised inverse dynamics model "
        f"of the same size after {model.steps} steps ({model.all.nmi:.3f})."
    )


def held_keys(held: HeldKeys) -> str:
    """How the agent moves while a key is held."""
    return (
        f"While LEFT or RIGHT is held, the agent moves in the held direction under both keys from "
        f"{held.correct} of {held.starts} starts; from {held.separated} it ends further left under "
        "LEFT than under RIGHT."
    )


def held_codes(held: HeldCodes) -> str:
    """How generated pictures move while an action is held."""
    sentence = (
        f"Held for {held.frames} frames, actions are followed from "
        f"{headlines.show([100 * x for x in held.average], 0)}% of {held.starts} starts: the picture "
        "moves as recorded pictures do under the same action"
    )
    if held.others is not None:
        sentence += f" (under the other actions from {held.others:.0%})"
    if held.reinferred is None:
        return sentence + "."
    return (
        f"{sentence}; the latent action model infers the held action again in "
        f"{held.reinferred[0]:.0%} of the generated transitions."
    )


def transfer(found: Transfer) -> str:
    """Whether actions of one clip move the picture alike in another."""
    return (
        "Under the actions of a clip of another level, the displacement of the generated picture has a "
        f"correlation of {headlines.show(found.transferred.both)} with that of the clip "
        f"({found.permuted.both[0]:.2f} by chance, p = {found.p:.3f}; {found.own.both[0]:.2f} from "
        "the clip's own frame)."
    )


def long_rollouts(found: LongRollouts) -> str:
    """Whether a world dissolves."""
    last = found.times[-1]
    share = found.followed[-1]
    follows = "" if share is None else f", and {share:.0%} of held actions are followed from there"
    if found.dissolved is None:
        return (
            f"In rollouts of {last} frames the world does not dissolve: frame {last} has "
            f"{found.edges[-1]:.0%} of the edges of recorded frames{follows}."
        )
    return (
        f"In rollouts the world has dissolved by frame {found.dissolved}: its frames have less than "
        "half of the edges, or of the perplexity of codes, of recorded ones."
    )


def few_labels(found: FewLabels) -> str | None:
    """How well a few labelled transitions translate latent actions."""
    if not found.numbers:
        return None
    curve = found.sides or found.all
    what = "left, none or right" if found.sides else "the recorded action"
    numbers = ", ".join(map(str, found.numbers))
    accuracies = ", ".join(f"{values[0]:.0%}" for values in curve.accuracy)
    return (
        f"Fitted on {numbers} labelled transitions, a map from latent actions predicts {what} of "
        f"{accuracies} of the transitions ({curve.all_labels:.0%} fitted on {found.transitions}; "
        f"{curve.majority:.0%} by always predicting the most frequent one)."
    )


def _displacement(evaluation: Evaluation) -> str:
    moves = evaluation.actions.displacement
    p = min(moves.dx_p, moves.dy_p)
    if p > SIGNIFICANT:
        return f"Image displacement does not differ significantly between actions (p = {p:.3f})."
    directions = [
        f"further {side} under {', '.join(map(str, actions))}"
        for side, actions in (("left", moves.left), ("right", moves.right))
        if actions
    ]
    tests = f"p = {moves.dx_p:.3f} horizontally, {moves.dy_p:.3f} vertically"
    sentence = f"Image displacement differs significantly between actions ({tests})"
    if not directions:
        return sentence + "."
    return f"{sentence}; the image moves {' and '.join(directions)} than on average."
