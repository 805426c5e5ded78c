"""gpu.py: parts that pass, fail or take too long, and what is kept of them."""

import json
import sys
from dataclasses import replace

import pytest

import gpu
from genie_fn.errors import UserError
from gpu import Config, Part

TOY = Config(toy=True, device="cpu")


def part(name, code, seconds=60.0):
    return Part(name, [sys.executable, "-c", code], seconds)


@pytest.fixture
def cfg(tmp_path):
    return replace(TOY, out=str(tmp_path / "results"), world=str(tmp_path / "a.safetensors"))


@pytest.mark.subprocess
def test_a_part_that_takes_too_long_or_fails_does_not_stop_the_others(cfg, tmp_path, monkeypatch):
    endless = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    parts = [part("slow", endless, 1.0), part("wrong", "raise SystemExit(3)")]
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "parts_before_the_world", lambda _: parts)
    monkeypatch.setattr(gpu, "world", lambda *_: part("world", "print('trained')"))
    with pytest.raises(UserError, match="not every part"):
        gpu.main(cfg)
    kept = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert [kept["parts"][name]["status"] for name in ("slow", "wrong", "world")] == [None, 3, 0]


@pytest.mark.subprocess
def test_each_part_is_kept_as_soon_as_it_has_ended(cfg, tmp_path, monkeypatch):
    path = tmp_path / "results" / "gpu.json"
    seen = f"import json; assert list(json.load(open({str(path)!r}))['parts']) == ['first']"
    monkeypatch.setattr(gpu, "parts_before_the_world", lambda _: [part("first", "")])
    monkeypatch.setattr(gpu, "world", lambda *_: part("world", seen))
    gpu.main(cfg)


def test_the_world_gets_what_is_left_of_the_time():
    command = gpu.world(replace(TOY, data="data/own"), 130.0).command
    assert "--cfg.minutes=2.00" in command and "--cfg.data=data/own" in command
    assert sum(each.seconds for each in gpu.parts_before_the_world(TOY)) < 60 * TOY.minutes


@pytest.mark.subprocess
def test_the_tests_run_at_toy_size():
    tests = gpu.parts_before_the_world(TOY)[0]
    assert gpu.execute(tests)["status"] == 0


@pytest.mark.parametrize("wrong", [{"minutes": 1}, {"world": "a.pt"}])
def test_wrong_times_and_names_are_refused(wrong):
    with pytest.raises(UserError, match="--cfg"):
        Config(**wrong)


def test_a_cpu_is_refused_at_full_size(cfg):
    with pytest.raises(UserError, match="needs a GPU"):
        gpu.main(replace(cfg, toy=False))
