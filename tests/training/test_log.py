"""Metrics: rows of a run in sinks, and what happens when a sink is not installed or a disk is full."""

import json
import sys
import types

import pytest
import torch

from genie_fn.errors import UserError
from genie_fn.training import log
from genie_fn.training.log import Measurement, MetricLogger


def test_json_lines_lose_no_row_on_a_full_disk_and_hold_no_nan(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 9}\n[]\n{"st')
    sink = log.JsonLines(path, 5)  # step 9 is about to be trained again
    sink.write(6, {"loss": float("nan")})

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:5])
            self.file.flush()
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        original = type(path).open
        patch.setattr(type(path), "open", lambda self, mode, **_: Full(original(self, mode)))
        sink.write(7, {})
    sink.write(8, {})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": s} for s in (1, 6, 7, 8)
    ]


def test_the_logger_writes_a_measurement_once_to_every_sink(tmp_path):
    sinks = [log.JsonLines(tmp_path / f"{name}.jsonl", 0) for name in "ab"]
    shown = []
    logger = MetricLogger(sinks, shown.append, count_skipped=lambda: 3)
    metrics = {"loss": torch.tensor(0.5), "skipped": torch.tensor(4)}
    logger.record(Measurement(10, 2.0, 0.5, metrics | {"skipped_in_a_row": torch.tensor(2)}))
    logger.flush()
    logger.flush()
    assert logger.not_finite_in_a_row == 2
    row = {"step": 10, "seconds": 2.0, "data_wait": 0.5, "loss": 0.5, "skipped": 4}
    for name in "ab":
        (line,) = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert json.loads(line) == row | {"clips_skipped": 3}
    assert shown == ["loss 0.500  skipped 4  clips_skipped 3"]


class Writer:
    """A stand-in for torch's SummaryWriter."""

    def __init__(self, folder, purge_step):
        self.folder = folder
        self.purge_step = purge_step
        self.scalars = []
        self.closed = False

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


def test_tensorboard_gets_the_rows_if_it_is_installed(tmp_path, monkeypatch):
    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    lines, sink = log.open_sinks("tensorboard", tmp_path, 5)
    assert isinstance(lines, log.JsonLines), "metrics.jsonl is always written"
    sink.write(6, {"loss": 0.5, "psnr": 20.0})
    sink.close()
    writer = sink._writer
    assert writer.scalars == [("loss", 0.5, 6), ("psnr", 20.0, 6)] and writer.closed
    assert writer.folder == str(tmp_path / "tensorboard") and writer.purge_step == 6


def test_trackio_gets_the_rows_if_it_is_installed(tmp_path, monkeypatch):
    calls = []
    module = types.SimpleNamespace(
        init=lambda **options: calls.append(options),
        log=lambda row, step: calls.append((step, row)),
        finish=lambda: calls.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", module)
    out = tmp_path / "demo" / "lam"
    out.mkdir(parents=True)
    _, sink = log.open_sinks("trackio", out, 0)
    sink.write(6, {"loss": 0.5})
    sink.close()
    opened = {"project": "demo", "name": "lam", "resume": "allow"}
    assert calls == [opened, (6, {"loss": 0.5}), "finished"]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_sink_that_is_not_installed_is_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError, match=f"`pip install {name}`"):
        log.open_sinks(name, tmp_path, 0)


def test_by_default_only_metrics_jsonl_is_written(tmp_path):
    (sink,) = log.open_sinks("jsonl", tmp_path, 0)
    sink.write(1, {"loss": 1.0})
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
