"""Measure speed as ratios: every variant against a named baseline, alternately, on one machine.

    python benchmark.py                                     # every suite, into benchmarks/results
    python benchmark.py --cfg.suite step --cfg.presets demo small coinrun
    python benchmark.py --cfg.suite table                   # the tables of docs/performance.md and results.md

Tables show the median and range of ratios. Absolute times depend on the machine and are stored as JSON
with its name.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

from rich.table import Table

from benchmarks import report
from benchmarks.suites import SUITES
from genie_fn import dynamics, maskgit, tokenizer
from genie_fn.errors import UserError
from genie_fn.runtime import backend, files, provenance
from genie_fn.runtime.backend import Backend
from genie_fn.runtime.cli import run
from genie_fn.runtime.console import results
from genie_fn.runtime.progress import stage

TRANSFORMERS = [name for name, cfg in tokenizer.PRESETS.items() if cfg.arch == "st_vivit"]
"""The presets that can be measured."""


Suite = Literal["all", "table", "data", "lfq", "attention", "generate", "step", "play"]


@dataclass(frozen=True)
class Config:
    suite: Suite = "all"
    """The suite to measure; `table` writes the tables of docs from stored results."""
    presets: tuple[str, ...] = ()
    """step, play: the presets to measure. Default: demo; on a GPU small and coinrun, or demo and coinrun for play."""
    shape: tuple[int, ...] = ()
    """step: clips and frames; attention: clips, frames, places, heads and width of a head."""
    split: bool = False
    """step: also measure the loss and the optimizer compiled separately."""
    repeats: int = 7
    """Measurements of each variant, after a warm-up."""
    out: str = "benchmarks/results"
    """The folder of the results."""
    data: str = ""
    """data: the dataset to read clips from; by default a new one is collected."""
    levels: int = 8
    """data: the number of levels collected in one measurement."""
    batches: int = 64
    """data: the number of batches of 16 clips read in one measurement."""
    compile: Literal["off", "step"] = "step"
    """`step`: measure compiled programs; `off`: uncompiled ones."""
    device: str = "auto"
    """A device of torch, such as cpu or cuda; `auto` is a GPU if there is one."""
    backend: Backend = field(default_factory=Backend)
    """Implementations of the models' operations; the suite attention measures all of them."""
    model: dynamics.DynamicsConfig = field(default_factory=dynamics.DynamicsConfig)
    """generate: the dynamics model."""
    sample: maskgit.SampleConfig = field(default_factory=maskgit.SampleConfig)

    def __post_init__(self):
        for preset in self.presets:
            if preset not in TRANSFORMERS:
                raise UserError(
                    f"there is no preset {preset!r}: choose from {', '.join(TRANSFORMERS)}"
                )
        sizes = 5 if self.suite == "attention" else 2
        if self.shape and (len(self.shape) != sizes or min(self.shape) < 1):
            raise UserError(
                "--cfg.shape takes two sizes for the suite step, five for attention, all at least 1"
            )
        if min(self.repeats, self.levels, self.batches, self.model.stack.window - 1) < 1:
            raise UserError(
                "--cfg.repeats, levels and batches must be at least 1, "
                "--cfg.model.stack.window at least 2"
            )


FORMATS = {
    "frames/s": "{:,.1f}",
    "peak bytes": "{:,.0f}",
    "first": "{:.1f} s",
    "share": "{:.1%}",
    "p95": "{:.0f} ms",
}
HEADS = {"first": "first call", "share": "of the ceiling"}


def table(name: str, rows: list[dict], device: str) -> Table:
    """A suite's rows for the console."""
    result = Table("case", "variant", "speed", title=f"{name}: {device}")
    columns = [column for column in FORMATS if column in rows[0]]
    for column in columns:
        result.add_column(HEADS.get(column, column), justify="right")
    for row in rows:
        speed = "baseline"
        if row["variant"] != row["baseline"]:
            speed = "{median:.2f} ({min:.2f}..{max:.2f})".format(**row["ratio"])
        values = [FORMATS[column].format(row[column]) for column in columns]
        result.add_row(row["case"], row["variant"], speed, *values)
    return result


def main(cfg: Config) -> None:
    out = Path(cfg.out)
    if cfg.suite == "table":
        report.put(report.PERFORMANCE, *report.RATIOS, report.table(out))
        report.put(report.RESULTS, *report.RUNS, report.speedruns(out.parent / "records"))
        return
    device = backend.pick_device(cfg.device)
    names = SUITES if cfg.suite == "all" else [cfg.suite]
    paths = {name: out / f"{name}-{device.type}.json" for name in names}
    files.check_outputs("--cfg.out", *paths.values())
    machine = provenance.describe(device)
    for name in names:
        with stage(f"measuring {name}"):
            rows = SUITES[name](cfg, device)
        files.write_text(paths[name], json.dumps(machine | {"rows": rows}, indent=1) + "\n")
        results.print(table(name, rows, machine["device"]), f"absolute times: {paths[name]}")


if __name__ == "__main__":
    run(main)
