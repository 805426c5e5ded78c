"""Progress where output is no terminal: lines at the start, now and then, and at the end."""

import time

import pytest

from genie_fn.runtime import progress
from genie_fn.runtime.console import console
from genie_fn.runtime.progress import Progress, stage, track


class Clock:
    """`time.monotonic`, advanced by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock, capsys):
    with Progress() as bars:
        task = bars.task("lam, step", 1000, 100, "compiling")
        for done in range(101, 301):
            clock.now += 1
            task.update(done, note=f"loss {done / 100:.2f}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "lam, step: 100 of 1000, compiling",
        "lam, step: 130 of 1000, loss 1.30, about 14:30 left",
        "lam, step: 160 of 1000, loss 1.60, about 14:00 left",
        "lam, step: 190 of 1000, loss 1.90, about 13:30 left",
        "lam, step: 220 of 1000, loss 2.20, about 13:00 left",
        "lam, step: 250 of 1000, loss 2.50, about 12:30 left",
        "lam, step: 280 of 1000, loss 2.80, about 12:00 left",
        "lam, step: 300 of 1000, loss 3.00, in 3:20",
    ]


def test_a_task_of_unknown_length_counts(clock, capsys):
    with Progress() as bars:
        task = bars.task("labelling, transition")
        clock.now += 3700
        task.advance(parts=12)
        task.update(total=13.7)
        task.end()
    assert capsys.readouterr().err.splitlines() == [
        "labelling, transition: 0",
        "labelling, transition: 12",
        "labelling, transition: 12 of 14, in 1:01:40",
    ]


def test_items_pass_and_are_counted(clock, capsys):
    assert list(track(["a", "[/b]"], "items [/c]")) == ["a", "[/b]"]
    assert capsys.readouterr().err.splitlines() == [
        "items [/c]: 0 of 2",
        "items [/c]: 2 of 2, in 0:00",
    ]
    assert list(track([], "items")) == [] and not capsys.readouterr().err


def test_an_error_ends_with_the_last_count(clock, capsys):
    with pytest.raises(KeyboardInterrupt):
        for item in track(range(9), "items"):
            if item == 4:
                raise KeyboardInterrupt
    assert "items: 4 of 9" in capsys.readouterr().err


def test_a_stage_reminds_of_itself(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    with stage("actions"):
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "actions: started" and lines[-1] == "actions: done in 0:00"
    assert len(lines) > 2 and set(lines[1:-1]) == {"actions: 0:00 so far"}


def test_other_processes_than_the_first_are_quiet(monkeypatch, capsys):
    monkeypatch.setattr(console, "quiet", True)
    assert list(track([1], "items")) == [1] and not capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(console, "is_interactive", True)
    monkeypatch.setattr(console, "_force_terminal", True)
    with Progress() as bars:
        task = bars.task("lam [/b], step", 3)
        task.advance("loss [/i] 1.0")
    printed = capsys.readouterr().err
    assert "lam [/b], step" in printed and "1/3" in printed and "loss [/i] 1.0" in printed
    assert "lam [/b], step: " not in printed
