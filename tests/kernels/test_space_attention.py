"""The Triton kernels against their reference, interpreted where there is no GPU, and their machine
code."""

import pytest
import torch

from genie_fn import random, tree
from genie_fn.kernels import attention
from genie_fn.nets import attention as nets_attention
from genie_fn.nets.attention import SpaceAttention
from genie_fn.nets.causal import Context
from genie_fn.runtime.backend import Backend
from tests.conftest import GENERATIONS

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# A whole tile, an odd frame, several tiles with and without a rest, one token, head dims that are
# no powers of two.
SHAPES = [
    (1, 2, 64, 2, 16),
    (2, 1, 37, 2, 40),
    (1, 1, 130, 1, 64),
    (1, 1, 128, 1, 32),
    (2, 3, 1, 2, 24),
    (1, 1, 70, 1, 128),
]


def noise(seed, *shape, dtype=torch.float32):
    return random.normal(random.key(seed, DEVICE), shape).to(dtype)


def strided(seed, shape, dtype):
    """Queries, keys and values as a model gives them: views of one product, not contiguous."""
    batch, frames, places, heads, dim = shape
    return noise(seed, batch, frames, places, 3, heads, dim, dtype=dtype).unbind(3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [True, False])
def test_forward_and_backward_agree_with_the_reference(shape, dtype, norm):
    dim = shape[-1]
    inputs = strided(0, shape, dtype) + ((noise(1, dim) + 1, noise(2, dim) + 1) if norm else ())
    weight = (
        noise(3, *shape)[..., ::2].repeat_interleave(2, -1) if dim % 2 == 0 else noise(3, *shape)
    )

    def run(impl, dtype):
        leaves = [
            x.to(dtype if x.dim() > 1 else torch.float32).detach().requires_grad_() for x in inputs
        ]
        y = (attention.attend_within if norm else attention.attend_space)(*leaves, impl=impl)
        return y, torch.autograd.grad((y.float() * weight).sum(), leaves)

    exact, exact_grads = run("reference", torch.float32)
    y, grads = run("triton", dtype)
    assert y.dtype == dtype
    tolerance = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for ours, theirs in zip((y, *grads), (exact, *exact_grads), strict=True):
        assert (ours.float() - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(
            min=1
        )  # 0 for one token


def test_strided_inputs_are_read_where_they_lie():
    """Neither the views of the packed product nor their gradient are copied into another layout
    first."""
    q, k, v = strided(0, (2, 2, 20, 2, 16), torch.float32)
    assert not q.is_contiguous()
    reversed_heads = [x.flip(3) for x in (q, k, v)]
    y = attention.attend_space(q, k, v, impl="triton")
    torch.testing.assert_close(y.flip(3), attention.attend_space(*reversed_heads, impl="triton"))
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(
        y, attention.attend_space(*transposed, impl="triton"), rtol=0, atol=0
    )


def test_layers_of_a_blueprint_take_the_kernel_too():
    spec = nets_attention.attention_spec(16, 2, 8)
    params = tree.map(lambda x: x.to(DEVICE), tree.init(spec, random.key(0)))
    x = noise(1, 2, 3, 3, 5, 16)
    (y, _), (expected, _) = (
        SpaceAttention(16, 2, 8).apply(params, x, None, Context(backend=Backend(space=impl)))
        for impl in ("triton", "reference")
    )
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow")  # they are infinite before they are left out
@pytest.mark.parametrize("tokens", [37, 70])  # one tile and several, both with padding
def test_scores_far_below_those_of_the_padding_do_no_harm(tokens):
    """Keys beyond the frame score 0: next to scores of -2000 their weights would be infinite,
    unless left out."""
    q, k, v = (noise(i, 1, 1, tokens, 1, 16) * 0.01 + middle for i, middle in enumerate((1, -1, 0)))
    leaves = [
        x.requires_grad_()
        for x in (q, k, v, noise(4, 16).mul(0.01).add(22.4), noise(5, 16).mul(0.01).add(22.4))
    ]
    weight = noise(3, 1, 1, tokens, 1, 16)
    y, expected = (attention.attend_within(*leaves, impl=impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)
    grads, expected = (torch.autograd.grad((x * weight).sum(), leaves) for x in (y, expected))
    torch.testing.assert_close(grads, expected, rtol=1e-2, atol=1e-2)


def test_a_gradient_that_is_one_number_everywhere_is_read_where_it_lies():
    """That of a sum has no memory of its own: all its strides are 0."""
    leaves = [
        x.requires_grad_()
        for x in (*strided(0, (1, 2, 20, 2, 16), torch.float32), noise(1, 16), noise(2, 16))
    ]
    grads, expected = (
        torch.autograd.grad(attention.attend_within(*leaves, impl=impl).sum(), leaves)
        for impl in ("triton", "reference")
    )
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-5)


def test_runs_repeat_bit_for_bit():
    inputs = [
        x.requires_grad_()
        for x in (*strided(0, (1, 1, 70, 1, 16), torch.float32), noise(1, 16), noise(2, 16))
    ]
    first, second = (
        torch.autograd.grad(attention.attend_within(*inputs, impl="triton").square().sum(), inputs)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.subprocess
@pytest.mark.parametrize("generations", GENERATIONS)
def test_the_kernels_become_machine_code(cubin_sizes, generations):
    assert len(cubin_sizes("space_attention", generations)) == len(generations) * (2 + 3 * 3)
