"""Stage 1: train the video tokenizer, which turns frames into a few discrete tokens and back.

    python train_tokenizer.py                             # the demo preset: minutes on two CPU cores
    python train_tokenizer.py --cfg.preset coinrun        # the paper's Appendix F, on a GPU
    python train_tokenizer.py --cfg.preset magvit2-demo   # convolutions, 2^18 codes, a discriminator
    python train_tokenizer.py --cfg.batch-size 48 --cfg.out runs/mine/tokenizer

The presets are functions of this file, whose docstrings state the hardware that they need.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import torch

from genie_fn import layers, quantize, tokenizer, tree
from genie_fn.errors import UserError
from genie_fn.nets import adversarial, blueprint, discriminator
from genie_fn.nets.adversarial import AdversarialConfig
from genie_fn.nets.discriminator import DiscriminatorConfig
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import loop, setup
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import Objective
from genie_fn.tree import Tree


@dataclass(frozen=True)
class Config(RunConfig):
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """The losses besides squared error."""
    critic: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-4, b1=0.5, weight_decay=0.0)
    )
    """The discriminator's optimizer."""

    def __post_init__(self):
        super().__post_init__()
        if self.stride == "auto":
            raise UserError(
                "--cfg.stride auto compares latent actions, which a tokenizer does not have: give a "
                "number, such as that of the latent action model; any is of use"
            )
        if self.critic.ema:
            raise UserError(
                "a discriminator has no moving average of its weights: leave --cfg.critic.ema at 0"
            )
        if self.adversarial.gan and self.compile == "split":
            raise UserError(
                "a loss with gradients inside cannot be compiled alone: "
                "use --cfg.compile step or off"
            )

    def watched(self) -> dict[str, str]:
        return {
            "perplexity": "nearly all tokens have the same code, so that the codebook has collapsed "
            f"and frames cannot be told apart; raise {self.model.quantizer.use_flag}, or lower "
            "--cfg.optim.lr"
        }


def _config(preset: str, **options) -> Config:
    model = tokenizer.PRESETS[preset]
    return Config(preset, out=f"runs/{preset}/tokenizer", model=model, **options)


def demo() -> Config:
    """1.1M parameters, 64 tokens per frame: minutes on two CPU cores, uncompiled.

    Compiling would take longer than it saves.
    """
    optim = OptimConfig(
        lr=8e-3, muon=True, schedule="wsd", warmup=30, decay=0.4, final=0.02, ema=0.98
    )
    sizes = {"steps": 2400, "batch_size": 8, "num_frames": 4, "stride": 2}
    return _config("demo", **sizes, flip=True, compile="off", optim=optim)


def small() -> Config:
    """17M parameters, 256 tokens per frame, bf16: an hour or so on one GPU."""
    optim = OptimConfig(lr=6e-4, schedule="wsd", warmup=500, ema=0.999)
    sizes = {"steps": 20_000, "batch_size": 48, "num_frames": 16, "stride": 2}
    return _config("small", **sizes, flip=True, optim=optim)


def coinrun() -> Config:
    """The paper's Appendix F.2: 8 + 8 layers of width 512, 1024 codes of width 32, 300k steps.

    It needs a large GPU.
    """
    optim = OptimConfig(lr=3e-4, warmup=10_000, b2=0.9, weight_decay=1e-4)
    return _config("coinrun", steps=300_000, batch_size=48, num_frames=16, optim=optim)


def magvit2_demo() -> Config:
    """MAGVIT-2's layers and losses on patches of 4 pixels, with a grid of ids for every frame.

    2.6M parameters: a quarter of an hour on one CPU core, uncompiled.
    """
    optim = OptimConfig(lr=2e-3, schedule="wsd", warmup=50, decay=0.4, final=0.02, ema=0.98)
    losses = AdversarialConfig(
        gan=0.1, start=450, frames=1, discriminator=DiscriminatorConfig(dim=16)
    )
    sizes = {"steps": 600, "batch_size": 8, "num_frames": 4, "compile": "off"}
    return _config("magvit2-demo", optim=optim, adversarial=losses, **sizes)


_MAGVIT2_OPTIM = OptimConfig(lr=1e-4, schedule="cosine", warmup=2_000, ema=0.999)
_MAGVIT2_LOSSES = AdversarialConfig(gan=0.1, perceptual=1.0, start=20_000)


def magvit2_coinrun() -> Config:
    """Open-Genie's tokenizer: 370M parameters, a grid of 8 x 8 ids of 18 bits for four frames.

    It needs a large GPU.
    """
    sizes = {"steps": 200_000, "batch_size": 8, "num_frames": 16}
    return _config("magvit2-coinrun", optim=_MAGVIT2_OPTIM, adversarial=_MAGVIT2_LOSSES, **sizes)


def magvit2_framewise() -> Config:
    """The same with a grid of ids for every frame, as a dynamics model needs; needs a large GPU."""
    sizes = {"steps": 200_000, "batch_size": 8, "num_frames": 8}
    return _config("magvit2-framewise", optim=_MAGVIT2_OPTIM, adversarial=_MAGVIT2_LOSSES, **sizes)


PRESETS = {
    "demo": demo,
    "small": small,
    "coinrun": coinrun,
    "magvit2-demo": magvit2_demo,
    "magvit2-coinrun": magvit2_coinrun,
    "magvit2-framewise": magvit2_framewise,
}


def objective(cfg: Config, vgg: Tree) -> Objective:
    """What a step minimises and reports, on batches of frames.

    `vgg` are the parameters of the perceptual term's network, or {}.
    """
    model = cfg.model
    backend = cfg.backend
    update = quantize.codebook_update(model.quantizer)
    if cfg.adversarial.gan or vgg:
        return adversarial_objective(cfg, vgg)._replace(update=update)

    def loss(params, batch, key, step, microbatch):
        return tokenizer.loss(params, batch.frames, model, microbatch, backend=backend)

    def statistics(params, batch, key, step, microbatch):
        return tokenizer.statistics(params, batch.frames, model, microbatch, backend=backend)

    return Objective(loss, statistics, tokenizer.summarise, update)


def adversarial_objective(cfg: Config, vgg: Tree) -> Objective:
    """Squared error and the quantiser's loss, with the adversarial and the perceptual term."""
    model = cfg.model
    backend = cfg.backend
    extra = cfg.adversarial
    networks = adversarial.Networks(discriminator.network(extra.discriminator), vgg)

    def reconstruct(params, batch, key, microbatch):
        """What the adversarial losses need to know, and the quantised latents."""
        video = layers.to_float(batch.frames)
        generated, q = tokenizer.reconstruct(params, video, model, microbatch, backend=backend)
        mse = (generated - video).square().mean()
        count = min(extra.frames, video.shape[1])
        first = microbatch.first_clip(len(video))
        real, fake = adversarial.sample_frames(key, count, video, generated, first=first)
        last_weight = tokenizer.last_weight(params, model)
        return adversarial.Reconstruction(real, fake, mse, last_weight), q

    def loss(params, batch, key, step, microbatch):
        result, q = reconstruct(params, batch, key, microbatch)
        critic = params.get("discriminator")
        more, terms = adversarial.losses(critic, networks, result, step, extra, microbatch)
        scores = {"mse": result.loss} | q.metrics | terms
        return result.loss + q.loss + more, (scores, q)

    def statistics(params, batch, key, step, microbatch):
        if not adversarial.has_statistics(extra):
            return tokenizer.statistics(params, batch.frames, model, microbatch, backend=backend)
        with torch.enable_grad():
            params = tree.map(lambda x: x.detach().requires_grad_(), params)
            result, q = reconstruct(params, batch, key, microbatch)
            slopes = adversarial.statistics(params["discriminator"], networks, result, extra)
        return slopes | quantize.statistics(q, model.quantizer, microbatch, backend=backend)

    return Objective(loss, statistics, tokenizer.summarise)


def print_layers(cfg: Config) -> None:
    """Print the layers of a convolutional tokenizer with their output shapes."""
    model = cfg.model
    alone = blueprint.codes_first_frame_alone(cfg.num_frames, model.time_factor)
    clip = (cfg.num_frames, model.height, model.width)
    coded = (-(-cfg.num_frames // model.time_factor), *model.grid)
    nets = model.blueprints
    console.print(blueprint.table(nets.encoder, clip, "encoder", first_frame_alone=alone))
    console.print(blueprint.table(nets.decoder, coded, "decoder", first_frame_alone=alone))


def for_frames(cfg: Config, height: int, width: int) -> TokenizerConfig:
    """The model for frames of a size. A preset's patches, if they do not divide them, become others of
    about their size, and a line says what that costs."""
    model = cfg.model
    usual = tokenizer.PRESETS[cfg.preset]
    patch = model.patch
    if model.arch == "st_vivit" and patch == usual.patch:
        fitted = tokenizer.fitted_patch(patch, height, width)
        patch = fitted if fitted * 2 >= patch else patch
    model = replace(model, patch=patch, height=height, width=width)
    if model.tokens != usual.tokens:
        console.print(
            f"{height}x{width} frames in patches of {model.scale} pixels: {model.tokens} tokens per "
            f"frame. Of {usual.height}x{usual.width} frames it would be {usual.tokens}, so training "
            f"and play take about {model.tokens / usual.tokens:.1f} times as long, in all stages.",
            soft_wrap=True,
        )
    return model


def main(cfg: Config) -> None:
    cfg, store, device = setup.prepare(cfg)
    model = for_frames(cfg, store.height, store.width)
    cfg = replace(cfg, model=model)
    tokenizer.check_clips(model, cfg.num_frames)
    adversarial.check_size(cfg.adversarial, model.height, model.width)
    spec = tokenizer.spec(model)
    separate = {}
    if cfg.adversarial.gan:
        critic = discriminator.network(cfg.adversarial.discriminator)
        spec |= {"discriminator": blueprint.spec(critic)}
        separate = {"discriminator": cfg.critic}
        tokenizer.last_weight(spec, model)  # refuses a decoder that has none
    vgg = adversarial.load_vgg(cfg.adversarial, device)
    setup.announce("tokenizer", spec, cfg, device)
    if model.arch == "magvit2":
        print_layers(cfg)
    use = quantize.initial_use(model.quantizer)
    state = setup.start(spec, use, cfg, "tokenizer", device, separate)
    frames = setup.held_out(store, cfg, 8, device).frames

    def sample(params, path: Path) -> None:
        """Rows: the last frame of each clip, and its reconstruction."""
        _, ids = tokenizer.tokenize(params, frames, model, backend=cfg.backend)
        length = frames.shape[1]
        reconstructed = tokenizer.detokenize(params, ids, model, length, backend=cfg.backend)
        setup.draw(path, frames[:, -1], reconstructed[:, -1])

    batches = setup.batches(store, cfg, int(state.step), device)
    step = make_step(objective(cfg, vgg), spec, cfg, separate)
    loop.fit(setup.with_flips(step, cfg), state, batches, cfg, sample)


if __name__ == "__main__":
    run(main, PRESETS)
