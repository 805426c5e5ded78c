"""The state of a training run and one step of it: `(state, batch, key) -> (state, metrics)`, pure.

`train_step` is the whole step, from the gathered parameters to the metrics. How it is carried out,
in microbatches, on a divided state, compiled, is added by `genie_fn/training/execution.py`.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genie_fn import random, tree
from genie_fn.microbatch import CodebookUpdate, Microbatch
from genie_fn.training import exchange, optim, processes, sharding
from genie_fn.training.config import RunConfig
from genie_fn.training.optim import OptimConfig
from genie_fn.training.sharding import Layout
from genie_fn.tree import Tree

Metrics = dict[str, Tensor]
Step = Callable[..., tuple["TrainState", Metrics]]
"""`step(state, batch, key, total_steps=None)`: see `train_step`."""


class TrainState(NamedTuple):
    """Everything that a step changes; `ema` and `stats` are empty where a stage keeps none."""

    step: Tensor
    params: Tree
    opt: Tree
    ema: Tree
    stats: Tree
    skipped: Tensor
    """Steps skipped for a non-finite loss or gradient: all of them, and the latest ones in a row.
    int64, (2,)."""


def _unchanged(scores: Metrics) -> Metrics:
    return scores


class Objective(NamedTuple):
    """What a training stage minimises, and what it reports."""

    loss: Callable
    """`(params, batch, key, step, microbatch) -> (loss, (scores, aux))`: a scalar, a dict of scores
    that are means over clips, and the argument of `update.collect`."""
    statistics: Callable | None = None
    """`(params, batch, key, step, microbatch) -> {name: value}`: the statistics of a microbatch
    whose averages over the whole batch `loss` takes from `microbatch.mean`. Only accumulation calls
    it; None for a loss without such statistics."""
    summarise: Callable[[Any], Metrics] = _unchanged
    """The reported metrics, from the scores averaged over the whole batch."""
    update: CodebookUpdate | None = None


NO_SEPARATE: Mapping[str, OptimConfig] = MappingProxyType({})
"""No network has an optimizer of its own."""


class Group(NamedTuple):
    """Top-level networks that share an optimizer, a gradient clip and a moving average's decay."""

    networks: tuple[str, ...]
    cfg: OptimConfig
    suffix: str
    """The end of the names of the group's metrics."""


class Recipe(NamedTuple):
    """What all steps of a run have in common."""

    objective: Objective
    spec: Tree
    cfg: RunConfig
    layout: Layout
    groups: tuple[Group, ...]

    @property
    def microbatches(self) -> int:
        """The number of microbatches of a batch, over all processes."""
        return self.layout.count * self.cfg.accumulate


class Gradients(NamedTuple):
    """The result of the backward pass over the clips of this process."""

    grads: Tree
    """Averages over the clips, like the scores."""
    scores: Any
    """The loss, and the scores of `Objective.loss`."""
    sums: Tree
    """The result of `CodebookUpdate.collect`; {} without an update."""


def init_state(  # noqa: PLR0913 (the parameters, their optimizers, and where they lie)
    spec: Tree,
    key: Tensor,
    cfg: OptimConfig,
    stats: Tree,
    separate: Mapping[str, OptimConfig] = NO_SEPARATE,
    layout: Layout = sharding.SINGLE_PROCESS,
    adapt: Callable[[Tree], Tree] | None = None,
) -> TrainState:
    """The state before the first step.

    `separate` as in `make_recipe`. Networks whose optimizer has no `ema` get no moving average.
    `adapt` changes the initial parameters, before they are divided between processes.
    """
    initial = tree.init(spec, key)
    if adapt is not None:
        initial = adapt(initial)
    params = sharding.place(initial, _divisible(spec, cfg, separate), layout)
    averaged = [name for name in params if separate.get(name, cfg).ema]
    average = tree.map(torch.clone, _select(params, averaged))
    step = torch.zeros((), dtype=torch.int64, device=key.device)
    return TrainState(step, params, optim.adamw_init(params), average, stats, step.new_zeros(2))


def make_recipe(
    objective: Objective, spec: Tree, cfg: RunConfig, separate: Mapping[str, OptimConfig]
) -> Recipe:
    """`separate` gives top-level networks an optimizer of their own: a learning rate, the choice of
    Muon or AdamW, a gradient clip and the decay of a moving average."""
    rest = tuple(name for name in spec if name not in separate)
    groups = [Group(rest, cfg.optim, "")]
    groups += [Group((name,), own, f"_{name}") for name, own in separate.items()]
    layout = sharding.layout(cfg.sharding)
    divisible = _divisible(spec, cfg.optim, separate)
    return Recipe(objective, divisible, cfg, layout, tuple(groups))


def _divisible(spec: Tree, cfg: OptimConfig, separate: Mapping[str, OptimConfig]) -> Tree:
    """The spec with the axes along which devices may divide each network's parameters."""
    return {
        name: optim.divisible(network, separate.get(name, cfg)) for name, network in spec.items()
    }


def train_step(
    state: TrainState, batch: Any, key: Tensor, recipe: Recipe, total_steps: Tensor | None = None
) -> tuple[TrainState, Metrics]:
    """One step. `key` is the run's; the step's key derives from it and from the step's number.

    `total_steps`, a 0-D tensor, replaces `cfg.steps` in the learning rate's schedule.
    """
    params = gather(state.params, recipe)
    microbatch = own_microbatch(recipe)
    gradients = backward(params, batch, key, state.step, microbatch, recipe.objective)
    return apply_gradients(state, gradients, recipe, total_steps)


def gather(params: Tree, recipe: Recipe) -> Tree:
    """The whole parameters, from the shards that the processes hold."""
    return exchange.gather(params, recipe.spec, recipe.layout)


def own_microbatch(recipe: Recipe) -> Microbatch:
    """This process's clips at once. Statistics are averaged over the processes inside the loss."""

    def mean(name: str, x: Tensor) -> Tensor:
        return exchange.average(x, recipe.layout)

    return Microbatch(processes.rank(), recipe.layout.count, mean)


def backward(
    params: Tree,
    batch: Any,
    key: Tensor,
    step: Tensor,
    microbatch: Microbatch,
    objective: Objective,
) -> Gradients:
    """Loss, scores and gradients of the clips of a microbatch. `key` is the run's."""
    key = random.fold_in(key, step)
    value_and_grad = tree.value_and_grad(objective.loss)
    (loss, (scores, aux)), grads = value_and_grad(params, batch, key, step, microbatch)
    sums = {}
    if objective.update:
        sums = objective.update.collect(aux, random.fold_in(key, 1), microbatch)
    return Gradients(grads, {"loss": loss} | scores, sums)


def apply_gradients(
    state: TrainState, gradients: Gradients, recipe: Recipe, total_steps: Tensor | None = None
) -> tuple[TrainState, Metrics]:
    """The rest of a step: exchange, clipping, optimizers, codebook update, moving average, metrics.

    If the loss or a gradient is not finite, only the counters of the state change.
    """
    objective, spec, _, layout, groups = recipe

    # Averages over all processes; of the gradients each process gets those of its own shards.
    grads = exchange.scatter(gradients.grads, spec, layout)
    scores, sums = exchange.total((gradients.scores, gradients.sums), layout)
    scores = tree.map(lambda x: x / layout.count, scores)

    params, opt, rates, norms = clip_and_optimize(state, grads, recipe, total_steps)

    stats = state.stats
    if objective.update:
        params, stats = objective.update.apply(params, stats, sums)

    average = dict(state.ema)
    for networks, own, _ in groups:
        if own.ema:
            before = _select(state.ema, networks)
            average |= optim.ema(before, _select(params, networks), state.step, own.ema)

    new = TrainState(state.step + 1, params, opt, average, stats, state.skipped)
    new = skip_unless_finite(state, new, [scores["loss"], *norms.values()])

    counters = {"skipped": new.skipped[0], "skipped_in_a_row": new.skipped[1]}
    return new, objective.summarise(scores) | rates | norms | counters


def clip_and_optimize(
    state: TrainState, grads: Tree, recipe: Recipe, total_steps: Tensor | None
) -> tuple[Tree, Tree, Metrics, Metrics]:
    """Clip the gradients and step the optimizer of each group.

    Returns the new parameters and moments, whose networks keep their order, and the learning rate
    and the gradient norm of each group.
    """
    steps = recipe.cfg.steps if total_steps is None else total_steps
    params = dict(state.params)
    opt = {moment: dict(networks) for moment, networks in state.opt.items()}
    rates = {}
    norms = {}
    for networks, cfg, suffix in recipe.groups:
        spec = _select(recipe.spec, networks)
        decay = tree.map(lambda s: s.decay, spec)
        own_params = _select(params, networks)
        own_grads = _select(grads, networks)
        own_opt = {moment: _select(values, networks) for moment, values in opt.items()}

        norm = exchange.norm(own_grads, spec, recipe.layout)
        own_grads, _ = optim.clip(own_grads, cfg.clip, norm)
        lr = optim.learning_rate(state.step, steps, cfg)
        own_params, own_opt = optim.adamw(
            own_grads, own_opt, own_params, state.step, lr, decay, cfg
        )

        params |= own_params
        opt = {moment: opt[moment] | own_opt[moment] for moment in opt}
        rates[f"lr{suffix}"] = lr
        norms[f"grad_norm{suffix}"] = norm
    return params, opt, rates, norms


def skip_unless_finite(state: TrainState, new: TrainState, values: list[Tensor]) -> TrainState:
    """`new` if all scalars of `values` are finite; otherwise `state` with its counters advanced."""
    finite = torch.stack(values).isfinite().all()

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(finite, a, b)

    chosen = tree.map(choose, without_counters(new), without_counters(state))
    total, in_a_row = state.skipped.unbind()
    skipped = torch.stack((total + ~finite, (in_a_row + 1) * ~finite))
    return chosen._replace(step=new.step, skipped=skipped)


def without_counters(state: TrainState) -> Any:
    """The state with its counters left out."""
    return state._replace(step=(), skipped=())  # pyright: ignore[reportArgumentType]


def _select(networks: Tree, names: Collection[str]) -> Tree:
    return {name: networks[name] for name in names}
