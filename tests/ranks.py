"""What one of several processes does in tests/test_sharding.py: `python -m tests.ranks FOLDER JOB…`.

The processes find each other as torchrun would let them, through environment variables. A job's result is what the
first process saves as FOLDER/JOB.pt.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import train_dynamics
import train_tokenizer
from genie_fn import adversarial, blueprint, dynamics, lam, quantize, random, sharding, tokenizer, train, tree
from genie_fn.adversarial import AdversarialConfig, DiscriminatorConfig
from genie_fn.dynamics import DynamicsConfig
from genie_fn.facing import FacingConfig
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.optim import OptimConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.step import init_state, make_step
from genie_fn.tokenizer import TokenizerConfig

STEPS, BATCH, FRAMES, SIDE = 20, 8, 3, 16
STACK = STConfig(layers=1, dim=12, heads=2, mlp=2, window=3)  # 12 and 24: divided by 2, not by 8, and 4 leaves 3 each
# A large eps, so that gradients of the size of rounding errors do not become whole steps; clipping always works.
OPTIM = OptimConfig(lr=1e-2, warmup=3, ema=0.9, weight_decay=0.1, eps=1e-3, clip=0.05)
KEY = random.key(5)
LFQ = QuantizerConfig(codes=32, entropy=0.5, commit=0.25, frac_sample=0.6)
VQ = QuantizerConfig(kind="vq", codes=7, latent_dim=5, reset_below=0.5)


@dataclass(frozen=True)
class Stage:
    """What `make_step` and `init_state` take, and the batch of a step."""

    loss: Callable
    spec: Any
    stats: Any
    update: Any
    apart: dict
    batch: Callable


def video(step: int) -> torch.Tensor:
    """The whole batch of a step: uint8 noise, the clips of unlike contrast, so that their statistics differ."""
    pixels = random.randint(random.fold_in(random.key(8), step), (BATCH, FRAMES, SIDE, SIDE, 3), 0, 256)
    return (pixels // torch.arange(1, BATCH + 1)[:, None, None, None, None]).to(torch.uint8)


def clips(step: int) -> tuple:
    return train.data.Batch(video(step), torch.zeros(BATCH, FRAMES - 1, dtype=torch.int64))


def tokenizer_stage(quantizer: QuantizerConfig, gan: float = 0.0) -> Stage:
    model = TokenizerConfig(SIDE, SIDE, 8, STACK, STACK, quantizer)
    critic = DiscriminatorConfig(dim=8, mults=(1,), down=(2,), groups=4, heads=2, head_dim=4)
    losses = AdversarialConfig(gan=gan, start=4, frames=2, discriminator=critic)
    cfg = train_tokenizer.Config(model=model, adversarial=losses, critic=replace(OPTIM, ema=0.0, lr=5e-3))
    spec, apart = tokenizer.spec(model), {}
    if gan:
        spec |= {"discriminator": blueprint.spec(adversarial.discriminator(critic))}
        apart = {"discriminator": cfg.critic}
    stats, update = quantize.initial_use(quantizer), quantize.codebook_update(quantizer)
    return Stage(train_tokenizer.objective(cfg, {}), spec, stats, update, apart, clips)


def dynamics_stage() -> Stage:
    """With a latent action model trained along, which has every kind of its losses."""
    along = LamConfig(SIDE, SIDE, 8, STACK, STACK, VQ, facing=FacingConfig(side=8, hidden=6))
    model = DynamicsConfig(codes=11, tokens=4, actions=along.actions, stack=STACK)
    cfg = train_dynamics.Config(model=model)
    spec = dynamics.spec(model) | {"lam": lam.spec(along)}

    def batch(step: int) -> tuple:
        return random.randint(random.fold_in(random.key(9), step), (BATCH, FRAMES, 4), 0, 11), video(step)

    update = quantize.codebook_update(VQ, "lam")
    return Stage(train_dynamics.objective(cfg, along), spec, quantize.initial_use(VQ), update, {}, batch)


STAGES = {
    "lfq": lambda: tokenizer_stage(LFQ),
    "vq": lambda: tokenizer_stage(VQ),
    "gan": lambda: tokenizer_stage(LFQ, gan=0.5),
    "dynamics": dynamics_stage,
}


def config(**options) -> train.RunConfig:
    sizes = {"steps": STEPS, "batch_size": BATCH, "num_frames": FRAMES, "compile": "off"}
    return train.RunConfig(optim=OPTIM, **(sizes | options))


def run(name: str, **options) -> dict:
    """The state of a stage after so many steps, and the metrics of each: the same on all processes, or it fails."""
    stage, cfg = STAGES[name](), config(**options)
    layout, share = sharding.layout(cfg.sharding), sharding.share(BATCH, cfg.accumulate)
    state = init_state(stage.spec, random.key(0), cfg.optim, stage.stats, tuple(stage.apart), layout)
    step, rows = make_step(stage.loss, stage.spec, cfg, stage.update, stage.apart), []
    for s in range(STEPS):
        batch = tree.map(lambda x: x[share], stage.batch(s))
        with torch._dynamo.config.patch(error_on_recompile=s > 0):
            state, row = step(state, batch, KEY)
        rows.append({metric: float(value) for metric, value in row.items()})
    whole = sharding.full(state)
    for leaf in tree.leaves(whole):
        first = leaf.clone()
        if sharding.count() > 1:
            torch.distributed.broadcast(first, 0)
        assert torch.equal(first, leaf), "the processes have drifted apart"
    held = sum(x.numel() for x in tree.leaves(sharding.local(state)))
    return {"state": whole._asdict(), "rows": rows, "held": held}


JOBS = {
    "lfq": lambda folder: run("lfq", sharding="sharded"),
    "vq": lambda folder: run("vq", sharding="sharded"),
    "gan": lambda folder: run("gan", sharding="sharded"),
    "dynamics": lambda folder: run("dynamics", sharding="hybrid"),
    "replicated": lambda folder: run("vq", sharding="replicated"),
    "accumulated": lambda folder: run("gan", accumulate=2),
    "compiled": lambda folder: run("vq", compile="step"),
    "compiled_dynamics": lambda folder: run("dynamics", compile="step"),
    "compiled_gan_accumulated": lambda folder: run("gan", compile="step", accumulate=2),
    "compiled_split": lambda folder: run("lfq", compile="split"),
}


def main() -> None:
    folder = Path(sys.argv[1])
    sharding.join(torch.device("cpu"))
    for job in sys.argv[2:]:
        result = JOBS[job](folder)
        if sharding.rank() == 0:
            torch.save(result, folder / f"{job}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sharding.SMALL = 30  # most leaves of these models are to be divided
    main()
