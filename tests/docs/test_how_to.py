"""The guides of docs/how-to are followed step by step in a copy of the checkout (slow: `make docs-test`).

A diff is applied; the lines that it shows must occur exactly once, so a guide that does not fit the
code fails. A block whose first line is a file name, such as `# tests/test_fsq.py`, becomes that file.
Commands are run. The result must pass ruff.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
LEFT_OUT = shutil.ignore_patterns("__pycache__", "site", "results", "faults")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package, the scripts, the tests and the settings."""
    for name in ("genie_fn", "tests", "benchmarks", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=LEFT_OUT)
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        shutil.copy(path, tmp_path)
    return tmp_path


def blocks(text):
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def change(root, diff):
    """Apply a diff. Hunks are located by their lines, because the guides have no line numbers."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        names, *hunks = re.split(r"^@@.*\n", part, flags=re.MULTILINE)
        path = root / re.search(r"^\+\+\+ b/(\S+)", names, re.MULTILINE)[1]
        text = path.read_text()
        for hunk in hunks:
            lines = [line or " " for line in hunk.splitlines()]
            assert {line[0] for line in lines} <= set(" +-"), f"{path.name}: {hunk}"
            old, new = (
                "".join(f"{line[1:]}\n" for line in lines if line[0] in kept)
                for kept in (" -", " +")
            )
            assert text.count(old) == 1, f"{path.name} holds {text.count(old)} times:\n{old}"
            text = text.replace(old, new)
        path.write_text(text)


def environment(root):
    """The environment of a reader: programs of .venv first, and the package of the copy."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return os.environ | {"PATH": path, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def run(root, *command):
    done = subprocess.run(
        command, cwd=root, env=environment(root), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_ends_in_its_own_passing_test(guide, checkout):
    output = ""
    for language, content in blocks(guide.read_text()):
        file = re.match(r"# ([\w./-]+\.py)\n", content)
        if language == "diff":
            change(checkout, content)
        elif language == "python" and file:
            (checkout / file[1]).write_text(content[file.end() :])
        elif language == "bash":
            output = run(checkout, "bash", "-e", "-c", content)
        else:
            raise AssertionError(f"{guide.name}: a block of unknown kind:\n{content}")
    passed = re.search(r"^\d+ passed", output, re.MULTILINE)
    assert passed, f"the guide does not end in a passing test:\n{output}"
    run(checkout, "ruff", "check", ".")
    run(checkout, "ruff", "format", "--check", ".")


def test_all_guides_exist():
    assert [path.stem for path in GUIDES] == ["dataset", "kernel", "layer", "preset", "quantiser"]
