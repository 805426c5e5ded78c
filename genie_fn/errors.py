"""The command line: presets, flags, and the one way in which bad input ends, a sentence and exit code 2."""

import difflib
import errno
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import tyro
from rich.console import Console

console = Console(stderr=True, highlight=False)


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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _refuse(f"{error.filename or 'a file'} cannot be written ({error.strerror}): free space and begin again")
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


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM, a scheduler's request to end, exits with 0: `finally` has saved what there was to save."""

    def leave(*_) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """True once Ctrl-C or SIGTERM has arrived, so that a loop can end between two steps and then `leave`.

    A second one, and the first while there is nothing to `save` yet, ends the program at once. Of several processes
    none goes before the others: a scheduler tells each of them, and torchrun, when it is told, tells them again.
    """

    def __init__(self, alone: bool = True):
        self._alone = alone

    def __enter__(self) -> "Stop":
        self.save, self._asked = False, None
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _) -> None:
        again, self._asked = self._asked is not None, number
        if (again and self._alone) or not self.save:
            self.leave()

    def __bool__(self) -> bool:
        return self._asked is not None

    def leave(self) -> None:
        """As the user expects after Ctrl-C (see `run`), and a scheduler after SIGTERM: with exit code 0."""
        raise KeyboardInterrupt if self._asked == signal.SIGINT else SystemExit(0)


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
