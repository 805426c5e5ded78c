"""Reading checkpoints: what is silenced meanwhile, and what a run remembers of its time."""

import logging
import sys
import warnings

from genie_fn.training import checkpoint
from genie_fn.training.checkpointer import Checkpointer
from tests.training.test_loop import CFG, fresh


def settings():
    return logging.getLogger("absl").level, sys.unraisablehook, list(warnings.filters)


def test_orbax_is_silenced_only_within_the_context():
    before = settings()
    with checkpoint.quiet_orbax():
        level, hook, filters = settings()
        assert level == logging.CRITICAL and hook is not before[1] and filters != before[2]
    assert settings() == before


def test_a_checkpoint_knows_how_long_its_run_has_trained(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, fresh(), CFG, seconds=12.5)
    assert checkpoint.seconds_trained(tmp_path, 3) == 12.5
    assert checkpoint.seconds_trained(tmp_path, 4) == 0, "there is none"
    (tmp_path / "checkpoints" / "3" / "progress" / "metadata").write_text("{}")
    assert checkpoint.seconds_trained(tmp_path, 3) == 0, "an earlier version did not store it"
