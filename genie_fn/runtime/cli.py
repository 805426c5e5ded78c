"""The command line: presets, flags, and how bad input ends: one sentence and exit code 2."""

import difflib
import errno
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping

import tyro

from genie_fn.errors import UserError
from genie_fn.runtime.console import console


def run(main: Callable, presets: Mapping[str, Callable] | None = None) -> None:
    """Parse the command line into `main(cfg)` and call it; a `UserError` becomes one sentence and exit code 2.

    `presets` are functions that return a config: `--cfg.preset NAME` chooses one, and the other flags override it.
    Ctrl-C exits with 130, as a shell expects; whatever `main` wanted to save, it has saved by then. Of several
    processes that fail together only the first says why.
    """
    try:
        tyro.cli(_with_default(main, presets) if presets else main)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _refuse(
            f"{error.filename or 'a file'} cannot be written ({error.strerror}): free space and begin again"
        )
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(10)  # torchrun ends this process meanwhile, if the first one has failed, too
            console.quiet = False
        _refuse(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(sentence: str) -> None:
    console.print("error:", sentence, style="red", markup=False, soft_wrap=True)
    sys.exit(2)


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
    name = next(
        (b for a, b in zip(words, words[1:], strict=False) if a == "--cfg.preset"),
        next(iter(presets)),
    )
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0)[0]
        raise UserError(
            f"there is no preset {name!r}: did you mean {near!r}? (The presets are {', '.join(presets)}.)"
        )
    return presets[name]()
