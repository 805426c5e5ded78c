"""Processes of tests, forked from a server that has imported what they use: they start in a tenth
of a second.

A fresh Python spends seconds on its imports.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from genie_fn.errors import UserError

PRELOADED = ["tests.conftest", "tests.faults.rig", "tests.training.ranks"]
"""The modules that the server imports."""


def start(log: Path, work: Callable, *arguments) -> multiprocessing.Process:
    """`work(*arguments)` in a process of its own, whose output is appended to `log`.

    `work` is a function of a module. Its UserError is the exit code 2, Ctrl-C is 130.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(str(log), work, arguments))
    process.start()
    return process


def _run(log: str, work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)  # sums are rounded differently with another number of threads
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable(file=2)  # where a process that crashes was
    try:
        work(*arguments)
    except UserError as error:
        print("error:", error, flush=True)
        os._exit(2)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)
