"""The one way in which bad input ends: a sentence that says what is wrong and what to do, and exit code 2."""

import sys
from collections.abc import Callable

import tyro
from rich.console import Console


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, and what to do about it."""


def run(main: Callable) -> None:
    """Parse the command line into `main`'s argument and call it; a `UserError` becomes one sentence and exit code 2.

    Ctrl-C exits with 130, as a shell expects; whatever `main` wanted to save, it has saved by then.
    """
    try:
        tyro.cli(main)
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/red] {error}", markup=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
