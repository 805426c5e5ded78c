"""What the training stages share: the state, one pure step, its compilation, and the loop around it.

A run is a pure function of (config, step): the randomness of step s is `fold_in(run_key, s)`, and so is its batch. A
checkpoint therefore holds no random state, and a killed run resumes bit for bit.
"""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from genie_fn import checkpoint, data, files, graphs, impls, optim, random, tree, video
from genie_fn.errors import Stop, UserError, console
from genie_fn.optim import OptimConfig
from genie_fn.tree import Tree

PATIENCE = 20  # steps skipped in a row, after which a run that cannot go on ends


@dataclass(frozen=True)
class RunConfig:
    """What every stage's configuration holds. A preset fills it in; flags override the preset."""

    preset: str = "demo"
    data: str = "data/coinrun"
    out: str = "runs/demo/stage"
    steps: int = 1000
    batch_size: int = 16
    num_frames: int = 8
    seed: int = 0
    resume: bool = False
    """Continue the run in `out` from its newest checkpoint."""
    save_every: int = 200
    sample_every: int = 200
    compile: str = "step"
    """`step`: the whole training step is one graph; `split`: loss and optimizer are two; `off`: eager."""
    cuda_graph: bool = True
    """On a GPU, replay the compiled step as a CUDA graph."""
    device: str = "auto"
    damaged: str = "refuse"
    """What a file of the dataset that cannot be read does: `refuse` ends the run, `skip` takes other clips."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        for name in ("steps", "batch_size", "num_frames", "save_every", "sample_every"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--cfg.{flag} is {getattr(self, name)}, but must be at least 1")
        if self.compile not in ("off", "step", "split"):
            raise UserError(f"--cfg.compile is off, step or split, not {self.compile!r}")
        if self.damaged not in ("refuse", "skip"):
            raise UserError(f"--cfg.damaged is refuse or skip, not {self.damaged!r}")


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


def init_state(spec: Tree, key: Tensor, cfg: OptimConfig, stats: Tree, apart: Collection[str] = ()) -> TrainState:
    """The state before the first step; the networks named in `apart` get no moving average."""
    params = tree.init(spec, key)
    average = tree.map(torch.clone, _without(params, apart)) if cfg.ema else {}
    step = torch.zeros((), dtype=torch.int64, device=key.device)
    return TrainState(step, params, optim.adamw_init(params), average, stats, step.new_zeros(2))


def _without(params: Tree, names: Collection[str]) -> Tree:
    return {name: value for name, value in params.items() if name not in names}


def make_step(
    loss_fn: Callable,
    spec: Tree,
    cfg: RunConfig,
    update: Callable | None = None,
    apart: Mapping[str, OptimConfig] | None = None,
) -> Callable:
    """`step(state, batch, run_key) -> (state, metrics)`: loss, gradients, clipping, AdamW, moving average.

    `loss_fn(params, batch, key, step) -> (loss, (metrics, aux))`; `update(params, stats, aux, key) -> (params, stats)`
    runs after the optimizer. `apart` names top-level networks that have an optimizer and a gradient clip of their own.
    A step whose loss or gradients are not finite changes nothing but the counts. Compiled, the step is called like the
    pure one but overwrites the state that it is given.
    """
    decay, apart = tree.map(lambda s: s.decay, spec), apart or {}
    groups = [("", cfg.optim, tuple(_without(spec, apart)))] + [(f"_{n}", c, (n,)) for n, c in apart.items()]

    def backward(state: TrainState, batch: Any, key: Tensor, loss_fn: Callable = loss_fn):
        return tree.value_and_grad(loss_fn)(state.params, batch, random.fold_in(key, state.step), state.step)

    def optimize(state: TrainState, grads: Tree) -> tuple[Tree, Tree, dict]:
        """Every group by its own optimizer; the trees come back in the order in which they were."""
        params, opt, metrics = dict(state.params), {name: dict(moment) for name, moment in state.opt.items()}, {}
        for suffix, optimizer, names in groups:
            own, gradient, mask = ({name: whole[name] for name in names} for whole in (state.params, grads, decay))
            moments = {moment: {name: whole[name] for name in names} for moment, whole in state.opt.items()}
            gradient, norm = optim.clip(gradient, optimizer.clip)
            lr = optim.learning_rate(state.step, cfg.steps, optimizer)
            own, moments = optim.adamw(gradient, moments, own, state.step, lr, mask, optimizer)
            params |= own
            opt = {name: opt[name] | moments[name] for name in opt}
            metrics |= {f"lr{suffix}": lr, f"grad_norm{suffix}": norm}
        return params, opt, metrics

    def apply(state: TrainState, loss: Tensor, grads: Tree, aux: Tree, key: Tensor) -> tuple[TrainState, dict]:
        params, opt, metrics = optimize(state, grads)
        norms = [metrics[f"grad_norm{suffix}"] for suffix, _, _ in groups]
        stats = state.stats
        if update is not None:
            params, stats = update(params, stats, aux, random.fold_in(random.fold_in(key, state.step), 1))
        average = optim.ema(state.ema, _without(params, apart), state.step, cfg.optim.ema) if cfg.optim.ema else {}
        new = TrainState(state.step + 1, params, opt, average, stats, state.skipped)
        new = skip_unless_finite(state, new, loss, norms)
        return new, {"loss": loss} | metrics | {"skipped": new.skipped[0], "skipped_in_a_row": new.skipped[1]}

    def step(state: TrainState, batch: Any, key: Tensor) -> tuple[TrainState, dict]:
        (loss, (metrics, aux)), grads = backward(state, batch, key)
        state, more = apply(state, loss, grads, aux, key)
        return state, metrics | more

    replayed = graphs.recorded if cfg.cuda_graph and cfg.device.startswith("cuda") else lambda compiled: compiled
    if cfg.compile == "off":
        return step
    if cfg.compile == "step":
        return replayed(in_place(step))
    fast_loss, fast_apply = torch.compile(loss_fn, fullgraph=True, dynamic=False), in_place(apply)

    def split_step(state: TrainState, batch: Any, key: Tensor) -> tuple[TrainState, dict]:
        (loss, (metrics, aux)), grads = backward(state, batch, key, fast_loss)
        state, more = fast_apply(state, loss, grads, aux, key)
        return state, metrics | more

    return replayed(split_step)


def skip_unless_finite(state: TrainState, new: TrainState, loss: Tensor, norms: list[Tensor]) -> TrainState:
    """`new`, if the loss and all gradients, by their norms, are finite; otherwise `state`, but for its counts."""
    finite = torch.stack([loss, *norms]).isfinite().all()
    kept = tree.map(lambda a, b: torch.where(finite, a, b), new._replace(**NO_COUNTS), state._replace(**NO_COUNTS))
    skipped, in_a_row = state.skipped.unbind()
    skipped = torch.stack((skipped + ~finite, (in_a_row + 1) * ~finite))
    return kept._replace(step=new.step, skipped=skipped)


def in_place(step: Callable) -> Callable:
    """Compile `step(state, ...) -> (state, metrics)` so that the new state is written over the old one's tensors.

    Donation, as JAX calls it: without it a step needs the memory of a second state, and CUDA graphs move.
    """

    def overwrite(state: TrainState, *args) -> tuple[tuple[Tensor, Tensor], dict]:
        new, metrics = step(state, *args)
        # One foreach copy: with a copy_ per leaf the CPU backend of torch 2.13 fails in a fusion pass. The counts stay
        # out of it: the compiler wrote the step before the moving average had read it.
        torch._foreach_copy_(tree.leaves(state._replace(**NO_COUNTS)), tree.leaves(new._replace(**NO_COUNTS)))
        return (new.step, new.skipped), metrics

    compiled = torch.compile(overwrite, fullgraph=True, dynamic=False)

    def donating(state: TrainState, *args) -> tuple[TrainState, dict]:
        (step, skipped), metrics = compiled(state, *args)
        state.step.copy_(step)
        state.skipped.copy_(skipped)
        return state, metrics

    return donating


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; anything else is torch's own name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except RuntimeError as error:
        raise UserError(f"--cfg.device {name} cannot be used here: try auto or cpu") from error
    return torch.device(name)


def pick_compile(mode: str, device: torch.device) -> str:
    """The compile mode that this machine can carry out: without a C++ compiler everything runs uncompiled."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if mode != "off" and device.type == "cpu" and compiler is None:
        console.print("no C++ compiler found: running uncompiled, several times slower; install g++ to change that")
        return "off"
    return mode


def prepare(cfg: RunConfig) -> tuple[RunConfig, data.Store, torch.device]:
    """What every stage begins with: the device, the dataset, and a config settled for this machine."""
    device = pick_device(cfg.device)
    mode = pick_compile(cfg.compile, device)
    cfg = impls.resolve(replace(cfg, device=str(device), compile=mode), device, mode != "off")
    return cfg, data.open_store(cfg.data), device


def start(
    spec: Tree, stats: Tree, cfg: RunConfig, stage: str, device: torch.device, apart: Collection[str] = ()
) -> TrainState:
    """The state to train from: fresh, or with `--cfg.resume` the newest checkpoint's, after a check that it fits."""
    key = random.key(cfg.seed, device)
    state = init_state(spec, key, cfg.optim, tree.map(lambda x: x.to(device), stats), apart)
    found = checkpoint.latest(cfg.out)
    if found is not None and not cfg.resume:
        raise UserError(
            f"{cfg.out} already holds a run, saved at step {found}: "
            "pass --cfg.resume to continue it, or another folder with --cfg.out"
        )
    if found is None:
        return state
    loaded = {"skipped": state.skipped} | checkpoint.load(cfg.out, stage=stage, device=device).state
    state = TrainState(**checkpoint.check(loaded, state._asdict(), f"the checkpoint in {cfg.out}"))
    console.print(f"continuing {cfg.out} from step {int(state.step)}", soft_wrap=True)
    return state


def announce(stage: str, spec: Tree, cfg: RunConfig, device: torch.device) -> None:
    """Say what is about to be trained, and where."""
    size = f"{tree.count(spec) / 1e6:.1f}M parameters, {cfg.steps} steps of {cfg.batch_size} x {cfg.num_frames} frames"
    console.print(f"{stage} ({cfg.preset}): {size}, on {device}, compile {cfg.compile}, in {cfg.out}", soft_wrap=True)
    kinds = {(path.split(".")[-1], name) for path, name in impls.chosen(cfg).items()}
    console.print("implementations: " + ", ".join(f"{kind} {name}" for kind, name in sorted(kinds)), soft_wrap=True)


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays as tensors on `device`: through pinned memory and without waiting where that is a GPU."""
    tensors = (torch.from_numpy(array) for array in arrays)
    if device.type != "cuda":
        return tuple(tensors)
    return tuple(x.pin_memory().to(device, non_blocking=True) for x in tensors)


def batches(store: data.Store, cfg: RunConfig, start_step: int, device: torch.device) -> Iterator[data.Batch]:
    """The training batches from `start_step` on, as tensors on `device`; frames stay uint8."""

    def read(offsets: np.ndarray) -> data.Batch:  # in a thread: the copy to the device, too, is done ahead
        return data.Batch(*to_device(data.read_clips(store, offsets, cfg.num_frames), device))

    order = {"seed": cfg.seed, "start_step": start_step, "skip": on_damage(cfg)}
    return data.batches(store, "train", cfg.num_frames, cfg.batch_size, read=read, **order)


def on_damage(cfg: RunConfig) -> Callable[[str], None] | None:
    """What is done about data that cannot be read: each damaged file is told once; None: the run ends."""
    told: set[str] = set()

    def tell(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            console.print(f"{sentence}: other clips take the place of its own", soft_wrap=True, markup=False)

    return tell if cfg.damaged == "skip" else None


def held_out(store: data.Store, cfg: RunConfig, count: int, device: torch.device) -> data.Batch:
    """The same few validation clips at every call, for pictures during training."""
    skip = on_damage(cfg)
    offsets = data.eval_clips(store, "val", cfg.num_frames, count, skip=skip)
    try:
        clips = data.read_clips(store, offsets, cfg.num_frames)
    except data.DamagedClips as damage:
        whole = np.delete(offsets, [*damage.lost])
        if skip is None or not len(whole):
            raise
        any(map(skip, damage.lost.values()))
        clips = data.read_clips(store, np.resize(whole, count), cfg.num_frames)
    return data.Batch(*(torch.from_numpy(array).to(device) for array in clips))


def draw(path: Path, *rows: Tensor) -> None:
    """Rows of frames, (T, H, W, 3) uint8 each, one above the other, as a PNG at three times the size."""
    video.write_png(path, video.enlarge(video.grid(torch.stack(rows).cpu().numpy()), 3))


def fit(
    step: Callable,
    state: TrainState,
    batches: Iterable,
    cfg: RunConfig,
    sample: Callable[[Tree, Path], None],
) -> TrainState:
    """Train until `cfg.steps`: progress with rate and time left, metrics to JSONL, pictures, checkpoints.

    `batches` yields the batch of the state's step first; `sample(weights, png_path)` draws a picture. Ctrl-C and
    SIGTERM finish the step, save and leave, and so do PATIENCE steps in a row whose loss was not finite; the run then
    goes on with --cfg.resume. One process trains in a folder at a time.
    """
    out, key, first = Path(cfg.out), random.key(cfg.seed, state.step.device), int(state.step)
    source, done, saved, wait, began = iter(batches), first, first, 0.0, time.perf_counter()
    measured, stuck = None, False
    with files.exclusive(out, "trains in", "choose another --cfg.out"), Stop() as stop:
        checkpoint.set_aside(out, first)
        checkpoint.put_last(out)
        write_row = files.open_log(out / "metrics.jsonl", first)
        with checkpoint.manager(out) as saver, _progress() as bar:
            task = bar.add_task(out.name, total=cfg.steps, completed=first, metrics="compiling")

            def report() -> None:
                nonlocal stuck
                saver.poll()
                if measured is not None:
                    at, seconds, waited, metrics = measured
                    row = {name: float(value) for name, value in metrics.items()}
                    stuck = row.pop("skipped_in_a_row", 0) >= PATIENCE
                    if cfg.damaged == "skip":
                        row["clips_skipped"] = getattr(batches, "skipped", 0)
                    write_row({"step": at, "seconds": seconds, "data_wait": waited} | row)
                    bar.update(task, metrics=_headline(row))

            while done < cfg.steps and not stop and not stuck:
                asked = time.perf_counter()
                batch = next(source)
                wait += time.perf_counter() - asked
                state, metrics = step(state, batch, key)
                report()  # of a step before, so that a GPU has its next work while its numbers are read
                done, measured, stop.save = done + 1, None, True
                if done % 10 == 0 or done == cfg.steps:
                    measured = done, time.perf_counter() - began, wait, metrics
                bar.update(task, completed=done)
                if done % cfg.sample_every == 0 or done == cfg.steps:
                    _try_to_draw(sample, state.ema or state.params, out / "samples" / f"{done:07d}.png")
                if done % cfg.save_every == 0 or done == cfg.steps:
                    report()  # a checkpoint's step is never missing from the metrics
                    measured = None
                    checkpoint.save(saver, done, state, cfg)
                    saved = done
            report()
            if done > saved:
                checkpoint.save(saver, done, state, cfg)
        spent = time.perf_counter() - began
        console.print(f"{done - first} steps in {spent:.0f} s, {wait / spent:.1%} of it waiting for batches")
        if stuck:
            raise UserError(
                f"the loss or a gradient was not finite for {PATIENCE} steps in a row, which changed nothing: the "
                f"state before them is saved in {out}; lower --cfg.optim.lr or look at the data, and continue with "
                "--cfg.resume"
            )
        if stop:
            console.print(f"stopped and saved at step {done}: continue with the same command and --cfg.resume")
            stop.leave()
    return state


def _try_to_draw(sample: Callable[[Tree, Path], None], weights: Tree, path: Path) -> None:
    """A picture that cannot be written is missing; that is no reason to end a run."""
    try:
        sample(weights, path)
    except OSError as error:
        path.unlink(missing_ok=True)
        console.print(f"{path} cannot be written ({files.reason(error)}): free space", soft_wrap=True, markup=False)


def _headline(row: dict[str, float]) -> str:
    shown = [f"{name} {row[name]:.3f}" for name in ("loss", "psnr", "accuracy", "perplexity") if name in row]
    return "  ".join(shown + [f"{name} {row[name]:.0f}" for name in ("skipped", "clips_skipped") if row.get(name)])


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, TextColumn("{task.fields[metrics]}"), console=console)
