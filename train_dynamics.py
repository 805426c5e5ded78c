"""Stage 3: train the dynamics model, which predicts the tokens of the next frame from the past
frames and an action.

This needs a trained tokenizer, and for latent actions a trained latent action model; both stay
frozen. With --cfg.train-lam the latent action model is trained jointly instead, from scratch and in
the same step, as in the paper.

    python train_dynamics.py                           # the demo preset, after stages 1 and 2
    python train_dynamics.py --cfg.train-lam           # train the latent action model jointly
    python train_dynamics.py --cfg.actions recorded    # condition on the recorded actions instead
    python train_dynamics.py --cfg.preset coinrun      # the paper's Appendix F.3

With --cfg.teacher a trained model is continued so that a single pass does what guidance does in two,
for play in half the passes:

    python train_dynamics.py --cfg.teacher runs/demo/dynamics --cfg.out runs/demo/distilled \
        --cfg.steps 150 --cfg.optim.lr 2e-3
    python play.py --cfg.run runs/demo/distilled
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import torch
from torch import Tensor
from tyro.conf import Suppress

from genie_fn import (
    bundle,
    data,
    dynamics,
    guidance,
    lam,
    metrics,
    quantize,
    random,
    tokenizer,
    tree,
    world,
)
from genie_fn.bundle import EarlierStage
from genie_fn.data import augment, token_cache, vectors
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.maskgit import SampleConfig
from genie_fn.microbatch import Microbatch
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime.backend import Backend
from genie_fn.runtime.cli import run
from genie_fn.training import checkpoint, inputs, loop, processes, setup
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.inputs import StageInput
from genie_fn.training.optim import LAM_PRESETS, OptimConfig
from genie_fn.training.step import Objective, Step
from genie_fn.tree import Tree
from genie_fn.world import Stage, World


@dataclass(frozen=True)
class Config(RunConfig):
    tokenizer: str = ""
    """The folder of the tokenizer's run; by default the one that the run was made with, if it is
    continued, or else `tokenizer` beside `out`, or else the preset's."""
    lam: str = ""
    """The folder of the latent action model's run, likewise."""
    actions: Literal["latent", "recorded"] = "latent"
    """What the model is conditioned on: `latent` actions, inferred by the latent action model, or
    the `recorded` actions of the dataset."""
    cache: bool = False
    """Encode the dataset once, to ids that are kept on disk, instead of the clips of every step."""
    tokens: str = ""
    """The folder of these ids; by default those of each dataset are in its folder."""
    code_init: bool = True
    """Initialise the embeddings of ids, and the head, from the tokenizer's codes, so that similar
    codes have similar ones. A run that is continued keeps its own."""
    train_lam: bool = False
    """Train the latent action model jointly, from scratch; --cfg.lam is then not read."""
    teacher: str = ""
    """The folder of a trained dynamics run whose guided predictions are imitated. Training starts from
    its parameters, on its tokenizer and its actions."""
    distill_guidance: float = 1.0
    """The scale of that guidance, with --cfg.teacher."""
    teacher_weights: Suppress[str] = ""
    """A hash of the teacher's parameters."""
    lam_model: Suppress[LamConfig] = field(default_factory=LamConfig)
    """The latent action model of joint training."""
    lam_optim: OptimConfig = field(default_factory=OptimConfig)
    """The latent action model's optimizer in joint training; --cfg.optim is the dynamics model's."""
    model: DynamicsConfig = field(default_factory=DynamicsConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    """How the pictures during training are sampled."""

    def __post_init__(self):
        super().__post_init__()
        if self.teacher and self.train_lam:
            raise UserError("--cfg.teacher has its own latent actions: leave --cfg.train-lam out")
        if not 0 < self.distill_guidance < math.inf:
            raise UserError(
                f"--cfg.distill-guidance must be a number above 0, not {self.distill_guidance}"
            )
        if self.train_lam and self.actions == "recorded":
            raise UserError(
                "--cfg.train-lam trains latent actions, but --cfg.actions is recorded: "
                "leave one of them out"
            )
        if self.train_lam and self.cache:
            raise UserError(
                "--cfg.train-lam needs frames, which the token cache does not hold: "
                "add --cfg.no-cache"
            )
        if self.flip and self.cache:
            raise UserError(
                "--cfg.flip needs frames, which the token cache does not hold: "
                "add --cfg.no-flip or --cfg.no-cache"
            )

    def watched(self) -> dict[str, str]:
        if self.train_lam:
            return {
                "lam_perplexity": "nearly all transitions have the same code, so that the latent "
                "actions have collapsed and cannot control the world; raise --cfg.batch-size, or "
                "train the latent action model alone with train_lam.py, which has more flags"
            }
        source = "train the latent action model again"
        if self.actions == "recorded":
            source = "collect data with more varied actions"
        return {
            "action_perplexity": "nearly all transitions have the same action, so that actions "
            f"cannot control the world; {source}"
        }


def _config(preset: str, **options) -> Config:
    folder = f"runs/{preset}"
    return Config(
        preset,
        out=f"{folder}/dynamics",
        lam_model=lam.PRESETS[preset],
        lam_optim=LAM_PRESETS[preset],
        model=dynamics.PRESETS[preset],
        stride="auto",
        **options,
    )


def demo() -> Config:
    """2.1M parameters on 64 tokens per frame: minutes on two CPU cores, uncompiled."""
    optim = OptimConfig(
        lr=8e-3, muon=True, schedule="wsd", warmup=30, decay=0.4, final=0.02, ema=0.98
    )
    sizes = {"steps": 900, "batch_size": 16, "num_frames": 8}
    return _config("demo", **sizes, flip=True, compile="off", optim=optim)


def small() -> Config:
    """20M parameters on 256 tokens, bf16: a few hours on one GPU."""
    optim = OptimConfig(lr=6e-4, schedule="wsd", warmup=500, ema=0.999)
    sizes = {"steps": 30_000, "batch_size": 36, "num_frames": 16}
    return _config("small", flip=True, optim=optim, **sizes)


def coinrun() -> Config:
    """The paper's Appendix F.3: 12 layers of width 512, 200k steps, 25 sampling steps.

    It needs a large GPU.
    """
    optim = OptimConfig(lr=3e-5, schedule="cosine", warmup=5_000, b2=0.9)
    sizes = {"steps": 200_000, "batch_size": 36, "num_frames": 16, "code_init": False}
    return _config("coinrun", cache=True, optim=optim, sample=SampleConfig(steps=25), **sizes)


PRESETS = {"demo": demo, "small": small, "coinrun": coinrun}


# Objectives


class TokenBatch(NamedTuple):
    """A batch of ids (B, T, N) and the actions between their frames (B, T-1)."""

    ids: Tensor
    actions: Tensor


class JointBatch(NamedTuple):
    """A batch of ids (B, T, N) and the uint8 frames (B, C + T, H, W, 3) that end with the T frames
    that they encode, after C frames of context for the latent action model."""

    ids: Tensor
    frames: Tensor


def hide(
    ids: Tensor, key: Tensor, model: DynamicsConfig, microbatch: Microbatch
) -> tuple[Tensor, Tensor]:
    """Which tokens training hides, and the others as it shows them."""
    mask_key, corrupt_key = random.split(key).unbind(0)
    clips, frames = ids.shape[:2]
    first = microbatch.first_clip(clips)
    mask = dynamics.sample_mask(mask_key, clips, frames, model, first)
    return mask, dynamics.corrupt(corrupt_key, ids, model, first)


def token_objective(cfg: Config) -> Objective:
    """What a step minimises and reports with given actions, on a `TokenBatch`."""
    model = cfg.model
    backend = cfg.backend

    def loss(params, batch: TokenBatch, key, step, microbatch):
        mask, shown = hide(batch.ids, key, model, microbatch)
        value, (scores, aux) = dynamics.loss(
            params, batch.ids, batch.actions, mask, model, microbatch, shown, backend=backend
        )
        use_A = quantize.code_use(dynamics.action_numbers(batch.actions, model), model.actions)
        return value, (scores | {"action_use": use_A}, aux)

    def statistics(params, batch: TokenBatch, key, step, microbatch):
        mask, _ = hide(batch.ids, key, model, microbatch)
        return dynamics.statistics(mask)

    def summarise(scores):
        own = {name: value for name, value in scores.items() if name != "action_use"}
        return own | {"action_perplexity": metrics.code_usage(scores["action_use"])["perplexity"]}

    return Objective(loss, statistics, summarise)


def distillation_objective(cfg: Config, teacher: Tree) -> Objective:
    """What a step minimises and reports when the guided predictions of `teacher` are imitated."""
    own = token_objective(cfg)

    def loss(params, batch: TokenBatch, key, step, microbatch):
        mask, shown = hide(batch.ids, key, cfg.model, microbatch)
        value, (scores, aux) = guidance.distillation_loss(
            params,
            teacher,
            batch.ids,
            batch.actions,
            mask,
            cfg.model,
            microbatch,
            shown,
            backend=cfg.backend,
        )
        numbers = dynamics.action_numbers(batch.actions, cfg.model)
        use_A = quantize.code_use(numbers, cfg.model.actions)
        return value, (scores | {"action_use": use_A}, aux)

    return own._replace(loss=loss)


def joint_objective(cfg: Config) -> Objective:
    """The sum of the dynamics model's and the latent action model's losses, on a `JointBatch`.

    The inferred actions are ids, so the dynamics loss has no gradient by the latent action model.
    """
    model = cfg.model
    lam_model = cfg.lam_model
    backend = cfg.backend

    def loss(params, batch: JointBatch, key, step, microbatch):
        lam_loss, (lam_scores, q) = lam.loss(
            params["lam"], batch.frames, lam_model, microbatch, backend=backend
        )
        actions = q.ids[:, lam_model.frames_before :]
        mask, shown = hide(batch.ids, key, model, microbatch)
        token_loss, (scores, _) = dynamics.loss(
            params, batch.ids, actions, mask, model, microbatch, shown, backend=backend
        )
        return token_loss + lam_loss, (scores | {"lam": lam_scores}, q)

    def statistics(params, batch: JointBatch, key, step, microbatch):
        mask, _ = hide(batch.ids, key, model, microbatch)
        own = dynamics.statistics(mask)
        return own | lam.statistics(
            params["lam"], batch.frames, lam_model, microbatch, backend=backend
        )

    def summarise(scores):
        own = {name: value for name, value in scores.items() if name != "lam"}
        inner = lam.summarise(scores["lam"])
        return own | {f"lam_{name}": value for name, value in inner.items()}

    return Objective(
        loss, statistics, summarise, quantize.codebook_update(lam_model.quantizer, "lam")
    )


# Conditioning: where the actions come from


class Conditioning(NamedTuple):
    """Everything in which the three kinds of conditioning differ."""

    choices: int
    """The number of actions to choose from."""
    objective: Callable[[Config], Objective]
    make_batch: Callable[[Tensor, data.Batch], TokenBatch | JointBatch]
    """`(ids, batch) -> ` the batch that the objective takes."""
    lam: Callable[[Tree], Stage | None]
    """The world's latent action model, given the trained parameters."""
    infer: Callable[[Tensor], Tensor] | None
    """The frozen latent action model's actions of uint8 frames; None without one."""
    spec: Tree
    """Parameters that are trained besides the dynamics model's; {} if there are none."""
    stats: Tree
    """What the state keeps for a codebook."""
    occurring: tuple[int, ...] = ()
    """The recorded actions that occur in training; none: any may."""
    context: int = 0
    """Frames that a clip has before those of the dynamics model, for the latent action model."""
    prototypes: tuple[tuple[float, ...], ...] = ()
    """Those of actions that are vectors."""

    def with_context(self, cfg: Config) -> Config:
        """The configuration for reading clips."""
        return replace(cfg, num_frames=self.context + cfg.num_frames)


def conditioning(cfg: Config, store: data.Store, stage: Stage | None) -> Conditioning:
    """How this run conditions the dynamics model, with the frozen latent action model `stage` if it
    has one. Raises UserError where that is not possible."""
    if cfg.train_lam:
        return joint_training(sized(cfg.lam_model, store), cfg.backend)
    if stage is None:
        return recorded_actions(store, cfg.flip)
    return latent_actions(stage, cfg)


def sized(model: LamConfig, store: data.Store) -> LamConfig:
    """A latent action model for the dataset's frames."""
    return replace(model, height=store.height, width=store.width)


def fitted(cfg: Config, store: data.Store, stage: Stage, actions: Conditioning) -> Config:
    """The configuration with what the dataset and the earlier stages determine."""
    codes = stage.cfg.quantizer.codes
    sizes = {"tokens": stage.cfg.tokens, "columns": stage.cfg.grid[1]}
    model = replace(
        cfg.model,
        factors=factors(cfg.model, stage.cfg.quantizer),
        codes=codes,
        actions=actions.choices,
        occurring=actions.occurring,
        prototypes=actions.prototypes,
        **sizes,
    )
    lam_model = sized(cfg.lam_model, store) if cfg.train_lam else cfg.lam_model
    return replace(cfg, model=model, lam_model=lam_model)


def factors(model: DynamicsConfig, quantizer: QuantizerConfig) -> int:
    """The number of factors of an id: by default one for each codebook of VQ, where that is possible."""
    divisible = quantizer.codes.bit_count() == 1
    if model.factors == 0 and quantizer.kind == "vq" and quantizer.books > 1 and divisible:
        return quantizer.books
    return model.factors


def latent_actions(stage: Stage, cfg: Config) -> Conditioning:
    """Actions that a frozen latent action model infers."""
    infer = frozen(
        lambda frames: lam.infer_actions(stage.params, frames, stage.cfg, backend=stage.backend),
        cfg,
    )

    def make_batch(ids: Tensor, batch: data.Batch) -> TokenBatch:
        return TokenBatch(ids, infer(batch.frames))

    choices = stage.cfg.actions
    return Conditioning(choices, token_objective, make_batch, lambda params: stage, infer, {}, {})


def recorded_actions(store: data.Store, flip: bool) -> Conditioning:
    """The dataset's own actions, with `flip` also those that they are in flipped clips."""
    data.check_recorded_actions(store, "--cfg.actions recorded")
    found = set(data.occurring_actions(store))
    if flip:
        swapped = augment.flipped_actions(store.action_names)
        found |= {swapped[action] for action in found}

    def make_batch(ids: Tensor, batch: data.Batch) -> TokenBatch:
        return TokenBatch(ids, batch.actions)

    prototypes = ()
    if store.action_size:
        centres = vectors.prototypes_of(store.datasets[0].meta).centres
        prototypes = tuple(map(tuple, centres.tolist()))
    return Conditioning(
        store.num_actions,
        token_objective,
        make_batch,
        lambda params: None,
        None,
        {},
        {},
        tuple(sorted(found)),
        prototypes=prototypes,
    )


def joint_training(model: LamConfig, backend: Backend) -> Conditioning:
    """Actions of a latent action model that is trained in the same step."""

    def make_batch(ids: Tensor, batch: data.Batch) -> JointBatch:
        return JointBatch(ids, batch.frames)

    def trained(params: Tree) -> Stage:
        return Stage(model, params["lam"], backend)

    stats = quantize.initial_use(model.quantizer)
    spec = {"lam": lam.spec(model)}
    return Conditioning(
        model.actions,
        joint_objective,
        make_batch,
        trained,
        None,
        spec,
        stats,
        context=model.frames_before,
    )


# Frozen models and batches


def with_earlier_runs(cfg: Config) -> Config:
    """The configuration of a new run with the folders of the earlier stages.

    These are the ones given, or else those beside the run, or else the preset's. A run that is
    continued takes its own.
    """
    if setup.is_resumed(cfg):
        return cfg
    if cfg.teacher:
        return cfg  # which says them
    folders = {}
    for name in earlier_stages(cfg):
        beside = Path(cfg.out).parent / name
        is_beside = checkpoint.latest(beside) is not None
        default = str(beside) if is_beside else f"runs/{cfg.preset}/{name}"
        folders[name] = getattr(cfg, name) or default
    return replace(cfg, **folders)


def earlier_stages(cfg: Config) -> tuple[EarlierStage, ...]:
    """The stages that a run is made from."""
    return ("tokenizer",) if cfg.train_lam or cfg.actions == "recorded" else ("tokenizer", "lam")


def load_frozen(
    cfg: Config, store: data.Store, device: torch.device
) -> tuple[Config, dict[str, Stage]]:
    """The earlier stages, and the configuration with their record.

    Raises UserError for models that do not fit the dataset, that differ between processes, or with
    which a run that is continued was not made.
    """
    stages: dict[str, Stage] = {}
    made = cfg.out if setup.is_resumed(cfg) else cfg.teacher
    own = inputs.read(made) if made else None
    for name in earlier_stages(cfg):
        folder, stage = load_earlier(cfg, own, name, device)
        processes.check_same(bundle.fingerprint(stage), f"the model in {folder}")
        bundle.check_resolution(stage, store.height, store.width, folder)
        entry = StageInput(inputs.relative(folder, cfg.out), bundle.weights_fingerprint(stage))
        used = replace(cfg.inputs, **{name: entry})
        cfg = replace(cfg, inputs=used, **{name: folder})
        stages[name] = stage
    if "lam" in stages:
        check_stride(cfg)
    return cfg, stages


def check_stride(cfg: Config) -> None:
    """Raise UserError if the latent action model was trained with another stride.

    Its actions are those of that stride. A tokenizer is of use with any stride.
    """
    record = inputs.read(cfg.lam)
    if record is not None and record.stride != cfg.stride:
        raise UserError(
            f"the latent action model in {cfg.lam} was trained with a stride of {record.stride}, "
            f"and this run has {cfg.stride}: pass --cfg.stride {record.stride}, or train it again"
        )


def load_earlier(
    cfg: Config, own: inputs.Record | None, name: EarlierStage, device: torch.device
) -> bundle.Earlier:
    """An earlier stage, of the record of a run that is continued, or of a new run's configuration."""
    folder = getattr(cfg, name)
    compiled = cfg.compile != "off"
    if own is not None:
        return bundle.load_earlier(own, name, folder, device, compiled)
    return bundle.Earlier(folder, bundle.load_stage(folder, name, device, compiled)[0])


def load_teacher(cfg: Config, device: torch.device) -> tuple[Config, Stage | None]:
    """The trained model that is imitated, if one is, and the configuration with its weights' hash.

    Raises UserError for one that cannot be imitated, and where a run that is continued imitated another
    one.
    """
    stored = checkpoint.read_config(cfg.out) if setup.is_resumed(cfg) else None
    if stored is not None and bool(stored.get("teacher")) != bool(cfg.teacher):
        raise UserError(
            f"{cfg.out} imitates {stored['teacher']}: pass --cfg.teacher {stored['teacher']}"
            if stored.get("teacher")
            else f"{cfg.out} imitates no teacher: choose another --cfg.out"
        )
    if not cfg.teacher:
        return cfg, None
    teacher, own = bundle.load_stage(cfg.teacher, "dynamics", device, cfg.compile != "off")
    if own.get("train_lam"):
        raise UserError(
            f"{cfg.teacher} was trained jointly with its latent actions, which cannot be imitated: "
            "train a world after train_lam.py, and name that one"
        )
    if teacher.cfg.distilled:
        raise UserError(
            f"{cfg.teacher} needs no guidance, since it was distilled itself: name its own teacher"
        )
    if own.get("actions", "latent") != cfg.actions:
        raise UserError(
            f"the world in {cfg.teacher} has {own['actions']} actions: "
            f"pass --cfg.actions {own['actions']}"
        )
    weights = bundle.weights_fingerprint(teacher)
    processes.check_same(weights, f"the model in {cfg.teacher}")
    if stored is not None and stored.get("teacher_weights") != weights:
        raise UserError(
            f"{cfg.teacher} was trained further since {cfg.out} imitated it: "
            "name a copy of the one of then with --cfg.teacher, or choose another --cfg.out"
        )
    return replace(cfg, teacher_weights=weights), teacher


def imitating(cfg: Config, teacher: Stage[DynamicsConfig]) -> DynamicsConfig:
    """The teacher's model, trained with this run's masks and wrong tokens.

    Raises UserError if the data has actions that the teacher was not trained on.
    """
    unknown = set(cfg.model.occurring) - set(teacher.cfg.occurring)
    if teacher.cfg.occurring and unknown:
        raise UserError(
            f"the model in {cfg.teacher} was not trained on the actions {sorted(unknown)} of this "
            "data: name the data that it was trained on, or pass --cfg.no-flip"
        )
    return replace(
        teacher.cfg,
        distilled=cfg.distill_guidance,
        mask_low=cfg.model.mask_low,
        corrupt=cfg.model.corrupt,
    )


def start_from(teacher: Stage, params: Tree) -> Tree:
    """The teacher's parameters instead of random initial ones."""
    return tree.map(torch.clone, teacher.params)


def code_initialiser(
    cfg: Config, stage: Stage, device: torch.device
) -> Callable[[Tree], Tree] | None:
    """A function that adapts random initial parameters to the tokenizer's codes, or None.

    Codes of VQ are without order, so the digits of an id mean something only where each is a code of
    its own codebook.
    """
    quantizer = stage.cfg.quantizer
    books = (quantizer.book_codes,) * quantizer.books
    if not cfg.code_init:
        return None
    if quantizer.kind == "vq" and tuple(cfg.model.sizes) != books:
        inputs.say("--cfg.code-init has no effect: the factors of an id are not VQ's codebooks")
        return None
    codes = quantize.factor_codes(stage.params["quantizer"], quantizer, cfg.model.sizes, device)
    key = random.fold_in(random.key(cfg.seed, device), zlib.crc32(b"codes"))
    return lambda params: dynamics.adapt_to_codes(params, codes, key, cfg.model)


def frozen(function: Callable[[Tensor], Tensor], cfg: Config) -> Callable[[Tensor], Tensor]:
    """`function` of uint8 frames without gradients, compiled if the run is."""
    without_gradients = torch.no_grad()(function)
    if cfg.compile == "off":
        return without_gradients
    return torch.compile(without_gradients, dynamic=False)


def frozen_tokenizer(stage: Stage, cfg: Config) -> Callable[[Tensor], Tensor]:
    """The ids of uint8 frames."""

    def tokenize(frames: Tensor) -> Tensor:
        return tokenizer.tokenize(stage.params, frames, stage.cfg, backend=stage.backend)[1]

    return frozen(tokenize, cfg)


def on_frames(step: Step, tokenize: Callable, actions: Conditioning) -> Step:
    """`step` on batches of frames, which the frozen models encode first."""

    def encode_and_step(state, batch: data.Batch, key, *total_steps):
        ids = tokenize(batch.frames[:, actions.context :])
        return step(state, actions.make_batch(ids, batch), key, *total_steps)

    return encode_and_step


def cache_encoders(
    cfg: Config, stage: Stage, tokenize: Callable, actions: Conditioning, device: torch.device
) -> tuple[token_cache.Encoder, token_cache.Encoder | None]:
    """The frozen models as functions of arrays, with hashes of what they compute: the tokenizer, and
    the latent action model if actions are latent."""

    def on_arrays(function: Callable) -> Callable:
        return lambda frames: function(*setup.to_device([frames], device)).cpu().numpy()

    tokens = token_cache.Encoder(
        on_arrays(tokenize),
        bundle.fingerprint(stage),
        "frame" if stage.cfg.framewise else "past",
        (cfg.model.tokens,),
        cfg.model.codes,
    )
    if actions.infer is None:
        return tokens, None
    identity = bundle.fingerprint(actions.lam({}))
    inferred = token_cache.Encoder(
        on_arrays(actions.infer), identity, "transition", (), actions.choices
    )
    return tokens, inferred


def sampler(cfg: Config, stage: Stage, actions: Conditioning, clips: data.Batch) -> Callable:
    """A function that draws held-out clips above rollouts from their first frames.

    Those of the context are not drawn.
    """

    def sample(params: Tree, path: Path) -> None:
        model = World(stage, Stage(cfg.model, params, cfg.backend), actions.lam(params))
        between = world.infer_actions(model, clips.frames) if model.lam else clips.actions
        between = between[:, actions.context :]
        frames = clips.frames[:, actions.context :]
        prompt = frames[:, :1]
        key = random.key(cfg.seed, prompt.device)
        generated = world.rollout(model, prompt, between, key, cfg.sample)
        pairs = zip(frames, torch.cat((prompt, generated), 1), strict=True)
        setup.draw(path, *(row for pair in pairs for row in pair))

    return sample


def main(cfg: Config) -> None:
    cfg = with_earlier_runs(cfg)
    new = not setup.is_resumed(cfg)
    earlier = [getattr(cfg, name) for name in earlier_stages(cfg)] if new else []
    if new and cfg.teacher:
        earlier = [cfg.teacher]
    cfg, store, device = setup.prepare(cfg, *earlier)
    cfg, teacher = load_teacher(cfg, device)
    cfg, stages = load_frozen(cfg, store, device)
    stage = stages["tokenizer"]
    bundle.check_framewise(stage, cfg.tokenizer)
    actions = conditioning(cfg, store, stages.get("lam"))
    swap_A = None
    if cfg.flip and cfg.actions == "recorded":
        swap_A = torch.tensor(augment.flipped_actions(store.action_names), device=device)
    cfg = fitted(cfg, store, stage, actions)
    dynamics.check_clips(cfg.model, cfg.num_frames)
    if cfg.train_lam:
        lam.check_clips(cfg.lam_model, cfg.num_frames)

    objective = actions.objective
    if teacher is None:
        adapt = code_initialiser(cfg, stage, device)
    else:
        cfg = replace(cfg, model=imitating(cfg, teacher))
        objective = partial(distillation_objective, teacher=teacher.params)
        adapt = partial(start_from, teacher)

    spec = dynamics.spec(cfg.model) | actions.spec
    setup.announce("dynamics model", spec, cfg, device)
    separate = {"lam": cfg.lam_optim} if cfg.train_lam else {}
    state = setup.start(spec, actions.stats, cfg, "dynamics", device, separate, adapt)
    first = int(state.step)
    step = make_step(objective(cfg), spec, cfg, separate)
    reading = actions.with_context(cfg)
    sample = sampler(cfg, stage, actions, setup.held_out(store, reading, 4, device))

    tokenize = frozen_tokenizer(stage, cfg)
    store = replace(store, as_vectors=bool(cfg.model.prototypes))
    if cfg.cache:
        encoders = cache_encoders(cfg, stage, tokenize, actions, device)
        batches = setup.cached_batches(store, cfg, encoders, cfg.tokens, first, device, TokenBatch)
    else:
        step = setup.with_flips(on_frames(step, tokenize, actions), cfg, swap_A)
        batches = setup.batches(store, reading, first, device)
    loop.fit(step, state, batches, cfg, sample)


if __name__ == "__main__":
    run(main, PRESETS)
