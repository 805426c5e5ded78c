"""A supervised inverse dynamics model: the reference that latent actions are compared with.

A convolutional network with at most as many parameters as a given number, so that a latent action
model is compared with a network of its own size: from a frame, the next one and the last two
differences, to the recorded action between.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers, metrics, random, tree
from genie_fn.data import Store
from genie_fn.evaluation import actions as action_statistics
from genie_fn.evaluation.actions import Transitions
from genie_fn.evaluation.record import Agreement, Guesses, InverseDynamics, Recorded
from genie_fn.microbatch import Microbatch
from genie_fn.nets import blueprint
from genie_fn.nets.blueprint import Blueprint
from genie_fn.training import setup
from genie_fn.training.config import RunConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import Objective, init_state
from genie_fn.tree import Tree

STAGES = (1, 2, 4)  # widths, in multiples of the first; each halves the sides


class Model(NamedTuple):
    """A network and its parameters: {"net", "head"}."""

    net: Blueprint
    params: Tree


def network(dim: int) -> Blueprint:
    """Strided convolutions within each frame, over its 9 channels."""
    entries: list = []
    inputs = 9
    for i, multiple in enumerate(STAGES):
        outputs = dim * multiple
        options = {
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": (1, 3 if i else 5),
            "stride": (1, 2),
        }
        entries += [("causal-conv3d", options), "silu"]
        inputs = outputs
    return blueprint.parse(entries)


def spec(dim: int, height: int, width: int, actions: int) -> Tree:
    """The parameters; the head is a linear map of the whole last grid."""
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
    # Differences are small where little moves, and carry what there is to know of the action.
    change = 4 * torch.diff(x, dim=1, prepend=x[:, :1])
    inputs = torch.cat((x[:, :-1], change[:, 1:], change[:, :-1]), -1)
    y, _ = blueprint.apply(params["net"], inputs, net)
    return layers.linear(params["head"], y.flatten(2))


def fit(store: Store, size: int, cfg: RunConfig) -> Model:
    """A model of at most `size` parameters, trained on the train split's recorded actions."""
    dim = width_for(size, store.height, store.width, store.num_actions)
    net = network(dim)
    parameters = spec(dim, store.height, store.width, store.num_actions)
    batches = setup.batches(store, cfg, 0, torch.device(cfg.device))

    def loss(params: Tree, batch, key: Tensor, step: Tensor, microbatch: Microbatch):
        predicted = logits(params, batch.frames, net)
        return F.cross_entropy(predicted.flatten(0, 1), batch.actions.flatten()), ({}, ())

    return Model(net, descend(loss, parameters, batches, cfg))


def descend(
    loss: Callable,
    parameters: Tree,
    batches: Iterable,
    cfg: RunConfig,
    steps: Iterable[int] | None = None,
) -> Tree:
    """The averaged parameters after `cfg.steps` steps from the seed, without a run's folder.

    `steps` may be a range that displays progress.
    """
    key = random.key(cfg.seed, cfg.device)
    state = init_state(parameters, key, cfg.optim, {})
    step = make_step(Objective(loss), parameters, cfg)
    for _, batch in zip(range(cfg.steps) if steps is None else steps, batches, strict=False):
        state, _ = step(state, batch, key)
    return state.ema


def predict(model: Model, frames_BTHWC: Tensor) -> Tensor:
    """The most probable actions (B, T-1)."""
    return logits(model.params, frames_BTHWC, model.net).argmax(-1)


def settings(steps: int, seed: int, device: torch.device) -> RunConfig:
    """How the model is trained."""
    optim = OptimConfig(
        lr=2e-3, schedule="wsd", warmup=20, decay=0.4, final=0.02, weight_decay=1e-2, ema=0.98
    )
    return RunConfig(
        "probe",
        seed=seed,
        compile="off",
        device=str(device),
        optim=optim,
        steps=steps,
        batch_size=16,
        num_frames=5,
    )


class Training(NamedTuple):
    """What a model cost."""

    encoder_parameters: int
    steps: int
    seconds: float


def measure(
    store: Store, split: str, size: int, cfg: RunConfig, transitions: Transitions, latent: Recorded
) -> InverseDynamics:
    """Train a model of at most `size` parameters, and score it on the transitions of a split.

    These are of `actions.spread_clips`, and `latent` describes the latent actions of the same.
    """
    began = time.perf_counter()
    with torch.enable_grad():
        model = fit(store, size, cfg)
    training = Training(size, cfg.steps, round(time.perf_counter() - began, 1))
    offsets = action_statistics.spread_clips(
        store, split, action_statistics.CLIP, len(transitions.codes)
    )
    predicted = action_statistics.map_clips(
        store,
        offsets,
        action_statistics.CLIP,
        lambda frames, _: predict(model, frames),
        torch.device(cfg.device),
    )
    return evaluate(model, training, transitions, predicted, latent, store.action_names)


def evaluate(
    model: Model,
    training: Training,
    transitions: Transitions,
    predicted: Tensor,
    latent: Recorded,
    names: tuple[str, ...],
) -> InverseDynamics:
    """Scores of its predictions (M, T-1), and the ratio of the `latent` actions' NMI to theirs."""
    recorded = transitions.recorded
    assert recorded is not None
    side = action_statistics.sides(names)
    by_side = None
    if side is not None and latent.sides is not None:
        by_side = guesses(side[recorded], side[predicted], latent.sides)
    return InverseDynamics(
        parameters=tree.count(model.params),
        encoder_parameters=training.encoder_parameters,
        steps=training.steps,
        seconds=training.seconds,
        all=guesses(recorded, predicted, latent.all),
        sides=by_side,
    )


def guesses(recorded: Tensor, predicted: Tensor, latent: Agreement) -> Guesses:
    """NMI and accuracy of predicted actions."""
    nmi = round(metrics.mutual_information(recorded, predicted), 4)
    accuracy = round((recorded == predicted).float().mean().item(), 4)
    return Guesses(nmi, accuracy, round(latent.nmi / nmi, 4) if nmi > 0 else None)
