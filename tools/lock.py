"""Write constraints.txt: the versions of all installed packages, without what depends on the machine.

torch and what comes with it (Triton, NVIDIA's libraries) stay within the range of pyproject.toml: which
build of them fits is decided by the machine.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MACHINE = re.compile(r"(torch|triton|nvidia-.*|pip|setuptools|wheel|genie[-_]fn)==")
HEADER = """# Versions that are known to work together, from which `make` installs. Written by `make lock`.
"""


def main() -> None:
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    pinned = [line for line in frozen.splitlines() if "==" in line and not MACHINE.match(line)]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(pinned) + "\n", encoding="utf-8")
    print(f"constraints.txt: {len(pinned)} packages")


if __name__ == "__main__":
    main()
