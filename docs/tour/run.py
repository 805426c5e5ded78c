"""Run the notebooks of this folder from top to bottom, each in a fresh kernel, and keep what they show.

pip install -e '.[docs]'
python docs/tour/run.py                # all of them, as after a new world file
python docs/tour/run.py 03 07          # those whose names begin so
"""

import base64
import io
import os
import resource
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
SECONDS = 600  # for a cell, on a machine that is busy with other work


def notebooks(*beginnings: str) -> list[Path]:
    """The notebooks in order, all or those whose names begin so."""
    return [
        path for path in sorted(FOLDER.glob("*.ipynb")) if path.name.startswith(beginnings or "")
    ]


def execute(path: Path) -> NotebookNode:
    """The notebook with new outputs; raises nbclient's CellExecutionError where a cell fails.

    The kernel is the Python that runs this, its folder the notebook's, as when one opens it in Jupyter.
    """
    book = nbformat.read(path, as_version=4)
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1]), "PYTHONWARNINGS": "ignore"}
    client = NotebookClient(book, timeout=SECONDS, kernel_name="python3", record_timing=False)
    client.resources = {"metadata": {"path": str(FOLDER)}}
    client.execute(env=environment, cleanup_kc=True)
    return book


def shrink(book: NotebookNode) -> None:
    """Give the pictures 256 colours, which takes a third of the space, and leave out which machine it ran on."""
    for output in (output for cell in book.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            picture, small = (
                Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))),
                io.BytesIO(),
            )
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                small, "PNG", optimize=True
            )
            output.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    book.metadata["language_info"] = {"name": "python"}


def _seconds() -> float:
    """CPU time of the kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    for path in notebooks(*sys.argv[1:]):
        began = _seconds()
        book = execute(path)
        shrink(book)
        nbformat.write(book, path)
        print(
            f"{path.name}: {_seconds() - began:.0f} s of CPU, {path.stat().st_size / 1e3:.0f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main()
