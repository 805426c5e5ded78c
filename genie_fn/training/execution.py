"""How a training step is carried out: whole or in microbatches, on a divided state, compiled."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_div_,  # pyright: ignore[reportPrivateImportUsage]
)

from genie_fn import random, tree
from genie_fn.microbatch import Microbatch
from genie_fn.runtime.compilation import compiled
from genie_fn.training import exchange, processes, sharding
from genie_fn.training.config import RunConfig
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import (
    Gradients,
    Metrics,
    Objective,
    Recipe,
    Step,
    TrainState,
    apply_gradients,
    backward,
    gather,
    make_recipe,
    own_microbatch,
    train_step,
    without_counters,
)
from genie_fn.tree import Tree


def make_step(
    objective: Objective,
    spec: Tree,
    cfg: RunConfig,
    separate: Mapping[str, OptimConfig] | None = None,
) -> Step:
    """`train_step` for an objective and the parameters of `spec`, carried out as `cfg` asks for.

    `separate` gives top-level networks an optimizer of their own, see `make_recipe`. With several
    processes each passes its own clips of the batch. A compiled step overwrites the state that it
    is given; otherwise the step is pure.
    """
    recipe = make_recipe(objective, spec, cfg, separate or {})
    if cfg.accumulate > 1:
        step = accumulated(recipe)
    elif cfg.compile == "split":
        step = split(recipe)
    elif cfg.compile == "step":
        step = in_place(whole(recipe), cuda_graph=_uses_cuda_graph(recipe))
    else:
        step = whole(recipe)
    return on_shards(step) if recipe.layout.shards > 1 else step


def _uses_cuda_graph(recipe: Recipe) -> bool:
    cfg = recipe.cfg
    return cfg.cuda_graph and cfg.device.startswith("cuda") and recipe.layout.count == 1


def whole(recipe: Recipe) -> Step:
    """The step as one pure function."""

    def step(
        state: TrainState, batch: Any, key: Tensor, total_steps: Tensor | None = None
    ) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, key, recipe, total_steps)

    return step


def split(recipe: Recipe) -> Step:
    """The step as two compiled graphs: the loss, and what follows the gradients.

    Autograd runs between them. The compiler can then choose which activations the backward pass
    computes again.
    """
    objective = recipe.objective._replace(loss=compiled(recipe.objective.loss))
    gather_params = compiled(lambda params: gather(params, recipe))
    apply = in_place(lambda state, grads, *total: apply_gradients(state, grads, recipe, *total))

    def step(
        state: TrainState, batch: Any, key: Tensor, *total_steps: Tensor
    ) -> tuple[TrainState, Metrics]:
        params = gather_params(state.params)
        microbatch = own_microbatch(recipe)
        gradients = backward(params, batch, key, state.step, microbatch, objective)
        return apply(state, gradients, *total_steps)

    return step


# Accumulation


class Piece(NamedTuple):
    """The inputs of the loss on one microbatch."""

    params: Tree
    batch: Any
    key: Tensor
    """The run's."""
    step: Tensor
    index: Tensor
    """The microbatch's number among those of all processes."""


def accumulated(recipe: Recipe) -> Step:
    """The step with its gradients computed in `cfg.accumulate` microbatches, one after the other.

    This saves memory. If the objective has statistics of the whole batch, a first pass over the
    microbatches averages them.
    """
    count = recipe.cfg.accumulate
    eager = recipe.cfg.compile == "off"
    prepare: Callable[[Callable], Callable] = _unchanged if eager else compiled
    prepare_update: Callable[[Callable], Callable] = _unchanged if eager else in_place
    gather_params = prepare(lambda params: gather(params, recipe))
    measure = prepare(lambda piece: microbatch_statistics(piece, recipe))
    average = prepare(lambda statistics: average_statistics(statistics, recipe))
    add = prepare(lambda total, piece, means: add_gradients(total, piece, means, recipe))
    apply = prepare_update(
        lambda state, grads, *total: apply_gradients(state, grads, recipe, *total)
    )

    def step(
        state: TrainState, batch: Any, key: Tensor, *total_steps: Tensor
    ) -> tuple[TrainState, Metrics]:
        params = gather_params(state.params)
        indices = torch.arange(count, device=key.device) + processes.rank() * count
        pieces = [
            Piece(params, _chunk(batch, count, i), key, state.step, indices[i])
            for i in range(count)
        ]
        means = {}
        if recipe.objective.statistics:
            means = average([measure(piece) for piece in pieces])
        total = tree.map(torch.zeros_like, params)
        results = [add(total, piece, means) for piece in pieces]
        _foreach_div_(tree.leaves(total), count)
        scores, sums = tree.map(lambda *xs: torch.stack(xs).sum(0), *results)
        scores = tree.map(lambda x: x / count, scores)
        return apply(state, Gradients(total, scores, sums), *total_steps)

    return step


def microbatch_statistics(piece: Piece, recipe: Recipe) -> Metrics:
    """The statistics of one microbatch that the loss averages over the whole batch."""
    params, batch, key, step, index = piece
    measure = recipe.objective.statistics
    assert measure is not None
    microbatch = Microbatch(index, recipe.microbatches)
    return measure(params, batch, random.fold_in(key, step), step, microbatch)


def average_statistics(statistics: list[Metrics], recipe: Recipe) -> Metrics:
    """The averages over all microbatches of all processes, from those of this process."""
    means = tree.map(lambda *values: torch.stack(values).mean(0), *statistics)
    return tree.map(lambda x: exchange.average(x, recipe.layout), means)


def add_gradients(total: Tree, piece: Piece, means: Metrics, recipe: Recipe) -> tuple[Any, Tree]:
    """Add the gradients of one microbatch to `total`, in place; returns its scores and sums.

    `means` are the statistics of the whole batch.
    """

    def mean(name: str, x: Tensor) -> Tensor:
        return means[name] + (x - x.detach())

    params, batch, key, step, index = piece
    microbatch = Microbatch(index, recipe.microbatches, mean)
    grads, scores, sums = backward(params, batch, key, step, microbatch, recipe.objective)
    _foreach_add_(tree.leaves(total), tree.leaves(grads))
    return scores, sums


def _chunk(batch: Any, count: int, index: int) -> Any:
    return tree.map(lambda x: x.chunk(count)[index], batch)


def _unchanged(function: Callable) -> Callable:
    return function


# States on several processes, and states that are overwritten


def on_shards(step: Step) -> Step:
    """`step`, which takes a process's own tensors, for a state whose leaves are DTensors."""

    def sharded_step(state: TrainState, *inputs) -> tuple[TrainState, Metrics]:
        own, metrics = step(sharding.local(state), *inputs)
        return sharding.wrap(own, state), metrics

    return sharded_step


def in_place(step: Callable, *, cuda_graph: bool = False) -> Callable:
    """Compile `step(state, ...) -> (state, metrics)` to write the new state over the old tensors.

    JAX calls this donation: without it a step needs the memory of a second state, and CUDA graphs
    would see other addresses at every step.
    """

    def overwrite(state: TrainState, *args) -> tuple[tuple[Tensor, Tensor], Metrics]:
        new, metrics = step(state, *args)
        # One foreach copy: with a copy_ per leaf the CPU backend of torch 2.13 fails in a fusion
        # pass. The counters are left out: the compiler wrote the step before the moving average had
        # read it.
        _foreach_copy_(tree.leaves(without_counters(state)), tree.leaves(without_counters(new)))
        return (new.step, new.skipped), metrics

    fast = compiled(overwrite, cuda_graph=cuda_graph)

    def donating_step(state: TrainState, *args) -> tuple[TrainState, Metrics]:
        (step, skipped), metrics = fast(state, *args)
        state.step.copy_(step)
        state.skipped.copy_(skipped)
        return state, metrics

    return donating_step
