"""Where and with which versions something was measured."""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(__file__).parent.parent.parent


def describe(device: torch.device) -> dict[str, Any]:
    """The device, the versions, the checkout's commit (None without git), the command and the
    date."""
    return {
        "device": _device_name(device),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "command": _command(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _command() -> list[str]:
    """The words of the command line."""
    if sys.argv[0].startswith("genie-fn "):
        return [*sys.argv[0].split(), *sys.argv[1:]]
    return ["python", *sys.argv]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    processor = _processor() or platform.processor() or "unknown CPU"
    return f"{processor}, {os.cpu_count()} cores"


def _processor() -> str:
    """The processor's name where Linux gives it; otherwise empty."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^model name\s*: (.*)$", described, re.MULTILINE)
    return found[1] if found else ""


def _commit() -> str | None:
    """The commit, with "-dirty" where files differ from it."""
    command = ["git", "-C", str(CHECKOUT), "--no-optional-locks", "describe"]
    options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            [*command, *options], capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError:
        return None
    return result.stdout.strip() or None
