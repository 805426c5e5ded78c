"""Ctrl-C and SIGTERM: a program ends between two steps, with its work saved."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, NoReturn

TERMINATED = 128 + signal.SIGTERM
"""The exit status of a program that SIGTERM has ended, as shells have it: its work is saved, but not
complete, so whatever needs it must not go on."""
Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextmanager
def handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Within the context these functions receive signals.

    Python has handlers in the main thread alone. In another thread nothing changes: the program that
    started it decides what a signal does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():  # None: it was not set by Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Within the context SIGTERM, which a scheduler sends, raises SystemExit(TERMINATED): `finally`
    blocks run and can save."""

    def leave(*_) -> NoReturn:
        raise SystemExit(TERMINATED)

    with handled({signal.SIGTERM: leave}):
        yield


@contextmanager
def wakeups() -> Iterator[int]:
    """A file descriptor that can be read once a signal has arrived that Python handles.

    `select` goes on waiting after a handler that raises nothing, so a program that waits for input
    waits for this, too. In the main thread only.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


class Stop:
    """True once Ctrl-C or SIGTERM has arrived, so that a loop can end between two steps, save, and
    call `leave`.

    A first signal ends the program at once while `can_save` is False, because there is nothing to
    save yet. With a single process a second signal does so, too. With several, no process may leave
    before the others: a scheduler sends the signal to each of them, and torchrun, which receives it
    as well, sends it again.
    """

    def __init__(self, single_process: bool = True):
        self._single_process = single_process
        self._received: int | None = None
        self._handlers = ExitStack()
        self.can_save = False

    def __enter__(self) -> "Stop":
        self._received = None
        self.can_save = False
        self._handlers.enter_context(
            handled({signal.SIGINT: self._receive, signal.SIGTERM: self._receive})
        )
        return self

    def __exit__(self, *_) -> None:
        self._handlers.close()

    def _receive(self, number: int, _: FrameType | None) -> None:
        second = self._received is not None
        self._received = number
        if (second and self._single_process) or not self.can_save:
            self.leave()

    def __bool__(self) -> bool:
        return self._received is not None

    def leave(self) -> NoReturn:
        """Raise what ends the program: KeyboardInterrupt after Ctrl-C, SystemExit(TERMINATED) after
        SIGTERM."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(TERMINATED)
