"""Where and with what something was measured."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch


def describe(device: torch.device) -> dict:
    """The device, the versions, the commit of this checkout (None without git), the command and the date."""
    quiet, root = "2>/dev/null", Path(__file__).parent.parent
    cpu = (
        subprocess.getoutput(f"grep -m1 'model name' /proc/cpuinfo {quiet}").split(": ")[-1]
        or platform.processor()
    )
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{cpu or 'unknown CPU'}, {os.cpu_count()} cores"
    )
    git = f"git -C '{root}' --no-optional-locks describe --always --dirty --abbrev=40 --exclude='*'"
    where = {"device": name, "torch": torch.__version__, "python": sys.version.split()[0]}
    where |= {
        "threads": torch.get_num_threads(),
        "commit": subprocess.getoutput(f"{git} {quiet}") or None,
    }
    return where | {"command": ["python", *sys.argv], "date": time.strftime("%Y-%m-%d")}
