"""The shared layers: causality, the cache against the whole sequence, attention implementations, pixels."""

from dataclasses import replace

import pytest
import torch

from genie_fn import layers, random, tree
from genie_fn.kernels import attention
from genie_fn.runtime.backend import Backend

B, T, N = 2, 11, 3


@pytest.fixture(scope="module")
def params(stack_cfg):
    return tree.init(layers.st_spec(stack_cfg), random.key(0))


@pytest.fixture(scope="module")
def x(stack_cfg):
    return random.normal(random.key(1), (B, T, N, stack_cfg.dim))


def perturbed(x, where):
    """`x` with other numbers at x[:, where]."""
    y = x.clone()
    y[:, where] += random.normal(random.key(9), y[:, where].shape)
    return y


@pytest.mark.parametrize("chunks", [[1] * T, [T], [3, 4, 4], [1, 10], [5, 1, 5], [2, 2, 7]])
def test_cached_equals_the_banded_whole(params, x, stack_cfg, chunks):
    """Frames fed in pieces give what all frames give at once, beyond the window (4) too."""
    whole, none = layers.st_transformer(params, x, stack_cfg)
    assert none is None
    cache, pieces = layers.empty_cache(stack_cfg, B, N), []
    for piece in x.split(chunks, 1):
        y, cache = layers.st_transformer(params, piece, stack_cfg, cache)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)
    assert cache.seen.item() == T
    assert cache.k_LBSNGE.shape == layers.empty_cache(stack_cfg, B, N).k_LBSNGE.shape, (
        "the cache grows"
    )


def test_a_window_of_one_frame_caches_nothing_and_still_works(params, x, stack_cfg):
    cfg = replace(stack_cfg, window=1)
    whole, _ = layers.st_transformer(params, x, cfg)
    first, cache = layers.st_transformer(params, x[:, :4], cfg, layers.empty_cache(cfg, B, N))
    rest, _ = layers.st_transformer(params, x[:, 4:], cfg, cache)
    torch.testing.assert_close(torch.cat((first, rest), 1), whole, rtol=1e-4, atol=1e-5)


def test_unfilled_slots_of_an_empty_cache_are_not_seen(params, x, stack_cfg):
    """Whatever an unfilled slot holds, the output stays: zeros there would still take attention weight."""
    empty = layers.empty_cache(stack_cfg, B, N)
    full_of_junk = empty._replace(k_LBSNGE=empty.k_LBSNGE + 5, v_LBSNGE=empty.v_LBSNGE + 7)
    clean, _ = layers.st_transformer(params, x[:, :2], stack_cfg, empty)
    junk, _ = layers.st_transformer(params, x[:, :2], stack_cfg, full_of_junk)
    assert torch.equal(clean, junk)


def test_a_cache_is_not_modified(params, x, stack_cfg):
    """Sessions branch: using a cache twice must give the same twice."""
    _, cache = layers.st_transformer(
        params, x[:, :5], stack_cfg, layers.empty_cache(stack_cfg, B, N)
    )
    before = tree.map(torch.clone, cache)
    layers.st_transformer(params, x[:, 5:7], stack_cfg, cache)
    assert all(torch.equal(a, b) for a, b in zip(before, cache, strict=True))


@pytest.mark.parametrize("t", [0, 4, 9])
def test_the_future_does_not_leak(params, x, stack_cfg, t):
    y, _ = layers.st_transformer(params, x, stack_cfg)
    z, _ = layers.st_transformer(params, perturbed(x, slice(t + 1, None)), stack_cfg)
    assert torch.equal(y[:, : t + 1], z[:, : t + 1]), "an output changed with a later frame"
    assert not torch.allclose(y[:, t + 1], z[:, t + 1], atol=1e-3), (
        "the perturbation reached nothing"
    )


def test_time_attention_reaches_back_exactly_one_window(params, x, stack_cfg):
    one = replace(stack_cfg, layers=1)
    single = tree.map(lambda p: p[:1], params["blocks"])
    f = lambda x: layers.st_transformer({"blocks": single, "norm": params["norm"]}, x, one)[0]  # noqa: E731
    changed = (f(x) - f(perturbed(x, slice(2, 3)))).abs().amax((0, 2, 3)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [2, 3, 4, 5]


def test_space_attention_sees_its_own_frame_only(params, x, stack_cfg):
    cfg = replace(stack_cfg, window=1)
    y, z = (layers.st_transformer(params, v, cfg)[0] for v in (x, perturbed(x, slice(3, 4))))
    changed = (y - z).abs().amax((0, 2, 3)) > 0
    assert changed.nonzero().flatten().tolist() == [3]
    one_token = x.clone()
    one_token[:, 3, 0] += 1
    moved = (layers.st_transformer(params, one_token, cfg)[0] - y).abs().amax((0, 3))[3]
    assert (moved > 1e-6).all(), "a token does not reach its frame's other tokens"


def test_samples_of_a_batch_are_independent(params, x, stack_cfg):
    y, _ = layers.st_transformer(params, x, stack_cfg)
    alone, _ = layers.st_transformer(params, x[1:], stack_cfg)
    torch.testing.assert_close(y[1:], alone, rtol=1e-4, atol=1e-5)


def qkv(frames, keys):
    return (
        random.normal(random.key(i), (B, n, N, 2, 8)) for i, n in enumerate((frames, keys, keys))
    )


def test_time_attention_implementations_agree():
    q, k, v = qkv(5, 8)
    visible = layers.visible_frames(5, 3, None, q.device)
    visible = torch.cat((torch.ones(5, 3, dtype=torch.bool).triu(1), visible), 1)
    expected = attention.attend_time(q, k, v, visible, impl="reference")
    for impl in ("fused", "sdpa"):
        torch.testing.assert_close(
            attention.attend_time(q, k, v, visible, impl=impl), expected, rtol=1e-4, atol=1e-5
        )


def test_space_attention_implementations_agree():
    q, k, v = qkv(4, 4)
    expected = attention.attend_space(q, k, v, impl="reference")
    torch.testing.assert_close(
        attention.attend_space(q, k, v, impl="sdpa"), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.compile
def test_compiled_space_attention_is_attention():
    """Compiled on a CPU, torch 2.13 gives sdpa of transposed 5-D tensors another shape, silently mixing frames."""
    f = torch.compile(
        lambda q, k, v: attention.attend_space(q, k, v, impl="sdpa"), fullgraph=True, dynamic=False
    )
    for n in (N, 4):  # with N = T the wrong shape would fit
        q, k, v = (random.normal(random.key(i), (B, 4, n, 2, 8)) for i in range(3))
        expected = attention.attend_space(q, k, v, impl="reference")
        torch.testing.assert_close(f(q, k, v), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_the_whole_stack_agrees_for_every_implementation(params, x, stack_cfg, impl):
    expected, _ = layers.st_transformer(params, x, stack_cfg)
    other, _ = layers.st_transformer(params, x, stack_cfg, backend=Backend(space=impl, time=impl))
    torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)


def test_products_in_bfloat16_round_factors_and_results():
    x = random.normal(random.key(0), (3, 64)).requires_grad_()
    params = {"w": random.normal(random.key(1), (64, 32)).requires_grad_()}
    y = layers.linear(params, x, "bfloat16")
    exact = x.bfloat16().double() @ params["w"].bfloat16().double()
    assert y.dtype == torch.float32
    assert torch.equal(y, y.bfloat16().float())
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-5)
    assert not torch.equal(y, layers.linear(params, x, "float32")), "nothing is rounded"
    assert torch.equal(layers.linear(params, x), layers.linear(params, x, "float32"))


def test_gradients_with_products_in_bfloat16_are_close(params, x, stack_cfg):
    def gradients(products):
        leaves = tree.map(lambda p: p.clone().requires_grad_(), params)
        y, _ = layers.st_transformer(leaves, x, stack_cfg, backend=Backend(products=products))
        found = torch.autograd.grad(y.square().sum(), tree.leaves(leaves))
        return torch.cat([g.flatten() for g in found])

    exact, rounded = gradients("float32"), gradients("bfloat16")
    error = (rounded - exact).norm() / exact.norm()
    assert 0 < error < 0.02


def test_bfloat16_computes_close_to_float32(params, x, stack_cfg):
    expected, _ = layers.st_transformer(params, x, stack_cfg)
    half, _ = layers.st_transformer(params, x, replace(stack_cfg, dtype="bfloat16"))
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


@pytest.mark.parametrize("offset", [1, 1000, 1_000_003])
def test_rotary_scores_depend_on_the_distance_alone(offset):
    q, k, _ = qkv(4, 6)

    def scores(offset):
        a = layers.rotary(q, torch.arange(4)[:, None] + offset)
        b = layers.rotary(k, torch.arange(6)[:, None] + offset)
        return torch.einsum("btnge,bsnge->btsng", a, b)

    torch.testing.assert_close(scores(offset), scores(0), rtol=1e-4, atol=1e-5)
    unturned = torch.einsum("btnge,bsnge->btsng", q, k)
    assert not torch.allclose(scores(0), unturned, atol=1e-2), "nothing turns"


def test_a_session_a_million_frames_old_continues_alike(params, x, stack_cfg):
    """Positions only enter as distances, so shifting a whole session in time changes nothing."""
    outputs = []
    for start in (3, 1_000_003):
        cache = layers.empty_cache(stack_cfg, B, N)
        cache = cache._replace(seen=cache.seen + start - 3)
        # The slots that hold no frame of this session are pushed out of the window by the first frames.
        for t in range(T):
            y, cache = layers.st_transformer(params, x[:, t : t + 1], stack_cfg, cache)
        outputs.append(y)
    fresh = layers.st_transformer(params, x, stack_cfg)[0][:, -1:]
    torch.testing.assert_close(outputs[0], fresh, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[1], fresh, rtol=2e-3, atol=2e-4)


def test_patchify_round_trip_and_order():
    video = torch.arange(2 * 3 * 8 * 12 * 3, dtype=torch.float32).reshape(2, 3, 8, 12, 3)
    patches = layers.patchify(video, 4)
    assert patches.shape == (2, 3, 6, 48)
    assert torch.equal(layers.unpatchify(patches, 4, 8), video)
    assert torch.equal(patches[0, 0, 1].reshape(4, 4, 3), video[0, 0, :4, 4:8]), (
        "patches are not in row-major order"
    )


def test_pixels_survive_floats():
    x = torch.arange(256, dtype=torch.uint8)
    floats = layers.to_float(x)
    assert torch.equal(layers.to_uint8(floats), x)
    assert (floats.min().item(), floats.max().item()) == (-1.0, 1.0)
    assert layers.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255], "pixels wrap around"


def test_rms_norm_and_linear_are_their_formulas():
    x = random.normal(random.key(0), (3, 5))
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * 2
    torch.testing.assert_close(layers.rms_norm(torch.full((5,), 2.0), x), expected)
    params = {"w": random.normal(random.key(1), (5, 2)), "b": torch.tensor([1.0, -1.0])}
    torch.testing.assert_close(layers.linear(params, x), torch.addmm(params["b"], x, params["w"]))
