"""The state of a run, and one pure step of it: on one device or many, in one go or in parts, eager or compiled."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genie_fn import metrics, random, tree
from genie_fn.microbatch import CodebookUpdate, Microbatch
from genie_fn.runtime import graphs
from genie_fn.training import optim, sharding
from genie_fn.training.optim import OptimConfig
from genie_fn.training.sharding import Layout
from genie_fn.tree import Tree


class TrainState(NamedTuple):
    """Everything that a step changes; `ema` and `stats` are empty where a stage keeps none."""

    step: Tensor
    params: Tree
    opt: Tree
    ema: Tree
    stats: Tree
    skipped: Tensor
    """Steps that changed nothing, for their loss or a gradient was not finite: all, and those in a row up to now."""


NO_COUNTS = {"step": (), "skipped": ()}  # what `_replace` takes to leave the counters out


def init_state(
    spec: Tree,
    key: Tensor,
    cfg: OptimConfig,
    stats: Tree,
    apart: Collection[str] = (),
    layout: Layout = sharding.ALONE,
) -> TrainState:
    """The state before the first step; the networks named in `apart` get no moving average."""
    params = sharding.place(tree.init(spec, key), optim.divisible(spec, cfg), layout)
    average = tree.map(torch.clone, _without(params, apart)) if cfg.ema else {}
    step = torch.zeros((), dtype=torch.int64, device=key.device)
    return TrainState(step, params, optim.adamw_init(params), average, stats, step.new_zeros(2))


def _without(params: Tree, names: Collection[str]) -> Tree:
    return {name: value for name, value in params.items() if name not in names}


class Found(NamedTuple):
    """What the backward pass over some clips gives."""

    grads: Tree
    scores: Tree
    """Metrics that are means over clips."""
    sums: Tree
    """What an `CodebookUpdate` collects."""


class Backward(NamedTuple):
    """The functions of one part of a batch; `where` is its index, `known` the averages over all parts it asks for."""

    loss: Callable
    survey: Callable
    found: Callable


def make_step(
    loss_fn: Callable,
    spec: Tree,
    cfg: Any,
    update: CodebookUpdate | None = None,
    apart: Mapping[str, OptimConfig] | None = None,
) -> Callable:
    """`step(state, batch, run_key) -> (state, metrics)`: loss, gradients, clipping, AdamW, moving average.

    `loss_fn(params, batch, key, step, part) -> (loss, (metrics, aux))`: the metrics are means over clips, of which
    `metrics.summary` makes what is reported; `update` works on aux. `apart` names top-level networks that have an
    optimizer and a gradient clip of their own. `cfg` is a `train.RunConfig`. Each of several processes gives its own
    clips of the batch. A step whose loss or gradients are not finite changes nothing but the counts. Compiled, the step
    is called like the pure one but overwrites the state that it is given.
    """
    layout, spec = sharding.layout(cfg.sharding), optim.divisible(spec, cfg.optim)
    part = _backward(loss_fn, cfg.accumulate, layout, update)
    apply = _apply(spec, cfg, layout, update, apart or {})

    def gather(params: Tree) -> Tree:
        return sharding.gather(params, spec, layout)

    def whole(
        state: TrainState, batch: Any, key: Tensor, loss: Callable = part.loss
    ) -> tuple[TrainState, dict]:
        return apply(
            state,
            *part.found(gather(state.params), batch, key, state.step, sharding.rank(), None, loss),
        )

    if cfg.accumulate > 1:
        step = _accumulated(gather, part, apply, cfg, layout)
    elif cfg.compile == "split":
        fast_loss, fast_apply, fast_gather = (
            _compiled(part.loss),
            in_place(apply),
            _compiled(gather),
        )

        def step(state: TrainState, batch: Any, key: Tensor) -> tuple[TrainState, dict]:
            params = fast_gather(state.params)
            return fast_apply(
                state, *part.found(params, batch, key, state.step, sharding.rank(), None, fast_loss)
            )

    else:
        step = whole if cfg.compile == "off" else in_place(whole)
    if layout.shards > 1:
        return _on_shards(step)
    replay = (
        cfg.cuda_graph
        and cfg.device.startswith("cuda")
        and cfg.compile != "off"
        and layout.count == 1
    )
    return graphs.recorded(step) if replay else step


def _backward(
    loss_fn: Callable, accumulate: int, layout: Layout, update: CodebookUpdate | None
) -> Backward:
    count = layout.count * accumulate

    def average(name: str, x: Tensor) -> Tensor:
        return sharding.average(x, layout)

    def loss(
        params: Tree,
        batch: Any,
        key: Tensor,
        step: Tensor,
        where: int | Tensor,
        known: dict[str, Tensor],
    ):
        mean = (lambda name, x: known[name] + (x - x.detach())) if accumulate > 1 else average
        return loss_fn(params, batch, key, step, Microbatch(where, count, mean))

    def survey(
        params: Tree, batch: Any, key: Tensor, step: Tensor, where: Tensor
    ) -> dict[str, Tensor]:
        """What the loss averages over the parts, of this one. Compiled, nothing else of the loss is computed."""
        asked = {}

        def note(name: str, x: Tensor) -> Tensor:
            asked[name] = x.detach()
            return x

        with torch.enable_grad():  # a loss may derive by a parameter
            loose = tree.map(lambda x: x.detach().requires_grad_(), params)
            loss_fn(loose, batch, random.fold_in(key, step), step, Microbatch(where, count, note))
        return asked

    def found(params, batch, key, step, where, known=None, loss: Callable = loss) -> Found:
        key = random.fold_in(key, step)
        (value, (scores, aux)), grads = tree.value_and_grad(loss)(
            params, batch, key, step, where, known
        )
        sums = (
            update.collect(aux, random.fold_in(key, 1), Microbatch(where, count)) if update else {}
        )
        return Found(grads, {"loss": value} | scores, sums)

    return Backward(loss, survey, found)


def _accumulated(
    gather: Callable, part: Backward, apply: Callable, cfg: Any, layout: Layout
) -> Callable:
    """A step that computes its gradients in `cfg.accumulate` parts: programs for a part, and one for the optimizer."""

    def add(grads: Tree, *args) -> tuple[Tree, Tree]:
        found = part.found(*args)
        torch._foreach_add_(tree.leaves(grads), tree.leaves(found.grads))
        return found.scores, found.sums

    def average(asked: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        means = {name: torch.stack([one[name] for one in asked]).mean(0) for name in asked[0]}
        return {name: sharding.average(x, layout) for name, x in means.items()}

    survey = part.survey
    if cfg.compile != "off":
        gather, survey, add, average = map(_compiled, (gather, survey, add, average))
        apply = in_place(apply)

    def step(state: TrainState, batch: Any, key: Tensor) -> tuple[TrainState, dict]:
        params, times = gather(state.params), cfg.accumulate
        wheres = torch.arange(times, device=key.device) + sharding.rank() * times
        split = [tree.map(lambda x, k=k: x.chunk(times)[k], batch) for k in range(times)]
        parts = [
            (params, clips, key, state.step, where)
            for clips, where in zip(split, wheres, strict=True)
        ]
        known = average([survey(*one) for one in parts])
        grads = tree.map(torch.zeros_like, params)
        added = [add(grads, *one, known) for one in parts]
        scores, sums = tree.map(lambda *xs: torch.stack(xs).sum(0), added[0], *added[1:])
        return apply(state, grads, scores, sums)

    return step


def _apply(
    spec: Tree,
    cfg: Any,
    layout: Layout,
    update: CodebookUpdate | None,
    apart: Mapping[str, OptimConfig],
) -> Callable[..., tuple[TrainState, dict]]:
    """What follows the gradients: averages over the processes, the optimizers, `update`, the average of the weights."""
    decay, count = tree.map(lambda s: s.decay, spec), layout.count * cfg.accumulate
    groups = [("", cfg.optim, tuple(_without(spec, apart)))] + [
        (f"_{n}", c, (n,)) for n, c in apart.items()
    ]

    def optimize(state: TrainState, grads: Tree) -> tuple[Tree, Tree, dict]:
        """Every group by its own optimizer; the trees come back in the order in which they were."""
        params, opt, found = (
            dict(state.params),
            {name: dict(moment) for name, moment in state.opt.items()},
            {},
        )
        for suffix, optimizer, names in groups:
            trees = (state.params, grads, decay, spec)
            own, gradient, mask, specs = ({name: whole[name] for name in names} for whole in trees)
            moments = {
                moment: {name: whole[name] for name in names} for moment, whole in state.opt.items()
            }
            gradient, norm = optim.clip(
                gradient, optimizer.clip, lambda g, s=specs: sharding.norm(g, s, layout)
            )
            lr = optim.learning_rate(state.step, cfg.steps, optimizer)
            own, moments = optim.adamw(gradient, moments, own, state.step, lr, mask, optimizer)
            params |= own
            opt = {name: opt[name] | moments[name] for name in opt}
            found |= {f"lr{suffix}": lr, f"grad_norm{suffix}": norm}
        return params, opt, found

    def apply(state: TrainState, grads: Tree, scores: Tree, sums: Tree) -> tuple[TrainState, dict]:
        if cfg.accumulate > 1:
            grads = tree.map(lambda g: g / cfg.accumulate, grads)
        grads = sharding.scatter(grads, spec, layout)
        scores, sums = sharding.total((scores, sums), layout)
        params, opt, found = optimize(state, grads)
        stats = state.stats
        if update:
            params, stats = update.apply(params, stats, sums)
        average = (
            optim.ema(state.ema, _without(params, apart), state.step, cfg.optim.ema)
            if cfg.optim.ema
            else {}
        )
        scores = metrics.summary(tree.map(lambda x: x / count, scores))
        new = TrainState(state.step + 1, params, opt, average, stats, state.skipped)
        new = skip_unless_finite(
            state, new, scores["loss"], [found[f"grad_norm{suffix}"] for suffix, _, _ in groups]
        )
        return new, scores | found | {"skipped": new.skipped[0], "skipped_in_a_row": new.skipped[1]}

    return apply


def skip_unless_finite(
    state: TrainState, new: TrainState, loss: Tensor, norms: list[Tensor]
) -> TrainState:
    """`new`, if the loss and all gradients, by their norms, are finite; otherwise `state`, but for its counts."""
    finite = torch.stack([loss, *norms]).isfinite().all()
    kept = tree.map(
        lambda a, b: torch.where(finite, a, b),
        new._replace(**NO_COUNTS),
        state._replace(**NO_COUNTS),
    )
    skipped, in_a_row = state.skipped.unbind()
    skipped = torch.stack((skipped + ~finite, (in_a_row + 1) * ~finite))
    return kept._replace(step=new.step, skipped=skipped)


def _compiled(function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _on_shards(step: Callable) -> Callable:
    """`step`, which works on a process's own tensors, on a state whose leaves are DTensors."""

    def on_shards(state: TrainState, batch: Any, key: Tensor) -> tuple[TrainState, dict]:
        own, found = step(sharding.local(state), batch, key)
        return sharding.wrap(own, state), found

    return on_shards


def in_place(step: Callable) -> Callable:
    """Compile `step(state, ...) -> (state, metrics)` so that the new state is written over the old one's tensors.

    Donation, as JAX calls it: without it a step needs the memory of a second state, and CUDA graphs move.
    """

    def overwrite(state: TrainState, *args) -> tuple[tuple[Tensor, Tensor], dict]:
        new, metrics = step(state, *args)
        # One foreach copy: with a copy_ per leaf the CPU backend of torch 2.13 fails in a fusion pass. The counts stay
        # out of it: the compiler wrote the step before the moving average had read it.
        torch._foreach_copy_(
            tree.leaves(state._replace(**NO_COUNTS)), tree.leaves(new._replace(**NO_COUNTS))
        )
        return (new.step, new.skipped), metrics

    compiled = torch.compile(overwrite, fullgraph=True, dynamic=False)

    def donating(state: TrainState, *args) -> tuple[TrainState, dict]:
        (step, skipped), metrics = compiled(state, *args)
        state.step.copy_(step)
        state.skipped.copy_(skipped)
        return state, metrics

    return donating
