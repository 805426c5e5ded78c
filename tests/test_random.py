"""`genie_fn.random` against `jax.random` itself (JAX is installed, since orbax needs it)."""

import jax
import numpy as np
import pytest
import torch

from genie_fn import random

SEEDS = [0, 42, 2**32 - 1]
SHAPES = [(), (7,), (2, 3, 4), (1025,)]


def keys(seed):
    return random.key(seed), jax.random.key(np.uint32(seed))


def words(x):
    return np.asarray(x).astype(np.int64)


@pytest.mark.parametrize("seed", SEEDS)
def test_key_split_and_fold_in_equal_jax(seed):
    ours, theirs = keys(seed)
    np.testing.assert_array_equal(ours.numpy(), words(jax.random.key_data(theirs)))
    for num in (1, 2, 5):
        split = jax.random.key_data(jax.random.split(theirs, num))
        np.testing.assert_array_equal(random.split(ours, num).numpy(), words(split))
    for data in (0, 1, 12345, 2**32 - 1):
        folded = jax.random.key_data(jax.random.fold_in(theirs, np.uint32(data)))
        np.testing.assert_array_equal(random.fold_in(ours, data).numpy(), words(folded))
        np.testing.assert_array_equal(
            random.fold_in(ours, torch.tensor(data)).numpy(), words(folded)
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_draws_equal_jax(seed, shape):
    ours, theirs = keys(seed)
    np.testing.assert_array_equal(
        random.bits(ours, shape).numpy(), words(jax.random.bits(theirs, shape))
    )
    np.testing.assert_array_equal(
        random.uniform(ours, shape).numpy(), np.asarray(jax.random.uniform(theirs, shape))
    )
    np.testing.assert_array_equal(
        random.bernoulli(ours, 0.3, shape).numpy(),
        np.asarray(jax.random.bernoulli(theirs, 0.3, shape)),
    )
    for low, high in ((0, 6), (-3, 4), (0, 2**20 + 7), (5, 6), (0, 2**31 - 1)):
        expected = np.asarray(jax.random.randint(theirs, shape, low, high))
        np.testing.assert_array_equal(random.randint(ours, shape, low, high).numpy(), expected)
    np.testing.assert_allclose(
        random.normal(ours, shape).numpy(),
        np.asarray(jax.random.normal(theirs, shape)),
        rtol=2e-5,
        atol=2e-6,
    )
    np.testing.assert_allclose(
        random.gumbel(ours, shape).numpy(),
        np.asarray(jax.random.gumbel(theirs, shape)),
        rtol=2e-5,
        atol=2e-5,
    )


def test_several_keys_give_what_each_of_them_gives():
    several = random.fold_in(random.key(1), torch.arange(3))
    functions = [
        lambda key: random.uniform(key, (4, 5)),
        lambda key: random.gumbel(key, ()),
        lambda key: random.randint(key, (7,), 0, 9),
        lambda key: random.bernoulli(key, 0.3, (6,)),
        random.split,
        lambda key: random.fold_in(key, 8),
        lambda key: random.fold_in(key, torch.arange(2)),
    ]
    for function in functions:
        alone = [function(random.fold_in(random.key(1), i)) for i in range(3)]
        assert torch.equal(function(several), torch.stack(alone))


def test_uniform_range():
    ours, theirs = keys(7)
    np.testing.assert_allclose(
        random.uniform(ours, (1000,), -2.5, 3.0).numpy(),
        np.asarray(jax.random.uniform(theirs, (1000,), minval=-2.5, maxval=3.0)),
        rtol=1e-6,
        atol=1e-6,
    )


def draw(key):
    a, b = random.split(key).unbind(0)
    step = random.fold_in(a, torch.tensor(3))
    return random.uniform(step, (4, 3)), random.randint(b, (5,), 0, 11), random.bits(a, (6,))


@pytest.mark.compile
def test_compiled_and_vmapped_equal_eager():
    stack = random.split(random.key(3), 4)
    eager = [draw(k) for k in stack]
    compiled = torch.compile(draw, fullgraph=True)(stack[1])
    mapped = torch.func.vmap(draw)(stack)
    for i, (e, c) in enumerate(zip(eager[1], compiled, strict=True)):
        assert torch.equal(e, c)
        assert torch.equal(mapped[i], torch.stack([x[i] for x in eager]))


def test_global_state_is_untouched():
    before = torch.get_rng_state()
    draw(random.key(0))
    assert torch.equal(before, torch.get_rng_state())
