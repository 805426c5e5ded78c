"""The faults, a function each: it injects the fault into a stage, asserts that nothing was lost,
and returns what happened.

`home` holds the dataset, the finished stages of `prepare`, and what the cases write.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from genie_fn import data
from genie_fn.bundle import load_stage
from genie_fn.data import storage, token_cache
from genie_fn.errors import UserError
from genie_fn.runtime.signals import TERMINATED
from genie_fn.training import checkpoint, loop
from tests import forked
from tests.faults import rig


def prepare(home: Path) -> Path:
    """Make the dataset, and train every stage to its end without a fault."""
    rig.make_data(home / "data")
    for stage in rig.STAGES:
        rig.train_stage(home, stage, stage)
    return home


def assert_same(home: Path, stage: str, out: str) -> None:
    wrong = rig.differing(home / out, home / stage)
    assert not wrong, f"{out} differs from an undisturbed run in {wrong[:3]}"
    steps = [row["step"] for row in rig.metrics(home / out)]
    assert steps == [row["step"] for row in rig.metrics(home / stage)], (
        "metrics are missing or there twice"
    )


def in_a_line(capture: str) -> str:
    """Console output in one line."""
    return " ".join(capture.split())


def kills(home: Path, stage: str, chance: random.Random, count: int = 30) -> str:
    """kill -9: the final state is that of an undisturbed run, and every start resumes from the
    newest checkpoint."""
    moments = []
    done = 0
    begun = time.monotonic()
    while done < count:
        out = f"killed_{stage}_{done}"
        log = home / f"{out}.log"
        saves = home / out / "checkpoints"

        def saving(saves: Path = saves) -> bool:
            return saves.is_dir() and any(not path.name.isdigit() for path in saves.iterdir())

        def work(again: bool, out: str = out) -> tuple:
            return rig.work_of, home, stage, out, (home / out / "checkpoints").exists()

        log.touch()
        newest = []
        for moment in rig.kill_repeatedly(log, work, saving, count - done, 1.5, chance):
            moments.append(moment)
            newest.append(checkpoint.latest(home / out))
        done += len(newest)
        resumed_at = [
            int(line.split()[-1])
            for line in log.read_text().splitlines()
            if line.startswith("continuing")
        ]
        # A start that was killed before it had read its checkpoint prints nothing.
        assert set(resumed_at) <= {step for step in newest if step}, (resumed_at, newest)
        assert resumed_at == sorted(resumed_at), (resumed_at, newest)
        assert_same(home, stage, out)
        if not newest:
            break  # it had ended before it could be killed
    return f"{done} kills, {moments.count('in a save')} of them in a save, {time.monotonic() - begun:.0f} s"


def full_disk(home: Path, stage: str, chance: random.Random) -> str:
    """Two failed saves in a row end the run, and the last good checkpoint is intact; after a single
    one it continues."""
    with rig.small_disk(home / "small", 4096) as fill:
        if fill is None:
            pytest.skip("no file system of its own may be mounted here")
        out = f"small/{stage}"

        def fill_after_step_8() -> None:
            rig.wait_until(lambda: checkpoint.latest(home / out) == 8)
            fill()

        with (
            rig.at_step(10, fill_after_step_8),
            pytest.raises(UserError, match="No space left.*saved step is 8"),
        ):
            rig.train_stage(home, stage, out)
        assert rig.final(home / out)[0] == 8
        assert all(path.name.isdigit() for path in (home / out / "checkpoints").iterdir()), (
            "partial files of a failed save are left"
        )
        fill(free=True)

        def free_after_a_failure() -> None:
            rig.wait_until(lambda: failed)
            fill(free=True)

        with (
            rig.failed_saves() as failed,
            rig.at_step(9, fill),
            rig.at_step(14, free_after_a_failure),
        ):
            rig.train_stage(home, stage, out, resume=True)
        assert failed == [12]
        assert_same(home, stage, out)
    return "ended after two failed saves, step 8 intact; continued after a single one"


def full_disk_while_collecting(home: Path, chance: random.Random) -> str:
    """The finished levels are kept, and the same command collects the others with the same
    bytes."""
    whole = home / "collected"
    if not whole.exists():
        rig.collect(whole)
    with rig.small_disk(home / "small", 3000) as fill:
        if fill is None:
            pytest.skip("no file system of its own may be mounted here")
        root = home / "small" / "data"
        with pytest.raises(UserError, match="No space left.*the same command continues"):
            rig.collect(root)
        kept = len(data.open_store(root).segments)
        assert data.verify(data.open_store(root)) == kept * 200 and kept < 12
        shutil.copytree(root, home / "grown")
    rig.collect(home / "grown")
    assert content(home / "grown") == content(whole)
    return f"{kept} of 12 levels were kept, the others were collected afterwards"


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def kills_while_collecting(home: Path, chance: random.Random, count: int = 30) -> str:
    whole = home / "collected"
    moments = []
    if not whole.exists():
        rig.collect(whole)
    while len(moments) < count:
        root = home / f"collected_{len(moments)}"
        log = home / "collect.log"

        def writing(root: Path = root) -> bool:
            return bool([*root.rglob("*.__lock")] or [*root.glob(".store.json.*")])

        def work(again: bool, root: Path = root) -> tuple:
            return rig.collect, root

        log.touch()
        before = len(moments)
        moments += rig.kill_repeatedly(
            log, work, writing, min(6, count - len(moments)), 0.8, chance
        )
        assert content(root) == content(whole)
        if len(moments) == before:
            break
    return f"{len(moments)} kills, {moments.count('in a save')} of them in a write"


def damaged_checkpoint(home: Path, stage: str, chance: random.Random, count: int = 3) -> str:
    """One flipped bit, or a truncated file, in the newest checkpoint: loading gives the right state
    or an older one."""
    passed = 0
    run = home / f"damaged_{stage}"
    for at in range(count):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(home / stage, run)
        newest = run / "checkpoints" / str(rig.STEPS)
        found = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
        path = rig.largest(newest) if at < 2 else chance.choice(found)
        if at % 2:
            path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
        else:
            rig.flip(path, chance.random())
        with mock.patch.object(checkpoint.console, "print") as printed:
            step, leaves = rig.final(run)
            load_stage(run, "dynamics" if stage == "cached" else stage)
        if step == rig.STEPS:
            # Not every byte of a file is in use: orbax leaves nodes that a later tree replaces.
            assert not rig.differing(run, home / stage), f"{path} changed what is loaded"
            continue
        passed += 1
        assert f"step {step} is used instead" in str(printed.call_args)
        rig.train_stage(home, stage, run.name, resume=True)
        assert_same(home, stage, run.name)
        assert (run / "damaged" / str(rig.STEPS)).is_dir()
    assert passed > 0
    for newest in (run / "checkpoints").iterdir():
        rig.flip(rig.largest(newest))
    with pytest.raises(UserError, match="cannot be read.*no older one"):
        rig.train_stage(home, stage, run.name, resume=True)
    return f"{count} damaged, {passed} reported and passed over, the others without consequence"


def damaged_data(home: Path, stage: str, chance: random.Random) -> str:
    """Refused, naming level and file, or skipped; a stopped run then ends with the same state as
    one that was not."""
    places = home / f"places_{stage}"
    name = f"frames/c/{3}/0/0/0"
    shutil.copytree(home / "data", places / "data", ignore=shutil.ignore_patterns("tokens"))
    path = places / "data" / name
    rig.flip(path, 0.4)
    here = {"data": str(places / "data")}
    with pytest.raises(UserError, match=f"level 3 of .*in the file .*{name}.*--cfg.damaged skip"):
        rig.train_stage(home, stage, f"refused_{stage}", **here)
    skip = here | {"damaged": "skip"}
    rig.train_stage(home, stage, f"skipped_{stage}", **skip)

    def stop() -> None:
        signal.raise_signal(signal.SIGTERM)

    with rig.at_step(10, stop), pytest.raises(SystemExit):
        rig.train_stage(home, stage, f"stopped_{stage}", **skip)
    rig.train_stage(home, stage, f"stopped_{stage}", resume=True, **skip)
    assert not rig.differing(home / f"stopped_{stage}", home / f"skipped_{stage}")
    count = rig.metrics(home / f"skipped_{stage}")[-1]["clips_skipped"]
    assert stage == "cached" or count > 0
    return f"refused with its name; {count:.0f} clips replaced, the same ones in a resumed run"


def poisoned_steps(home: Path, stage: str, chance: random.Random) -> str:
    """A NaN now and then changes only the counters; NaN at every step stops the run with the state
    before it."""
    out = f"nan_{stage}"
    with rig.poisoned({3, 5, 6}):
        rig.train_stage(home, stage, out)
    assert rig.metrics(home / out)[-1]["skipped"] == 3
    _, leaves = rig.final(home / out)
    assert all(x.isfinite().all() for x in leaves.values())
    with (
        mock.patch.object(loop, "PATIENCE", 6),
        rig.poisoned(range(8, 99)),
        pytest.raises(UserError, match="not finite for 6 steps in a row.*--cfg.resume"),
    ):
        rig.train_stage(home, stage, f"{out}_stuck")
    step, stuck = rig.final(home / f"{out}_stuck")
    assert 14 <= step < rig.STEPS and all(x.isfinite().all() for x in stuck.values())
    rig.train_stage(home, stage, f"{out}_stuck", resume=True)
    assert rig.final(home / f"{out}_stuck")[0] == rig.STEPS
    return f"3 steps skipped; stopped at step {step} after 6 in a row, and continued"


def sigterm(home: Path, stage: str, chance: random.Random) -> str:
    """SIGTERM, as from a scheduler: a save, exit code 143, and the final state of an undisturbed
    run when resumed."""
    out = f"terminated_{stage}"
    process = forked.start(home / f"{out}.log", rig.slowly, home, stage, out)
    assert rig.wait_for(lambda: checkpoint.latest(home / out), process)
    began = time.monotonic()
    process.terminate()
    process.join(60)
    seconds = time.monotonic() - began
    assert process.exitcode == TERMINATED, (home / f"{out}.log").read_text()[-2000:]
    step = checkpoint.latest(home / out)
    assert step < rig.STEPS
    rig.train_stage(home, stage, out, resume=True)
    assert_same(home, stage, out)
    return f"saved step {step} and exited with {process.exitcode} in {seconds:.1f} s"


def two_at_once(home: Path, stage: str, chance: random.Random) -> str:
    """Two runs in one folder: the second is refused until the first has ended, even if it was
    killed."""
    out = f"shared_{stage}"
    process = forked.start(home / f"{out}.log", rig.slowly, home, stage, out)
    assert rig.wait_for(lambda: checkpoint.latest(home / out), process)
    os.kill(
        process.pid, signal.SIGSTOP
    )  # it would be over before a slow machine has begun the second
    with pytest.raises(UserError, match=f"another process .* {home / out}"):
        rig.train_stage(home, stage, out, resume=True)
    process.kill()
    process.join()
    rig.train_stage(home, stage, out, resume=True)
    assert_same(home, stage, out)
    return "the second was refused, and could train once the first was killed"


def jumping_clock(home: Path, stage: str, chance: random.Random) -> str:
    """A clock that jumps, and files with arbitrary times: neither the order nor the bits change."""
    out = f"clock_{stage}"
    real = time.time
    ahead = [0.0]

    def jump() -> None:
        ahead[0] = chance.uniform(-1e9, 1e9)
        rig.scramble_times(home / out, chance)

    with (
        mock.patch("time.time", lambda: real() + ahead[0]),
        rig.at_step(6, jump),
        rig.at_step(14, jump),
    ):
        with (
            rig.at_step(15, lambda: signal.raise_signal(signal.SIGTERM)),
            pytest.raises(SystemExit),
        ):
            rig.train_stage(home, stage, out)
        jump()
        rig.train_stage(home, stage, out, resume=True)
    assert_same(home, stage, out)
    assert all(0 <= row["seconds"] < 600 for row in rig.metrics(home / out))
    return "stopped, and resumed to the same bits"


def two_collectors(home: Path, chance: random.Random) -> str:
    root = home / "collected_by_two"
    process = forked.start(home / "two.log", rig.collect, root, 500)
    assert rig.wait_for(lambda: (root / data.MANIFEST).exists(), process)
    with pytest.raises(UserError, match=f"another process collects into {root}"):
        rig.collect(root, 500)
    process.terminate()
    process.join(60)
    assert process.exitcode == TERMINATED
    kept = len(data.open_store(root).segments)
    rig.collect(root, kept + 1)
    return f"the second was refused; SIGTERM ended the first with {kept} levels"


def two_fillers(home: Path, chance: random.Random) -> str:
    store = data.open_store(home / "data")
    encoder = token_cache.Encoder(
        lambda frames: np.zeros((*frames.shape[:2], 4), np.int64), "x", "past", (4,), 16
    )
    reader = data.ClipReader(store, "train", 4)
    cache = token_cache.open_cache(store, 4, encoder, home / "fillers")

    def again(frames: np.ndarray) -> np.ndarray:
        with pytest.raises(UserError, match="another process fills the token cache"):
            token_cache.fill(cache, reader, encoder)
        return encoder.encode(frames)

    filled = token_cache.fill(cache, reader, encoder._replace(encode=again))
    assert len(filled.encoded) == 8
    return "the second was refused"


# Two processes that train one model


def prepare_ranks(home: Path, stage: str) -> Path:
    """The undisturbed run of two processes, trained when it is first needed."""
    if not (home / f"two_{stage}").exists():
        finish_ranks(home, stage, f"two_{stage}", False)
    return home / f"two_{stage}"


def finish_ranks(home: Path, stage: str, out: str, resume: bool = True) -> None:
    """Train to the end in two processes."""
    codes = rig.end_ranks(rig.start_ranks(home / out, rig.work_of, home, stage, out, resume))
    assert codes == [0, 0], (codes, logs(home, out))


def logs(home: Path, out: str) -> list[str]:
    return [in_a_line((home / f"{out}.{rank}").read_text()) for rank in (0, 1)]


def assert_resumes_to_the_same(home: Path, stage: str, out: str) -> None:
    whole = prepare_ranks(home, stage)
    finish_ranks(home, stage, out)
    assert_same(home, whole.name, out)


def ranks_terminated(home: Path, stage: str, chance: random.Random) -> str:
    """SIGTERM to all processes, twice, because torchrun forwards it: one save, and all exit with
    143."""
    out = f"ranks_terminated_{stage}"
    processes = rig.start_ranks(home / out, rig.slowly, home, stage, out)
    assert rig.wait_for(lambda: checkpoint.latest(home / out), processes[0])
    for _ in range(2):
        for process in processes:
            process.terminate()
        time.sleep(0.05)
    assert rig.end_ranks(processes) == [TERMINATED] * 2, logs(home, out)
    step = checkpoint.latest(home / out)
    assert step < rig.STEPS and logs(home, out)[0].count("stopped and saved") == 1, logs(home, out)
    assert_resumes_to_the_same(home, stage, out)
    return f"saved step {step}, exit codes {TERMINATED}"


def ranks_killed(home: Path, stage: str, chance: random.Random) -> str:
    """kill -9 of one process, then of the other, then of both; a second run at the same time is
    refused in all its processes."""
    out = f"ranks_killed_{stage}"
    resume = False
    for victims in ([1], [0], [0, 1]):
        before = checkpoint.latest(home / out) or 0
        processes = rig.start_ranks(home / out, rig.slowly, home, stage, out, resume)
        assert rig.wait_for(lambda: (checkpoint.latest(home / out) or 0) > before, processes[0])  # noqa: B023
        if len(victims) == 2:
            second = rig.start_ranks(home / "second", rig.slowly, home, stage, out, True)
            assert rig.end_ranks(second) == [2, 2], logs(home, "second")
            assert all(
                f"another process trains in {home / out}" in log for log in logs(home, "second")
            )
        time.sleep(chance.uniform(0, 0.2))
        for victim in victims:
            processes[victim].kill()
        codes = rig.end_ranks(processes)
        assert all(codes) and checkpoint.latest(home / out) < rig.STEPS, (codes, logs(home, out))
        resume = True
    assert_resumes_to_the_same(home, stage, out)
    return "the other process ended, too; resumed to the same bits; a second run was refused"


def ranks_damaged_data(home: Path, stage: str, chance: random.Random) -> str:
    """A damaged file that only the second process reads: both save and end with the same error, and
    resume once it is restored."""
    out = f"ranks_damaged_{stage}"
    store = data.open_store(home / "data")
    starts = data.clip_starts(store, "train", 4)
    first = {}
    for step in range(rig.STEPS):
        for rank, offset in enumerate(data.clip_offsets(starts, 0, step, 2).tolist()):
            first.setdefault(offset // storage.BLOCK, (step, rank))
    block, step = max(
        ((b, s) for b, (s, rank) in first.items() if rank == 1), key=lambda found: found[1]
    )
    path = home / "data" / "frames" / "c" / str(block) / "0" / "0" / "0"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    try:
        codes = rig.end_ranks(rig.start_ranks(home / out, rig.work_of, home, stage, out))
    finally:
        path.write_bytes(content)
    assert codes == [2, 2] and all(f"in the file {path}" in log for log in logs(home, out)), (
        codes,
        logs(home, out),
    )
    assert (checkpoint.latest(home / out) or 0) == step > 0
    assert_resumes_to_the_same(home, stage, out)
    return f"both ended, naming the file, saved at step {step}"


def ranks_full_disk(home: Path, stage: str, chance: random.Random) -> str:
    """Two saves of the first process fail: both end with the same error, and the last good
    checkpoint is intact."""
    with rig.small_disk(home / "small", 4096) as fill:
        if fill is None:
            pytest.skip("no file system of its own may be mounted here")
        out = f"small/{stage}"
        log = f"ranks_full_{stage}"
        processes = rig.start_ranks(home / log, rig.slowly, home, stage, out)
        assert rig.wait_for(lambda: checkpoint.latest(home / out), processes[0])
        fill()
        codes = rig.end_ranks(processes)
        fill(free=True)
        step = checkpoint.latest(home / out)
        wanted = f"No space left on device); the last saved step is {step}"
        assert codes == [2, 2] and all(wanted in printed for printed in logs(home, log)), (
            codes,
            logs(home, log),
        )
        assert_resumes_to_the_same(home, stage, out)
    return f"both ended, step {step} intact"


def ranks_poisoned(home: Path, stage: str, chance: random.Random) -> str:
    """Both processes skip a step with NaN gradients in one of them."""
    one = f"ranks_nan_{stage}"
    both = f"ranks_nans_{stage}"
    for out, ranks in ((one, "1"), (both, "01")):
        codes = rig.end_ranks(
            rig.start_ranks(home / out, rig.poisoned_in, tuple(ranks), home, stage, out)
        )
        assert codes == [0, 0], (codes, logs(home, out))
    assert rig.metrics(home / one)[-1]["skipped"] == 3
    assert_same(home, both, one)
    return "3 steps skipped by both"


CASES = (
    kills,
    full_disk,
    damaged_checkpoint,
    damaged_data,
    poisoned_steps,
    sigterm,
    two_at_once,
    jumping_clock,
)
RANKS = (ranks_terminated, ranks_killed, ranks_damaged_data, ranks_full_disk, ranks_poisoned)
COLLECTING = (kills_while_collecting, full_disk_while_collecting, two_collectors, two_fillers)
torch.set_num_threads(1)
