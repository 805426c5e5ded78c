"""What only a GPU can show, within a fixed time: the kernels' tests on it, speed, and a world trained on it.

    python gpu.py                                            # 11 minutes on one large GPU; make gpu
    python gpu.py --cfg.data data/coinrun                    # with a dataset, instead of a new one
    python gpu.py --cfg.toy --cfg.out toy-results            # every part at toy size, on any machine

Each part is a process of its own, which is ended when its time is over; the next part then begins. What a
part has written by then is kept: measurements in benchmarks/results, the world's row in
benchmarks/records, the world file, and in gpu.json how each part ended. `python benchmark.py
--cfg.suite table` writes the measurements into the documentation.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

from genie_fn.errors import UserError
from genie_fn.runtime import backend, files, provenance
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import console

ROOT = Path(__file__).parent
KERNEL_TESTS = (
    "tests/kernels/test_time_attention.py",
    "tests/kernels/test_space_attention.py",
    "tests/kernels/test_lfq.py",
    "tests/runtime/test_compilation.py",
)
GRACE = 10.0
"""Seconds that a part has to end by itself, once it was asked to."""


@dataclass(frozen=True)
class Seconds:
    """The longest time of each part; the world is trained in what is left."""

    tests: float = 120
    attention: float = 60
    lfq: float = 30
    step: float = 90
    play: float = 60


@dataclass(frozen=True)
class Config:
    minutes: float = 11
    """The time for everything."""
    seconds: Seconds = field(default_factory=Seconds)
    data: str = ""
    """The dataset that the world is trained on; empty: a new one is collected."""
    levels: int = 1000
    """The number of levels to collect, without --cfg.data."""
    preset: str = "small"
    """The preset of the world."""
    world: str = "small.safetensors"
    """The file of the world."""
    out: str = "benchmarks/results"
    """The folder of the measurements."""
    records: str = "benchmarks/records"
    """The folder for the row of the world."""
    runs: str = "runs/gpu"
    """A new folder, for the dataset and the runs of the world."""
    toy: bool = False
    """Every part at toy size and uncompiled, to try this script on any machine."""
    device: str = "auto"
    """A device of torch, such as cpu or cuda; `auto` is a GPU if there is one."""

    def __post_init__(self):
        limits = vars(self.seconds).values()
        if min(limits) <= 0 or sum(limits) >= 60 * self.minutes:
            raise UserError(
                "each of --cfg.seconds must be above 0, and together less than --cfg.minutes"
            )
        if Path(self.world).suffix != ".safetensors":
            raise UserError(f"--cfg.world {self.world} should end in .safetensors")


class Part(NamedTuple):
    """A command, and the seconds after which it is ended."""

    name: str
    command: list[str]
    seconds: float


def parts_before_the_world(cfg: Config) -> list[Part]:
    """Tests and measurements, the most important first."""
    tests = [str(ROOT / name) for name in KERNEL_TESTS]
    if cfg.toy:
        tests = [f"{ROOT / 'tests/kernels/test_lfq.py'}::test_sure_latents_have_finite_gradients"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests]
    limits = cfg.seconds
    return [
        Part("tests", pytest, limits.tests),
        Part("attention", measure(cfg, "attention"), limits.attention),
        Part("lfq", measure(cfg, "lfq"), limits.lfq),
        Part("step", measure(cfg, "step", "--cfg.presets", cfg.preset), limits.step),
        Part("play", measure(cfg, "play", "--cfg.presets", "demo"), limits.play),
    ]


def measure(cfg: Config, suite: str, *flags: str) -> list[str]:
    """The command that measures a suite."""
    command = [sys.executable, str(ROOT / "benchmark.py"), f"--cfg.suite={suite}", *flags]
    command += [f"--cfg.out={cfg.out}", f"--cfg.device={cfg.device}"]
    return command + (["--cfg.repeats=1", "--cfg.compile=off"] if cfg.toy else [])


def world(cfg: Config, seconds: float) -> Part:
    """The world, trained and evaluated in the seconds that are left."""
    clips, preset = (4, "demo") if cfg.toy else (256, cfg.preset)
    command = [sys.executable, str(ROOT / "speedrun.py"), f"--cfg.preset={preset}"]
    command += [f"--cfg.minutes={(seconds - GRACE) / 60:.2f}", f"--cfg.clips={clips}"]
    command += [f"--cfg.out={cfg.runs}", f"--cfg.records={cfg.records}"]
    command += [f"--cfg.world={cfg.world}"]
    command += [f"--cfg.data={cfg.data}"] if cfg.data else [f"--cfg.levels={cfg.levels}"]
    return Part("world", command, seconds)


def execute(part: Part) -> dict[str, Any]:
    """Run a part for at most its time. Returns how it ended: its exit status, or None if it was ended."""
    console.rule(f"{part.name}, at most {part.seconds:.0f} s")
    began = time.monotonic()
    process = subprocess.Popen(part.command, cwd=ROOT)
    try:
        status = process.wait(part.seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        end(process)
    seconds = round(time.monotonic() - began, 1)
    return {"status": status, "seconds": seconds, "command": part.command[1:]}


def end(process: subprocess.Popen) -> None:
    """End a process that still runs, at first by asking."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(cfg: Config) -> None:
    deadline = time.monotonic() + 60 * cfg.minutes
    device = backend.pick_device(cfg.device)
    if device.type == "cpu" and not cfg.toy:
        raise UserError("this needs a GPU; --cfg.toy tries it on a CPU at toy size")
    path = Path(cfg.out) / "gpu.json"
    files.check_outputs("--cfg.out", path)
    files.check_outputs("--cfg.world", cfg.world)
    machine = provenance.describe(device)
    ended: dict[str, Any] = {}

    def keep(part: Part) -> None:
        ended[part.name] = execute(part)
        files.write_text(path, json.dumps(machine | {"parts": ended}, indent=1) + "\n")

    for part in parts_before_the_world(cfg):
        keep(part)
    keep(world(cfg, deadline - time.monotonic()))
    for name, part in ended.items():
        status = part["status"]
        outcome = (
            "ended, its time was over" if status is None else "passed" if not status else "failed"
        )
        print(f"{name}: {outcome}, {part['seconds']:.0f} s")
    print(f"written: {path}")
    if any(part["status"] != 0 for part in ended.values()):
        raise UserError("not every part passed: what is above says why")


if __name__ == "__main__":
    run(main)
