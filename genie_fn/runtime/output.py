"""Standard output and error that never end a program: not for a character, a closed pipe or a full
disk.

What a program has computed must not be lost because it could not be printed. `never_failing` holds
for everything that is printed meanwhile: by `print`, by rich, by tyro and by other packages.
"""

import codecs
import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

ERRORS = "genie_fn.similar"
"""The name of the error handler of codecs that replaces what cannot be encoded by `similar`."""
SIMILAR = {"→": "->", "–": "-", "—": "-", "…": "...", "Δ": "D", "·": "-", "×": "x", "−": "-"}  # noqa: RUF001


def similar(text: str) -> str:
    """ASCII characters that stand for others: letters without accents, plain lines, else "?"."""
    return "".join(map(_similar_character, text))


def _similar_character(character: str) -> str:
    if character in SIMILAR:
        return SIMILAR[character]
    if "\u2500" <= character <= "\u257f":  # lines of boxes
        return {"─": "-", "━": "-", "│": "|", "┃": "|"}.get(character, "+")
    if "\u2580" <= character <= "\u259f":  # blocks
        return "#"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return similar(error.object[error.start : error.end]), error.end


codecs.register_error(ERRORS, _replace)


def encodable(text: str, encoding: str | None) -> str:
    """`text` with similar characters for those that an encoding lacks."""
    try:
        return text.encode(encoding or "utf-8", ERRORS).decode(encoding or "utf-8")
    except LookupError:  # an encoding that Python does not know
        return similar(text)


class _Output:
    """A text stream whose writing never fails. After an error of the system, text may be lost."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._without_errors():
            self._stream.write(encodable(text, self._stream.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._without_errors():
            self._stream.flush()

    def finish(self) -> None:
        """Write what is left; drop it where that fails, so that Python does not try once more."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    @contextmanager
    def _without_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._discard()
        except (OSError, ValueError):  # a full disk; a stream that is closed
            pass

    def _discard(self) -> None:
        """Write nowhere from now on."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def never_failing() -> Iterator[None]:
    """Within the context nothing that is printed raises an error."""
    before = sys.stdout, sys.stderr
    streams = [stream and _Output(stream) for stream in before]  # None under pythonw
    sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], streams)
    try:
        yield
    finally:
        for stream in streams:
            if stream:
                stream.finish()
        sys.stdout, sys.stderr = before
