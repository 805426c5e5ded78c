"""Run the notebooks of this folder, each in a new kernel, and store their outputs.

pip install -e '.[docs]'
python docs/tour/run.py                # all notebooks, for instance after a new world file
python docs/tour/run.py 03 07          # the notebooks whose names begin with 03 or 07
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
TIMEOUT = 600  # seconds per cell, on a busy machine


def notebooks(*beginnings: str) -> list[Path]:
    """The notebooks in order: all, or those whose names start with one of the `beginnings`."""
    prefixes = beginnings or ("",)
    return [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name.startswith(prefixes)]


def execute(path: Path) -> NotebookNode:
    """The notebook with new outputs. Raises nbclient's CellExecutionError if a cell fails.

    The kernel runs the current Python in the folder of the notebook, as Jupyter does.
    """
    book = nbformat.read(path, as_version=4)
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1]), "PYTHONWARNINGS": "ignore"}
    client = NotebookClient(book, timeout=TIMEOUT, kernel_name="python3", record_timing=False)
    client.resources = {"metadata": {"path": str(FOLDER)}}
    client.execute(env=environment, cleanup_kc=True)
    return book


def shrink(book: NotebookNode) -> None:
    """Reduce the pictures to 256 colours, a third of the size, and remove details of the machine."""
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _with_palette(output.data["image/png"])
    book.metadata["language_info"] = {"name": "python"}


def _with_palette(png: str) -> str:
    """A base64-encoded PNG with at most 256 colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    smaller = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def _cpu_seconds() -> float:
    """CPU time of the kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    for path in notebooks(*sys.argv[1:]):
        start = _cpu_seconds()
        book = execute(path)
        shrink(book)
        nbformat.write(book, path)
        seconds = _cpu_seconds() - start
        kilobytes = path.stat().st_size / 1e3
        print(f"{path.name}: {seconds:.0f} s of CPU time, {kilobytes:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
