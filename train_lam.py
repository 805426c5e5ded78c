"""Stage 2: train the latent action model, which names what happened between two frames, without labels.

python train_lam.py                            # the demo preset: minutes on two CPU cores
python train_lam.py --cfg.preset coinrun       # the paper's Appendix F.3
python train_lam.py --cfg.preset open-genie-demo     # from blueprints, with 8 bits of actions
python train_lam.py --cfg.model.quantizer.codes 8 --cfg.out runs/mine/lam
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from genie_fn import lam, layers, quantize
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.nets.blueprint import Blueprints
from genie_fn.nets.facing import FacingConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime.cli import run
from genie_fn.training import loop, setup
from genie_fn.training.config import RunConfig
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import make_step


@dataclass(frozen=True)
class Config(RunConfig):
    model: LamConfig = field(default_factory=LamConfig)


def demo() -> Config:
    """0.8M parameters, convolutional, 3 x 2 actions: minutes on two CPU cores, uncompiled like the demo's others."""
    nets = Blueprints(lam.conv_encoder(), lam.conv_decoder())
    optim = OptimConfig(lr=2e-3, schedule="wsd", warmup=30, decay=0.4, final=0.02, ema=0.98)
    scene, turned = QuantizerConfig(kind="vq", codes=3, reset_below=0.3), FacingConfig(side=12)
    model = LamConfig(
        patch=8, quantizer=scene, facing=turned, arch="blueprint", blueprints=nets, motion=0.2
    )
    sizes = {"steps": 700, "batch_size": 20, "num_frames": 5}
    return Config("demo", out="runs/demo/lam", compile="off", optim=optim, model=model, **sizes)


def small() -> Config:
    """18M parameters, bf16: under an hour on one GPU."""
    stack = STConfig(layers=4, dim=384, heads=6, dtype="bfloat16")
    optim = OptimConfig(lr=3e-4, schedule="wsd", warmup=500, ema=0.999)
    model = LamConfig(patch=8, encoder=stack, decoder=stack)
    return Config(
        "small",
        out="runs/small/lam",
        steps=10_000,
        batch_size=36,
        num_frames=16,
        optim=optim,
        model=model,
    )


def coinrun() -> Config:
    """The paper's Appendix F.3: 8 + 8 layers of width 512, 6 codes of width 32, 200k steps; needs a large GPU."""
    stack = STConfig(layers=8, dim=512, heads=8, dtype="bfloat16")
    optim = OptimConfig(lr=3e-5, schedule="cosine", warmup=5_000, b2=0.9)
    model = LamConfig(patch=16, encoder=stack, decoder=stack)
    return Config(
        "coinrun",
        out="runs/coinrun/lam",
        steps=200_000,
        batch_size=36,
        num_frames=16,
        optim=optim,
        model=model,
    )


def _open_genie(
    preset: str, encoder: tuple, decoder: tuple, patch: int, dtype: str, **options
) -> Config:
    quantizer = QuantizerConfig(codes=2**8, commit=0.25, entropy=0.1)
    model = LamConfig(
        patch=patch,
        arch="blueprint",
        blueprints=Blueprints(encoder, decoder, dtype),
        quantizer=quantizer,
    )
    return Config(preset, out=f"runs/{preset}/lam", model=model, num_frames=8, **options)


def open_genie_demo() -> Config:
    """Open-Genie's blueprints at a quarter of their width, on patches of 4 pixels: minutes on two CPU cores."""
    sizes = {"dim": 64, "repeats": 1}
    encoder, decoder = lam.latent_act_encoder(**sizes), lam.latent_act_decoder(**sizes)
    optim = OptimConfig(lr=1e-3, schedule="wsd", warmup=50, decay=0.4, final=0.02, ema=0.98)
    return _open_genie(
        "open-genie-demo",
        encoder,
        decoder,
        4,
        "float32",
        steps=200,
        batch_size=4,
        compile="off",
        optim=optim,
    )


def open_genie_coinrun() -> Config:
    """Open-Genie's blueprints as they are, on patches of 2 pixels, bf16; needs a large GPU."""
    optim = OptimConfig(lr=1e-4, schedule="cosine", warmup=2_000, ema=0.999)
    encoder, decoder = lam.LATENT_ACT_ENC, lam.LATENT_ACT_DEC
    return _open_genie(
        "open-genie-coinrun",
        encoder,
        decoder,
        2,
        "bfloat16",
        steps=100_000,
        batch_size=16,
        optim=optim,
    )


PRESETS = {
    "demo": demo,
    "small": small,
    "coinrun": coinrun,
    "open-genie-demo": open_genie_demo,
    "open-genie-coinrun": open_genie_coinrun,
}


def main(cfg: Config) -> None:
    cfg, store, device = setup.prepare(cfg)
    model = replace(cfg.model, height=store.height, width=store.width)
    cfg = replace(cfg, model=model)
    spec, quantizer = lam.spec(model), model.quantizer
    setup.announce("latent actions", spec, cfg, device)
    state = setup.start(spec, quantize.initial_use(quantizer), cfg, "lam", device)

    def loss(params, batch, key, step, microbatch):
        return lam.loss(params, batch.frames, model, microbatch, backend=cfg.backend)

    frames = setup.held_out(store, cfg, 8, device).frames

    def sample(params, path: Path) -> None:
        """Rows: a frame, the next one, and the next one predicted from the first and its latent action."""
        actions = lam.infer_actions(params, frames, model, backend=cfg.backend)
        codes = lam.lookup(params, actions, model)
        past = layers.to_float(frames[:, :-1])
        predicted = lam.decode(params, past, codes, model, backend=cfg.backend)
        setup.draw(path, frames[:, -2], frames[:, -1], layers.to_uint8(predicted[:, -1]))

    batches = setup.batches(store, cfg, int(state.step), device)
    step = make_step(loss, spec, cfg, quantize.codebook_update(quantizer))
    loop.fit(step, state, batches, cfg, sample)


if __name__ == "__main__":
    run(main, PRESETS)
