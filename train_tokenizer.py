"""Stage 1: train the video tokenizer, which turns frames into a few discrete tokens and back.

python train_tokenizer.py                              # the demo preset: minutes on two CPU cores
python train_tokenizer.py --cfg.preset coinrun         # the paper's Appendix F, on a GPU
python train_tokenizer.py --cfg.batch-size 48 --cfg.out runs/mine/tokenizer
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from genie_fn import data, quantize, tokenizer, train
from genie_fn.errors import run
from genie_fn.layers import STConfig
from genie_fn.optim import OptimConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.train import RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    model: TokenizerConfig = field(default_factory=TokenizerConfig)


def demo() -> Config:
    """1.1M parameters, 64 tokens per frame: minutes on two CPU cores."""
    stack = STConfig(layers=2, dim=128, heads=4)
    optim = OptimConfig(lr=2e-3, schedule="wsd", warmup=50, decay=0.4, final=0.02, ema=0.98)
    model = TokenizerConfig(patch=8, encoder=stack, decoder=stack)
    return Config("demo", out="runs/demo/tokenizer", steps=800, batch_size=16, num_frames=4, optim=optim, model=model)


def small() -> Config:
    """17M parameters, 256 tokens per frame, bf16: an hour or so on one GPU."""
    stack = STConfig(layers=4, dim=384, heads=6, dtype="bfloat16")
    optim = OptimConfig(lr=6e-4, schedule="wsd", warmup=500, ema=0.999)
    model = TokenizerConfig(patch=4, encoder=stack, decoder=stack)
    return Config(
        "small", out="runs/small/tokenizer", steps=20_000, batch_size=48, num_frames=16, optim=optim, model=model
    )


def coinrun() -> Config:
    """The paper's Appendix F.2: 8 + 8 layers of width 512, 1024 codes of width 32, 300k steps; needs a large GPU."""
    stack = STConfig(layers=8, dim=512, heads=8, dtype="bfloat16")
    optim = OptimConfig(lr=3e-4, warmup=10_000, b2=0.9, weight_decay=1e-4)
    quantizer = QuantizerConfig(kind="vq", codes=1024, latent_dim=32)
    model = TokenizerConfig(patch=4, encoder=stack, decoder=stack, quantizer=quantizer)
    return Config(
        "coinrun", out="runs/coinrun/tokenizer", steps=300_000, batch_size=48, num_frames=16, optim=optim, model=model
    )


PRESETS = {"demo": demo, "small": small, "coinrun": coinrun}


def main(cfg: Config) -> None:
    device = train.pick_device(cfg.device)
    store = data.open_store(cfg.data)
    model = replace(cfg.model, height=store.height, width=store.width)
    cfg = replace(cfg, model=model, compile=train.pick_compile(cfg.compile, device))
    spec, quantizer = tokenizer.spec(model), model.quantizer
    train.announce("tokenizer", spec, cfg, device)
    state = train.start(spec, quantize.initial_use(quantizer), cfg, "tokenizer", device)

    def loss(params, batch, key):
        return tokenizer.loss(params, batch.frames, model)

    frames = train.held_out(store, cfg, 8, device).frames

    def sample(params, path: Path) -> None:
        _, ids = tokenizer.tokenize(params, frames, model)
        train.draw(path, frames[:, -1], tokenizer.detokenize(params, ids, model)[:, -1])

    batches = train.batches(store, cfg, int(state.step), device)
    step = train.make_step(loss, spec, cfg, quantize.codebook_update(quantizer))
    train.fit(step, state, batches, cfg, sample)


if __name__ == "__main__":
    run(main, PRESETS)
