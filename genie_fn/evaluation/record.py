"""The record of an evaluation: a tree of dataclasses, stored as metrics.json.

Intervals are 95% percentile bootstrap intervals, those of rollouts over levels. docs/evaluation.md
defines every metric.
"""

from dataclasses import dataclass
from typing import Any, Literal

Method = Literal[
    "own_actions",
    "shuffled",
    "random",
    "joint",
    "teacher_forcing",
    "copy_last",
    "copy_displaced",
]
"""How the frames after the prompt are predicted; see `rollouts.generate_all`."""
Subset = Literal["moving", "all"]
Values = list[float]
"""[value], or [mean, low, high] of a number with an interval."""


@dataclass(frozen=True)
class Reconstruction:
    """Quality of the tokenizer's reconstructions, and use of its codebook."""

    psnr: float
    ssim: float
    edges: float | None
    """Differences of neighbouring pixels, divided by those of the recorded frames; None in records
    of earlier versions."""
    codes: int
    codes_used: int
    unigram_entropy: float
    """Entropy in nats of the code frequencies."""
    perplexity: float


@dataclass(frozen=True)
class Prediction:
    """The dynamics model's cross-entropy and accuracy on masked tokens, in nats per token."""

    cross_entropy: float
    accuracy: float


@dataclass(frozen=True)
class Curve:
    """A score at frames t = 1, 2, … after the prompt, with intervals."""

    mean: list[float]
    low: list[float]
    high: list[float]
    average: Values
    """[mean, low, high] of the mean over the frames."""

    def at(self, t: int) -> Values | None:
        """[mean, low, high] at frame t; None beyond the last frame."""
        if t > len(self.mean):
            return None
        return [self.mean[t - 1], self.low[t - 1], self.high[t - 1]]


@dataclass(frozen=True)
class Scores:
    """Scores of every method on one set of clips."""

    psnr: dict[str, Curve]
    """Mean over clips of the PSNR in dB."""
    ssim: dict[str, Curve]
    pooled: dict[str, Curve]
    """PSNR in dB of the mean squared error over clips."""
    delta: dict[str, Curve]
    """Gain of `own_actions` in dB, by PSNR, over `copy_last` by pooled PSNR."""
    edges: dict[str, Curve]
    """Differences of neighbouring pixels, divided by those of the recorded frames: below 1 where
    frames are blurred. Empty in records of earlier versions."""
    aligned: dict[str, Curve]
    """PSNR in dB of the middle of the frames, moved by the displacement at which they fit the recorded
    ones best. Empty in records of earlier versions."""
    position_error: dict[str, Curve]
    """The length of that displacement in pixels. Empty in records of earlier versions."""


@dataclass(frozen=True)
class Protocol:
    """Scores of rollouts from one number of prompt frames."""

    all: Scores
    moving: Scores
    """On the half of the clips in which the picture moves furthest up to t = 4; in records of
    earlier versions, in which copying the last prompt frame has the lowest PSNR at t = 4."""


@dataclass(frozen=True)
class Displacement:
    """Mean displacement of the image under each action, in pixels per frame.

    dx is to the right and dy down. None stands for an action that does not occur. `error` is the
    standard error of the difference to the overall mean.
    """

    dx: list[float | None]
    dx_error: list[float | None]
    dx_all: float
    dx_p: float
    dy: list[float | None]
    dy_error: list[float | None]
    dy_all: float
    dy_p: float
    left: list[int]
    """Actions whose mean dx is below the overall mean by more than three standard errors."""
    right: list[int]


@dataclass(frozen=True)
class Agreement:
    """Statistical dependence between latent and recorded actions."""

    table: list[list[int]]
    """Counts of transitions: recorded actions (rows) by latent actions (columns)."""
    nmi: float
    """Normalised mutual information."""
    permuted_nmi: float
    """Its mean over permutations of the clips."""
    p: float
    halves_of: Literal["levels", "clips"]
    halves_nmi: list[float]
    accuracy: float
    """Of the best map to recorded actions, fitted on one half and tested on the other."""
    majority_accuracy: float
    """Of always predicting the most frequent recorded action, fitted and tested likewise."""
    stability: float
    """Share of transitions whose latent action maps to the same recorded action in both halves."""


@dataclass(frozen=True)
class Recorded:
    """Latent actions compared with the recorded ones."""

    names: list[str]
    displacement: Displacement
    all: Agreement
    sides: Agreement | None
    """With recorded actions grouped into left, none and right.

    It is None where their names do not say.
    """


@dataclass(frozen=True)
class Guesses:
    """How well an inverse dynamics model predicts recorded actions."""

    nmi: float
    accuracy: float
    ratio: float | None
    """NMI of the latent actions divided by `nmi`; None where that is 0."""


@dataclass(frozen=True)
class InverseDynamics:
    """A supervised inverse dynamics model, the reference for latent actions."""

    parameters: int
    encoder_parameters: int
    """Of the latent action model's encoder."""
    steps: int
    seconds: float
    all: Guesses
    sides: Guesses | None


@dataclass(frozen=True)
class HeldKeys:
    """Displacement of the agent while a key is held, in generated and in recorded frames."""

    frames: int
    starts: int
    correct: int
    """Starts from which the agent moves in the held direction under both keys."""
    share: float
    separated: int
    """Starts from which the agent ends further left under LEFT than under RIGHT."""
    generated: dict[str, list[int]]
    """By key, the pixels that the agent moves to the right from each start."""
    recorded: dict[str, list[int]]


@dataclass(frozen=True)
class HeldCodes:
    """Whether generated pictures move under a held action as recorded ones do under it."""

    frames: int
    starts: int
    actions: list[int]
    """Those that are tested: with at least 5% of the recorded transitions."""
    followed: list[float]
    """By action, the share of starts from which it is followed; see evaluation/held_codes.py."""
    average: Values
    """Over the actions, with the interval over starts."""
    others: float | None
    """The chance level: the share of rollouts under other actions that look like following the action."""
    recorded: list[float]
    """By action, the share of recorded transitions that move as their mean does."""
    expected: list[list[float]]
    """By action, the mean displacement (dx, dy) of recorded transitions, in pixels per frame."""
    reinferred: Values | None
    """Share of generated transitions in which the latent action model finds the held action."""


@dataclass(frozen=True)
class LongRollouts:
    """What becomes of rollouts of many frames, at the frames `times`."""

    starts: int
    times: list[int]
    psnr: list[float | None]
    """Against the recorded frames under the same actions; None where the clips are over."""
    edges: list[float]
    """Differences of neighbouring pixels, divided by those of recorded frames."""
    perplexity: list[float]
    """exp of the entropy of the codes of a frame, mean over the frames."""
    recorded_perplexity: float
    """The same of recorded frames."""
    kept: list[float] | None
    """The share of the digits of ids that are the same after the frame was decoded and encoded again by
    itself: digits that do not belong together are not. None in records before schema 4."""
    recorded_kept: float | None
    """The same of recorded frames."""
    followed: list[float | None]
    """Share of actions that are followed if they are held from there; None if none is tested."""
    dissolved: int | None
    """The first of `times` at which edges or perplexity are below half of those of recorded
    frames."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of recorded and generated displacements of the image, over transitions.

    None stands for an axis along which no recorded image moves.
    """

    dx: Values | None
    dy: Values | None
    both: Values
    """Of both axes together: of the sums of their covariances and variances."""


@dataclass(frozen=True)
class Transfer:
    """Whether actions of one clip displace the image alike from a frame of another clip."""

    frames: int
    pairs: int
    """Pairs of a clip whose actions are applied and one whose frame is the start."""
    transferred: Correlation
    permuted: Correlation
    """The chance level: its mean over permutations of the clips whose actions are applied."""
    p: float
    """Of `transferred.both`, by these permutations."""
    own: Correlation
    """The ceiling: of rollouts from the frame of the same clip as the actions."""


@dataclass(frozen=True)
class LabelCurve:
    """Accuracy of maps from latent to recorded actions that are fitted on labelled transitions."""

    accuracy: list[Values]
    """By the number of labelled transitions: the mean over draws of these, and an interval that
    contains 95% of the draws."""
    all_labels: float
    """The ceiling: of the map that is fitted on all transitions which labelled ones are drawn from."""
    majority: float
    """The chance level: of always predicting the most frequent recorded action among these."""


@dataclass(frozen=True)
class FewLabels:
    """How the map from latent to recorded actions improves with the number of labelled transitions."""

    numbers: list[int]
    """Of labelled transitions."""
    transitions: int
    """Those of the train split which labelled ones are drawn from."""
    draws: int
    all: LabelCurve
    sides: LabelCurve | None
    """With recorded actions grouped into left, none and right; None where their names do not say."""


@dataclass(frozen=True)
class Actions:
    """Use and effect of the world's actions."""

    kind: Literal["latent", "recorded"]
    names: list[str]
    transitions: int
    clips: int
    levels: int
    actions: int
    share: list[float]
    used: int
    """Actions with more than 1% of the transitions."""
    perplexity: float
    state: str
    """Whether the actions have collapsed, in words."""
    displacement: Displacement
    recorded: Recorded | None
    inverse_dynamics: InverseDynamics | None = None
    transfer: Transfer | None = None
    few_labels: FewLabels | None = None
    held_keys: HeldKeys | None = None
    held_codes: HeldCodes | None = None
    long_rollouts: LongRollouts | None = None


@dataclass(frozen=True)
class Perceptual:
    """Metrics of pretrained networks; None where the files of weights were not given."""

    lpips: float | None = None
    fid: float | None = None
    fvd: float | None = None


@dataclass(frozen=True)
class Dataset:
    """What was evaluated on."""

    root: str
    hash: str
    split: str
    clips: int
    levels: int
    meta: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Everything that evaluate.py measures of one world."""

    config: dict[str, Any]
    machine: dict[str, Any]
    models: dict[str, int]
    """Parameters by model."""
    data: Dataset
    seconds: dict[str, float]
    reconstruction: Reconstruction
    prediction: Prediction
    rollouts: dict[str, Protocol]
    """By the number of prompt frames."""
    actions: Actions
    perceptual: dict[str, Perceptual]
    """Of `reconstruction`, and by the number of prompt frames of the `own_actions` rollouts."""
    of_schema: int
    """The schema of the file that was read. Before 3, the moving half was another one, random actions
    were of all actions, intervals were over clips, and held keys were those of co-occurrence."""

    def scores(self, prompt: int, subset: Subset) -> Scores | None:
        """The scores of a protocol; None where it was not evaluated."""
        protocol = self.rollouts.get(str(prompt))
        if protocol is None:
            return None
        return protocol.moving if subset == "moving" else protocol.all
