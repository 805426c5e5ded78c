"""A world to be played in a cell of a notebook."""

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from genie_fn.bundle.bundle import Bundle, load_complete, name_of
from genie_fn.errors import UserError


class Page(NamedTuple):
    """A page that Jupyter displays where it is the value of a cell."""

    path: Path
    """Of the HTML file, relative to the notebook's folder."""
    height: int
    """Of the display, in CSS pixels."""

    def _repr_html_(self) -> str:
        address = quote(self.path.as_posix())
        size = f'width="100%" height="{self.height}" style="border: 0"'
        return f'<iframe src="{address}" {size} allow="screen-wake-lock"></iframe>'


def show(world: Bundle | str | Path, folder: str | Path = ".", height: int = 800) -> Page:
    """Write a world as one HTML file, as `export_world.py --cfg.format html` does, and display it.

    `world` is a loaded world, or the path of a world file or of the folder of a dynamics run. The file
    is written to `folder`, which has to be the notebook's or one in it, because Jupyter serves no other,
    and limits what an output itself may hold. In it a page cannot save files, as Jupyter does not allow
    that. Raises UserError where the folder is another, and where packages or npm's files are missing.
    """
    from genie_fn.play import html  # the page stands above worlds; only this function needs it

    if Path(os.path.relpath(folder)).parts[:1] == ("..",) or not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder in {Path.cwd()}, which is where Jupyter looks")
    html.check()
    bundle = world if isinstance(world, Bundle) else load_complete(world)
    path = Path(os.path.relpath(folder)) / f"{name_of(bundle.path)}.html"
    html.write_file(path, bundle)
    return Page(path, height)
