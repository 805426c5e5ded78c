"""Printing never ends a program, whatever the encoding and wherever the output goes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from genie_fn.runtime import output
from genie_fn.runtime.console import console, results

ROOT = Path(__file__).parents[2]
TEXT = "1 → 4 frames … Δ₄ = −0.5 × é ╭─╮│ ▀ 世 \udcff"


class Failing(io.TextIOBase):
    """A stream whose writing fails, and `close` as well."""

    encoding = "utf-8"

    def __init__(self, error: Exception):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


def test_similar_characters_replace_those_that_an_encoding_lacks():
    assert output.encodable(TEXT, "ascii") == "1 -> 4 frames ... D4 = -0.5 x e +-+| # ? ?"
    assert output.encodable("1 → é ½", "cp1252") == "1 -> é ½"
    for encoding in ("utf-8", None, "utf-16"):
        assert output.encodable(TEXT, encoding) == TEXT.replace("\udcff", "?")
    assert output.encodable("→", "no such encoding") == "->"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "koi8-r", "utf-8"])
def test_everything_can_be_printed(encoding, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    table = Table("held-out levels", "1 → 4")
    table.add_row("Δ₄ [/b] :cat:", TEXT)
    with output.never_failing():
        print(TEXT)
        results.print(table)
        console.print(TEXT, style="red")
        console.rule(TEXT)
    assert sys.stdout is streams[0] and sys.stderr is streams[1]
    for stream in streams:
        stream.flush()
        printed = stream.buffer.getvalue().decode(encoding)
        assert "4 frames" in printed


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("closed")],
)
def test_an_error_of_the_stream_ends_nothing(error, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing(error))
    monkeypatch.setattr(sys, "stderr", Failing(error))
    with output.never_failing():
        print("lost", flush=True)
        console.print("lost")
        results.print("lost")


def test_without_streams_nothing_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with output.never_failing():
        print("lost")


PRINTING = """
from genie_fn.runtime import output
from genie_fn.runtime.console import results
from pathlib import Path
with output.never_failing():
    for _ in range(5000):
        print("→" * 20)
    results.print("→")
    Path("done").touch()
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("where", ["a closed pipe", "a full disk"])
def test_a_program_whose_output_cannot_be_written_goes_on(tmp_path, where):
    if where == "a full disk":
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, descriptor = os.pipe()
        os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PRINTING],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"},
        stdout=descriptor,
        stderr=subprocess.PIPE,
    )
    os.close(descriptor)
    assert done.returncode == 0 and not done.stderr and (tmp_path / "done").exists()
