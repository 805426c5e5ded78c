"""The processes of a run, one per device, and what their hosts agree on.

torchrun starts the processes; without it there is a single one, and every function here returns at
once. The functions that exchange something must be called by all processes.
"""

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from genie_fn.errors import UserError

TIMEOUT = timedelta(days=7)
"""How long processes wait for the first one, which may encode a whole dataset meanwhile."""

Result = TypeVar("Result")


def join(device: torch.device) -> None:
    """Connect with the other processes that torchrun has started, if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    """This process's number, from 0. The first also writes logs, pictures and checkpoints."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_clips(batch_size: int, accumulate: int) -> slice:
    """Which clips of a batch this process computes.

    Raises UserError if the batch cannot be divided into equal microbatches, `accumulate` for every
    process.
    """
    microbatches = count() * accumulate
    if batch_size % microbatches:
        raise UserError(
            f"a batch of {batch_size} clips cannot be divided into {microbatches} equal parts "
            f"(processes: {count()}, --cfg.accumulate {accumulate}): "
            f"make --cfg.batch-size a multiple of {microbatches}"
        )
    own = batch_size // count()
    return slice(rank() * own, (rank() + 1) * own)


@functools.cache
def _host_group() -> Any:
    """All processes, connected between their hosts, so that messages do not wait for a device."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


def is_any(flag: bool) -> bool:
    """Whether the flag of any process is set."""
    if count() == 1:
        return flag
    highest = torch.tensor(int(flag))
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=_host_group())
    return bool(highest)


def sum_of(number: int) -> int:
    """The sum of a number over all processes."""
    if count() == 1:
        return number
    total = torch.tensor(number)
    dist.all_reduce(total, group=_host_group())
    return int(total)


def max_of(number: float) -> float:
    """The largest of a number over all processes."""
    if count() == 1:
        return number
    largest = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_host_group())
    return float(largest)


def first_of(value: Any) -> Any:
    """The first value that is not None, in the order of the processes."""
    if count() == 1:
        return value
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_host_group())
    return next((value for value in values if value is not None), None)


def on_first(function: Callable[[], Result]) -> Result:
    """Call `function` in the first process; returns its result, or raises its UserError, in all."""
    if count() == 1:
        return function()
    outcome: list[Any] = [None, None]  # the result, and the message of an error
    own_error = None
    if rank() == 0:
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
            own_error = error
    dist.broadcast_object_list(outcome, 0, group=_host_group())
    result, message = outcome
    if message is not None:
        raise own_error or UserError(message)
    return result


def on_all(function: Callable[[], Result]) -> Result:
    """Call `function` in every process and return its own result.

    Raises UserError in all processes if it raises one in any.
    """
    result = error = None
    try:
        result = function()
    except UserError as raised:
        error = raised
    raise_together(error)
    return result  # pyright: ignore[reportReturnType]  # without an error there is a result


def raise_together(error: UserError | None) -> None:
    """If any process passes an error, raise one in all: its own, or that of the first with one."""
    if count() == 1:
        messages: list[Any] = [error]
    else:
        messages = [None] * count()
        own = None if error is None else str(error)
        dist.all_gather_object(messages, own, group=_host_group())
    first = next((message for message in messages if message), None)
    if first is not None:
        raise error or UserError(first)


def check_same(value: str, name: str) -> None:
    """Raise UserError in all processes if `value` differs between them; `name` says what it is."""
    if count() == 1:
        return
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_host_group())
    if len(set(values)) > 1:
        raise UserError(
            f"{name} is not the same for all processes: let nothing write there, or copy it again"
        )


# In the threads that write checkpoints


@functools.cache
def _saving_group() -> Any:
    """The processes' saving threads: their messages must not mix with those of the main threads."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


def prepare_saving() -> None:
    """Let saving threads use `gather_saved`. The main threads must call this before."""
    if count() > 1:
        _saving_group()


def gather_saved(value: Any) -> list[Any]:
    """The values of all processes, by their number. All saving threads must call this."""
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_saving_group())
    return values
