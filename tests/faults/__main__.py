"""Injects every fault into every stage: python -m tests.faults --kills 30. Prints a table of the
results.

It takes some minutes on one core, and needs root on Linux: full disks are small file systems of
their own.
"""

import io
import random
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from genie_fn.runtime.console import console
from tests.faults import cases, rig


def main(
    kills: int = 30, seed: int = 0, stages: tuple[str, ...] = rig.STAGES, only: str = ""
) -> None:
    """Run all cases, or only those with the word `only` in their names."""
    jobs = [(case, stage) for case in (*cases.CASES, *cases.RANKS) for stage in stages] + [
        (case, "") for case in cases.COLLECTING
    ]
    jobs = [(case, stage) for case, stage in jobs if only in case.__name__]
    table = Table("fault", "stage", "result", "seconds")
    bad = 0
    console.quiet = True  # what training prints would hide the table
    output = Progress(console=Console(stderr=True))
    with tempfile.TemporaryDirectory() as folder, output as bar, redirect_stdout(io.StringIO()):
        task = bar.add_task("training without faults", total=len(jobs))
        home = cases.prepare(Path(folder))
        for case, stage in jobs:
            name = case.__name__.replace("_", " ")
            bar.update(task, description=f"{name} {stage}")
            began = time.monotonic()
            count = {"count": kills} if name.startswith("kill") else {}
            try:
                verdict = case(
                    home,
                    *([stage] if stage else []),
                    random.Random(f"{seed} {name} {stage}"),
                    **count,
                )
            except pytest.skip.Exception as skipped:
                verdict = f"skipped: {skipped}"
            except (Exception, pytest.fail.Exception):
                verdict = f"[red]FAILED[/red] {traceback.format_exc(limit=-3)}"
                bad = bad + 1
            bar.console.print(f"{name} {stage}: {verdict}")
            table.add_row(name, stage, verdict, f"{time.monotonic() - began:.0f}")
            bar.advance(task)
    Console().print(table)
    sys.exit(bad > 0)


if __name__ == "__main__":
    tyro.cli(main)
