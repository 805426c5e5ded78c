"""What the fault tests share: tiny stages in processes that can be killed, and the faults that are
injected."""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import numpy as np
import orbax.checkpoint  # noqa: F401, so that tests.forked imports it before a process is forked
import torch

import generate_dataset
import train_dynamics
import train_lam
import train_tokenizer
from genie_fn import data, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.maskgit import SampleConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import checkpoint, checkpointer, loop, sharding
from genie_fn.training.optim import OptimConfig
from tests import forked

SIDE = 32
STEPS = 24
SAVE = 4
STAGES = ("tokenizer", "lam", "dynamics", "cached")  # the last is the dynamics from the token cache
STACK = STConfig(layers=1, dim=16, heads=2, window=4)
MODELS = {
    "tokenizer": TokenizerConfig(
        patch=16, encoder=STACK, decoder=STACK, quantizer=QuantizerConfig(codes=16)
    ),
    "lam": LamConfig(patch=16, encoder=STACK, decoder=STACK),
    "dynamics": DynamicsConfig(stack=STACK),
}
SCRIPTS = {
    "tokenizer": train_tokenizer,
    "lam": train_lam,
    "dynamics": train_dynamics,
    "cached": train_dynamics,
}


def make_data(root: Path, length: int = 40) -> data.Store:
    """Ten levels of noise that the action shifts: a file per level and array, so that each can be
    damaged separately."""
    store = data.create(root, {}, SIDE, SIDE, 3, ("LEFT", "NOOP", "RIGHT"))
    rng = np.random.default_rng(0)
    recordings = []
    for level in range(10):
        picture = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        actions = rng.integers(0, 3, length)
        frames = np.stack([np.roll(picture, int(x), 1) for x in np.cumsum(actions - 1)])
        recordings.append(
            data.Recording(level, frames, actions, np.zeros(length), np.zeros(length, bool))
        )
    return data.append_segments(store, recordings)


def config(home: Path, stage: str, out: str, **options):
    """The configuration of a tiny stage that writes to home/out."""
    script = SCRIPTS[stage]
    model = MODELS["dynamics" if stage == "cached" else stage]
    if script is train_dynamics:
        options |= {
            "tokenizer": str(home / "tokenizer"),
            "lam": str(home / "lam"),
            "sample": SampleConfig(steps=1),
        }
        options |= {"cache": stage == "cached", "tokens": str(home / f"{out}_tokens")}
    optim = OptimConfig(lr=3e-3, warmup=5, ema=0.9, schedule="cosine")
    sizes = {
        "steps": STEPS,
        "batch_size": 2,
        "num_frames": 4,
        "save_every": SAVE,
        "sample_every": 20,
    }
    places = {"data": str(home / "data"), "out": str(home / out)}
    return script.Config(
        **(places | sizes | {"compile": "off", "optim": optim, "model": model} | options)
    )


def train_stage(home: Path, stage: str, out: str, **options) -> None:
    """A stage in this process."""
    SCRIPTS[stage].main(config(home, stage, out, **options))


def final(run: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """The step and the leaves of a run's newest checkpoint."""
    loaded = checkpoint.load(run, stage="tokenizer")
    return loaded.step, tree.paths(loaded.state)


def differing(run: Path, other: Path) -> list[str]:
    """The paths whose bits differ between the newest checkpoints of two runs."""
    (step, left) = final(run)
    (other_step, right) = final(other)
    assert left.keys() == right.keys()
    steps = [] if step == other_step else [f"step {step}, not {other_step}"]
    return steps + [path for path in left if not torch.equal(left[path], right[path])]


# Processes


def start_ranks(
    log: Path, work: Callable, *arguments, count: int = 2
) -> list[multiprocessing.Process]:
    """`count` processes of one run, as torchrun would start them, each with a clock that is off by
    decades.

    The log of each has its number as a suffix.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    where |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = [where | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [
        forked.start(log.with_suffix(f".{r['RANK']}"), _rank, r, work, arguments) for r in ranks
    ]


def _rank(environment: dict[str, str], work: Callable, arguments: tuple) -> None:
    os.environ.update(environment)
    sharding.SMALL = 30  # most leaves are to be divided
    real = time.time
    off = random.Random(str(environment)).uniform(-1e9, 1e9)
    with mock.patch("time.time", lambda: real() + off):
        work(*arguments)


def end_ranks(processes: list[multiprocessing.Process], seconds: float = 600) -> list[int]:
    """The exit codes of processes that have to end by themselves: the others soon after the
    first."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def work_of(home: Path, stage: str, out: str, resume: bool = False) -> None:
    """Train a stage, in a process."""
    train_stage(home, stage, out, resume=resume)


def slowly(home: Path, stage: str, out: str, resume: bool = False) -> None:
    """Train a stage slowly, so that it is not over before it is disturbed."""
    with at_step(None, lambda: time.sleep(0.2)):
        train_stage(home, stage, out, resume=resume)


def poisoned_in(ranks: tuple[str, ...], home: Path, stage: str, out: str) -> None:
    """Train a stage with NaN gradients at some steps in some of its processes."""
    with poisoned({3, 5, 6} if os.environ["RANK"] in ranks else ()):
        train_stage(home, stage, out)


def collect(root: Path, levels: int = 12) -> None:
    """Collect a dataset, in a process."""
    generate_dataset.main(collection(root, levels))


def collection(root: Path, levels: int = 12) -> generate_dataset.Config:
    return generate_dataset.Config(
        root=str(root), num_levels=levels, steps_per_level=200, workers=1
    )


def wait_for(
    condition: Callable[[], object], process: multiprocessing.Process, seconds: float = 120.0
) -> bool:
    """Whether `condition` came true before the process ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if not process.is_alive():
            return bool(condition())
        time.sleep(0.002)
    raise TimeoutError


def kill_repeatedly(
    log: Path,
    work: Callable[[bool], tuple],
    saving: Callable[[], bool],
    kills: int,
    longest: float,
    chance: random.Random,
) -> Iterator[str]:
    """Start `work(resume)` and kill it, again and again, yielding when it was killed, until it has
    ended by itself.

    Half of the moments are drawn uniformly from [0, longest] seconds; the others are while
    `saving()` is true.
    """
    killed = 0
    while True:
        process = forked.start(log, *work(killed > 0))
        if killed < kills:
            began = time.monotonic()
            after = chance.uniform(0, longest)
            aimed = chance.random() < 0.5
            wait_for(lambda: saving() if aimed else time.monotonic() - began > after, process)  # noqa: B023
            if aimed:
                time.sleep(chance.uniform(0, 0.05))
        else:
            process.join(300)
        alive = process.is_alive()
        process.kill()
        process.join()
        if alive and killed < kills:
            killed += 1
            yield "in a save" if aimed else "at random"
        elif process.exitcode == 0:
            return
        elif process.exitcode != -signal.SIGKILL:
            raise AssertionError(f"exit code {process.exitcode}:\n{log.read_text()[-2000:]}")


# Faults


def flip(path: Path, at: float = 0.5) -> None:
    """Flip one bit of a file, at the fraction `at` of its length."""
    content = bytearray(path.read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 4
    path.write_bytes(content)


def largest(folder: Path) -> Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None] | None]:
    """`folder` on a small file system of its own. Yields a function that fills it up and frees it;
    None if mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", *options], capture_output=True).returncode
    ):
        yield None
        return
    ballast = folder / "ballast"

    def fill(free: bool = False) -> None:
        ballast.unlink(missing_ok=True)
        if not free:
            with suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * 4096)

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.005)


@contextmanager
def failed_saves() -> Iterator[list[int]]:
    """The steps whose checkpoints could not be written within the context."""
    failed = []
    original = checkpointer.write

    def write(run, step, *content):
        try:
            original(run, step, *content)
        except BaseException:
            failed.append(step)
            raise

    with mock.patch.object(checkpointer, "write", write):
        yield failed


@contextmanager
def at_step(step: int | None, act: Callable[[], object]) -> Iterator[None]:
    """Within it, training calls `act` before it takes the batch of `step`, counted from 0; None: of
    every step."""
    original = loop.fit

    def fit(step_fn, state, batches, cfg, sample):
        def interrupted(source=batches, now=int(state.step)):
            for batch in source:
                if step in (now, None):
                    act()
                now += 1
                yield batch

        return original(step_fn, state, interrupted(), cfg, sample)

    with mock.patch.object(loop, "fit", fit):
        yield


@contextmanager
def poisoned(steps: Container[int]) -> Iterator[None]:
    """Within it, the gradients of these steps are NaN."""
    original = tree.value_and_grad

    def value_and_grad(loss_fn: Callable, **options) -> Callable:
        def wrapped(params, batch, key, step, *rest):
            result, grads = original(loss_fn, **options)(params, batch, key, step, *rest)
            return result, tree.map(lambda g: g * np.nan, grads) if int(step) in steps else grads

        return wrapped

    with mock.patch.object(tree, "value_and_grad", value_and_grad):
        yield


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scramble_times(folder: Path, chance: random.Random) -> None:
    """Give every file and folder a random time, from 1970 to 2100, as a clock that jumps would."""
    for path in folder.rglob("*"):
        moment = chance.uniform(0, 4e9)
        with suppress(FileNotFoundError):
            os.utime(path, (moment, moment))
