"""The command line: presets, flags, and the one way in which bad input ends, a sentence and exit code 2."""

import difflib
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping

import tyro
from rich.console import Console


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, and what to do about it."""


def run(main: Callable, presets: Mapping[str, Callable] | None = None) -> None:
    """Parse the command line into `main(cfg)` and call it; a `UserError` becomes one sentence and exit code 2.

    `presets` are functions that return a config: `--cfg.preset NAME` chooses one, and the other flags override it.
    Ctrl-C exits with 130, as a shell expects; whatever `main` wanted to save, it has saved by then. Of several
    processes that fail together only the first says why.
    """
    try:
        tyro.cli(_with_default(main, presets) if presets else main)
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(10)  # torchrun ends this process meanwhile, if the first one has failed, too
        Console(stderr=True, soft_wrap=True).print("error:", str(error), style="red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _with_default(main: Callable, presets: Mapping[str, Callable]) -> Callable:
    """`main` with the chosen preset as the default of its argument, so that --help shows the preset's values."""
    cfg = _preset(sys.argv[1:], presets)

    def entry(cfg=cfg):
        main(cfg)

    entry.__doc__ = inspect.getdoc(sys.modules[main.__module__])
    entry.__annotations__ = {"cfg": type(cfg)}
    return entry


def _preset(arguments: list[str], presets: Mapping[str, Callable]):
    words = [word for argument in arguments for word in argument.split("=", 1)]
    name = next((b for a, b in zip(words, words[1:], strict=False) if a == "--cfg.preset"), next(iter(presets)))
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0)[0]
        raise UserError(f"there is no preset {name!r}: did you mean {near!r}? (The presets are {', '.join(presets)}.)")
    return presets[name]()
