"""OpenMP's spin count and malloc's thresholds are set before torch is loaded, unless the user has set them."""

import ast
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from genie_fn.runtime.startup import VARIABLES

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = [
    *ROOT.glob("*.py"),
    ROOT / "tests" / "conftest.py",
    ROOT / "docs" / "tour" / "show.py",
]
SHOW = "import genie_fn.runtime.startup, os, json; print(json.dumps(dict(os.environ)))"


def variables(**given):
    """The OpenMP variables of a process that started with the `given` ones and imported the module."""
    names = ("OMP_WAIT_POLICY", *VARIABLES)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", SHOW]
    shown = subprocess.run(
        command, env=environment | given, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name: value for name, value in json.loads(shown.stdout).items() if name in names}


@pytest.mark.subprocess
def test_the_spin_count_is_set():
    assert variables() == VARIABLES


@pytest.mark.subprocess
@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", *VARIABLES])
def test_what_the_user_has_set_stays(name):
    assert variables(**{name: "7"}) == {name: "7"}


FAULTS = """
import genie_fn.runtime.startup
import resource
import torch

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(32):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""How many pages the system clears for 32 tensors of 64 MiB, each of which is freed before the next."""


@pytest.mark.subprocess
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")
@pytest.mark.parametrize("given, kept", [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_freed_memory_is_kept_unless_the_user_has_set_malloc(given, kept):
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    environment.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", FAULTS]
    shown = subprocess.run(
        command, env=environment | given, cwd=ROOT, capture_output=True, text=True, check=True
    )
    pages = 32 * (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert (int(shown.stdout) < pages // 2) == kept


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=lambda path: path.name)
def test_every_entry_point_imports_it_before_torch(path):
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if "genie_fn.runtime.startup" in names:
            return
        standard = all(name.split(".")[0] in sys.stdlib_module_names for name in names)
        assert standard, f"{path.name} line {node.lineno} comes before genie_fn.runtime.startup"
    pytest.fail(f"{path.name} never imports genie_fn.runtime.startup")
