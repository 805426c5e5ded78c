"""The notebooks of docs/tour were run, are clean and small, and still run (slow: `make docs-test`)."""

import json
import re

import pytest

from tests.test_structure import ROOT

FOLDER = ROOT / "docs" / "tour"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(
    r"(?<![\w.\-/])/(home|root|tmp|usr|opt|work|mnt|var|Users)/|[A-Z]:\\|site-packages"
)
each = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_all_are_listed_in_order():
    listed = re.findall(r"\d+\. \[.*\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert listed == [path.name for path in BOOKS] and len(BOOKS) == 7


@each
def test_was_run_from_top_to_bottom(path):
    assert [cell["execution_count"] for cell in cells(path, "code")] == list(
        range(1, len(cells(path, "code")) + 1)
    )
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert outputs and not any(output["output_type"] == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs), (
        "a notebook shows a warning"
    )


def texts(cell):
    """The text of a cell and of its outputs."""
    yield "".join(cell["source"])
    for output in cell.get("outputs", []):
        yield "".join(output.get("text", ""))
        yield from (
            "".join(value)
            for kind, value in output.get("data", {}).items()
            if not kind.startswith("image/")
        )


@each
def test_has_no_path_of_a_machine(path):
    for cell in cells(path, "code") + cells(path, "markdown"):
        assert not any(map(MACHINE.search, texts(cell)))


def test_such_paths_are_found():
    assert all(map(MACHINE.search, ("/home/me/x", "in\n/tmp/x", "'/work/x'", "C:\\x")))
    assert not any(map(MACHINE.search, ("runs/demo/tmp/x", "https://a.org/home/", "1/usr/2")))


@each
def test_has_one_title(path):
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert len(re.findall(r"(?m)^# ", text)) == 1 and text.startswith("# ")


def test_they_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 2_500_000


@pytest.mark.slow
@each
def test_runs(path):
    pytest.importorskip("nbclient")
    from docs.tour import run

    run.execute(path)
