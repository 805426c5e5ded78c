"""How a training stage begins: device, dataset, initial or resumed state, batches."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from genie_fn import data, random, tree
from genie_fn.data import augment, token_cache, video
from genie_fn.errors import UserError
from genie_fn.runtime import backend, files
from genie_fn.runtime.console import console
from genie_fn.training import checkpoint, inputs, options, processes, sharding
from genie_fn.training.config import RunConfig
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import NO_SEPARATE, Step, TrainState, init_state
from genie_fn.tree import Tree

Config = TypeVar("Config", bound=RunConfig)
DATA = "data/coinrun"
"""The dataset of the demo, which a new run takes if neither a flag nor an earlier run names one."""
STAGES = ("tokenizer", "lam", "dynamics")
T = TypeVar("T")


def prepare(cfg: Config, *earlier: str | Path) -> tuple[Config, data.Store, torch.device]:
    """The configuration resolved for this machine, the dataset, and the device. Joins the other
    processes. `earlier` are the runs of the earlier stages that a new run is made from, in order.
    With --cfg.stride auto and no run to take the stride from, it stays auto, and the store's is 1.
    """
    device = backend.pick_device(cfg.device)
    processes.join(device)
    console.quiet = processes.rank() > 0
    processes.on_first(lambda: files.check_folder("--cfg.out", cfg.out))
    processes.on_first(lambda: _step_to_resume(cfg))  # refuses a folder that is in use
    processes.own_clips(cfg.batch_size, cfg.accumulate)
    store = processes.on_all(lambda: open_dataset(cfg, earlier))
    stride = known_stride(cfg, earlier)
    store = replace(store, stride=stride or 1)
    processes.check_same(store.data_hash, store.name)
    mode = backend.pick_compile(cfg.compile, device)
    mode = "off" if processes.is_any(mode == "off") else mode
    if cfg.deterministic or (device.type == "cpu" and mode != "off"):
        _use_deterministic_algorithms()
    resolved = cfg.backend.resolve(device, mode != "off", training=True)
    cfg = replace(cfg, device=str(device), compile=mode, backend=resolved, stride=stride or "auto")
    used = replace(cfg.inputs, data=inputs.describe(store, cfg.out))
    folders = tuple(inputs.shown(dataset.root) for dataset in store.datasets)
    cfg = replace(cfg, data=folders, data_weights=store.weights, inputs=used)
    return cfg, store, device


def known_stride(cfg: RunConfig, earlier: Sequence[str | Path] = ()) -> int | None:
    """The stride of a run: a number that is given, or for `auto` that of the run itself, if it is
    continued, or of the last of the earlier stages. None for `auto` without any of these."""
    if isinstance(cfg.stride, int):
        return cfg.stride
    runs = [cfg.out] if is_resumed(cfg) else reversed(earlier)
    records = (inputs.read(run) for run in runs)
    return next((record.stride for record in records if record is not None), None)


def is_resumed(cfg: RunConfig) -> bool:
    """Whether a run continues an earlier one, whose inputs it then takes."""
    return cfg.resume and checkpoint.latest(cfg.out) is not None


def open_dataset(cfg: RunConfig, earlier: Collection[str | Path] = ()) -> data.Store:
    """The datasets of --cfg.data as one, or by default those that the run itself, the earlier
    stages or the runs beside it were made from.

    Lines are printed where these differ. Raises UserError where they have other recorded actions.
    """
    own = [cfg.out] if is_resumed(cfg) else earlier
    known = [run for run in own if checkpoint.latest(run) is not None]
    sources = known or [run for run in beside(cfg) if checkpoint.latest(run) is not None]
    if cfg.datasets or not sources:
        store = data.open_stores(cfg.datasets or (DATA,), cfg.data_weights)
    else:
        store = inputs.open_datasets(sources[0], cfg.data_weights)
        known = known[1:]
    for record in filter(None, map(inputs.read, known)):
        inputs.check_datasets(record, store)
    return store


def beside(cfg: RunConfig) -> list[Path]:
    """Where the runs of the stages of the same world are, by default."""
    folder = Path(cfg.out).parent
    return [folder / stage for stage in STAGES if folder / stage != Path(cfg.out)]


def _use_deterministic_algorithms() -> None:
    """Otherwise compiled gradients of look-ups are summed in any order, also on a CPU."""
    # cuBLAS reads the variable when a matrix product is first computed.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def start(
    spec: Tree,
    stats: Tree,
    cfg: RunConfig,
    stage: str,
    device: torch.device,
    separate: Mapping[str, OptimConfig] = NO_SEPARATE,
    adapt: Callable[[Tree], Tree] | None = None,
) -> TrainState:
    """The state to train from: initialised, or with --cfg.resume that of the newest checkpoint.

    `separate` gives networks an optimizer of their own, see `step.make_recipe`; `adapt` changes the
    initial parameters. Each of several
    processes reads its own part of a checkpoint. Raises UserError if the checkpoint does not fit
    `spec`, and if there is one but --cfg.resume is not given.
    """
    key = random.key(cfg.seed, device)
    layout = sharding.layout(cfg.sharding)
    stats = tree.map(lambda x: x.to(device), stats)
    state = init_state(spec, key, cfg.optim, stats, separate, layout, adapt)
    if processes.on_first(lambda: _step_to_resume(cfg)) is None:
        return state
    changed = options.differences(checkpoint.read_config(cfg.out) or {}, cfg)
    try:
        resumed = _resume(state, cfg, stage, device)
    except checkpoint.Misfit as error:
        raise options.misfit(cfg.out, changed) if changed else error from error
    console.print(f"continuing {cfg.out} from step {int(resumed.step)}", soft_wrap=True)
    if changed:
        inputs.say(f"with other options than before: {options.describe(changed)}")
    if stage != "dynamics" and not {"steps", "minutes"}.isdisjoint(x.name for x in changed):
        inputs.say(f"a dynamics model made with {cfg.out} before has to be trained again")
    return resumed


def _step_to_resume(cfg: RunConfig) -> int | None:
    """The newest step saved in the run's folder; None if there is none."""
    step = checkpoint.latest(cfg.out)
    if step is not None and not cfg.resume:
        raise UserError(
            f"{cfg.out} already holds a run, saved at step {step}: "
            "pass --cfg.resume to continue it, or another folder with --cfg.out"
        )
    return step


def _resume(state: TrainState, cfg: RunConfig, stage: str, device: torch.device) -> TrainState:
    """The state of the newest checkpoint, laid out like `state`."""
    if processes.count() > 1:
        return TrainState(**checkpoint.load_together(cfg.out, state._asdict()))
    loaded = checkpoint.load(cfg.out, stage=stage, device=device).state
    loaded = {"skipped": state.skipped} | loaded  # the earliest checkpoints do not count them
    return TrainState(**checkpoint.check(loaded, state._asdict(), f"the checkpoint in {cfg.out}"))


def announce(stage: str, spec: Tree, cfg: RunConfig, device: torch.device) -> None:
    """Print what is about to be trained, and where."""
    parameters = f"{tree.count(spec) / 1e6:.1f}M parameters"
    length = f"{cfg.minutes:g} minutes" if cfg.minutes else f"{cfg.steps} steps"
    batch = f"{cfg.batch_size} x {cfg.num_frames} frames"
    where = str(device)
    if processes.count() > 1:
        shards = sharding.layout(cfg.sharding).shards
        where = f"{processes.count()} processes, state in {shards} shards, {device}"
    console.print(
        f"{stage} ({cfg.preset}): {parameters}, {length} of {batch}, on {where}, "
        f"compile {cfg.compile}, in {cfg.out}",
        soft_wrap=True,
    )
    made_from = [f"data {folder}" for folder in cfg.datasets]
    for kind in ("tokenizer", "lam"):
        if getattr(cfg.inputs, kind).path:
            made_from.append(f"{kind} {getattr(cfg, kind)}")
    console.print(f"made from: {', '.join(made_from)}", soft_wrap=True, markup=False)
    names = ", ".join(f"{kind} {name}" for kind, name in asdict(cfg.backend).items())
    console.print(f"implementations: {names}", soft_wrap=True)


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays as tensors on `device`; a GPU's are copied asynchronously, from pinned memory."""
    tensors = (torch.from_numpy(array) for array in arrays)
    if device.type != "cuda":
        return tuple(tensors)
    return tuple(x.pin_memory().to(device, non_blocking=True) for x in tensors)


def clip_reader(
    store: data.Store, split: str, cfg: RunConfig, load: Callable | None = None
) -> data.ClipReader:
    """A reader of clips as the run's flags describe them."""
    flags = "--cfg.num-frames or --cfg.stride" if store.stride > 1 else "--cfg.num-frames"
    return data.ClipReader(store, split, cfg.num_frames, cfg.damaged, load, flags=flags)


def batches(
    store: data.Store, cfg: RunConfig, start_step: int, device: torch.device
) -> data.Batches:
    """The training batches from `start_step` on, as tensors on `device`; frames stay uint8.

    Each of several processes reads its own share of their clips.
    """

    def load(offsets: np.ndarray) -> data.Batch:
        clips = data.read_clips(store, offsets, cfg.num_frames)
        return data.Batch(*to_device(clips, device))  # in a reading thread: copied ahead, too

    reader = clip_reader(store, "train", cfg, load)
    share = processes.own_clips(cfg.batch_size, cfg.accumulate)
    return reader.batches(cfg.batch_size, cfg.seed, start_step, share)


def with_flips(step: Step, cfg: RunConfig, swap_A: Tensor | None = None) -> Step:
    """With --cfg.flip, a step that flips every second clip before `step`; see `augment.flip_half`."""
    if not cfg.flip:
        return step
    first_clip = processes.own_clips(cfg.batch_size, cfg.accumulate).start

    def flip_and_step(state, batch: data.Batch, key, *total_steps):
        half_flipped = augment.flip_half(batch, state.step, first_clip, swap_A)
        return step(state, half_flipped, key, *total_steps)

    return flip_and_step


def cached_batches(
    store: data.Store,
    cfg: RunConfig,
    encoders: tuple[token_cache.Encoder, token_cache.Encoder | None],
    root: str,
    start_step: int,
    device: torch.device,
    make_batch: Callable[[Tensor, Tensor], T],
) -> data.Batches[T]:
    """As `batches`, of what `make_batch(ids, actions)` returns, from the token caches in `root`.

    `encoders` are the tokenizer and the latent action model; without the latter, actions are those of
    the store. The first process completes the caches before the others open them.
    """
    tokens, actions = encoders
    reader = clip_reader(store, "train", cfg)

    def opened(encoder: token_cache.Encoder) -> token_cache.Cache:
        return token_cache.open_cache(store, cfg.num_frames, encoder, root)

    def fill() -> None:
        for encoder in encoders:
            if encoder is not None:
                token_cache.fill(opened(encoder), reader, encoder)

    def finish(*arrays: np.ndarray) -> T:
        return make_batch(*to_device(arrays, device))

    processes.on_first(fill)
    inferred = opened(actions) if actions is not None else None
    cached = token_cache.cached_reader(opened(tokens), inferred, reader, finish)
    share = processes.own_clips(cfg.batch_size, cfg.accumulate)
    return cached.batches(cfg.batch_size, cfg.seed, start_step, share)


def held_out(store: data.Store, cfg: RunConfig, count: int, device: torch.device) -> data.Batch:
    """The same few validation clips at every call, at most `count`, for the pictures during
    training."""
    clips = clip_reader(store, "val", cfg).fixed_batch(count)
    return data.Batch(*(torch.from_numpy(array).to(device) for array in clips))


def draw(path: Path, *rows: Tensor) -> None:
    """Write rows of frames, (T, H, W, 3) uint8 each, as a PNG at three times the size, one row
    above another."""
    video.write_png(path, video.enlarge(video.grid(torch.stack(rows).cpu().numpy()), 3))
