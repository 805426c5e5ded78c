"""The metrics of a run: rows of numbers by step, and the sinks that they are written to.

A run always writes metrics.jsonl, which this project's own tools read. TensorBoard and trackio are
further sinks, for those who have them installed.
"""

import importlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from genie_fn.errors import UserError
from genie_fn.runtime import files
from genie_fn.training import processes

SinkName = Literal["jsonl", "tensorboard", "trackio"]
Row = Mapping[str, float]

LEADING = ("loss", "psnr", "accuracy", "perplexity")
"""Metrics that the progress bar shows, where a stage has them."""
COUNTS = ("skipped", "clips_skipped")
"""Counts that the progress bar shows once they are above 0."""


class Sink(Protocol):
    """Something that rows of metrics are written to."""

    def write(self, step: int, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends rows to a file of one JSON object per line.

    Opening the file removes the rows after `step`, which a resumed run writes again. Rows that
    cannot be written, as on a full disk, are kept and written with the next one. NaN and
    infinities, which JSON does not have, are left out.
    """

    def __init__(self, path: Path, step: int):
        self._path = path
        self._unwritten: list[str] = []
        lines = (
            path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        )
        kept = [line + "\n" for line in lines if _step_of(line) <= step]
        files.write_atomically(path, "".join(kept).encode())

    def write(self, step: int, row: Row) -> None:
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        self._unwritten.append(json.dumps({"step": step} | finite) + "\n")
        size = self._path.stat().st_size
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(self._unwritten))
            self._unwritten.clear()
        except OSError:
            os.truncate(self._path, size)

    def close(self) -> None:
        pass


def _step_of(line: str) -> float:
    """The step of a row; infinite for a line that is no row, as when the process was killed while
    writing it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoard:
    """Writes rows as TensorBoard scalars to a folder."""

    def __init__(self, folder: Path, step: int):
        _require("tensorboard")
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, row: Row) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """Writes rows to a trackio project of the name of the run's parent folder."""

    def __init__(self, out: Path):
        self._trackio = _require("trackio")
        run = out.absolute()
        self._trackio.init(project=run.parent.name, name=run.name, resume="allow")

    def write(self, step: int, row: Row) -> None:
        self._trackio.log(dict(row), step=step)

    def close(self) -> None:
        self._trackio.finish()


def _require(package: str) -> Any:
    """The package, or a UserError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"--cfg.log {package} needs a package that is not installed: `pip install {package}`"
        ) from error


def open_sinks(name: SinkName, out: Path, step: int) -> list[Sink]:
    """The sinks of a run in the folder `out` that has been trained up to `step`."""
    sinks: list[Sink] = [JsonLines(out / "metrics.jsonl", step)]
    if name == "tensorboard":
        sinks.append(TensorBoard(out / "tensorboard", step))
    elif name == "trackio":
        sinks.append(Trackio(out))
    return sinks


class Measurement(NamedTuple):
    """What was measured at a step."""

    step: int
    seconds: float
    """Since this process began to train."""
    data_wait: float
    """Of these, the seconds that it waited for batches."""
    metrics: dict[str, Tensor]


class MetricLogger:
    """Writes measurements to sinks, one step late.

    `record` keeps a measurement and `flush` writes it, after the next step has been queued on the
    device: reading a number off a GPU waits for the work before it. All processes call both; only
    the first has sinks. `show` receives a summary for the progress bar; `count_skipped`, if given,
    returns the number of clips this process has skipped.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        show: Callable[[str], None],
        count_skipped: Callable[[], int] | None = None,
    ):
        self._sinks = sinks
        self._show = show
        self._count_skipped = count_skipped
        self._recorded: Measurement | None = None
        self.not_finite_in_a_row = 0
        """The steps up to the last one written that were skipped in a row for a non-finite loss or
        gradient."""

    def record(self, measurement: Measurement) -> None:
        self._recorded = measurement

    def flush(self) -> None:
        """Write the recorded measurement, if there is one that is not written yet."""
        if self._recorded is None:
            return
        step, seconds, data_wait, metrics = self._recorded
        self._recorded = None
        row = {name: float(value) for name, value in metrics.items()}
        self.not_finite_in_a_row = int(row.pop("skipped_in_a_row", 0))
        if self._count_skipped is not None:
            row["clips_skipped"] = processes.sum_of(self._count_skipped())
        row = {"seconds": seconds, "data_wait": data_wait} | row
        for sink in self._sinks:
            sink.write(step, row)
        if self._sinks:
            self._show(headline(row))


def headline(row: Row) -> str:
    """The most telling numbers of a row, for the progress bar."""
    leading = [f"{name} {row[name]:.3f}" for name in LEADING if name in row]
    counts = [f"{name} {row[name]:.0f}" for name in COUNTS if row.get(name)]
    return "  ".join(leading + counts)
