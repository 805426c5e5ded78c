"""Stage 2: train the latent action model, which infers the action between two frames.

It needs no labels, but can use a few.

    python train_lam.py                              # the demo preset: minutes on two CPU cores
    python train_lam.py --cfg.preset coinrun         # the paper's Appendix F.3
    python train_lam.py --cfg.preset open-genie-demo # from blueprints, with 8 bits of actions
    python train_lam.py --cfg.model.quantizer.codes 8 --cfg.out runs/mine/lam
    python train_lam.py --cfg.labels 200             # with 200 labelled transitions
    python train_lam.py --cfg.stride auto            # finds the stride first, in short runs
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

from genie_fn import lam, layers, quantize, random
from genie_fn.evaluation import strides
from genie_fn.lam import LamConfig
from genie_fn.runtime.cli import run
from genie_fn.training import labels, loop, setup
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.labels import Labelled
from genie_fn.training.optim import LAM_PRESETS, OptimConfig
from genie_fn.training.step import Objective


@dataclass(frozen=True)
class Config(RunConfig):
    model: LamConfig = field(default_factory=LamConfig)
    labels: int = 0
    """Labelled transitions: the codes also learn the recorded actions of this many transitions of the
    train split, which the seed chooses. They are kept in memory. 0: none."""
    label_weight: float = 1.0
    """Weight of the cross-entropy of their recorded actions."""

    def __post_init__(self):
        super().__post_init__()
        self._require("labels", 0)
        self._require("label_weight", 0)

    def watched(self) -> dict[str, str]:
        return {
            "perplexity": "nearly all transitions have the same code, so that the latent actions "
            f"have collapsed and cannot control a world; raise {self.model.quantizer.use_flag}, "
            "--cfg.model.motion or --cfg.batch-size, or lower --cfg.optim.lr"
        }


def _config(preset: str, **options) -> Config:
    return Config(preset, out=f"runs/{preset}/lam", model=lam.PRESETS[preset], **options)


def _motion(preset: str, **options) -> Config:
    """Three pairs of actions that are mirror images, and four others."""
    sizes = {"num_frames": 5, "stride": 2}
    return _config(preset, **sizes, flip=True, optim=LAM_PRESETS[preset], **options)


def demo() -> Config:
    """0.1M parameters that see motion and move pixels: minutes on two CPU cores."""
    return _motion("demo", steps=400, batch_size=12, compile="off")


def conv_demo() -> Config:
    """0.7M parameters, convolutions that paint the next frame: minutes on two CPU cores."""
    sizes = {"steps": 700, "batch_size": 20, "num_frames": 5, "stride": 2}
    optim = LAM_PRESETS["demo"]
    return _config("conv-demo", **sizes, flip=True, compile="off", optim=optim)


def small() -> Config:
    """The demo's model, trained for longer: minutes on one GPU."""
    return _motion("small", steps=2_000, batch_size=48)


def coinrun() -> Config:
    """The paper's Appendix F.3: 8 + 8 layers of width 512, 6 codes of width 32, 200k steps.

    It needs a large GPU.
    """
    sizes = {"steps": 200_000, "batch_size": 36, "num_frames": 16}
    return _config("coinrun", optim=LAM_PRESETS["coinrun"], **sizes)


def open_genie_demo() -> Config:
    """Open-Genie's blueprints at a quarter of their width, on patches of 4 pixels.

    Minutes on two CPU cores.
    """
    optim = OptimConfig(lr=1e-3, schedule="wsd", warmup=50, decay=0.4, final=0.02, ema=0.98)
    sizes = {"steps": 200, "batch_size": 4, "num_frames": 8}
    return _config("open-genie-demo", compile="off", optim=optim, **sizes)


def open_genie_coinrun() -> Config:
    """Open-Genie's blueprints as they are, on patches of 2 pixels, bf16; needs a large GPU."""
    optim = OptimConfig(lr=1e-4, schedule="cosine", warmup=2_000, ema=0.999)
    return _config("open-genie-coinrun", steps=100_000, batch_size=16, num_frames=8, optim=optim)


PRESETS = {
    "demo": demo,
    "small": small,
    "coinrun": coinrun,
    "conv-demo": conv_demo,
    "open-genie-demo": open_genie_demo,
    "open-genie-coinrun": open_genie_coinrun,
}


def objective(cfg: Config, labelled: Labelled | None = None) -> Objective:
    """What a step minimises and reports, on batches of frames, beside which a few are labelled."""
    model = cfg.model
    backend = cfg.backend

    def loss(params, batch, key, step, microbatch):
        value, (scores, q) = lam.loss(params, batch.frames, model, microbatch, backend=backend)
        if labelled is None:
            return value, (scores, q)
        key = random.fold_in(key, 2)
        few = labels.draw(labelled, key, step, len(batch.frames), microbatch)
        recorded = few.actions[:, -1]
        label_loss, label_scores = lam.label_loss(
            params, few.frames, recorded, model, backend=backend
        )
        return value + cfg.label_weight * label_loss, (scores | label_scores, q)

    def statistics(params, batch, key, step, microbatch):
        return lam.statistics(params, batch.frames, model, microbatch, backend=backend)

    update = quantize.codebook_update(model.quantizer)
    return Objective(loss, statistics, lam.summarise, update)


def main(cfg: Config) -> None:
    cfg, store, device = setup.prepare(cfg)
    model = replace(cfg.model, height=store.height, width=store.width)
    cfg = replace(cfg, model=model)
    lam.check_clips(model, cfg.num_frames)
    if cfg.stride == "auto":
        stride = strides.choose(cfg, model, store)
        cfg = replace(cfg, stride=stride)
        store = replace(store, stride=stride)
    spec = lam.spec(model)
    labelled = None
    if cfg.labels:
        length = lam.context(model, cfg.num_frames)
        labelled = labels.read(store, cfg, cfg.labels, length, device)
        spec["labels"] = lam.label_spec(model, store.num_actions)
    setup.announce("latent action model", spec, cfg, device)
    state = setup.start(spec, quantize.initial_use(model.quantizer), cfg, "lam", device)
    frames = setup.held_out(store, cfg, 8, device).frames

    def sample(params, path: Path) -> None:
        """Rows: a frame, the next one, and the next one as predicted from their latent action."""
        actions = lam.infer_actions(params, frames, model, backend=cfg.backend)
        codes = lam.lookup(params, actions, model)
        past = layers.to_float(frames[:, :-1])
        predicted = lam.decode(params, past, codes, model, backend=cfg.backend)
        setup.draw(path, frames[:, -2], frames[:, -1], layers.to_uint8(predicted[:, -1]))

    batches = setup.batches(store, cfg, int(state.step), device)
    step = make_step(objective(cfg, labelled), spec, cfg)
    loop.fit(setup.with_flips(step, cfg), state, batches, cfg, sample)


if __name__ == "__main__":
    run(main, PRESETS)
