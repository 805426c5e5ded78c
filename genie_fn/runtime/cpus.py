"""The number of CPUs that this process may use."""

import os


def available(limit: int) -> int:
    """The CPUs that the process is allowed to run on (its affinity), at least 1, at most `limit`."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1  # macOS and Windows have no such list
    return max(1, min(count, limit))
