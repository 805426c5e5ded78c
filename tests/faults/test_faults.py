"""Faults while training, collecting and caching, in short forms; `python -m tests.faults` runs the
long ones."""

import random

import pytest

from tests.faults import cases, rig

pytestmark = pytest.mark.subprocess


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return cases.prepare(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("stage", rig.STAGES)
def test_killed_at_any_moment_it_ends_as_if_undisturbed(home, stage):
    cases.kills(home, stage, random.Random(stage), 2)


# The other faults meet the same loop in every stage, so each is injected into one; the long form tries all stages.
@pytest.mark.parametrize(
    ("case", "stage"),
    [
        (cases.full_disk, "tokenizer"),
        (cases.damaged_checkpoint, "lam"),
        (cases.damaged_data, "tokenizer"),
        (cases.damaged_data, "cached"),
        (cases.poisoned_steps, "lam"),
        (cases.sigterm, "dynamics"),
        (cases.two_at_once, "cached"),
        (cases.jumping_clock, "tokenizer"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_nothing_is_lost(home, case, stage):
    case(home, stage, random.Random(0))


@pytest.mark.parametrize("case", cases.RANKS, ids=lambda case: case.__name__)
def test_nothing_is_lost_by_two_processes(home, case):
    case(home, "tokenizer", random.Random(0))


@pytest.mark.parametrize("case", cases.COLLECTING[1:], ids=lambda case: case.__name__)
def test_nothing_is_lost_while_collecting(home, case):
    pytest.importorskip("procgen")
    case(home, random.Random(0))
