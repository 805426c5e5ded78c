"""The Triton kernel against its reference, under Triton's interpreter where there is no GPU, and
its machine code."""

import sys
from functools import partial

import pytest
import torch

from genie_fn import layers, random, tree
from genie_fn.errors import UserError
from genie_fn.kernels import attention
from genie_fn.runtime.backend import Backend
from genie_fn.runtime.compilation import compiled
from tests.conftest import GENERATIONS

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Places and frames that fill a tile, that do not, one frame, more frames than the window, odd head
# dims.
SHAPES = [
    (1, 4, 16, 2, 16),
    (2, 5, 3, 1, 40),
    (1, 16, 6, 1, 64),
    (1, 7, 13, 2, 32),
    (1, 1, 5, 1, 128),
    (1, 33, 2, 1, 24),
]


def noise(seed, *shape, dtype=torch.float32):
    return random.normal(random.key(seed, DEVICE), shape).to(dtype)


def strided(seed, shape, dtype):
    """Queries, keys and values as a model gives them: views of one product, not contiguous."""
    batch, frames, places, heads, dim = shape
    packed = noise(seed, batch, frames, places, 3, heads, dim, dtype=dtype)
    return packed.unbind(3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_new_frames_agree_with_the_reference_forward_and_backward(shape, dtype):
    frames, dim = shape[1], shape[-1]
    inputs = (*strided(0, shape, dtype), noise(1, dim) + 1, noise(2, dim) + 1)
    position = torch.arange(frames, device=DEVICE)[:, None] + 3
    visible = layers.visible_frames(frames, 5, None, DEVICE)
    weight = noise(3, *shape)

    def run(impl, dtype):
        leaves = [
            x.to(dtype if x.dim() > 1 else torch.float32).detach().requires_grad_() for x in inputs
        ]
        y = attention.attend_new_frames(*leaves, position, visible, impl=impl)
        return y, torch.autograd.grad((y.float() * weight).sum(), leaves)

    exact, exact_grads = run("reference", torch.float32)
    y, grads = run("triton", dtype)
    assert y.dtype == dtype
    tolerance = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for ours, theirs in zip((y, *grads), (exact, *exact_grads), strict=True):
        assert (ours.float() - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("frames", [1, 3])
def test_frames_after_a_cache_agree_with_the_reference(frames):
    q, (k, v) = noise(0, 2, frames, 5, 2, 16), (noise(i, 2, 9, 5, 2, 16) for i in (1, 2))
    visible = torch.ones(frames, 9, dtype=torch.bool, device=DEVICE).tril(9 - frames)
    visible[:, :2] = False  # slots of the cache that are not filled
    expected = attention.attend_time(q, k, v, visible, impl="reference")
    y = attention.attend_time(q, k, v, visible, impl="triton")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.compile
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=[] if DEVICE == "cuda" else pytest.mark.slow)],
)
def test_the_whole_stack_compiled_with_the_kernels_is_the_stack(stack_cfg, monkeypatch, backend):
    """Those for time and for space, through custom ops, compiled step and gradients, as training
    runs it; without a GPU by default without generating code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    params = tree.map(lambda x: x.to(DEVICE), tree.init(layers.st_spec(stack_cfg), random.key(0)))
    x = noise(1, 2, 6, 5, stack_cfg.dim)

    def step(params, x, backend):
        def loss(params):
            y, _ = layers.st_transformer(params, x, stack_cfg, backend=backend)
            return y.square().mean(), ()

        return tree.value_and_grad(loss)(params)

    (expected, _), expected_grads = step(params, x, Backend(space="reference", time="reference"))
    fast = compiled(step)
    (value, _), grads = fast(params, x, Backend(space="triton", time="triton"))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(tree.leaves(grads), tree.leaves(expected_grads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_without_triton_the_choice_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "genie_fn.kernels.common", None)
    monkeypatch.delattr("genie_fn.kernels.common", raising=False)
    q = noise(0, 1, 2, 3, 1, 16)
    with pytest.raises(UserError, match="needs the package triton"):
        attention.attend_time(q, q, q, torch.ones(2, 2, dtype=torch.bool), impl="triton")


@pytest.mark.subprocess
@pytest.mark.parametrize("generations", GENERATIONS)
def test_the_kernels_become_machine_code(cubin_sizes, generations):
    assert len(cubin_sizes("time_attention", generations)) == 4 * len(generations)
