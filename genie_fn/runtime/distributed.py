"""What torchrun's processes need to know of each other before torch.distributed is initialised."""

import os
import time

GRACE_SECONDS = 10


def is_first() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_first_to_report() -> None:
    """Give the first process time to report an error that all processes have met.

    When the first process exits with an error, torchrun ends the others, which then do not return
    from this call. If it returns, the error is this process's own, and this process has to report
    it.
    """
    if not is_first():
        time.sleep(GRACE_SECONDS)
