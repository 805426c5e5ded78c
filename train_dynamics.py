"""Stage 3: train the dynamics model, which predicts the next frame's tokens from the past and an action.

Needs a trained tokenizer, and for latent actions a trained latent action model; both stay frozen. With
--cfg.train-lam the latent action model is trained along instead, in the same step, as the paper does.

    python train_dynamics.py                               # the demo preset, on the demo's earlier stages
    python train_dynamics.py --cfg.train-lam               # and train the latent actions along
    python train_dynamics.py --cfg.actions true            # condition on the recorded actions instead
    python train_dynamics.py --cfg.preset coinrun          # the paper's Appendix F.3
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from genie_fn import bundle, data, dynamics, lam, quantize, random, tokenizer, world
from genie_fn.data import augment, token_cache
from genie_fn.dynamics import DynamicsConfig, SampleConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.nets.blueprint import Blueprints
from genie_fn.nets.facing import FacingConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime.cli import run
from genie_fn.training import loop, setup, sharding
from genie_fn.training.config import RunConfig
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import make_step
from genie_fn.world import Stage, World


@dataclass(frozen=True)
class Config(RunConfig):
    tokenizer: str = "runs/demo/tokenizer"
    """The folder of the tokenizer's run."""
    lam: str = "runs/demo/lam"
    """The folder of the latent action model's run."""
    actions: str = "latent"
    """`latent`, inferred by the latent action model, or `true`, as recorded."""
    cache: bool = False
    """Encode the dataset once, to ids that are kept beside it, instead of every clip at every step."""
    tokens: str = ""
    """Where those are kept; by default in the dataset's folder."""
    train_lam: bool = False
    """Train the latent action model along, from its start; --cfg.lam is then not read."""
    mirror: bool = False
    """Show every second batch in a mirror, for data that goes one way; of recorded actions LEFT and RIGHT are swapped.
    The frozen models have not seen such frames: CoinRun's tokenizer loses 0.4 dB on them."""
    lam_model: LamConfig = field(default_factory=LamConfig)
    """That model."""
    model: DynamicsConfig = field(default_factory=DynamicsConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    """How the pictures during training are sampled."""

    def __post_init__(self):
        super().__post_init__()
        if self.actions not in ("latent", "true"):
            raise UserError(f"--cfg.actions is latent or true, not {self.actions!r}")
        if self.train_lam and self.actions == "true":
            raise UserError(
                "--cfg.train-lam trains latent actions, but --cfg.actions is true: leave one of them out"
            )
        if self.train_lam and self.cache:
            raise UserError(
                "--cfg.train-lam reads frames, and the token cache holds none: add --cfg.no-cache"
            )
        if self.mirror and self.cache:
            raise UserError(
                "--cfg.mirror turns frames, and the token cache holds none: add --cfg.no-cache"
            )


def _config(preset: str, **options) -> Config:
    folder = f"runs/{preset}"
    return Config(
        preset,
        out=f"{folder}/dynamics",
        tokenizer=f"{folder}/tokenizer",
        lam=f"{folder}/lam",
        **options,
    )


def demo() -> Config:
    """1.2M parameters on the demo's 64 tokens: minutes on two CPU cores, uncompiled like the others of the demo."""
    model = DynamicsConfig(stack=STConfig(layers=4, dim=128, heads=4))
    nets = Blueprints(lam.conv_encoder(), lam.conv_decoder())
    scene, turned = QuantizerConfig(kind="vq", codes=3, reset_below=0.3), FacingConfig(side=12)
    lam_model = LamConfig(
        patch=8, quantizer=scene, facing=turned, arch="blueprint", blueprints=nets, motion=0.2
    )
    optim = OptimConfig(
        lr=8e-3, muon=True, schedule="wsd", warmup=30, decay=0.4, final=0.02, ema=0.98
    )
    sizes = {"steps": 450, "batch_size": 16, "num_frames": 8, "compile": "off"}
    return _config("demo", optim=optim, model=model, lam_model=lam_model, **sizes)


def small() -> Config:
    """20M parameters on 256 tokens, bf16: a few hours on one GPU."""
    model = DynamicsConfig(stack=STConfig(layers=8, dim=384, heads=6, dtype="bfloat16"))
    stack = STConfig(layers=4, dim=384, heads=6, dtype="bfloat16")
    lam_model = LamConfig(patch=8, encoder=stack, decoder=stack)
    optim = OptimConfig(lr=6e-4, schedule="wsd", warmup=500, ema=0.999)
    sizes = {"steps": 30_000, "batch_size": 36, "num_frames": 16, "cache": True}
    return _config("small", optim=optim, model=model, lam_model=lam_model, **sizes)


def coinrun() -> Config:
    """The paper's Appendix F.3: 12 layers of width 512, 200k steps, 25 sampling steps; needs a large GPU."""
    model = DynamicsConfig(stack=STConfig(layers=12, dim=512, heads=8, dtype="bfloat16"))
    stack = STConfig(layers=8, dim=512, heads=8, dtype="bfloat16")
    lam_model = LamConfig(patch=16, encoder=stack, decoder=stack)
    optim = OptimConfig(lr=3e-5, schedule="cosine", warmup=5_000, b2=0.9)
    sizes = {"steps": 200_000, "batch_size": 36, "num_frames": 16, "cache": True}
    sample = SampleConfig(steps=25)
    return _config("coinrun", optim=optim, model=model, lam_model=lam_model, sample=sample, **sizes)


PRESETS = {"demo": demo, "small": small, "coinrun": coinrun}


def objective(cfg: Config, along: LamConfig | None):
    """The loss of a step on (ids, actions), or, if a latent action model is trained `along`, on (ids, frames)."""

    def loss(params, batch, key, step, microbatch):
        ids, given = batch
        mask_key, corrupt_key = random.split(key).unbind(0)
        mask = dynamics.sample_mask(
            mask_key, *ids.shape[:2], cfg.model, microbatch.first_clip(len(ids))
        )
        shown = dynamics.corrupt(corrupt_key, ids, cfg.model, microbatch.first_clip(len(ids)))
        if along is None:
            return dynamics.loss(
                params, ids, given, mask, cfg.model, microbatch, shown, backend=cfg.backend
            )
        lam_loss, (lam_scores, q) = lam.loss(
            params["lam"], given, along, microbatch, backend=cfg.backend
        )
        # The actions' ids carry no gradient to the latent action model.
        value, (scores, _) = dynamics.loss(
            params, ids, q.ids, mask, cfg.model, microbatch, shown, backend=cfg.backend
        )
        return value + lam_loss, (scores | {f"lam_{name}": x for name, x in lam_scores.items()}, q)

    return loss


def encoders(cfg: Config, coder: Stage, namer: Stage | None) -> tuple[Callable, Callable | None]:
    """The frozen models as functions of uint8 frames: ids, and actions where these are latent."""

    @torch.no_grad()
    def tokenize(frames: torch.Tensor) -> torch.Tensor:
        return tokenizer.tokenize(coder.params, frames, coder.cfg, backend=coder.backend)[1]

    @torch.no_grad()
    def name(frames: torch.Tensor) -> torch.Tensor:
        return lam.infer_actions(namer.params, frames, namer.cfg, backend=namer.backend)

    if cfg.compile != "off":
        tokenize, name = (torch.compile(f, dynamic=False) for f in (tokenize, name))
    return tokenize, name if namer else None


def cached_batches(
    cfg: Config, store: data.Store, identity: str, tokenize, name, device, start: int
) -> Iterator:
    """Batches of ids and actions from the token cache, which is filled first."""

    def on_arrays(function: Callable) -> Callable:
        return lambda frames: function(*setup.to_device([frames], device)).cpu().numpy()

    sizes = {"tokens": cfg.model.tokens, "codes": cfg.model.codes}
    encoder = token_cache.Encoder(
        on_arrays(tokenize), on_arrays(name) if name else None, identity, **sizes
    )
    reader = data.ClipReader(store, "train", cfg.num_frames, cfg.damaged)

    def fill() -> None:
        cache = token_cache.open_cache(store, cfg.num_frames, encoder, cfg.tokens)
        token_cache.fill(cache, reader, encoder)

    sharding.by_first(fill)
    cache = token_cache.open_cache(store, cfg.num_frames, encoder, cfg.tokens)
    cached = token_cache.cached_reader(cache, reader, lambda *clip: setup.to_device(clip, device))
    share = sharding.share(cfg.batch_size, cfg.accumulate)
    return cached.batches(cfg.batch_size, cfg.seed, start, share)


def main(cfg: Config) -> None:
    cfg, store, device = setup.prepare(cfg)
    coder, _ = bundle.load_stage(cfg.tokenizer, "tokenizer", device, cfg.compile != "off")
    bundle.check_framewise(coder, cfg.tokenizer)
    if cfg.actions == "true" and not store.num_actions:
        raise UserError(f"{cfg.data} has no recorded actions: leave --cfg.actions true out")
    swaps = cfg.mirror and cfg.actions == "true"
    swap = (
        torch.tensor(augment.flipped_actions(store.action_names), device=device) if swaps else None
    )
    along = (
        replace(cfg.lam_model, height=store.height, width=store.width) if cfg.train_lam else None
    )
    frozen = cfg.actions == "latent" and not along
    namer = bundle.load_stage(cfg.lam, "lam", device, cfg.compile != "off")[0] if frozen else None
    for run_folder, stage in ((cfg.tokenizer, coder), (cfg.lam, namer)):
        sharding.check_same(bundle.fingerprint(stage), f"the model in {run_folder}")
        bundle.check_resolution(stage, store.height, store.width, run_folder)
    choices = along.actions if along else namer.cfg.actions if namer else store.num_actions
    model = replace(
        cfg.model, codes=coder.cfg.quantizer.codes, tokens=coder.cfg.tokens, actions=choices
    )
    cfg = replace(cfg, model=model, lam_model=along or cfg.lam_model)
    spec, stats, update = dynamics.spec(model), {}, None
    if along:
        spec, stats = spec | {"lam": lam.spec(along)}, quantize.initial_use(along.quantizer)
        update = quantize.codebook_update(along.quantizer, "lam")

    setup.announce("dynamics", spec, cfg, device)
    state = setup.start(spec, stats, cfg, "dynamics", device)

    clips = setup.held_out(store, cfg, 4, device)

    def sample(params, path: Path) -> None:
        """Real clips above dreams from their first frames."""
        actions_model = Stage(along, params["lam"], cfg.backend) if along else namer
        dream = World(coder, Stage(model, params, cfg.backend), actions_model)
        actions = world.infer_actions(dream, clips.frames) if dream.lam else clips.actions
        key = random.key(cfg.seed, device)
        frames = world.rollout(dream, clips.frames[:, :1], actions, key, cfg.sample)
        pairs = zip(clips.frames, torch.cat((clips.frames[:, :1], frames), 1), strict=True)
        setup.draw(path, *(row for pair in pairs for row in pair))

    step, first = make_step(objective(cfg, along), spec, cfg, update), int(state.step)
    tokenize, name = encoders(cfg, coder, namer)

    def step_on_frames(state, batch: data.Batch, key):
        """Frames → ids and actions by the frozen models; frames for actions where these are trained along."""
        batch = augment.flip_odd_steps(batch, state.step, swap) if cfg.mirror else batch
        given = name(batch.frames) if name else batch.frames if along else batch.actions
        return step(state, (tokenize(batch.frames), given), key)

    if cfg.cache:
        identity = f"{bundle.fingerprint(coder, namer)} {cfg.actions}"
        loop.fit(
            step,
            state,
            cached_batches(cfg, store, identity, tokenize, name, device, first),
            cfg,
            sample,
        )
    else:
        loop.fit(step_on_frames, state, setup.batches(store, cfg, first, device), cfg, sample)


if __name__ == "__main__":
    run(main, PRESETS)
