"""Bootstrap intervals against enumeration and against the normal interval."""

import torch

from genie_fn import random
from genie_fn.evaluation import statistics


def test_bootstrap_of_two_values_is_what_can_be_enumerated():
    """A resample of {0, 1} has the mean 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    found = statistics.bootstrap(torch.tensor([0.0, 1.0]), random.key(0), resamples=4000, level=0.4)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)  # the middle 40% are all 1/2
    found = statistics.bootstrap(torch.tensor([0.0, 1.0]), random.key(0), resamples=4000, level=0.6)
    assert (found.low, found.high) == (0.0, 1.0)


def test_bootstrap_of_many_values_has_the_width_of_the_normal_interval():
    values = random.normal(random.key(1), (400, 3)) * torch.tensor([1.0, 2.0, 0.0]) + torch.tensor(
        [0.0, 5.0, 7.0]
    )
    found = statistics.bootstrap(values, random.key(2), resamples=4000)
    torch.testing.assert_close(found.mean, values.mean(0))
    half = 1.96 * values.std(0, correction=0) / 400**0.5
    torch.testing.assert_close(found.low, values.mean(0) - half, atol=0.02, rtol=0)
    torch.testing.assert_close(found.high, values.mean(0) + half, atol=0.02, rtol=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found, statistics.bootstrap(values, random.key(2), 4000), strict=True)
    )


def test_values_of_a_group_are_drawn_together():
    by_group = random.normal(random.key(1), (12, 2))
    values = by_group.repeat_interleave(5, 0)
    groups = (100 - torch.arange(12)).repeat_interleave(5)
    found = statistics.bootstrap(values, random.key(2), groups=groups)
    expected = statistics.bootstrap(by_group.flip(0), random.key(2))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    alone = statistics.bootstrap(values, random.key(2))
    assert (found.high - found.low > 1.5 * (alone.high - alone.low)).all()


def test_groups_of_different_sizes_have_weights_of_their_sizes():
    values = torch.tensor([0.0, 0.0, 0.0, 8.0])
    found = statistics.bootstrap(values, random.key(0), groups=torch.tensor([1, 1, 1, 2]))
    assert (found.mean, found.low, found.high) == (2.0, 0.0, 8.0)


def test_values_of_a_single_group_are_drawn_one_by_one():
    values = random.normal(random.key(1), (9,))
    single = statistics.bootstrap(values, random.key(2), groups=torch.zeros(9))
    assert single == statistics.bootstrap(values, random.key(2))
