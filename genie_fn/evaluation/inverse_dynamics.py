"""What a network that was shown the recorded actions can tell of them: the ceiling for latent actions.

A convolutional inverse dynamics model of at most a given number of parameters, so that a latent action model is judged
against a network of its own size: from a frame, the next one and the two last differences, to the action between.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers, metrics, random, tree
from genie_fn.data import Store
from genie_fn.evaluation import action_report
from genie_fn.evaluation.action_report import Transitions
from genie_fn.microbatch import Microbatch
from genie_fn.nets import blueprint
from genie_fn.nets.blueprint import Blueprint
from genie_fn.training import setup
from genie_fn.training.config import RunConfig
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import init_state, make_step
from genie_fn.tree import Tree

STAGES = (1, 2, 4)  # widths, in multiples of the first; each halves the sides


class Probe(NamedTuple):
    """A network and its parameters: {"net", "head"}."""

    net: Blueprint
    params: Tree


def network(dim: int) -> Blueprint:
    """Strided convolutions within each frame, over its 9 channels."""
    entries, widths = [], [9, *(dim * m for m in STAGES)]
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        options = {
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": (1, 3 if i else 5),
            "stride": (1, 2),
        }
        entries += [("causal-conv3d", options), "silu"]
    return blueprint.parse(entries)


def spec(dim: int, height: int, width: int, actions: int) -> Tree:
    """The parameters; the head sees every place of the last grid."""
    places = -(-height // 2 ** len(STAGES)) * -(-width // 2 ** len(STAGES))
    head = layers.linear_spec(places * dim * STAGES[-1], actions, bias=True)
    return {"net": blueprint.spec(network(dim)), "head": head}


def width_for(size: int, height: int, width: int, actions: int) -> int:
    """The largest width, in steps of 4, with no more than `size` parameters; at least 4."""
    dim = 4
    while tree.count(spec(dim + 4, height, width, actions)) <= size:
        dim += 4
    return dim


def logits(params: Tree, frames_BTHWC: Tensor, net: Blueprint) -> Tensor:
    """uint8 video → logits of the action between every two frames, (B, T-1, actions)."""
    x = layers.to_float(frames_BTHWC)
    change = 4 * torch.diff(
        x, dim=1, prepend=x[:, :1]
    )  # small where little moves, and yet what tells the action
    inputs = torch.cat((x[:, :-1], change[:, 1:], change[:, :-1]), -1)
    y, _ = blueprint.apply(params["net"], inputs, net)
    return layers.linear(params["head"], y.flatten(2))


def fit(store: Store, size: int, cfg: RunConfig) -> Probe:
    """Train a probe of at most `size` parameters on the recorded actions of the train split; a run of `cfg`."""
    dim = width_for(size, store.height, store.width, store.num_actions)
    net, parts = network(dim), spec(dim, store.height, store.width, store.num_actions)
    device = torch.device(cfg.device)

    def loss(params: Tree, batch, key: Tensor, step: Tensor, microbatch: Microbatch):
        guess = logits(params, batch.frames, net)
        return F.cross_entropy(guess.flatten(0, 1), batch.actions.flatten()), ({}, ())

    return Probe(net, descend(loss, parts, setup.batches(store, cfg, 0, device), cfg))


def descend(
    loss: Callable, parts: Tree, batches: Iterable, cfg: RunConfig, steps: Iterable | None = None
) -> Tree:
    """Train `cfg.steps` steps from the seed, without a folder; returns the averaged parameters. `steps` may be a range
    that shows how far it is."""
    key = random.key(cfg.seed, cfg.device)
    state, step = init_state(parts, key, cfg.optim, {}), make_step(loss, parts, cfg)
    for _, batch in zip(range(cfg.steps) if steps is None else steps, batches, strict=False):
        state, _ = step(state, batch, key)
    return state.ema


def guess(probe: Probe, frames_BTHWC: Tensor) -> Tensor:
    """The likeliest actions (B, T-1)."""
    return logits(probe.params, frames_BTHWC, probe.net).argmax(-1)


def settings(steps: int, seed: int, device: torch.device) -> RunConfig:
    """How a probe is trained."""
    optim = OptimConfig(
        lr=2e-3, schedule="wsd", warmup=20, decay=0.4, final=0.02, weight_decay=1e-2, ema=0.98
    )
    sizes = {"steps": steps, "batch_size": 16, "num_frames": 5}
    return RunConfig("probe", seed=seed, compile="off", device=str(device), optim=optim, **sizes)


def measure(
    probe: Probe, encoder_size: int, found: Transitions, guessed: Tensor, told: dict, names: tuple
) -> dict:
    """The probe's guesses (M, T-1) of recorded actions, and the share of it that latent actions tell (`told`)."""
    result = {
        "parameters": tree.count(probe.params),
        "encoder_parameters": encoder_size,
        "ratio": {},
    }
    side = action_report.sides(names)
    for kind, map_to in (("all", None), ("sides", side)):
        if kind in told:
            a, b = (x if map_to is None else map_to[x] for x in (found.true, guessed))
            value = round(metrics.mutual_information(a, b), 4)
            result[kind] = {
                "information": value,
                "accuracy": round((a == b).float().mean().item(), 4),
            }
            result["ratio"][kind] = (
                round(told[kind]["information"] / value, 4) if value > 0 else None
            )
    return result
