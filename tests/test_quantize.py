"""LFQ against the softmax over all codes that it avoids, VQ against its definition."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from genie_fn import metrics, quantize, random, tree
from genie_fn.errors import UserError
from genie_fn.kernels import lfq
from genie_fn.microbatch import WHOLE_BATCH
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime import stored_config
from genie_fn.runtime.backend import Backend


def all_codes(dim):
    return lfq.codes_of(torch.arange(2**dim), dim)


def materialised_entropies(z_MK, temperature):
    """The definition: softmax over all 2^K codes of 2 z·c / τ, in float64."""
    log_p_MV = (2 / temperature * z_MK.double() @ all_codes(z_MK.shape[1]).double().T).log_softmax(
        -1
    )
    average_V = log_p_MV.exp().mean(0)
    return -(log_p_MV.exp() * log_p_MV).sum(-1).mean(), torch.special.entr(average_V).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("dim", [1, 6, 7, 10])
def test_lfq_entropies_and_their_gradients_equal_the_materialised_softmax(dim, temperature):
    z = random.normal(random.key(dim), (50, dim)) * 0.4
    for which in (0, 1):
        ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
        entropy, oracle = (
            f(x, temperature)[which]
            for f, x in ((lfq.entropies, ours), (materialised_entropies, theirs))
        )
        torch.testing.assert_close(entropy.double(), oracle, rtol=1e-4, atol=1e-5)
        (gradient,), (expected,) = (
            torch.autograd.grad(entropy, ours),
            torch.autograd.grad(oracle, theirs),
        )
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_confident_latents_have_the_right_entropies_and_finite_gradients(temperature):
    """Codes that no latent is near get probability 0 in float32; their entropy's gradient must not become NaN."""
    for z in (random.normal(random.key(0), (40, 8)) * 8, all_codes(8)[:1].expand(40, 8) * 10.0):
        z = z.clone().requires_grad_()
        entropies = lfq.entropies(z, temperature)
        for ours, oracle in zip(entropies, materialised_entropies(z, temperature), strict=True):
            torch.testing.assert_close(ours.double(), oracle, rtol=1e-3, atol=1e-3)
            assert torch.autograd.grad(ours, z, retain_graph=True)[0].isfinite().all()


HUGE = """
import resource, sys, torch
from genie_fn.kernels import lfq
from genie_fn.microbatch import WHOLE_BATCH
torch.set_num_threads(2)
z = torch.randn(49_152, 18, generator=torch.Generator().manual_seed(0)).requires_grad_()
sample, average = lfq.entropies(z, 1.0)
gradient, = torch.autograd.grad(sample - average, z)
assert gradient.isfinite().all() and gradient.abs().max() > 0 and 0 < sample < average < 18 * 0.6932
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.subprocess
def test_a_quarter_million_codes_fit_in_memory():
    """49,152 tokens × 2^18 codes would be 48 GiB if they were ever materialised."""
    run = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 4 * 2**30


def test_sign_of_zero_is_minus_one():
    q = quantize.lfq(torch.tensor([[0.0, -0.0, 1e-30, -1e-30]]), QuantizerConfig(codes=16))
    assert q.codes.tolist() == [[-1, -1, 1, -1]] and q.ids.tolist() == [4]


@pytest.mark.parametrize("codes", [2, 64, 2**18])
def test_ids_and_codes_round_trip(codes):
    cfg = QuantizerConfig(codes=codes)
    ids = torch.arange(codes)[:: max(codes // 1024, 1)]
    looked_up = quantize.lookup({}, ids, cfg)
    assert looked_up.shape == (len(ids), cfg.dim) and (looked_up.abs() == 1).all()
    assert looked_up.unique(dim=0).shape == looked_up.shape
    q = quantize.lfq(looked_up[:64] * 0.3, cfg)
    assert torch.equal(q.ids, ids[:64]) and torch.equal(q.codes, looked_up[:64])


def test_quantised_codes_are_those_of_their_ids():
    z = random.normal(random.key(0), (2, 3, 4, 6))
    for cfg in (QuantizerConfig(codes=64), QuantizerConfig(kind="vq", codes=10, latent_dim=6)):
        params = tree.init(quantize.spec(cfg), random.key(1))
        q = quantize.quantize(params, z, cfg)
        assert q.ids.shape == z.shape[:-1] and q.ids.dtype == torch.int64 and not q.z.requires_grad
        torch.testing.assert_close(
            q.codes, quantize.lookup(params, q.ids, cfg), rtol=1e-5, atol=1e-5
        )


def test_the_diversity_term_rewards_use_of_all_codes():
    """The sign that public implementations get wrong: equally sure latents cost less spread out than collapsed."""
    cfg = QuantizerConfig(codes=64)
    spread, collapsed = all_codes(6) * 0.7, all_codes(6)[:1].expand(64, 6) * 0.7
    a, b = quantize.lfq(spread, cfg), quantize.lfq(collapsed, cfg)
    torch.testing.assert_close(a.metrics["sample_entropy"], b.metrics["sample_entropy"])
    torch.testing.assert_close(a.metrics["commit"], b.metrics["commit"])
    assert a.metrics["code_entropy"] > b.metrics["code_entropy"]
    assert a.loss < b.loss


def test_the_sample_term_rewards_confident_latents():
    sure, unsure = (lfq.entropies(all_codes(4) * scale, 1.0)[0] for scale in (2.0, 0.1))
    assert sure < unsure


def test_lfq_loss_is_its_formula():
    cfg = QuantizerConfig(codes=16, commit=0.5, entropy=0.2, diversity=1.5, temperature=0.7)
    z = random.normal(random.key(0), (9, 4))
    sample, average = materialised_entropies(z, 0.7)
    commit = (z - torch.where(z > 0, 1.0, -1.0)).square().mean()
    expected = 0.5 * commit + 0.2 * (sample - 1.5 * average)
    torch.testing.assert_close(quantize.lfq(z, cfg).loss, expected.float())


@pytest.mark.parametrize("kind", ["lfq", "vq"])
def test_the_gradient_of_codes_goes_straight_through(kind):
    cfg = QuantizerConfig(kind=kind, codes=16, latent_dim=4)
    params = tree.init(quantize.spec(cfg), random.key(1))
    z = random.normal(random.key(0), (5, 4)).requires_grad_()
    weights = random.normal(random.key(2), (5, 4))
    gradient = torch.autograd.grad((quantize.quantize(params, z, cfg).codes * weights).sum(), z)[0]
    assert torch.equal(gradient, weights)


VQ = QuantizerConfig(kind="vq", codes=5, latent_dim=3, commit=0.25)


def test_vq_takes_the_nearest_code():
    codebook, z = random.normal(random.key(0), (5, 3)), random.normal(random.key(1), (40, 3))
    q = quantize.vq(codebook, z, VQ)
    assert torch.equal(q.ids, torch.cdist(z, codebook).argmin(-1))
    torch.testing.assert_close(q.codes, codebook[q.ids])


def test_vq_moves_the_codebook_to_its_inputs_and_the_inputs_to_their_codes():
    codebook = random.normal(random.key(0), (5, 3)).requires_grad_()
    z = random.normal(random.key(1), (8, 3)).requires_grad_()
    q = quantize.vq(codebook, z, VQ)
    to_book, to_z = torch.autograd.grad(q.loss, (codebook, z))
    difference = (codebook[q.ids] - z).detach() * 2 / z.numel()
    torch.testing.assert_close(to_book, torch.zeros(5, 3).index_add(0, q.ids, difference))
    torch.testing.assert_close(to_z, -0.25 * difference)


def test_dead_codes_restart_on_inputs_and_used_ones_stay():
    codebook, z = random.normal(random.key(0), (5, 3)), random.normal(random.key(1), (2, 4, 3)) + 50
    use = torch.tensor([0.5, 0.019, 0.021, 0.459, 0.001])  # the limit is 0.1 / 5
    new, new_use = quantize.reset_dead_codes(
        codebook, use, quantize.pick_inputs(z, random.key(2), 5), VQ
    )
    used, dead = [0, 2, 3], [1, 4]
    assert torch.equal(new[used], codebook[used]) and torch.equal(new_use[used], use[used])
    assert (new[dead][:, None] == z.flatten(0, 1)).all(-1).any(-1).all(), (
        "a dead code was not moved onto an input"
    )
    assert torch.equal(new_use[dead], torch.full((2,), 0.2)), (
        "a moved code has no time to be chosen"
    )


def test_mirror_images_restart_together_by_their_mean_use():
    """A code that its mirror image's data would keep alive does not take that image away."""
    cfg = QuantizerConfig(kind="vq", codes=5, latent_dim=2, pairs=2, reset_below=0.5)
    use = torch.tensor([0.0, 0.6, 0.0, 0.01, 0.39])
    book = torch.arange(10.0).reshape(5, 2)
    new, new_use = quantize.reset_dead_codes(book, use, -torch.ones(5, 2), cfg)
    assert torch.equal(new[[0, 1, 4]], book[[0, 1, 4]]) and (new[2:4] == -1).all()
    assert new_use.tolist() == pytest.approx([0.0, 0.6, 0.2, 0.2, 0.39])


def test_an_unused_code_is_restarted():
    """End to end: a codebook with far away entries is in full use after enough updates."""
    book = torch.cat((torch.zeros(1, 3), torch.full((4, 3), 1e3)))
    params, stats = (
        {"quantizer": {"codebook": book}, "other": torch.ones(2)},
        quantize.initial_use(VQ),
    )
    z, update = random.normal(random.key(0), (64, 3)), quantize.codebook_update(VQ)
    assert (quantize.quantize(params["quantizer"], z, VQ).use_V > 0).sum() == 1
    for s in range(200):
        q = quantize.quantize(params["quantizer"], z, VQ)
        params, stats = update.apply(
            params, stats, update.collect(q, random.fold_in(random.key(1), s), WHOLE_BATCH)
        )
    assert (quantize.quantize(params["quantizer"], z, VQ).use_V > 0).sum() == 5
    assert torch.equal(params["quantizer"]["codebook"][0], torch.zeros(3)), (
        "the used code was moved"
    )
    assert torch.equal(params["other"], torch.ones(2))


def updated(cfg, steps):
    """The codebook after some updates, in which the optimizer does nothing."""
    book = torch.cat((torch.zeros(1, 3), torch.full((4, 3), 1e3)))
    params, stats = {"quantizer": {"codebook": book}}, quantize.initial_use(cfg)
    z, update = random.normal(random.key(0), (64, 3)), quantize.codebook_update(cfg)
    for s in range(steps):
        q = quantize.quantize(params["quantizer"], z, cfg)
        key = random.fold_in(random.key(1), s)
        params, stats = update.apply(params, stats, update.collect(q, key, WHOLE_BATCH))
    return params["quantizer"]["codebook"]


def test_the_first_step_places_unused_codes_on_inputs():
    assert (updated(VQ, 1)[1:] == 1e3).all()
    placed = updated(replace(VQ, from_inputs=True), 1)
    assert placed.abs().max() < 10 and (placed[0] == 0).all()
    assert len(placed.unique(dim=0)) == 5


@pytest.mark.parametrize(("rate", "steps"), [(0.02, 114), (0.1, 22), (0.5, 4)])
def test_unused_codes_are_moved_the_sooner_the_larger_the_rate(rate, steps):
    cfg = replace(VQ, use_rate=rate)
    assert (updated(cfg, steps - 1)[1:] == 1e3).any()
    assert (updated(cfg, steps) < 1e3).all()
    with pytest.raises(UserError, match="use-rate"):
        replace(VQ, use_rate=0.0)


def test_the_codes_of_each_factor_are_standardised():
    lfq = QuantizerConfig(codes=2**6)
    low, high = quantize.factor_codes({}, lfq, (2**2, 2**4))
    assert low.shape == (4, 2) and high.shape == (16, 4)
    ids = torch.arange(16) * 4
    assert torch.equal(high, quantize.lookup({}, ids, lfq)[:, 2:])

    book = random.normal(random.key(0), (5, 3)) * torch.tensor([1.0, 9.0, 0.0]) + 7
    (codes,) = quantize.factor_codes({"codebook": book}, VQ, (5,))
    torch.testing.assert_close(codes.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes.std(0, correction=0), torch.ones(2))
    order = book[:, 1].argsort()
    assert torch.equal(codes[:, 1].argsort(), order)


def test_lfq_keeps_no_statistics():
    cfg = QuantizerConfig(codes=4)
    assert (
        quantize.spec(cfg) == quantize.initial_use(cfg) == {}
        and quantize.codebook_update(cfg) is None
    )


def test_use_counts_codes_not_tokens():
    use = quantize.code_use(torch.tensor([[0, 0, 3], [3, 0, 0]]), 5)
    torch.testing.assert_close(use, torch.tensor([4, 0, 0, 2, 0]) / 6)
    used = quantize.summarise({"use": use})
    assert used["codes_used"].item() == 2
    assert used["perplexity"].item() == pytest.approx(3 / 2 ** (2 / 3))
    even = metrics.code_usage(torch.full((8,), 1 / 8))
    assert even["perplexity"].item() == pytest.approx(8)


@pytest.mark.parametrize(
    "bad",
    [{"kind": "none"}, {"codes": 6}, {"codes": 0}, {"codes": 1}, {"codes": -4}, {"kind": "vq", "codes": 0},
     {"temperature": 0.0}],
)  # fmt: skip
def test_bad_configurations_are_refused(bad):
    """Unless refused, a codebook of one code trains to NaN, and a temperature of 0 ends in a traceback."""
    with pytest.raises(UserError):
        stored_config.from_dict(QuantizerConfig, bad)


def test_an_odd_number_of_codes_is_fine_for_vq():
    assert QuantizerConfig(kind="vq", codes=6).dim == 32 and QuantizerConfig(codes=2**18).dim == 18


def test_every_codebook_has_its_own_entropies():
    """Two books of 4 bits: an id names a code of each, and each half is scored as a quantiser of its own."""
    z = random.normal(random.key(0), (50, 8))
    both = quantize.lfq(z, QuantizerConfig(codes=2**8, books=2))
    halves = [quantize.lfq(half, QuantizerConfig(codes=2**4)) for half in z.chunk(2, -1)]
    assert torch.equal(both.ids, halves[0].ids + 16 * halves[1].ids)
    for name in ("sample_entropy", "code_entropy", "commit"):
        torch.testing.assert_close(both.metrics[name], sum(h.metrics[name] for h in halves) / 2)
    torch.testing.assert_close(both.loss, sum(h.loss for h in halves) / 2)


TWO_BOOKS = QuantizerConfig(kind="vq", codes=5**2, books=2, latent_dim=6, commit=0.25)


@pytest.mark.parametrize("sphere", [False, True])
def test_each_codebook_of_vq_quantises_its_channels(sphere):
    cfg = replace(TWO_BOOKS, sphere=sphere)
    z = random.normal(random.key(0), (7, 4, 6))
    params = tree.init(quantize.spec(cfg), random.key(1))
    both = quantize.quantize(params, z, cfg)
    one = replace(VQ, sphere=sphere)
    halves = [
        quantize.vq(book, half, one)
        for book, half in zip(params["codebook"].chunk(2), z.chunk(2, -1), strict=True)
    ]
    assert torch.equal(both.ids, halves[0].ids + 5 * halves[1].ids)
    torch.testing.assert_close(both.codes, torch.cat([half.codes for half in halves], -1))
    torch.testing.assert_close(both.loss, sum(half.loss for half in halves) / 2)
    torch.testing.assert_close(both.use_V, torch.cat([half.use_V for half in halves]) / 2)
    torch.testing.assert_close(quantize.lookup(params, both.ids, cfg), both.codes)
    torch.testing.assert_close(
        quantize.unquantized(params, z, cfg), torch.cat([half.z for half in halves], -1)
    )
    first, second = quantize.factor_codes(params, cfg, (5, 5))
    assert first.shape == second.shape == (5, 3)


def test_four_codebooks_have_no_table_of_all_ids(careful):
    """There are 2^40 ids, and 1,024 codes in each codebook."""
    cfg = QuantizerConfig(kind="vq", codes=2**40, books=4, latent_dim=16)
    params = tree.init(quantize.spec(cfg), random.key(0))
    q = quantize.quantize(params, random.normal(random.key(1), (50, 64, 16)), cfg)
    assert q.ids.max() > 2**32
    torch.testing.assert_close(quantize.lookup(params, q.ids, cfg), q.codes)
    scores = quantize.summarise(q.metrics)
    assert 500 < scores["perplexity"] <= 1024 < scores["codes_used"] <= 4096


def test_collapsed_codebooks_show_in_the_perplexity():
    params = {"codebook": torch.cat((torch.zeros(1, 3), torch.full((4, 3), 9.0))).repeat(2, 1)}
    q = quantize.quantize(params, torch.zeros(40, 6), TWO_BOOKS)
    scores = quantize.summarise(q.metrics)
    assert scores["perplexity"] == 1 and scores["codes_used"] == 2
    with pytest.raises(IndexError):
        quantize.lookup(params, torch.tensor([TWO_BOOKS.codes]), TWO_BOOKS)


def test_unused_codes_of_each_codebook_are_moved_onto_their_channels_of_inputs():
    book = torch.cat((torch.zeros(1, 3), torch.full((4, 3), 1e3)))
    params = {"quantizer": {"codebook": torch.cat((book, book))}}
    stats = quantize.initial_use(TWO_BOOKS)
    z = random.normal(random.key(0), (64, 6)) + torch.tensor([0.0] * 3 + [50.0] * 3)
    update = quantize.codebook_update(TWO_BOOKS)
    for s in range(200):
        q = quantize.quantize(params["quantizer"], z, TWO_BOOKS)
        key = random.fold_in(random.key(1), s)
        params, stats = update.apply(params, stats, update.collect(q, key, WHOLE_BATCH))
    first, second = params["quantizer"]["codebook"].chunk(2)
    assert first.abs().max() < 10 and (second[1:] - 50).abs().max() < 10
    used = quantize.quantize(params["quantizer"], z, TWO_BOOKS).use_V
    assert (used > 0).sum() >= 9, "the zero of the second codebook is far from its inputs"


def test_a_share_of_the_samples_is_spread_evenly():
    part = lfq.spread_rows(1000, 0.1, torch.device("cpu"))
    assert len(part) == 100 == len(part.unique())
    assert torch.histc(part.float(), 10, 0, 1000).min() >= 9
    assert len((part % 8).unique()) == 8, "always the same places"
    by_clip = lfq.spread_rows(1000, 0.1, torch.device("cpu"), clips=10)
    assert torch.equal(torch.bincount(by_clip // 100), torch.full((10,), 10))
    assert len((by_clip % 100).unique()) > 50, "the same places of every clip"
    rest = lfq.spread_rows(400, 0.1, torch.device("cpu"), clips=4, first=6)
    assert torch.equal(rest + 600, by_clip[60:]), "a part of a batch sees what the whole would"
    assert lfq.spread_rows(1000, 1.0, torch.device("cpu")) is None
    cfg = QuantizerConfig(codes=16)
    z = random.normal(random.key(0), (4096, 4))
    full, part = (quantize.lfq(z, replace(cfg, frac_sample=f)) for f in (1.0, 0.25))
    assert torch.equal(full.ids, part.ids) and full.loss != part.loss
    torch.testing.assert_close(
        part.metrics["code_entropy"], full.metrics["code_entropy"], rtol=0.01, atol=0
    )


@pytest.mark.parametrize("kind", ["lfq", "vq"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_lead_to_the_code_width_and_back(kind, bias):
    cfg = QuantizerConfig(kind=kind, codes=16, latent_dim=4, input_dim=10, bias=bias)
    params = tree.init(quantize.spec(cfg), random.key(0))
    assert ("b" in params["in"]) == bias
    z = random.normal(random.key(1), (3, 5, 10)).requires_grad_()
    q = quantize.quantize(params, z, cfg)
    assert q.codes.shape == z.shape and q.z.shape == (3, 5, 4) and q.ids.max() < 16
    torch.testing.assert_close(quantize.lookup(params, q.ids, cfg), q.codes)
    assert torch.autograd.grad(q.codes.sum(), z)[0].abs().max() > 0, (
        "the gradient does not reach the input"
    )


def test_impossible_quantisers_are_refused():
    vq = {"kind": "vq", "sphere": True}
    for options in (
        {"books": 3},
        {"books": 0},
        {"frac_sample": 0.0},
        vq | {"books": 3, "latent_dim": 6},
        vq | {"books": 2, "latent_dim": 5},
        vq | {"books": 2, "pairs": 1},
    ):
        with pytest.raises(UserError):
            QuantizerConfig(codes=2**10, **options)
    with pytest.raises(UserError, match="equal shares"):
        QuantizerConfig(kind="vq", codes=2**10, books=20_000)
    with pytest.raises(UserError, match=r"codes 16 for 4 in each"):
        QuantizerConfig(kind="vq", codes=15, books=2)


def test_only_lfq_reads_how_lfq_is_computed():
    z = random.normal(random.key(0), (2, 3, VQ.dim))
    params = tree.init(quantize.spec(VQ), random.key(1))
    expected = quantize.quantize(params, z, VQ)
    other = quantize.quantize(params, z, VQ, backend=Backend(lfq="triton"))
    assert torch.equal(other.codes, expected.codes) and torch.equal(other.ids, expected.ids)
