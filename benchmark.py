"""Measure speed as ratios: every variant against a named baseline, in turns, on one machine.

    python benchmark.py                                     # every suite; results go to benchmarks/results
    python benchmark.py --cfg.suite step --cfg.presets demo small coinrun
    python benchmark.py --cfg.suite table                   # the tables of docs/performance.md and results.md

Tables show the median and range of ratios; absolute times, which hold for one machine, go into JSON with its name.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.suites import SUITES
from genie_fn import dynamics, tokenizer
from genie_fn.errors import UserError
from genie_fn.runtime import backend, provenance
from genie_fn.runtime.backend import Backend
from genie_fn.runtime.cli import run

TRANSFORMERS = [name for name, cfg in tokenizer.PRESETS.items() if cfg.arch == "st_vivit"]
"""The presets that can be measured."""


@dataclass(frozen=True)
class Config:
    suite: str = "all"  # one of the suites, all of them, or `table`
    presets: tuple[
        str, ...
    ] = ()  # whose training step is measured; by default demo, on a GPU small and coinrun
    shape: tuple[
        int, ...
    ] = ()  # step: clips and frames; attention: clips, frames, places, heads, width of a head
    split: bool = False  # step: also the loss and the optimizer compiled apart
    repeats: int = 7  # measurements of each variant, after the first ones, which do not count
    out: str = "benchmarks/results"
    data: str = ""  # dataset to read clips from; empty: one that is collected here
    levels: int = 8  # collected in one measurement
    batches: int = 64  # of 16 clips, read in one measurement
    compile: Literal["off", "step"] = "step"
    device: str = "auto"
    backend: Backend = field(default_factory=Backend)  # of the models; attention is measured in all
    model: dynamics.DynamicsConfig = field(
        default_factory=dynamics.DynamicsConfig
    )  # that generates
    sample: dynamics.SampleConfig = field(default_factory=dynamics.SampleConfig)

    def __post_init__(self):
        if self.suite not in (*SUITES, "all", "table"):
            raise UserError(
                f"there is no suite {self.suite!r}: --cfg.suite is one of {', '.join(SUITES)}, all and table"
            )
        for preset in self.presets:
            if preset not in TRANSFORMERS:
                raise UserError(
                    f"there is no preset {preset!r}: choose from {', '.join(TRANSFORMERS)}"
                )
        if self.shape and (
            len(self.shape) != (5 if self.suite == "attention" else 2) or min(self.shape) < 1
        ):
            raise UserError(
                "--cfg.shape is two sizes for the suite step, five for attention, all at least 1"
            )
        if min(self.repeats, self.levels, self.batches, self.model.stack.window - 1) < 1:
            raise UserError(
                "--cfg.repeats, levels and batches are at least 1, and --cfg.model.stack.window at least 2"
            )


def table(name: str, rows: list[dict], device: str) -> Table:
    """What a suite found, for people."""
    shown = Table("case", "variant", "speed", title=f"{name}: {device}")
    units = {
        "frames/s": "{:,.1f}",
        "peak bytes": "{:,.0f}",
        "first": "{:.1f} s",
        "share": "{:.1%}",
        "p95": "{:.0f} ms",
    }
    units = {unit: how for unit, how in units.items() if unit in rows[0]}
    for unit in units:
        shown.add_column(
            {"first": "first call", "share": "of the ceiling"}.get(unit, unit), justify="right"
        )
    for row in rows:
        speed = (
            "baseline"
            if row["variant"] == row["baseline"]
            else "{median:.2f} ({min:.2f}..{max:.2f})"
        )
        values = [how.format(row[unit]) for unit, how in units.items()]
        shown.add_row(row["case"], row["variant"], speed.format(**row["ratio"]), *values)
    return shown


def main(cfg: Config) -> None:
    out = Path(cfg.out)
    if cfg.suite == "table":
        report.put(report.PERFORMANCE, report.BEGIN, report.END, report.table(out))
        report.put(report.RESULTS, *report.RUNS, report.speedruns(out.parent / "records"))
        return
    device = backend.pick_device(cfg.device)
    out.mkdir(parents=True, exist_ok=True)
    where = provenance.describe(device)
    for name in SUITES if cfg.suite == "all" else [cfg.suite]:
        rows, path = SUITES[name](cfg, device), out / f"{name}-{device.type}.json"
        path.write_text(json.dumps(where | {"rows": rows}, indent=1) + "\n")
        Console().print(table(name, rows, where["device"]), f"absolute times: {path}")


if __name__ == "__main__":
    run(main)
