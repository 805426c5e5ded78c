"""Stage 1: train the video tokenizer, which turns frames into a few discrete tokens and back.

python train_tokenizer.py                              # the demo preset: minutes on two CPU cores
python train_tokenizer.py --cfg.preset coinrun         # the paper's Appendix F, on a GPU
python train_tokenizer.py --cfg.preset magvit2-demo    # causal convolutions, 2^18 codes, a discriminator
python train_tokenizer.py --cfg.batch-size 48 --cfg.out runs/mine/tokenizer
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from genie_fn import layers, quantize, tokenizer
from genie_fn.errors import UserError
from genie_fn.nets import adversarial, blueprint, discriminator
from genie_fn.nets.adversarial import AdversarialConfig
from genie_fn.nets.blueprint import Blueprints
from genie_fn.nets.discriminator import DiscriminatorConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import loop, setup
from genie_fn.training.config import RunConfig
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import make_step


@dataclass(frozen=True)
class Config(RunConfig):
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Losses beside squared error."""
    critic: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-4, b1=0.5, weight_decay=0.0)
    )
    """The discriminator's optimizer."""

    def __post_init__(self):
        super().__post_init__()
        if self.critic.ema:
            raise UserError(
                "a discriminator has no average of its weights: leave --cfg.critic.ema at 0"
            )
        if self.adversarial.gan and self.compile == "split":
            raise UserError(
                "a loss with gradients inside cannot be compiled alone: take --cfg.compile step or off"
            )


def _st_vivit(preset: str, **options) -> Config:
    return Config(
        preset, out=f"runs/{preset}/tokenizer", model=tokenizer.PRESETS[preset], **options
    )


def demo() -> Config:
    """1.1M parameters, 64 tokens per frame: minutes on two CPU cores, where compiling would cost more than it saves."""
    optim = OptimConfig(
        lr=8e-3, muon=True, schedule="wsd", warmup=30, decay=0.4, final=0.02, ema=0.98
    )
    return _st_vivit("demo", steps=1800, batch_size=8, num_frames=4, compile="off", optim=optim)


def small() -> Config:
    """17M parameters, 256 tokens per frame, bf16: an hour or so on one GPU."""
    optim = OptimConfig(lr=6e-4, schedule="wsd", warmup=500, ema=0.999)
    return _st_vivit("small", steps=20_000, batch_size=48, num_frames=16, optim=optim)


def coinrun() -> Config:
    """The paper's Appendix F.2: 8 + 8 layers of width 512, 1024 codes of width 32, 300k steps; needs a large GPU."""
    optim = OptimConfig(lr=3e-4, warmup=10_000, b2=0.9, weight_decay=1e-4)
    return _st_vivit("coinrun", steps=300_000, batch_size=48, num_frames=16, optim=optim)


_OPEN_GENIE = QuantizerConfig(codes=2**18, commit=0.25, entropy=0.1, diversity=1.0)


def _magvit2(
    preset: str, nets: Blueprints, quantizer: QuantizerConfig = _OPEN_GENIE, **options
) -> Config:
    model = TokenizerConfig(arch="magvit2", blueprints=nets, quantizer=quantizer)
    return Config(preset, out=f"runs/{preset}/tokenizer", model=model, **options)


def magvit2_demo() -> Config:
    """Its kinds of layer and losses on patches of 4 pixels, a grid per frame, so that a dynamics model can follow.

    2.6M parameters: a quarter of an hour on one CPU core, uncompiled.
    """
    blocks = (
        ("image-residual", {"in_channels": 64}),
        ("video-residual", {"in_channels": 96, "n_rep": 2}),
    )
    modulate = [
        ("adaptive_group_norm", {"num_channels": width, "dim_cond": 18}) for width in (96, 64)
    ]
    encoder = (
        ("space_downsample", {"in_channels": 3, "out_channels": 64, "factor": 4}),
        blocks[0],
        ("spacetime_downsample", {"in_channels": 64, "out_channels": 96, "time_factor": 1}),
        blocks[1],
        ("proj_out", {"in_channels": 96, "out_channels": 18, "kernel_size": 1}),
    )
    decoder = (
        ("causal-conv3d", {"in_channels": 18, "out_channels": 96}),
        modulate[0],
        blocks[1],
        ("depth2space_upsample", {"in_channels": 96, "out_channels": 64, "space_factor": 2}),
        modulate[1],
        blocks[0],
        ("group_norm", {"num_channels": 64}),
        "silu",
        ("depth2space_upsample", {"in_channels": 64, "out_channels": 3, "space_factor": 4}),
    )
    optim = OptimConfig(lr=2e-3, schedule="wsd", warmup=50, decay=0.4, final=0.02, ema=0.98)
    losses = AdversarialConfig(
        gan=0.1, start=450, frames=1, discriminator=DiscriminatorConfig(dim=16)
    )
    sizes = {"steps": 600, "batch_size": 8, "num_frames": 4, "compile": "off"}
    nets, quantizer = Blueprints(encoder, decoder), QuantizerConfig(codes=2**18)
    return _magvit2("magvit2-demo", nets, quantizer, optim=optim, adversarial=losses, **sizes)


_MAGVIT2_OPTIM = OptimConfig(lr=1e-4, schedule="cosine", warmup=2_000, ema=0.999)
_MAGVIT2_LOSSES = AdversarialConfig(gan=0.1, perceptual=1.0, start=20_000)


def magvit2_coinrun() -> Config:
    """Open-Genie's tokenizer: 370M parameters, four frames per grid of 8 x 8 ids of 18 bits; needs a large GPU."""
    encoder, decoder = tokenizer.MAGVIT2_ENC_DESC, tokenizer.MAGVIT2_DEC_DESC
    sizes = {"steps": 200_000, "batch_size": 8, "num_frames": 16}
    options = {"optim": _MAGVIT2_OPTIM, "adversarial": _MAGVIT2_LOSSES}
    return _magvit2("magvit2-coinrun", Blueprints(encoder, decoder, "bfloat16"), **options, **sizes)


def magvit2_framewise() -> Config:
    """The same with a grid of ids for every frame, as a dynamics model needs; needs a large GPU."""
    encoder, decoder = (
        f(times=(1, 1, 1)) for f in (tokenizer.magvit2_encoder, tokenizer.magvit2_decoder)
    )
    sizes = {"steps": 200_000, "batch_size": 8, "num_frames": 8}
    options = {"optim": _MAGVIT2_OPTIM, "adversarial": _MAGVIT2_LOSSES}
    return _magvit2(
        "magvit2-framewise", Blueprints(encoder, decoder, "bfloat16"), **options, **sizes
    )


PRESETS = {
    "demo": demo,
    "small": small,
    "coinrun": coinrun,
    "magvit2-demo": magvit2_demo,
    "magvit2-coinrun": magvit2_coinrun,
    "magvit2-framewise": magvit2_framewise,
}


def objective(cfg: Config, vgg: dict):
    """The loss of a step: squared error and the quantiser's, with the adversarial and perceptual terms if asked for."""
    model, extra = cfg.model, cfg.adversarial
    networks = adversarial.Networks(discriminator.network(extra.discriminator), vgg)

    def loss(params, batch, key, step, microbatch):
        if not extra.gan and not vgg:
            return tokenizer.loss(params, batch.frames, model, microbatch, backend=cfg.backend)
        video = layers.to_float(batch.frames)
        made, q = tokenizer.reconstruct(params, video, model, microbatch, backend=cfg.backend)
        mse, shown = (made - video).square().mean(), min(extra.frames, video.shape[1])
        real, fake = adversarial.sample_frames(
            key, shown, video, made, first=microbatch.first_clip(len(video))
        )
        last, critic = tokenizer.last_weight(params, model), params.get("discriminator")
        reconstruction = adversarial.Reconstruction(real, fake, mse, last)
        more, terms = adversarial.losses(critic, networks, reconstruction, step, extra, microbatch)
        return mse + q.loss + more, ({"mse": mse} | q.metrics | terms, q)

    return loss


def main(cfg: Config) -> None:
    cfg, store, device = setup.prepare(cfg)
    model = replace(cfg.model, height=store.height, width=store.width)
    cfg = replace(cfg, model=model)
    spec, quantizer, apart = tokenizer.spec(model), model.quantizer, {}
    if cfg.adversarial.gan:
        net = discriminator.network(cfg.adversarial.discriminator)
        spec |= {"discriminator": blueprint.spec(net)}
        apart = {"discriminator": cfg.critic}
        tokenizer.last_weight(spec, model)  # refuses a decoder that has none
    vgg = adversarial.load_vgg(cfg.adversarial, device)
    setup.announce("tokenizer", spec, cfg, device)
    if model.arch == "magvit2":
        nets = model.blueprints
        alone = blueprint.codes_first_frame_alone(cfg.num_frames, model.time_factor)
        clip, coded = (
            (cfg.num_frames, model.height, model.width),
            (-(-cfg.num_frames // model.time_factor), *model.grid),
        )
        for net, shape, side in ((nets.encoder, clip, "encoder"), (nets.decoder, coded, "decoder")):
            console.print(blueprint.table(net, shape, side, first_frame_alone=alone))
    state = setup.start(spec, quantize.initial_use(quantizer), cfg, "tokenizer", device, apart)
    frames = setup.held_out(store, cfg, 8, device).frames

    def sample(params, path: Path) -> None:
        _, ids = tokenizer.tokenize(params, frames, model, backend=cfg.backend)
        length = frames.shape[1]
        decoded = tokenizer.detokenize(params, ids, model, length, backend=cfg.backend)
        setup.draw(path, frames[:, -1], decoded[:, -1])

    batches = setup.batches(store, cfg, int(state.step), device)
    step = make_step(objective(cfg, vgg), spec, cfg, quantize.codebook_update(quantizer), apart)
    loop.fit(step, state, batches, cfg, sample)


if __name__ == "__main__":
    run(main, PRESETS)
