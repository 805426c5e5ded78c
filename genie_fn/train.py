"""What the training stages share beside the step: the configuration of a run, its beginning, and the loop.

A run is a pure function of (config, step): the randomness of step s is `fold_in(run_key, s)`, and so is its batch. A
checkpoint therefore holds no random state, and a killed run resumes bit for bit.
"""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from genie_fn import checkpoint, data, files, impls, random, sharding, tree, video
from genie_fn.errors import Stop, UserError, console
from genie_fn.optim import OptimConfig
from genie_fn.step import TrainState, init_state
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
    """On a GPU, and with one process, replay the compiled step as a CUDA graph."""
    device: str = "auto"
    sharding: str = "auto"
    """Where the state of several processes (torchrun) lies: `replicated`, all of it on each; `sharded`, divided between
    all; `hybrid`, divided within each node; `auto`: hybrid, which on one node is sharded."""
    accumulate: int = 1
    """Compute each process's share of a batch in so many parts, one after the other, to save memory."""
    deterministic: bool = False
    """Take torch's deterministic algorithms, slower on a GPU; where an operation has none, torch says so."""
    damaged: str = "refuse"
    """What a file of the dataset that cannot be read does: `refuse` ends the run, `skip` takes other clips."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        for name in ("steps", "batch_size", "num_frames", "save_every", "sample_every", "accumulate"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--cfg.{flag} is {getattr(self, name)}, but must be at least 1")
        if self.compile not in ("off", "step", "split"):
            raise UserError(f"--cfg.compile is off, step or split, not {self.compile!r}")
        if self.sharding not in sharding.KINDS:
            raise UserError(f"--cfg.sharding is one of {', '.join(sharding.KINDS)}, not {self.sharding!r}")
        if self.damaged not in ("refuse", "skip"):
            raise UserError(f"--cfg.damaged is refuse or skip, not {self.damaged!r}")


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; anything else is torch's own name. Each process of a node has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (own := os.environ.get("LOCAL_RANK")) is not None:
        if int(own) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise UserError(f"there are {found} GPUs for more processes: start torchrun with --nproc-per-node {found}")
        name = f"cuda:{own}"
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
    sharding.join(device)
    sharding.share(cfg.batch_size, cfg.accumulate)
    console.quiet = sharding.rank() > 0
    if cfg.deterministic:
        _repeat_exactly()
    mode = pick_compile(cfg.compile, device)
    cfg = impls.resolve(replace(cfg, device=str(device), compile=mode), device, mode != "off")
    store = sharding.by_all(lambda: data.open_store(cfg.data))
    sharding.check_same(store.data_hash, cfg.data)
    return cfg, store, device


def _repeat_exactly() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's matrix products are first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def start(
    spec: Tree, stats: Tree, cfg: RunConfig, stage: str, device: torch.device, apart: Collection[str] = ()
) -> TrainState:
    """The state to train from: fresh, or with `--cfg.resume` the newest checkpoint's, after a check that it fits.

    The first of several processes reads it and sends the others theirs.
    """
    key, layout = random.key(cfg.seed, device), sharding.layout(cfg.sharding)
    state = init_state(spec, key, cfg.optim, tree.map(lambda x: x.to(device), stats), apart, layout)
    read = {}

    def load() -> bool:
        read["state"] = _newest(state, cfg, stage, device)
        return read["state"] is not None

    return sharding.from_first(read.get("state"), state) if sharding.by_first(load) else state


def _newest(state: TrainState, cfg: RunConfig, stage: str, device: torch.device) -> TrainState | None:
    found = checkpoint.latest(cfg.out)
    if found is not None and not cfg.resume:
        raise UserError(
            f"{cfg.out} already holds a run, saved at step {found}: "
            "pass --cfg.resume to continue it, or another folder with --cfg.out"
        )
    if found is None:
        return None
    at = device if sharding.count() == 1 else "cpu"
    loaded = {"skipped": state.skipped} | checkpoint.load(cfg.out, stage=stage, device=at).state
    state = TrainState(**checkpoint.check(loaded, state._asdict(), f"the checkpoint in {cfg.out}"))
    console.print(f"continuing {cfg.out} from step {int(state.step)}", soft_wrap=True)
    return state


def announce(stage: str, spec: Tree, cfg: RunConfig, device: torch.device) -> None:
    """Say what is about to be trained, and where."""
    size = f"{tree.count(spec) / 1e6:.1f}M parameters, {cfg.steps} steps of {cfg.batch_size} x {cfg.num_frames} frames"
    many, layout = sharding.count(), sharding.layout(cfg.sharding)
    place = f"{many} processes, state in {layout.shards} parts, {device}" if many > 1 else str(device)
    console.print(f"{stage} ({cfg.preset}): {size}, on {place}, compile {cfg.compile}, in {cfg.out}", soft_wrap=True)
    kinds = {(path.split(".")[-1], name) for path, name in impls.chosen(cfg).items()}
    console.print("implementations: " + ", ".join(f"{kind} {name}" for kind, name in sorted(kinds)), soft_wrap=True)


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays as tensors on `device`: through pinned memory and without waiting where that is a GPU."""
    tensors = (torch.from_numpy(array) for array in arrays)
    if device.type != "cuda":
        return tuple(tensors)
    return tuple(x.pin_memory().to(device, non_blocking=True) for x in tensors)


def batches(store: data.Store, cfg: RunConfig, start_step: int, device: torch.device) -> Iterator[data.Batch]:
    """The training batches from `start_step` on, as tensors on `device`; frames stay uint8.

    Each of several processes reads its own clips of them.
    """

    def read(offsets: np.ndarray) -> data.Batch:  # in a thread: the copy to the device, too, is done ahead
        return data.Batch(*to_device(data.read_clips(store, offsets, cfg.num_frames), device))

    return data.batches(store, "train", cfg.num_frames, read=read, **order(cfg, start_step))


def order(cfg: RunConfig, start_step: int) -> dict[str, Any]:
    """Which clips a run reads, and when, as arguments of `data.batches`."""
    order = {"batch_size": cfg.batch_size, "seed": cfg.seed, "start_step": start_step, "skip": on_damage(cfg)}
    return order | {"share": sharding.share(cfg.batch_size, cfg.accumulate)}


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
    SIGTERM finish the step, save and leave; so do PATIENCE steps in a row whose loss was not finite, and data that
    cannot be read. The run then goes on with --cfg.resume. Of several processes, which all leave at the same step and
    for the same reason, the first writes; no other run trains in its folder meanwhile.
    """
    key, first = random.key(cfg.seed, state.step.device), int(state.step)
    source, done, saved, wait, began = iter(batches), first, first, 0.0, time.perf_counter()
    with Stop(alone=sharding.count() == 1) as stop, ExitStack() as held, _progress() as bar:
        run = _Run(cfg, batches, first, held, bar)
        while done < cfg.steps and not run.stuck:
            asked = time.perf_counter()
            batch = run.attempt(next, source)
            wait += time.perf_counter() - asked
            if sharding.anyone(bool(stop or run.trouble)):
                break
            state, metrics = step(state, batch, key)
            run.report()  # of a step before, so that a GPU has its next work while its numbers are read
            done, stop.save = done + 1, True
            if done % 10 == 0 or done == cfg.steps:
                run.measured = done, time.perf_counter() - began, wait, metrics
            bar.update(run.task, completed=done)
            if done % cfg.sample_every == 0 or done == cfg.steps:
                weights = sharding.full(state.ema or state.params)
                if run.writes:
                    _try_to_draw(sample, weights, run.out / "samples" / f"{done:07d}.png")
            if done % cfg.save_every == 0 or done == cfg.steps:
                run.report()  # a checkpoint's step is never missing from the metrics
                run.save(done, state)
                saved = done
        run.report()
        if done > saved and not sharding.anyone(isinstance(run.trouble, checkpoint.Unsaved)):
            run.save(done, state)
        sharding.end_together(run.trouble)
    spent = time.perf_counter() - began
    console.print(f"{done - first} steps in {spent:.0f} s, {wait / spent:.1%} of it waiting for batches")
    if run.stuck:
        raise UserError(
            f"the loss or a gradient was not finite for {PATIENCE} steps in a row, which changed nothing: the "
            f"state before them is saved in {run.out}; lower --cfg.optim.lr or look at the data, and continue with "
            "--cfg.resume"
        )
    if done < cfg.steps:
        console.print(f"stopped and saved at step {done}: continue with the same command and --cfg.resume")
        stop.leave()
    return state


class _Run:
    """A run as `fit` leaves it behind: rows of metrics, checkpoints, and what went wrong.

    Of several processes, which all call the same methods, only the first `writes`.
    """

    def __init__(self, cfg: RunConfig, batches: Iterable, first: int, held: ExitStack, bar: Progress):
        self.cfg, self.batches, self.bar, self.out = cfg, batches, bar, Path(cfg.out)
        self.writes, self.stuck = sharding.rank() == 0, False
        self.trouble: UserError | None = None
        self.measured: tuple[int, float, float, dict[str, Tensor]] | None = None
        """A step that `report` is to tell of: its number, the seconds until then, those of waiting, and its metrics."""

        def begin() -> None:
            self._saver, self._write_row = held.enter_context(_alone(self.out, first))

        sharding.by_first(begin)
        self.task = bar.add_task(self.out.name, total=cfg.steps, completed=first, metrics="compiling")

    def attempt(self, function: Callable, *args) -> Any:
        """What `function` returns. Its UserError waits in `trouble` until all processes know that there is one."""
        try:
            return function(*args)
        except UserError as error:
            self.trouble = self.trouble or error

    def report(self) -> None:
        """Write the row of what was `measured`, once, and see whether it was the last of too many that were skipped."""
        if self.writes:
            self.attempt(self._saver.poll)
        if self.measured is None:
            return
        (at, seconds, waited, metrics), self.measured = self.measured, None
        row = {name: float(value) for name, value in metrics.items()}
        self.stuck = row.pop("skipped_in_a_row", 0) >= PATIENCE
        if self.cfg.damaged == "skip":
            row["clips_skipped"] = sharding.summed(getattr(self.batches, "skipped", 0))
        if self.writes:
            self._write_row({"step": at, "seconds": seconds, "data_wait": waited} | row)
            self.bar.update(self.task, metrics=_headline(row))

    def save(self, done: int, state: TrainState) -> None:
        """A checkpoint of all that the processes hold of the state."""
        whole = sharding.to_first(state)
        if self.writes:
            self.attempt(checkpoint.save, self._saver, done, whole, self.cfg)


@contextmanager
def _alone(out: Path, first: int) -> Iterator[tuple[checkpoint.Saver, Callable[[dict], None]]]:
    """What writes a run's checkpoints and metrics from step `first` on, in a folder that is held meanwhile."""
    with files.exclusive(out, "trains in", "choose another --cfg.out"):
        checkpoint.set_aside(out, first)
        checkpoint.put_last(out)
        with files.writing(out):
            (out / "samples").mkdir(exist_ok=True)
        with checkpoint.manager(out) as saver:
            yield saver, files.open_log(out / "metrics.jsonl", first)


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
