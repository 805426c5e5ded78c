"""The scripts of the checkout's top level, as modules of the package.

A wheel holds them in this folder. In a checkout this package finds them at the top level, so that
`genie_fn.scripts.play` is the same file as `python play.py` runs.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
if (_CHECKOUT / "generate_dataset.py").is_file():
    __path__.append(str(_CHECKOUT))
