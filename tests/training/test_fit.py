"""The training loop around a toy step: time budgets, profiles, pictures that cannot be drawn."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from genie_fn.errors import UserError
from genie_fn.training import checkpoint, clock, loop
from genie_fn.training.config import RunConfig
from genie_fn.training.profile import WARM_UP
from genie_fn.training.step import TrainState

CFG = RunConfig(steps=8, compile="off", save_every=1000, sample_every=1000)


class Toy:
    """A step that only takes time, and remembers the totals that it was given."""

    def __init__(self, seconds: float = 0.0, stop_at: int | None = None):
        self.seconds = seconds
        self.stop_at = stop_at
        self.totals = []

    def __call__(self, state, batch, key, *schedule):
        time.sleep(self.seconds)
        self.totals.append(*schedule or [None])
        if int(state.step) == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        metrics = {"loss": torch.tensor(1.0), "skipped_in_a_row": state.skipped[1]}
        return state._replace(step=state.step + 1), metrics


def state_at(step: int = 0) -> TrainState:
    params = {"w": torch.ones(3)}
    moments = {"m": params, "v": params}
    counters = torch.tensor(step), torch.zeros(2, dtype=torch.int64)
    return TrainState(counters[0], params, moments, {}, {}, counters[1])


def fit(cfg, toy, step=0, sample=lambda weights, path: path.touch()):
    return loop.fit(toy, state_at(step), iter(int, 1), cfg, sample)


def metrics(cfg) -> list[dict]:
    with open(f"{cfg.out}/metrics.jsonl") as file:
        return [json.loads(line) for line in file]


def test_without_a_budget_a_step_gets_no_total(tmp_path):
    toy = Toy()
    state = fit(replace(CFG, out=str(tmp_path)), toy)
    assert int(state.step) == 8 and toy.totals == [None] * 8


def test_a_run_in_another_thread_saves_and_logs_its_steps(tmp_path, capsys):
    cfg = replace(CFG, out=str(tmp_path / "lam"), steps=10)
    with ThreadPoolExecutor(1) as pool:
        state = pool.submit(fit, cfg, Toy()).result()
    assert int(state.step) == checkpoint.latest(cfg.out) == 10
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "lam, step: 0 of 10"
    assert lines[1].startswith("lam, step: 10 of 10, loss 1.000, in ")


def test_a_time_budget_ends_the_run_and_tells_the_step_how_long_it_will_be(tmp_path):
    cfg = replace(CFG, out=str(tmp_path), minutes=0.02)
    toy = Toy(seconds=0.02)
    done = int(fit(cfg, toy).step)
    seconds = checkpoint.seconds_trained(tmp_path, done)
    assert 1.2 <= seconds < 1.2 + 0.5
    assert checkpoint.latest(tmp_path) == done == metrics(cfg)[-1]["step"]
    assert (tmp_path / "samples" / f"{done:07d}.png").exists()
    assert all(total.shape == () and total.dtype == torch.float32 for total in toy.totals)
    assert toy.totals[0] == clock.MANY_STEPS, "unknown before the first step"
    assert done - 1 <= float(toy.totals[-1]) < 1.1 * done
    # Step / total is the share of the time that has elapsed, so the decay of a schedule ends on time.
    shares = [step / float(total) for step, total in enumerate(toy.totals)]
    assert shares == sorted(shares) and 0.9 < shares[-1] < 1


def test_a_run_with_a_time_budget_resumes_with_the_time_that_is_left(tmp_path):
    cfg = replace(CFG, out=str(tmp_path), minutes=0.02)
    with pytest.raises(SystemExit):
        fit(cfg, Toy(seconds=0.1, stop_at=6))
    before = checkpoint.seconds_trained(tmp_path, 7)
    assert before >= 0.7
    toy = Toy(seconds=0.1)
    done = int(fit(cfg, toy, step=7).step)
    assert len(toy.totals) == done - 7 <= 5
    assert 1.2 <= checkpoint.seconds_trained(tmp_path, done) < 1.2 + 0.5
    assert int(fit(cfg, toy, step=done).step) == done, "nothing is left to do"


def test_a_profile_holds_the_named_regions(tmp_path, capsys):
    cfg = replace(CFG, out=str(tmp_path), profile=2, save_every=WARM_UP + 1)
    fit(cfg, Toy())
    trace = json.loads((tmp_path / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    for region in ("wait for batch", "step", "log", "save"):
        assert region in names, region
    assert "profile of 2 steps: " in capsys.readouterr().err


def test_a_run_too_short_for_a_profile_says_so(tmp_path, capsys):
    fit(replace(CFG, out=str(tmp_path), profile=2, steps=1), Toy())
    assert not (tmp_path / "trace.json").exists()
    assert "no profile" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_does_not_end_a_run(tmp_path, capsys):
    def sample(weights, path):
        path.write_text("half of")
        raise OSError(28, "No space left on device")

    cfg = replace(CFG, out=str(tmp_path), sample_every=4)
    assert int(fit(cfg, Toy(), sample=sample).step) == 8
    assert not [*(tmp_path / "samples").iterdir()]
    assert "0000004.png cannot be written (No space left on device)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_only_the_first_error_ends_a_run_and_others_are_printed(capsys):
    errors = loop.FirstError()

    def fail(sentence):
        raise UserError(sentence)

    assert not errors and errors.attempt(int, "3") == 3
    errors.attempt(fail, "the first")
    errors.attempt(fail, "the second")
    assert errors and str(errors.first) == "the first"
    assert "the second" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"minutes": -1.0}, {"profile": -2}, {"minutes": float("nan")}])
def test_negative_times_are_refused(wrong):
    with pytest.raises(UserError, match="at least 0"):
        RunConfig(**wrong)
