"""What each of the processes of test_sharding.py does.

They find each other through the environment variables that torchrun sets. A job's result is what the first process
saves as FOLDER/JOB.pt.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import train_dynamics
import train_tokenizer
from genie_fn import data, dynamics, lam, layers, quantize, random, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.nets import blueprint, discriminator
from genie_fn.nets.adversarial import AdversarialConfig
from genie_fn.nets.discriminator import DiscriminatorConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import loop, processes, setup, sharding
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import Objective, init_state

STEPS, BATCH, FRAMES, SIDE = 8, 8, 3, 16
STACK = STConfig(
    layers=1, dim=10, heads=1, mlp=1, window=3
)  # four processes hold 3, 3, 3 and 1 of 10
# A large eps, so that gradients of the size of rounding errors do not become whole steps; clipping always works.
OPTIM = OptimConfig(lr=1e-2, warmup=3, ema=0.9, weight_decay=0.1, eps=1e-3, clip=0.05)
KEY = random.key(5)
LFQ = QuantizerConfig(codes=32, entropy=0.5, commit=0.25, frac_sample=0.6)
VQ = QuantizerConfig(kind="vq", codes=7, latent_dim=5, reset_below=0.5)


@dataclass(frozen=True)
class Stage:
    """What `make_step` and `init_state` take, and the batch of a step."""

    objective: Objective
    spec: Any
    stats: Any
    separate: dict
    batch: Callable


def video(step: int) -> torch.Tensor:
    """The whole batch of a step: uint8 noise, the clips of unlike contrast, so that their statistics differ."""
    pixels = random.randint(
        random.fold_in(random.key(8), step), (BATCH, FRAMES, SIDE, SIDE, 3), 0, 256
    )
    return (pixels // torch.arange(1, BATCH + 1)[:, None, None, None, None]).to(torch.uint8)


def clips(step: int) -> tuple:
    return data.Batch(video(step), torch.zeros(BATCH, FRAMES - 1, dtype=torch.int64))


def tokenizer_stage(quantizer: QuantizerConfig, gan: float = 0.0) -> Stage:
    model = TokenizerConfig(SIDE, SIDE, 8, STACK, STACK, quantizer)
    critic = DiscriminatorConfig(dim=8, mults=(1,), down=(2,), groups=4, heads=2, head_dim=4)
    losses = AdversarialConfig(gan=gan, start=4, frames=2, discriminator=critic)
    cfg = train_tokenizer.Config(
        model=model, adversarial=losses, critic=replace(OPTIM, ema=0.0, lr=5e-3)
    )
    spec = tokenizer.spec(model)
    separate = {}
    if gan:
        spec |= {"discriminator": blueprint.spec(discriminator.network(critic))}
        separate = {"discriminator": cfg.critic}
    objective = train_tokenizer.objective(cfg, {})
    return Stage(objective, spec, quantize.initial_use(quantizer), separate, clips)


def dynamics_stage() -> Stage:
    """With a latent action model that is trained jointly, without Muon, and has every kind of its losses."""
    joint = LamConfig(SIDE, SIDE, 8, STACK, STACK, VQ)
    model = DynamicsConfig(
        codes=11, tokens=4, actions=joint.actions, stack=replace(STACK, layers=2)
    )
    spec = dynamics.spec(model) | {"lam": lam.spec(joint)}

    def batch(step: int) -> train_dynamics.JointBatch:
        key = random.fold_in(random.key(9), step)
        ids = random.randint(key, (BATCH, FRAMES, 4), 0, 11)
        return train_dynamics.JointBatch(ids[:, joint.frames_before :], video(step))

    objective = train_dynamics.joint_objective(
        train_dynamics.Config(model=model, lam_model=joint, train_lam=True)
    )
    separate = {"lam": replace(OPTIM, lr=3e-3)}
    return Stage(objective, spec, quantize.initial_use(VQ), separate, batch)


def toy_stage() -> Stage:
    """Statistics of the whole batch and two optimizers in a graph that is soon compiled: it draws no random numbers."""
    book = replace(LFQ, frac_sample=1.0)
    spec = {"in": layers.linear_spec(48, 5), "out": layers.linear_spec(5, 48, bias=True)}

    def pixels(batch):
        return layers.to_float(batch.frames[:, :, 0]).flatten(2)

    def loss(params, batch, key, step, microbatch):
        x_BTI = pixels(batch)
        q = quantize.quantize({}, layers.linear(params["in"], x_BTI), book, microbatch)
        error = (layers.linear(params["out"], q.codes) - x_BTI).square() * x_BTI.abs()
        return error.mean() / microbatch.mean("size", x_BTI.abs().mean()) + q.loss, (
            {"mse": error.mean()} | q.metrics,
            q,
        )

    def statistics(params, batch, key, step, microbatch):
        x_BTI = pixels(batch)
        q = quantize.quantize({}, layers.linear(params["in"], x_BTI), book, microbatch)
        return {"size": x_BTI.abs().mean()} | quantize.statistics(q, book, microbatch)

    objective = Objective(loss, statistics, tokenizer.summarise)
    separate = {"out": replace(OPTIM, lr=3e-3, clip=0.1, ema=0.0)}
    return Stage(objective, spec, {}, separate, clips)


STAGES = {
    "toy": toy_stage,
    "lfq": lambda: tokenizer_stage(LFQ),
    "vq": lambda: tokenizer_stage(VQ),
    "gan": lambda: tokenizer_stage(LFQ, gan=0.5),
    "dynamics": dynamics_stage,
}


def config(**options) -> RunConfig:
    sizes = {"steps": STEPS, "batch_size": BATCH, "num_frames": FRAMES, "compile": "off"}
    return RunConfig(optim=OPTIM, **(sizes | options))


def run(name: str, **options) -> dict:
    """The state of a stage after so many steps, and the metrics of each: the same on all processes, or it fails."""
    stage, cfg = STAGES[name](), config(**options)
    cfg = replace(cfg, optim=replace(cfg.optim, muon=name == "dynamics"))
    layout, share = sharding.layout(cfg.sharding), processes.own_clips(BATCH, cfg.accumulate)
    state = init_state(stage.spec, random.key(0), cfg.optim, stage.stats, stage.separate, layout)
    step = make_step(stage.objective, stage.spec, cfg, stage.separate)
    rows = []
    for s in range(STEPS):
        batch = tree.map(lambda x: x[share], stage.batch(s))
        with torch._dynamo.config.patch(error_on_recompile=s > 0):
            state, row = step(state, batch, KEY)
        rows.append({metric: float(value) for metric, value in row.items()})
    whole = sharding.full(state)
    for leaf in tree.leaves(whole):
        first = leaf.clone()
        if processes.count() > 1:
            torch.distributed.broadcast(first, 0)
        assert torch.equal(first, leaf), "the processes have drifted apart"
    held = sum(x.numel() for x in tree.leaves(sharding.local(state)))
    return {"state": whole._asdict(), "rows": rows, "held": held}


def traced(name: str) -> dict:
    """`run` with the step traced into a graph, from which no code is generated."""
    with mock.patch.object(torch, "compile", partial(torch.compile, backend="eager")):
        return run(name, compile="step")


class Counted(TorchDispatchMode):
    """Adds up the bytes of each kind of exchange: of its argument or of its result, whichever is larger."""

    def __init__(self):
        super().__init__()
        self.bytes = dict.fromkeys(
            ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"), 0
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its own operations on plain tensors come here, too
        result = func(*args, **(kwargs or {}))
        if (
            func.namespace == "_c10d_functional"
            and (name := func._schema.name.split("::")[1]) in self.bytes
        ):
            self.bytes[name] += max(args[0].nbytes, result.nbytes)
        return result


def counted(kind: str) -> dict:
    """What a step of the dynamics exchanges, and the most that any process holds of its state."""
    stage, cfg = dynamics_stage(), config(sharding=kind)
    layout = sharding.layout(kind)
    state = init_state(stage.spec, random.key(0), cfg.optim, stage.stats, layout=layout)
    step = make_step(stage.objective, stage.spec, cfg)
    batch = tree.map(lambda x: x[processes.own_clips(BATCH, 1)], stage.batch(0))
    with Counted() as mode:
        step(state, batch, KEY)
    held = torch.tensor(
        sum(x.nbytes for x in tree.leaves(sharding.local((state.params, state.opt, state.ema))))
    )
    if processes.count() > 1:
        torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX)
    return {"bytes": mode.bytes, "held": held.item(), "shards": layout.shards}


def fitted(
    folder: Path, stop_at: int | None = None, resume: bool = False, kind: str = "sharded"
) -> dict:
    """A run of the loop, whose last process gets a signal to stop during one step."""
    stage = STAGES["vq"]()
    cfg = config(
        steps=6,
        save_every=2,
        sample_every=3,
        out=str(folder / "run"),
        resume=resume,
        sharding=kind,
    )
    share = processes.own_clips(BATCH, 1)
    state = setup.start(stage.spec, stage.stats, cfg, "tokenizer", torch.device("cpu"))
    begun = sharding.full(state)._asdict()

    def batches():
        for s in range(int(state.step), cfg.steps):
            if s == stop_at and processes.rank() == processes.count() - 1:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)  # as torchrun does once more
            yield tree.map(lambda x: x[share], stage.batch(s))

    def sample(weights, path: Path) -> None:
        assert processes.rank() == 0 and tree.count(weights) == tree.count(stage.spec)
        path.touch()

    step = make_step(stage.objective, stage.spec, cfg)
    try:
        state = loop.fit(step, state, batches(), cfg, sample)
    except (KeyboardInterrupt, SystemExit):
        return {"begun": begun, "stopped": True}
    return {"begun": begun, "state": sharding.full(state)._asdict(), "stopped": False}


def agreed(folder: Path) -> list[dict]:
    """The errors of each process if one fails, or if a value differs between them."""
    last = processes.rank() == processes.count() - 1

    def fail(here: bool) -> None:
        if here:
            raise data.DamagedClips({0: f"level {processes.rank()}"})

    attempts = {
        "on_first": lambda: processes.on_first(lambda: fail(not processes.rank())),
        "on_all": lambda: processes.on_all(lambda: fail(last)),
        "raise_together": lambda: processes.raise_together(
            UserError("the last has ended") if last else None
        ),
        "check_same": lambda: processes.check_same(str(processes.rank()), "the data"),
    }
    messages = {}
    everyone = [None] * processes.count()
    for name, attempt in attempts.items():
        try:
            attempt()
        except UserError as error:
            messages[name] = str(error)
    processes.raise_together(None)
    processes.check_same("one", "the data")
    torch.distributed.all_gather_object(everyone, messages)
    return everyone


JOBS = {
    "agreed": agreed,
    "sharded": lambda folder: run("gan", sharding="sharded"),
    "hybrid": lambda folder: run("dynamics", sharding="hybrid"),
    "replicated": lambda folder: run("vq", sharding="replicated"),
    "accumulated": lambda folder: run("gan", accumulate=2),
    "traced": lambda folder: traced("toy"),
    "compiled": lambda folder: run("toy", compile="step"),
    "compiled_hybrid": lambda folder: run("toy", compile="step", sharding="hybrid"),
    "compiled_vq": lambda folder: run("vq", compile="step"),
    "compiled_dynamics": lambda folder: run("dynamics", compile="step"),
    "compiled_accumulated": lambda folder: run("gan", compile="step", accumulate=2),
    "compiled_split": lambda folder: run("lfq", compile="split"),
    "counted_sharded": lambda folder: counted("sharded"),
    "counted_hybrid": lambda folder: counted("hybrid"),
    "counted_replicated": lambda folder: counted("replicated"),
    "stopped": lambda folder: fitted(folder, stop_at=3),
    "resumed": lambda folder: fitted(folder, resume=True),
    "continued": lambda folder: fitted(folder / "single", resume=True, kind="hybrid"),
}


def main(environment: dict[str, str], folder: Path, jobs: list[str]) -> None:
    """Run jobs as one of the processes that torchrun would start with this environment."""
    os.environ.update(environment)
    sharding.SMALL = 30  # most leaves of these models are to be divided
    processes.join(torch.device("cpu"))
    for job in jobs:
        result = JOBS[job](folder)
        if processes.rank() == 0:
            torch.save(result, folder / f"{job}.pt")
