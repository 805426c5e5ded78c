"""Signals: handlers while a program can save, and none in other threads than the main one."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from genie_fn.runtime.signals import Stop, handled, terminable


def in_a_thread(function):
    """What a function returns in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with terminable(), pytest.raises(SystemExit) as left:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert left.value.code == 143
    with Stop() as stop, Stop():
        stop.can_save = True
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_handler_of_another_language_is_replaced_by_the_default(monkeypatch):
    """Python returns None for a handler that it has not set itself, and takes no None."""
    given = []

    def set_handler(number, handler):
        assert handler is not None
        given.append(handler)

    monkeypatch.setattr(signal, "signal", set_handler)
    with handled({signal.SIGTERM: signal.SIG_IGN}):
        pass
    assert given == [signal.SIG_IGN, signal.SIG_DFL]


def test_in_another_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with terminable(), Stop() as stop:
            return bool(stop), signal.getsignal(signal.SIGTERM)

    assert in_a_thread(work) == (False, before)
