"""Files of newer versions of this program: one error for every kind of file that it writes.

A file carries the version of its format, which rises when earlier programs would misread it; and
fields of its content have names. An unknown version or name shows that a newer program has written
the file.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genie_fn.errors import UserError

LONGEST = 200
"""Characters of a file's own words in a message."""


class NewerVersion(UserError):
    """Raised for what a newer version of this program has written."""

    def __init__(self, what: str | Path, unknown: Iterable[str] = ()):
        names = listed(unknown)
        because = f" (it holds {names}, which this version does not know)" if names else ""
        super().__init__(
            f"{what} was written by a newer version of genie_fn{because}: update genie_fn to read it"
        )


def check(what: str | Path, version: Any, newest: int) -> None:
    """Raise NewerVersion for `what` if its version is above the `newest` that this program reads.

    Anything but a whole number says nothing.
    """
    if type(version) is int and version > newest:
        raise NewerVersion(what)


def check_names(what: str | Path, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise NewerVersion for `what` if it holds other names than the `known` ones.

    Names that earlier versions used have to be brought up to date before.
    """
    unknown = set(names) - set(known)
    if unknown:
        raise NewerVersion(what, unknown)


def listed(names: Iterable[str]) -> str:
    """Names from a file, which may be any text, for an error message."""
    printable = (name if name.isidentifier() else ascii(name) for name in sorted(names))
    return ", ".join(printable)[:LONGEST]
