"""The Triton kernels against their reference, under Triton's interpreter where there is no GPU, and
as machine code."""

import sys

import pytest
import torch

from genie_fn import quantize, random, tree
from genie_fn.errors import UserError
from genie_fn.kernels import lfq
from genie_fn.kernels.lfq import Options
from genie_fn.quantize import QuantizerConfig
from tests.conftest import GENERATIONS

lfq_triton = pytest.importorskip("genie_fn.kernels.lfq_triton", reason="Triton is not installed")
from genie_fn.kernels.common import INTERPRETED
from genie_fn.runtime import compilation
from genie_fn.runtime.backend import Backend

TRITON = Options(impl="triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Rows, bits, codebooks, share of the rows: tiles that are full and that are not, odd bits, halves
# without bits, several
# tiles and steps, rows that the entropies count twice.
CASES = [
    (37, 1, 1, 1.0),
    (64, 4, 4, 1.0),
    (70, 7, 1, 0.9),
    (1, 8, 1, 1.0),
    (45, 12, 2, 0.3),
    (33, 13, 1, 1.0),
    (5, 36, 4, 1.0),
]


def noise(seed, *shape):
    return random.normal(random.key(seed, DEVICE), shape)


def outputs_and_gradients(z, weight, quantize):
    """All that `lfq.quantize` returns, and the gradient of each output that has one by z."""
    z = z.detach().requires_grad_()
    r = quantize(z)
    assert not r.ids_M.requires_grad
    sources = ((r.codes_MK * weight).sum(), r.commit, r.sample_entropy, r.code_entropy)
    return r, [torch.autograd.grad(source, z, retain_graph=True)[0] for source in sources]


def check(ours, theirs, tolerance):
    """Every tensor up to a share of its greatest value."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_their_gradients_agree_with_the_reference(case, dtype):
    rows, bits, books, share = case
    z, weight = noise(0, bits, rows).T.to(dtype), noise(1, rows, bits)  # not contiguous
    if rows > 1:
        z[0, 0], z[1, 0] = 0.0, -0.0
    options = Options(books, share=share, temperature=0.7)
    triton = options._replace(impl="triton")
    r, grads = outputs_and_gradients(z, weight, lambda z: lfq.quantize(z, triton))
    exact, exact_grads = outputs_and_gradients(z, weight, lambda z: lfq.quantize(z, options))
    assert torch.equal(r.ids_M, exact.ids_M) and torch.equal(r.codes_MK, exact.codes_MK.sign())
    assert [x.dtype for x in r] == [x.dtype for x in exact] and all(g.dtype == dtype for g in grads)
    check(r, exact, 1e-5)
    check(grads, exact_grads, 5e-5 if dtype == torch.float32 else 1e-2)


def by_definition(z_MK, temperature):
    """The two entropies of a softmax over all codes, in float64."""
    codes_VK = lfq.codes_of(torch.arange(2 ** z_MK.shape[1], device=DEVICE), z_MK.shape[1]).double()
    log_p_MV = (2 / temperature * z_MK @ codes_VK.T).log_softmax(-1)
    return -(log_p_MV.exp() * log_p_MV).sum(-1).mean(), torch.special.entr(
        log_p_MV.exp().mean(0)
    ).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_entropies_and_their_gradients_are_those_of_the_definition(temperature):
    z = noise(0, 40, 9)
    for which in (0, 1):
        slope, value = torch.func.grad_and_value(
            lambda z, which=which: by_definition(z, temperature)[which]
        )(z.double())
        leaf = z.clone().requires_grad_()
        ours = lfq.quantize(leaf, Options(temperature=temperature, impl="triton"))[3 + which]
        check((ours, *torch.autograd.grad(ours, leaf)), (value, slope), 1e-4)


def test_18_bits_in_tiles_of_any_size_and_any_split_of_the_rows(monkeypatch):
    if INTERPRETED:  # which is slow for each tile, and has no registers to run out of
        monkeypatch.setattr(lfq_triton, "CODES", (256, 512))
    monkeypatch.setattr(lfq_triton, "PROGRAMS", 5)
    z, weight = noise(0, 200, 18) * 0.3, noise(1, 200, 18)
    r, grads = outputs_and_gradients(z, weight, lambda z: lfq.quantize(z, TRITON))
    exact, exact_grads = outputs_and_gradients(z, weight, lfq.quantize)
    check(r, exact, 1e-5)
    check(grads, exact_grads, 2e-4)
    again, grads_again = outputs_and_gradients(z, weight, lambda z: lfq.quantize(z, TRITON))
    assert all(torch.equal(a, b) for a, b in zip((*r, *grads), (*again, *grads_again), strict=True))


def test_sure_latents_have_finite_gradients():
    z = torch.where(noise(0, 40, 8) > 0, 100.0, -100.0)
    r, grads = outputs_and_gradients(
        z, z, lambda z: lfq.quantize(z, Options(temperature=0.1, impl="triton"))
    )
    assert r.sample_entropy == 0 and all(x.isfinite().all() for x in (*r, *grads))
    _, counts = r.ids_M.unique(return_counts=True)
    torch.testing.assert_close(r.code_entropy, torch.special.entr(counts / 40).sum())


@pytest.mark.compile
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_through_the_quantiser_is_the_references(compiled):
    """All that the quantiser returns, and the gradients of its whole loss and of its codes', as
    training runs it."""
    cfg = QuantizerConfig(codes=2**8, input_dim=5, books=2, frac_sample=0.5, temperature=0.5)
    params = tree.map(lambda x: x.to(DEVICE), tree.init(quantize.spec(cfg), random.key(0)))
    x, target = noise(1, 3, 4, 7, 5) * 9, noise(2, 3, 4, 7, 5)

    def step(params, x, backend):
        def loss(params):
            q = quantize.quantize(params, x, cfg, backend=backend)
            return (q.codes - target).square().mean() + q.loss, (q.metrics, q.ids, q.z, q.use_V)

        return tree.value_and_grad(loss)(params)

    way = compilation.compiled(step) if compiled else step
    both = (
        tree.leaves(way(params, x, Backend(lfq="triton"))),
        tree.leaves(step(params, x, Backend())),
    )
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_without_triton_or_with_too_many_bits_the_choice_is_refused_in_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="at most 30 bits in a codebook, not 31"):
        lfq.quantize(noise(0, 2, 31), TRITON)
    monkeypatch.setitem(sys.modules, "genie_fn.kernels.common", None)
    monkeypatch.delattr("genie_fn.kernels.common", raising=False)
    with pytest.raises(UserError, match="needs the package triton"):
        lfq.quantize(noise(0, 2, 3), TRITON)


@pytest.mark.subprocess
@pytest.mark.parametrize("generations", GENERATIONS)
def test_the_kernels_become_machine_code(cubin_sizes, generations):
    assert len(cubin_sizes("lfq", generations)) == 9 * len(generations)
