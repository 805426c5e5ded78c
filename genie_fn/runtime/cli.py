"""The command line of every script: presets, flags, and errors that end in one sentence and exit
code 2."""

import difflib
import errno
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import tyro

from genie_fn.errors import UserError
from genie_fn.runtime import distributed
from genie_fn.runtime.console import console

Presets = Mapping[str, Callable[[], Any]]


def run(main: Callable[[Any], None], presets: Presets | None = None) -> None:
    """Parse the command line into `main(cfg)` and call it; a `UserError` becomes one sentence and
    exit code 2.

    --help begins with the docstring of the script. `presets` are functions that return a config:
    `--cfg.preset NAME` chooses one, and the other flags override it. Ctrl-C exits with code 130, as
    a shell expects; `main` has saved its work by then. Of several processes that fail with the same
    error only the first reports it.
    """
    try:
        description = inspect.getdoc(sys.modules[main.__module__])
        tyro.cli(_with_preset(main, presets) if presets else main, description=description)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        name = error.filename or "a file"
        _exit(f"{name} cannot be written ({error.strerror}): free space and start again")
    except UserError as error:
        distributed.wait_for_first_to_report()
        console.quiet = False
        _exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _exit(sentence: str) -> NoReturn:
    console.print("error:", sentence, style="red", markup=False, soft_wrap=True)
    sys.exit(2)


def _with_preset(main: Callable[[Any], None], presets: Presets) -> Callable[..., None]:
    """`main` with the chosen preset as its argument's default, so that --help shows the preset's
    values."""
    preset = presets[_preset_name(sys.argv[1:], presets)]()

    def entry(cfg=preset) -> None:
        main(cfg)

    entry.__annotations__ = {"cfg": type(preset)}
    return entry


def _preset_name(arguments: list[str], presets: Presets) -> str:
    """The value of --cfg.preset, which may be written with a space or with "="; by default the
    first preset."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if "--cfg.preset" not in words[:-1]:
        return next(iter(presets))
    name = words[words.index("--cfg.preset") + 1]
    if name not in presets:
        nearest = difflib.get_close_matches(name, presets, n=1, cutoff=0)[0]
        raise UserError(
            f"there is no preset {name!r}: did you mean {nearest!r}? "
            f"(The presets are {', '.join(presets)}.)"
        )
    return name
