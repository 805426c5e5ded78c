"""The guides of docs/how-to, followed to the letter (slow: `make docs-test`), every block in a copy of the checkout.

A diff changes files: what it shows must occur once, so a guide that no longer fits the code fails here. A block that
begins with a file's name, `# tests/test_fsq.py`, is that whole file. Commands are run. What comes out is linted.
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
    """What a guide works on: a copy of the package, the scripts, the tests and the settings."""
    for name in ("genie_fn", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=LEFT_OUT)
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        shutil.copy(path, tmp_path)
    return tmp_path


def blocks(text):
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def change(root, diff):
    """Apply a diff whose hunks are found by what they show, not by line numbers, which no reader could count."""
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
    """A reader's: the programs of .venv come first, and the package is that of the copy."""
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
    said = ""
    for language, content in blocks(guide.read_text()):
        file = re.match(r"# ([\w./-]+\.py)\n", content)
        if language == "diff":
            change(checkout, content)
        elif language == "python" and file:
            (checkout / file[1]).write_text(content[file.end() :])
        elif language == "bash":
            said = run(checkout, "bash", "-e", "-c", content)
        else:
            raise AssertionError(f"{guide.name}: a block that nobody follows:\n{content}")
    assert re.search(r"^\d+ passed", said, re.MULTILINE), f"it does not end in a test:\n{said}"
    run(checkout, "ruff", "check", ".")
    run(checkout, "ruff", "format", "--check", ".")


def test_there_is_a_guide_for_everything_that_one_adds():
    assert [path.stem for path in GUIDES] == ["dataset", "kernel", "layer", "preset", "quantiser"]
