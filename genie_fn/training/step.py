"""The state of a training run and one step of it, a pure function `(state, batch, key) -> (state, metrics)`.

`train_step` is the whole step, from gathered parameters to metrics. The functions after `make_step` wrap it: in several
microbatches one after the other, on a state that is divided between processes, compiled in one graph or in two.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_div_,  # pyright: ignore[reportPrivateImportUsage]
)

from genie_fn import random, tree
from genie_fn.microbatch import CodebookUpdate, Microbatch
from genie_fn.runtime.compilation import compiled
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
    """Steps skipped for a non-finite loss or gradient: (all of them, the latest ones in a row), int64."""


def _unchanged(scores: Metrics) -> Metrics:
    return scores


class Objective(NamedTuple):
    """What a training stage minimises, and what it reports."""

    loss: Callable
    """`(params, batch, key, step, microbatch) -> (loss, (scores, aux))`: a scalar, a dict of scores that are means over
    clips, and what `update` works on."""
    statistics: Callable | None = None
    """`(params, batch, key, step, microbatch) -> {name: value}`: the statistics of a microbatch whose averages over the
    whole batch `loss` takes from `microbatch.mean`. Only accumulation needs it."""
    summarise: Callable[[Metrics], Metrics] = _unchanged
    """The reported metrics, from scores averaged over the whole batch."""
    update: CodebookUpdate | None = None


class Gradients(NamedTuple):
    """The result of the backward pass over this process's clips."""

    grads: Tree
    """Averages over the clips; so are the scores."""
    scores: Metrics
    """The loss, and the scores of `Objective.loss`."""
    sums: Tree
    """What `CodebookUpdate.collect` returned; {} without one."""


class Group(NamedTuple):
    """Top-level networks with an optimizer and a gradient clip of their own."""

    networks: tuple[str, ...]
    cfg: OptimConfig
    suffix: str
    """Of the names of the group's metrics."""


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

    @property
    def averaged(self) -> tuple[str, ...]:
        """The networks that have a moving average of their weights: those of the first group."""
        return self.groups[0].networks


def init_state(
    spec: Tree,
    key: Tensor,
    cfg: OptimConfig,
    stats: Tree,
    separate: Collection[str] = (),
    layout: Layout = sharding.SINGLE_PROCESS,
) -> TrainState:
    """The state before the first step. The networks named in `separate` get no moving average."""
    params = sharding.place(tree.init(spec, key), optim.divisible(spec, cfg), layout)
    average = {}
    if cfg.ema:
        networks = [name for name in params if name not in separate]
        average = tree.map(torch.clone, _select(params, networks))
    step = torch.zeros((), dtype=torch.int64, device=key.device)
    return TrainState(step, params, optim.adamw_init(params), average, stats, step.new_zeros(2))


def make_step(
    objective: Objective,
    spec: Tree,
    cfg: RunConfig,
    separate: Mapping[str, OptimConfig] | None = None,
) -> Step:
    """`train_step` for an objective and the parameters of `spec`, wrapped as `cfg` asks for.

    `separate` gives top-level networks an optimizer and a gradient clip of their own. Each of several processes passes
    its own clips of the batch. A compiled step overwrites the state that it is given; otherwise the step is pure.
    """
    recipe = _recipe(objective, spec, cfg, separate or {})
    if cfg.accumulate > 1:
        step = accumulated(recipe)
    elif cfg.compile == "split":
        step = split(recipe)
    elif cfg.compile == "step":
        step = in_place(whole(recipe), _uses_cuda_graph(recipe))
    else:
        step = whole(recipe)
    return on_shards(step) if recipe.layout.shards > 1 else step


def train_step(
    state: TrainState, batch: Any, key: Tensor, recipe: Recipe, total_steps: Tensor | None = None
) -> tuple[TrainState, Metrics]:
    """One step on one batch. `key` is the run's; the step's own key derives from it and the step's
    number. `total_steps`, a 0-D tensor, replaces `cfg.steps` in the learning rate's schedule."""
    params = gather(state.params, recipe)
    microbatch = _own_microbatch(recipe)
    gradients = backward(params, batch, key, state.step, microbatch, recipe.objective)
    return apply_gradients(state, gradients, recipe, total_steps)


def gather(params: Tree, recipe: Recipe) -> Tree:
    """The whole parameters, from the shards that the processes hold."""
    return exchange.gather(params, recipe.spec, recipe.layout)


def backward(
    params: Tree,
    batch: Any,
    key: Tensor,
    step: Tensor,
    microbatch: Microbatch,
    objective: Objective,
) -> Gradients:
    """Loss, scores and gradients of the clips of a microbatch."""
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
    """The step from gradients on: exchange, clipping, optimizers, codebook update, moving average, metrics.

    If the loss or a gradient is not finite, the new state differs from the old one in its counters only.
    """
    objective, spec, cfg, layout, _ = recipe

    # Averages over all processes; of the gradients each process gets those of its own shards.
    grads = exchange.scatter(gradients.grads, spec, layout)
    scores, sums = exchange.total((gradients.scores, gradients.sums), layout)
    scores = tree.map(lambda x: x / layout.count, scores)

    params, opt, rates, norms = _clip_and_optimize(state, grads, recipe, total_steps)

    stats = state.stats
    if objective.update:
        params, stats = objective.update.apply(params, stats, sums)

    average = {}
    if cfg.optim.ema:
        average = optim.ema(state.ema, _select(params, recipe.averaged), state.step, cfg.optim.ema)

    new = TrainState(state.step + 1, params, opt, average, stats, state.skipped)
    new = _skip_unless_finite(state, new, [scores["loss"], *norms.values()])

    counts = {"skipped": new.skipped[0], "skipped_in_a_row": new.skipped[1]}
    return new, objective.summarise(scores) | rates | norms | counts


def _clip_and_optimize(
    state: TrainState, grads: Tree, recipe: Recipe, total_steps: Tensor | None
) -> tuple[Tree, Tree, Metrics, Metrics]:
    """Clip the gradients and step the optimizer of each group; the trees keep the order of their networks.

    Returns the new parameters and moments, and each group's learning rate and gradient norm.
    """
    steps = recipe.cfg.steps if total_steps is None else total_steps
    params = dict(state.params)
    opt = {moment: dict(networks) for moment, networks in state.opt.items()}
    rates = {}
    norms = {}
    for networks, cfg, suffix in recipe.groups:
        spec = _select(recipe.spec, networks)
        own = _select(grads, networks)
        clipped, norm = optim.clip(own, cfg.clip, exchange.norm(own, spec, recipe.layout))
        lr = optim.learning_rate(state.step, steps, cfg)
        decay = tree.map(lambda s: s.decay, spec)
        moments = {moment: _select(all_networks, networks) for moment, all_networks in opt.items()}
        new, moments = optim.adamw(
            clipped, moments, _select(params, networks), state.step, lr, decay, cfg
        )
        params |= new
        opt = {moment: opt[moment] | moments[moment] for moment in opt}
        rates[f"lr{suffix}"] = lr
        norms[f"grad_norm{suffix}"] = norm
    return params, opt, rates, norms


def _skip_unless_finite(state: TrainState, new: TrainState, values: list[Tensor]) -> TrainState:
    """`new` if all of the scalar `values` are finite; otherwise `state` with its counters moved on."""
    finite = torch.stack(values).isfinite().all()
    chosen = tree.map(
        lambda a, b: torch.where(finite, a, b),
        _without_counters(new),
        _without_counters(state),
    )
    total, in_a_row = state.skipped.unbind()
    skipped = torch.stack((total + ~finite, (in_a_row + 1) * ~finite))
    return chosen._replace(step=new.step, skipped=skipped)


def _without_counters(state: TrainState) -> TrainState:
    return state._replace(step=(), skipped=())


def _select(networks: Tree, names: Collection[str]) -> Tree:
    return {name: networks[name] for name in names}


def _recipe(
    objective: Objective, spec: Tree, cfg: RunConfig, separate: Mapping[str, OptimConfig]
) -> Recipe:
    rest = tuple(name for name in spec if name not in separate)
    groups = [Group(rest, cfg.optim, "")]
    groups += [Group((name,), own, f"_{name}") for name, own in separate.items()]
    layout = sharding.layout(cfg.sharding)
    return Recipe(objective, optim.divisible(spec, cfg.optim), cfg, layout, tuple(groups))


def _own_microbatch(recipe: Recipe) -> Microbatch:
    """This process's clips, all at once: statistics are averaged over the processes inside the loss."""

    def mean(name: str, x: Tensor) -> Tensor:
        return exchange.average(x, recipe.layout)

    return Microbatch(processes.rank(), recipe.layout.count, mean)


# How a step is carried out


def whole(recipe: Recipe) -> Step:
    """The step as one pure function."""

    def step(
        state: TrainState, batch: Any, key: Tensor, total_steps: Tensor | None = None
    ) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, key, recipe, total_steps)

    return step


def split(recipe: Recipe) -> Step:
    """The step as two compiled graphs, the loss and what follows the gradients, with autograd between them.

    The compiler may then choose which activations to compute again in the backward pass.
    """
    loss = compiled(recipe.objective.loss)
    objective = recipe.objective._replace(loss=loss)
    gather_params = compiled(lambda params: gather(params, recipe))
    apply = in_place(lambda state, grads, *total: apply_gradients(state, grads, recipe, *total))

    def step(
        state: TrainState, batch: Any, key: Tensor, *total_steps: Tensor
    ) -> tuple[TrainState, Metrics]:
        params = gather_params(state.params)
        microbatch = _own_microbatch(recipe)
        gradients = backward(params, batch, key, state.step, microbatch, objective)
        return apply(state, gradients, *total_steps)

    return step


def accumulated(recipe: Recipe) -> Step:
    """The step with its gradients computed in `cfg.accumulate` microbatches, one after the other, to save memory.

    If the objective has statistics of the whole batch, a first pass over the microbatches averages them.
    """
    count = recipe.cfg.accumulate
    eager = recipe.cfg.compile == "off"
    prepare: Callable[[Callable], Callable] = _as_it_is if eager else compiled
    prepare_update: Callable[[Callable], Callable] = _as_it_is if eager else in_place
    gather_params = prepare(lambda params: gather(params, recipe))
    measure = prepare(lambda *inputs: microbatch_statistics(*inputs, recipe))
    average = prepare(lambda statistics: average_statistics(statistics, recipe.layout))
    add = prepare(lambda total, *inputs: add_gradients(total, *inputs, recipe))
    apply = prepare_update(
        lambda state, grads, *total: apply_gradients(state, grads, recipe, *total)
    )

    def step(
        state: TrainState, batch: Any, key: Tensor, *total_steps: Tensor
    ) -> tuple[TrainState, Metrics]:
        params = gather_params(state.params)
        indices = torch.arange(count, device=key.device) + processes.rank() * count
        inputs = [
            (params, tree.map(lambda x, i=i: x.chunk(count)[i], batch), key, state.step, indices[i])
            for i in range(count)
        ]
        means = {}
        if recipe.objective.statistics:
            means = average([measure(*each) for each in inputs])
        total = tree.map(torch.zeros_like, params)
        results = [add(total, *each, means) for each in inputs]
        _foreach_div_(tree.leaves(total), count)
        scores, sums = tree.map(lambda *xs: torch.stack(xs).sum(0), *results)
        scores = tree.map(lambda x: x / count, scores)
        return apply(state, Gradients(total, scores, sums), *total_steps)

    return step


def _as_it_is(function: Callable) -> Callable:
    return function


def microbatch_statistics(
    params: Tree, clips: Any, key: Tensor, step: Tensor, index: Tensor, recipe: Recipe
) -> Metrics:
    """What the loss averages over the whole batch, of one microbatch."""
    measure = recipe.objective.statistics
    assert measure is not None
    microbatch = Microbatch(index, recipe.microbatches)
    return measure(params, clips, random.fold_in(key, step), step, microbatch)


def average_statistics(statistics: list[Metrics], layout: Layout) -> Metrics:
    """The averages over all microbatches of all processes, from those of this process."""
    means = tree.map(lambda *values: torch.stack(values).mean(0), *statistics)
    return tree.map(lambda x: exchange.average(x, layout), means)


def add_gradients(
    total: Tree,
    params: Tree,
    clips: Any,
    key: Tensor,
    step: Tensor,
    index: Tensor,
    means: Metrics,
    recipe: Recipe,
) -> tuple[Metrics, Tree]:  # noqa: PLR0913
    """Add the gradients of one microbatch to `total`, in place; returns its scores and sums."""

    def mean(name: str, x: Tensor) -> Tensor:
        return means[name] + (x - x.detach())

    microbatch = Microbatch(index, recipe.microbatches, mean)
    grads, scores, sums = backward(params, clips, key, step, microbatch, recipe.objective)
    _foreach_add_(tree.leaves(total), tree.leaves(grads))
    return scores, sums


def on_shards(step: Step) -> Step:
    """`step`, which works on a process's own tensors, for a state whose leaves are DTensors."""

    def sharded_step(state: TrainState, *inputs) -> tuple[TrainState, Metrics]:
        own, metrics = step(sharding.local(state), *inputs)
        return sharding.wrap(own, state), metrics

    return sharded_step


def _uses_cuda_graph(recipe: Recipe) -> bool:
    cfg = recipe.cfg
    return cfg.cuda_graph and cfg.device.startswith("cuda") and recipe.layout.count == 1


def in_place(step: Callable, cuda_graph: bool = False) -> Callable:
    """Compile `step(state, ...) -> (state, metrics)` so that it writes the new state over the tensors of the old one.

    JAX calls this donation: without it a step needs the memory of a second state, and CUDA graphs would see new
    addresses at every step.
    """

    def overwrite(state: TrainState, *args) -> tuple[tuple[Tensor, Tensor], Metrics]:
        new, metrics = step(state, *args)
        # One foreach copy: with a copy_ per leaf the CPU backend of torch 2.13 fails in a fusion pass. The counters are
        # left out of it: the compiler wrote the step before the moving average had read it.
        _foreach_copy_(tree.leaves(_without_counters(state)), tree.leaves(_without_counters(new)))
        return (new.step, new.skipped), metrics

    fast = compiled(overwrite, cuda_graph=cuda_graph)

    def donating_step(state: TrainState, *args) -> tuple[TrainState, Metrics]:
        (step, skipped), metrics = fast(state, *args)
        state.step.copy_(step)
        state.skipped.copy_(skipped)
        return state, metrics

    return donating_step
