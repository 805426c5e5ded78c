"""Signals and kills of a real torchrun and its processes; `cases.RANKS` tries other faults without
torchrun."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from genie_fn.training import checkpoint
from tests.faults import rig

ROOT = Path(__file__).parent.parent.parent
STEPS = 400
STACK = {"layers": 1, "dim": 16, "heads": 2}
FLAGS = {
    "steps": STEPS,
    "batch-size": 2,
    "num-frames": 4,
    "save-every": 20,
    "compile": "off",
    "model.patch": 16,
}
FLAGS |= {
    f"model.{net}.{name}": value for net in ("encoder", "decoder") for name, value in STACK.items()
}


def torchrun(home: Path, out: str) -> subprocess.Popen:
    """train_tokenizer.py in two processes, resumed from its newest checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = FLAGS | {"data": home / "data", "out": home / out}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(port),
    ]
    command += [
        "train_tokenizer.py",
        "--cfg.resume",
        *(f"--cfg.{name}={value}" for name, value in flags.items()),
    ]
    with open(home / f"{out}.log", "a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def disturbed(home: Path, out: str, disturb: Callable[[int, list[int]], None]) -> tuple[int, str]:
    """torchrun's exit code and output, when `disturb(torchrun, its processes)` is called after a
    save."""
    before = checkpoint.latest(home / out) or 0
    log = home / f"{out}.log"
    printed = len(log.read_text()) if log.exists() else 0
    process = torchrun(home, out)
    try:
        rig.wait_until(
            lambda: (checkpoint.latest(home / out) or 0) > before or process.poll() is not None
        )
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(workers) == 2, log.read_text()[printed:][-3000:]
        disturb(process.pid, [*map(int, workers)])
        code = process.wait(300)
    finally:
        process.kill()
    rig.wait_until(lambda: not any(Path(f"/proc/{worker}/cwd").exists() for worker in workers))
    assert checkpoint.latest(home / out) < STEPS, "it was over before it was disturbed"
    return code, log.read_text()[printed:]


def send(number: signal.Signals, *processes: int) -> None:
    for process in processes:
        os.kill(process, number)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/task").exists(),
    reason="only Linux says which processes torchrun has started",
)
def test_a_disturbed_torchrun_ends_as_an_undisturbed_one(tmp_path):
    rig.make_data(tmp_path / "data")
    assert torchrun(tmp_path, "whole").wait() == 0, (tmp_path / "whole.log").read_text()[-3000:]

    code, printed = disturbed(
        tmp_path, "run", lambda parent, workers: send(signal.SIGTERM, workers[1])
    )
    assert code, "both save and leave when one is told to, and torchrun says that they are not done"
    assert printed.count("stopped and saved at step") == 1

    def by_a_scheduler(parent: int, workers: list[int]) -> None:
        send(signal.SIGTERM, *workers, parent)  # and torchrun sends it on

    code, printed = disturbed(tmp_path, "run", by_a_scheduler)
    assert code and printed.count("stopped and saved at step") == 1, (
        "torchrun itself fails when it is told to end"
    )
    assert f"stopped and saved at step {checkpoint.latest(tmp_path / 'run')}" in printed
    assert "forcefully" not in printed

    code, printed = disturbed(
        tmp_path, "run", lambda parent, workers: send(signal.SIGKILL, workers[1])
    )
    assert code
    code, printed = disturbed(
        tmp_path, "run", lambda parent, workers: send(signal.SIGKILL, parent, *workers)
    )
    assert code == -signal.SIGKILL

    assert torchrun(tmp_path, "run").wait() == 0, (tmp_path / "run.log").read_text()[-3000:]
    assert not rig.differing(tmp_path / "run", tmp_path / "whole")
    rows = [[row["step"] for row in rig.metrics(tmp_path / out)] for out in ("run", "whole")]
    assert rows[0] == rows[1]
