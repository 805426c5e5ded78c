"""The number of CPUs that a script uses by default."""

import os

import pytest

import generate_dataset
import import_videos
from genie_fn.runtime import cpus


@pytest.mark.parametrize("allowed", [1, 3, 384])
def test_the_default_is_the_allowed_cpus_and_accepted(monkeypatch, allowed):
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    assert import_videos.Config(src="x").workers == min(allowed, import_videos.LIMITS["workers"][1])
    assert generate_dataset.Config().workers == allowed


def test_without_an_affinity_all_cpus_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, expected in ((None, 1), (7, 7), (1000, 256)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert cpus.available(256) == expected
