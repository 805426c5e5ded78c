"""A trained world as a thing to load, save and give away."""

from genie_fn.bundle.bundle import (
    MAX_START_FRAMES,
    START_FRAMES,
    Bundle,
    Dataset,
    encode,
    is_world_file,
    load,
    recorded_actions,
    results_folder,
    save,
    with_dataset,
)
from genie_fn.bundle.run import (
    check_framewise,
    check_resolution,
    fingerprint,
    load_stage,
    load_world,
)

__all__ = [
    "MAX_START_FRAMES",
    "START_FRAMES",
    "Bundle",
    "Dataset",
    "check_framewise",
    "check_resolution",
    "encode",
    "fingerprint",
    "is_world_file",
    "load",
    "load_stage",
    "load_world",
    "recorded_actions",
    "results_folder",
    "save",
    "with_dataset",
]
