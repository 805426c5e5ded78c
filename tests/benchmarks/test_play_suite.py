"""The load test of play at a tiny size: its rows, and that every player gets every frame. No
times."""

from dataclasses import replace

import pytest
import torch

import benchmark
from benchmarks import play
from genie_fn.errors import UserError
from genie_fn.maskgit import SampleConfig

TINY = benchmark.Config(
    suite="play", repeats=2, compile="off", device="cpu", sample=SampleConfig(steps=2)
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch, stage):
    monkeypatch.setattr(play, "FRAMES", 3)
    monkeypatch.setattr(play, "random_world", lambda *_: stage[0]._replace(lam=None))


def test_players_alone_and_together():
    alone, together = play.play_suite(TINY, CPU)
    assert (alone["variant"], together["variant"]) == ("1 player", "4 players, each")
    assert alone["ratio"]["all"] == [1.0, 1.0]
    for row in (alone, together):
        assert row["baseline"] == "1 player" and len(row["seconds"]["all"]) == 2
        assert 0 < row["p50"] <= row["p95"] and row["frames/s"] == pytest.approx(1000 / row["p50"])
    assert "2 steps, eager" in alone["case"]
    benchmark.table("play", [alone, together], "here")


def test_a_wish_that_is_refused_ends_the_measurement(monkeypatch):
    true = play.json.dumps
    monkeypatch.setattr(
        play.json, "dumps", lambda x, **_: true(x | {"action": -1} if x.get("type") == "act" else x)
    )
    with pytest.raises(RuntimeError, match="action"):
        play.play_suite(TINY, CPU)


def test_where_faster_programs_fail_nothing_is_measured(monkeypatch):
    monkeypatch.setattr("genie_fn.export.prepared.programs", lambda *_: 1 / 0)
    monkeypatch.setattr("genie_fn.runtime.compilation.works", lambda *_: False)
    with pytest.raises(UserError, match="compile off"):
        play.play_suite(replace(TINY, compile="step"), CPU)
