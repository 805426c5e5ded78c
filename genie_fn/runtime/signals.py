"""Ctrl-C and SIGTERM: end between two steps, with what there is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


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
