"""The part of the build that puts scripts and bundled worlds of the checkout into the wheel.

A hook of Hatchling. Editable installations need none of it: they find both where they lie.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TOOLS_OF_THE_CHECKOUT = {"ablate", "benchmark", "gpu", "speedrun"}
"""Scripts that are of no use without the rest of the checkout."""


class Hook(BuildHookInterface):
    """Adds `genie_fn/scripts/*.py` and `genie_fn/worlds/*.safetensors`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        scripts = [path for path in root.glob("*.py") if path.stem not in TOOLS_OF_THE_CHECKOUT]
        places = {path: f"genie_fn/scripts/{path.name}" for path in scripts}
        for world in root.glob("assets/worlds/*.safetensors"):
            places[world] = f"genie_fn/worlds/{world.name}"
        build_data["force_include"].update({str(path): place for path, place in places.items()})
