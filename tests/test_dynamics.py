"""The dynamics model: causality, masks, the loss, vocabularies of factors, vectors."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from genie_fn import dynamics, random, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.layers import STConfig
from genie_fn.maskgit import SampleConfig
from genie_fn.runtime import stored_config

B, T = 2, 7  # more frames than the window (4) holds


def tokens(cfg, batch=B, frames=T, seed=0):
    return random.randint(random.key(seed), (batch, frames, cfg.tokens), 0, cfg.codes)


def actions(cfg, batch=B, count=T - 1, seed=1):
    return random.randint(random.key(seed), (batch, count), 0, cfg.actions)


# Causality and actions


@pytest.mark.parametrize("t", [0, 3, 5])
def test_logits_do_not_see_later_frames_or_actions(dynamics_params, dynamics_cfg, t):
    cfg, ids, entering = (
        dynamics_cfg,
        tokens(dynamics_cfg),
        dynamics.entering(actions(dynamics_cfg), dynamics_cfg),
    )
    other_ids = torch.cat((ids[:, : t + 1], (ids[:, t + 1 :] + 1) % cfg.codes), 1)
    other_actions = torch.cat((entering[:, : t + 1], (entering[:, t + 1 :] + 1) % cfg.actions), 1)
    a, _ = dynamics.logits_next(dynamics_params, ids, entering, None, cfg)
    for b in (
        dynamics.logits_next(dynamics_params, other_ids, entering, None, cfg)[0],
        dynamics.logits_next(dynamics_params, ids, other_actions, None, cfg)[0],
    ):
        assert torch.equal(a[:, : t + 1], b[:, : t + 1])
        assert not torch.allclose(a[:, t + 1], b[:, t + 1], atol=1e-3), (
            "the perturbation reached nothing"
        )


NEIGHBOURS = DynamicsConfig(
    codes=11,
    tokens=12,
    actions=3,
    columns=4,
    stack=STConfig(2, 32, 2, window=4),
    neighbourhood=3,
    neighbour_dim=8,
)
"""A grid of 3 rows and 4 columns."""


def neighbour_gradient(unmasked):
    """Whether each place's logits of the last frame depend on each place of the frame before."""
    params = tree.init(dynamics.spec(NEIGHBOURS), random.key(3))
    hidden = torch.full_like(unmasked, NEIGHBOURS.codes)
    entering = torch.zeros(unmasked.shape[:2], dtype=torch.int64)
    # Without their weights, blocks do nothing: places do not attend to each other.
    params["stack"]["blocks"] = tree.map(torch.zeros_like, params["stack"]["blocks"])

    def logits(ids):
        return dynamics.logits_next(params, hidden, entering, None, NEIGHBOURS, unmasked_BTN=ids)[
            0
        ][:, -1]

    original = logits(unmasked)
    depends = torch.zeros(NEIGHBOURS.tokens, NEIGHBOURS.tokens, dtype=torch.bool)
    for place in range(NEIGHBOURS.tokens):
        changed = unmasked.clone()
        changed[:, -2, place] = (changed[:, -2, place] + 1) % NEIGHBOURS.codes
        depends[place] = (logits(changed) != original).any(-1).any(0)
    return depends


def test_a_place_sees_the_square_around_it_in_the_unmasked_frame_before():
    depends = neighbour_gradient(tokens(NEIGHBOURS))
    row, column = torch.arange(12) // 4, torch.arange(12) % 4
    distance = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    assert torch.equal(depends, distance <= 1)


def test_the_loss_does_not_show_a_frame_its_own_hidden_tokens():
    """Only targets change with the hidden tokens of the last frame, not what the model sees."""
    params = tree.init(dynamics.spec(NEIGHBOURS), random.key(3))
    ids = tokens(NEIGHBOURS, frames=3)
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % NEIGHBOURS.codes
    entering = torch.zeros(ids.shape[:2], dtype=torch.int64)
    hidden = ids.clone()
    hidden[:, 1:] = NEIGHBOURS.codes
    a, b = (
        dynamics.logits_next(params, hidden, entering, None, NEIGHBOURS, unmasked_BTN=unmasked)[0]
        for unmasked in (ids, other)
    )
    assert torch.equal(a, b)
    other[:, 1] = (other[:, 1] + 1) % NEIGHBOURS.codes
    c, _ = dynamics.logits_next(params, hidden, entering, None, NEIGHBOURS, unmasked_BTN=other)
    assert torch.equal(a[:, :2], c[:, :2])
    assert not torch.allclose(a[:, 2], c[:, 2], atol=1e-3)


POINTING = replace(NEIGHBOURS, pointer=True)


@pytest.mark.parametrize("factors", [1, 2])
def test_a_pointer_raises_the_logits_of_the_ids_around_a_place_alone(factors):
    cfg = replace(POINTING, codes=16, factors=factors)
    params = tree.init(dynamics.spec(cfg), random.key(3))
    ids = tokens(cfg, frames=3)
    hidden = torch.full_like(ids, cfg.codes)
    entering = torch.zeros(ids.shape[:2], dtype=torch.int64)
    params["pointer"] = tree.map(torch.zeros_like, params["pointer"])

    def logits(weights):
        pointer = params["pointer"] | {"b": torch.tensor(weights)}
        return dynamics.logits_next(
            params | {"pointer": pointer}, hidden, entering, None, cfg, unmasked_BTN=ids
        )[0]

    without = logits([0.0] * 9)
    torch.testing.assert_close(
        without,
        dynamics.logits_next(
            {k: v for k, v in params.items() if k != "pointer"},
            hidden,
            entering,
            None,
            replace(cfg, pointer=False),
            unmasked_BTN=ids,
        )[0],
    )
    raised = logits([0.0, 0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0]) - without  # left and centre
    parts = torch.split(raised, list(cfg.sizes), -1)
    for part, digit in zip(parts, dynamics.digits(ids, cfg.sizes), strict=True):
        assert (part[:, 0] == 0).all(), "nothing is before the first frame"
        before = F.one_hot(digit[:, :-1], part.shape[-1]).float()
        left = before.unflatten(2, (3, 4)).roll(1, 3)
        left[:, :, :, 0] = 0  # outside the frame
        torch.testing.assert_close(part[:, 1:], 3 * before + 2 * left.flatten(2, 3))


def test_a_pointer_without_a_neighbourhood_is_refused():
    with pytest.raises(UserError, match=r"set --cfg\.model\.neighbourhood"):
        DynamicsConfig(pointer=True)


@pytest.mark.parametrize(
    "wrong", [{"neighbourhood": 2}, {"neighbourhood": -1}, {"neighbour_dim": 0}]
)
def test_a_neighbourhood_without_a_centre_is_refused(wrong):
    with pytest.raises(UserError, match="must be"):
        DynamicsConfig(**wrong)


def test_the_action_changes_the_logits_of_the_hidden_frame(dynamics_params, dynamics_cfg):
    cfg = dynamics_cfg
    ids = torch.cat((tokens(cfg, 1, 2), torch.full((1, 1, cfg.tokens), cfg.codes)), 1)
    logits = [
        dynamics.logits_next(dynamics_params, ids, torch.tensor([[cfg.actions, 0, a]]), None, cfg)[
            0
        ][:, -1]
        for a in range(cfg.actions)
    ]
    assert logits[0].shape == (1, cfg.tokens, cfg.codes)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (logits[a] - logits[b]).abs().amax(-1).min() > 1e-3, (
            "an action does not reach every token"
        )


def test_entering_shifts_actions_to_the_frames_they_lead_into():
    cfg = DynamicsConfig(actions=3)
    assert dynamics.entering(torch.tensor([[0, 2]]), cfg).tolist() == [[3, 0, 2]]
    assert dynamics.entering(torch.zeros(1, 0, dtype=torch.int64), cfg).tolist() == [[3]]


# Masks and the loss


def test_masks_have_a_rate_of_their_own_and_spare_the_first_frame():
    cfg = DynamicsConfig(codes=11, tokens=100)
    mask = dynamics.sample_mask(random.key(0), 200, 11, cfg)
    assert mask.shape == (200, 11, 100) and mask.dtype == torch.bool
    assert not mask[:, 0].any(), "the first frame is hidden"
    rates = mask[:, 1:].float().mean((1, 2))
    assert rates.min() > 0.45 and rates.max() > 0.97
    assert rates.mean().item() == pytest.approx(0.75, abs=0.03)
    assert rates.std().item() == pytest.approx(0.5 / math.sqrt(12), abs=0.03), (
        "clips share one rate"
    )
    frame_rates = mask[:, 1:].float().mean(2)
    assert (frame_rates - rates[:, None]).abs().max() < 0.25, "the rate changes within a clip"
    assert torch.equal(mask, dynamics.sample_mask(random.key(0), 200, 11, cfg))
    assert not torch.equal(mask, dynamics.sample_mask(random.key(1), 200, 11, cfg))
    assert dynamics.sample_mask(random.key(0), 2, 3, replace(cfg, mask_low=1.0))[:, 1:].all()


def test_corruption_changes_the_visible_tokens_at_a_rate_per_clip_but_no_targets(dynamics_cfg):
    cfg = replace(dynamics_cfg, corrupt=0.4)
    ids = torch.zeros(200, 3, cfg.tokens, dtype=torch.int64)
    shown = dynamics.corrupt(random.key(0), ids, cfg)
    share = (shown != ids).float().mean((1, 2)) / (1 - 1 / cfg.codes)
    assert shown.min() >= 0 and shown.max() == cfg.codes - 1
    assert abs(share.mean() - 0.2) < 0.03 and share.max() < 0.7 and share.std() > 0.08
    half = torch.cat(
        [
            dynamics.corrupt(random.key(0), part, cfg, first)
            for first, part in ((0, ids[:120]), (120, ids[120:]))
        ]
    )
    assert torch.equal(shown, half)
    assert dynamics.corrupt(random.key(0), ids, dynamics_cfg) is ids
    many = replace(cfg, codes=2**40, factors=4)
    shown = dynamics.corrupt(random.key(0), ids, many)
    for digit in dynamics.digits(shown[shown != ids], many.sizes):
        assert abs(digit.float().mean() / 511.5 - 1) < 0.05, "each factor is random"

    # With a neighbourhood or a pointer, all tokens shown are seen by the next frame.
    cfg = replace(cfg, neighbourhood=0, pointer=False)
    params = tree.init(dynamics.spec(cfg), random.key(1))
    ids, mask = tokens(cfg), dynamics.sample_mask(random.key(5), B, T, cfg)
    actions = torch.zeros(B, T - 1, dtype=torch.int64)
    clean = dynamics.loss(params, ids, actions, mask, cfg)[0]
    assert torch.equal(
        clean,
        dynamics.loss(params, ids, actions, mask, cfg, shown_BTN=torch.where(mask, 0, ids))[0],
    )
    assert not torch.equal(
        clean, dynamics.loss(params, ids, actions, mask, cfg, shown_BTN=(ids + 1) % cfg.codes)[0]
    )


def test_the_loss_is_cross_entropy_at_hidden_tokens_only(dynamics_cfg, monkeypatch):
    """With known logits: targets are the unmasked ids, hidden inputs are the mask id V, visible tokens do not count."""
    cfg, ids, mask = (
        dynamics_cfg,
        tokens(dynamics_cfg),
        dynamics.sample_mask(random.key(5), B, T, dynamics_cfg),
    )
    logits = random.normal(random.key(6), (B, T, cfg.tokens, cfg.codes)).requires_grad_()
    given = []

    def fake(params, hidden, entering, cache, cfg, **options):
        given.append((hidden, entering, cache))
        return logits, None

    monkeypatch.setattr(dynamics, "logits_next", fake)
    loss, (metrics, _) = dynamics.loss({}, ids, actions(cfg), mask, cfg)
    [(hidden, entering, cache)] = given
    assert torch.equal(hidden, torch.where(mask, torch.tensor(cfg.codes), ids)) and cache is None
    assert torch.equal(entering, dynamics.entering(actions(cfg), cfg))
    torch.testing.assert_close(loss, F.cross_entropy(logits[mask], ids[mask]))
    torch.testing.assert_close(metrics["accuracy"], (logits.argmax(-1) == ids)[mask].float().mean())
    gradient = torch.autograd.grad(loss, logits)[0].abs().amax(-1)
    assert (gradient[~mask] == 0).all() and (gradient[mask] > 0).all()


def test_the_loss_does_not_change_its_targets(dynamics_params, dynamics_cfg):
    """Targets taken after masking would all be the mask id; ids changed in place would spoil the caller's batch."""
    ids, mask = tokens(dynamics_cfg), dynamics.sample_mask(random.key(5), B, T, dynamics_cfg)
    before = ids.clone()
    first, _ = dynamics.loss(dynamics_params, ids, actions(dynamics_cfg), mask, dynamics_cfg)
    assert torch.equal(ids, before)
    other = torch.where(mask, (ids + 1) % dynamics_cfg.codes, ids)
    second, _ = dynamics.loss(dynamics_params, other, actions(dynamics_cfg), mask, dynamics_cfg)
    assert not torch.allclose(first, second), "the hidden targets do not matter"


def test_a_batch_without_hidden_tokens_has_loss_zero(dynamics_params, dynamics_cfg):
    ids = tokens(dynamics_cfg, frames=1)
    (loss, _), grads = tree.value_and_grad(dynamics.loss)(
        dynamics_params,
        ids,
        actions(dynamics_cfg, count=0),
        torch.zeros(ids.shape, dtype=torch.bool),
        dynamics_cfg,
    )
    assert loss == 0 and all(g.isfinite().all() for g in tree.leaves(grads))


def test_every_parameter_is_trained(dynamics_params, dynamics_cfg):
    mask = dynamics.sample_mask(random.key(5), B, T, dynamics_cfg)
    _, grads = tree.value_and_grad(dynamics.loss)(
        dynamics_params, tokens(dynamics_cfg), actions(dynamics_cfg), mask, dynamics_cfg
    )
    for path, gradient in tree.paths(grads).items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, path
    assert grads["token"][dynamics_cfg.codes].abs().max() > 0, (
        "the mask has no embedding of its own"
    )


def test_cached_logits_equal_uncached_past_the_window(dynamics_params, dynamics_cfg):
    cfg, ids, entering = (
        dynamics_cfg,
        tokens(dynamics_cfg),
        dynamics.entering(actions(dynamics_cfg), dynamics_cfg),
    )
    whole, _ = dynamics.logits_next(dynamics_params, ids, entering, None, cfg)
    cache, frames = dynamics.empty_memory(cfg, B), []
    for t in range(T):
        logits, cache = dynamics.logits_next(
            dynamics_params, ids[:, t : t + 1], entering[:, t : t + 1], cache, cfg
        )
        frames.append(logits)
    torch.testing.assert_close(torch.cat(frames, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factors", [1, 2])
def test_similar_codes_have_similar_embeddings_and_logits(factors):
    stack = STConfig(1, 128, 2)
    cfg = replace(NEIGHBOURS, codes=2**8, factors=factors, stack=stack, neighbour_dim=96)
    params = tree.init(dynamics.spec(cfg), random.key(0))
    vectors = [
        random.normal(random.fold_in(random.key(1), i), (v, 5)) for i, v in enumerate(cfg.sizes)
    ]
    adapted = dynamics.adapt_to_codes(params, vectors, random.key(2), cfg)
    changed = {"token", "head/w", "neighbourhood/token"}
    before, after = tree.paths(params), tree.paths(adapted)
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed
    for name in changed:
        assert before[name].shape == after[name].shape
        assert after[name].std().item() == pytest.approx(before[name].std().item(), rel=0.15)

    first = slice(cfg.sizes[0])  # the values of the first factor
    distance = F.pdist(vectors[0])
    for name in changed:
        rows = [x[name].T if name == "head/w" else x[name] for x in (before, after)]
        apart = [F.pdist(x[first]) for x in rows]
        random_one, similar = (
            torch.corrcoef(torch.stack((distance, x)))[0, 1].item() for x in apart
        )
        assert similar > 0.85 > 0.4 > random_one
    mask = cfg.sizes[0]
    assert torch.equal(before["token"][mask], after["token"][mask])
    equal = [x[:, :0] for x in vectors]  # no channel varies
    unchanged = dynamics.adapt_to_codes(params, equal, random.key(2), cfg)
    assert all(torch.equal(x, before[name]) for name, x in tree.paths(unchanged).items())


def test_bad_configurations_are_refused():
    for bad in ({"steps": 0}, {"temperature": -1.0}, {"order": "greedy"}, {"guidance": -0.5}):
        with pytest.raises(UserError):
            stored_config.from_dict(SampleConfig, bad)
    with pytest.raises(UserError, match="action_mode"):
        stored_config.from_dict(DynamicsConfig, {"action_mode": "concat"})


# Vocabularies of factors


FACTORS = DynamicsConfig(
    codes=2**7, tokens=6, actions=3, factors=2, stack=STConfig(layers=1, dim=32, heads=2, window=4)
)


def test_a_large_vocabulary_has_two_factors():
    assert DynamicsConfig(codes=2**18).sizes == (512, 512)
    assert DynamicsConfig(codes=2**15).sizes == (2**7, 2**8)
    assert DynamicsConfig(codes=1024).sizes == (1024,) and DynamicsConfig(codes=20_000).sizes == (
        20_000,
    )
    assert DynamicsConfig(codes=2**18, factors=3).sizes == (64, 64, 64)
    for codes, factors in ((1000, 2), (4, 3), (16, -1)):
        with pytest.raises(UserError, match="power of two"):
            DynamicsConfig(codes=codes, factors=factors)


def test_digits_make_up_the_id_and_the_mask_has_digits_of_its_own():
    sizes = FACTORS.sizes
    ids = torch.arange(2**7 + 1)
    low, high = dynamics.digits(ids, sizes)
    assert torch.equal((low + sizes[0] * high)[:-1], ids[:-1])
    assert (low[:-1] < sizes[0]).all() and (high[:-1] < sizes[1]).all()
    assert (low[-1], high[-1]) == sizes


def test_the_loss_of_factors_is_the_joint_cross_entropy():
    """-log p(id) = -Σ log p(digit): written out over the materialised joint vocabulary."""
    cfg, params = FACTORS, tree.init(dynamics.spec(FACTORS), random.key(0))
    ids, mask = tokens(cfg), dynamics.sample_mask(random.key(5), B, T, cfg)
    loss, (metrics, _) = dynamics.loss(params, ids, actions(cfg), mask, cfg)
    hidden = torch.where(mask, cfg.codes, ids)
    logits, _ = dynamics.logits_next(
        params, hidden, dynamics.entering(actions(cfg), cfg), None, cfg
    )
    low, high = (x.log_softmax(-1) for x in logits.split(cfg.sizes, -1))
    joint = (high[..., :, None] + low[..., None, :]).flatten(-2)  # id = low + size · high
    torch.testing.assert_close(joint.exp().sum(-1), torch.ones(joint.shape[:-1]))
    torch.testing.assert_close(loss, F.nll_loss(joint[mask], ids[mask]))
    torch.testing.assert_close(metrics["accuracy"], (joint.argmax(-1) == ids)[mask].float().mean())


# Digits one after another

CHAIN = replace(POINTING, codes=2**6, factors=3, chain=True)


def chain_params(cfg=CHAIN):
    """Initial parameters, but with a chain that adds something."""
    params = tree.init(dynamics.spec(cfg), random.key(3))
    chain = params["chain"]
    down = random.normal(random.key(4), chain["down"].shape)
    pointer = {"w": chain["pointer"]["w"], "b": torch.ones(9)}
    return params | {"chain": chain | {"down": down, "pointer": pointer}}


def test_a_digit_is_given_those_before_it_alone():
    cfg, ids, params = CHAIN, tokens(CHAIN, frames=3), chain_params()
    hidden = torch.full_like(ids, cfg.codes)
    entering = torch.zeros(ids.shape[:2], dtype=torch.int64)

    def logits(given):
        found, _ = dynamics.logits_next(
            params, hidden, entering, None, cfg, unmasked_BTN=ids, given_BTN=given
        )
        return found.split(cfg.sizes, -1)

    known = dynamics.digits(ids, cfg.sizes)
    for changed in range(3):
        other = [(x + 1) % 4 if i == changed else x for i, x in enumerate(known)]
        pairs = zip(logits(ids), logits(dynamics.composed(other, cfg.sizes)), strict=True)
        same = [torch.equal(a, b) for a, b in pairs]
        assert same == [True, changed > 0, changed > 1]


def test_without_a_chain_digits_are_given_nothing():
    cfg, ids = FACTORS, tokens(FACTORS)
    params = tree.init(dynamics.spec(cfg), random.key(0))
    entering = dynamics.entering(actions(cfg), cfg)
    a, b = (
        dynamics.logits_next(params, ids, entering, None, cfg, given_BTN=given)[0]
        for given in (ids, (ids + 1) % cfg.codes)
    )
    assert torch.equal(a, b)
    assert not replace(FACTORS, chain=True, factors=1).is_chained


def test_a_chain_points_on_at_ids_that_begin_with_the_digits_before():
    cfg = replace(CHAIN, factors=2)  # 8 × 8 codes
    ids = tokens(cfg, frames=2)
    params = chain_params(cfg)
    params["chain"] = params["chain"] | {
        "down": torch.zeros_like(params["chain"]["down"]),
        "pointer": tree.map(torch.zeros_like, params["chain"]["pointer"]),
    }
    hidden = torch.full_like(ids, cfg.codes)
    entering = torch.zeros(ids.shape[:2], dtype=torch.int64)

    def second_digit(bias, given):
        pointer = params["chain"]["pointer"] | {"b": torch.tensor([0.0] * 4 + [bias] + [0.0] * 4)}
        changed = params | {"chain": params["chain"] | {"pointer": pointer}}
        logits, _ = dynamics.logits_next(
            changed, hidden, entering, None, cfg, unmasked_BTN=ids, given_BTN=given
        )
        return logits.split(cfg.sizes, -1)[1][:, 1]

    first, second = (digit[:, 0] for digit in dynamics.digits(ids, cfg.sizes))
    standing = ids[:, :1].expand(-1, 2, -1)
    raised = second_digit(2.0, standing) - second_digit(0.0, standing)
    torch.testing.assert_close(raised, 2 * F.one_hot(second, 8).float())
    begins_otherwise = dynamics.composed([(first + 1) % 8, second], cfg.sizes)
    begins_otherwise = begins_otherwise[:, None].expand(-1, 2, -1)
    nothing = second_digit(2.0, begins_otherwise) - second_digit(0.0, begins_otherwise)
    assert (nothing == 0).all()


def test_a_chain_learns_which_digits_belong_together():
    """Each place holds one of 4 ids at random, whose digits are equal: log 4 nats instead of 2 log 4."""
    cfg = DynamicsConfig(codes=16, factors=2, tokens=4, actions=1, columns=2)
    cfg = replace(cfg, stack=STConfig(1, 16, 2), mask_low=1.0)

    def trained(cfg):
        params = tree.init(dynamics.spec(cfg), random.key(0))
        for step in range(150):
            ids = random.randint(random.key(step), (32, 2, 4), 0, 4) * 5  # digits (i, i)
            mask = torch.ones_like(ids, dtype=torch.bool)
            mask[:, 0] = False
            moves = torch.zeros(32, 1, dtype=torch.int64)
            objective = tree.value_and_grad(dynamics.loss)
            (loss, _), grads = objective(params, ids, moves, mask, cfg)
            params = tree.map(lambda p, g: p - 0.02 * g.sign(), params, grads)
        return loss.item()

    assert trained(replace(cfg, chain=True)) < 1.2 * math.log(4)
    assert trained(cfg) > 1.8 * math.log(4)


def test_a_prediction_needs_two_frames(dynamics_cfg):
    dynamics.check_clips(dynamics_cfg, 2)
    with pytest.raises(UserError, match="at least 2, not 1: raise --cfg.num-frames"):
        dynamics.check_clips(dynamics_cfg, 1)


# Actions that are vectors

PROTOTYPES = ((0.0, 0.0), (1.0, -2.0), (-1.5, 0.5))
VECTORS = DynamicsConfig(16, 4, 3, 2, prototypes=PROTOTYPES, stack=STConfig(2, 32, 2, window=4))


@pytest.fixture
def vector_params():
    return tree.init(dynamics.spec(VECTORS), random.key(3))


def vectors_of(numbers):
    return torch.tensor(PROTOTYPES)[numbers]


@pytest.mark.parametrize("mode", ["add", "prepend"])
def test_a_number_stands_for_its_prototype(mode):
    cfg = replace(VECTORS, action_mode=mode)
    params = tree.init(dynamics.spec(cfg), random.key(3))
    ids = tokens(cfg)
    numbers = actions(cfg)
    by_number, _ = dynamics.logits_next(params, ids, dynamics.entering(numbers, cfg), None, cfg)
    entering = dynamics.entering(vectors_of(numbers), cfg)
    by_vector, _ = dynamics.logits_next(params, ids, entering, None, cfg)
    torch.testing.assert_close(by_number, by_vector)
    assert torch.equal(dynamics.action_numbers(vectors_of(numbers), cfg), numbers)


def test_vectors_between_prototypes_have_logits_of_their_own(vector_params):
    ids = tokens(VECTORS)
    numbers = actions(VECTORS)
    near = vectors_of(numbers) + 0.2
    entering = (dynamics.entering(x, VECTORS) for x in (vectors_of(numbers), near))
    exact, moved = (dynamics.logits_next(vector_params, ids, x, None, VECTORS)[0] for x in entering)
    assert not torch.allclose(exact[:, 1:], moved[:, 1:])
    torch.testing.assert_close(exact[:, 0], moved[:, 0])  # no action leads into the first frame
    assert torch.equal(dynamics.action_numbers(near, VECTORS), numbers)


@pytest.mark.parametrize("t", range(1, T))
def test_logits_do_not_see_later_vectors(vector_params, t):
    ids = tokens(VECTORS)
    values = vectors_of(actions(VECTORS)).requires_grad_()
    entering = dynamics.entering(values, VECTORS)
    logits, _ = dynamics.logits_next(vector_params, ids, entering, None, VECTORS)
    (grad,) = torch.autograd.grad(logits[:, t].square().sum(), values)
    assert grad[:, :t].abs().sum() > 0
    assert not grad[:, t:].any()


def test_every_parameter_is_trained_by_vectors(vector_params):
    ids = tokens(VECTORS)
    mask = torch.ones(ids.shape, dtype=torch.bool)
    mask[:, 0] = False
    leaves = tree.map(lambda p: p.clone().requires_grad_(), vector_params)
    values = vectors_of(actions(VECTORS)) + 0.1
    value, _ = dynamics.loss(leaves, ids, values, mask, VECTORS)
    grads = torch.autograd.grad(value, tree.leaves(leaves))
    assert all(grad.isfinite().all() for grad in grads)
    (grad,) = torch.autograd.grad(
        dynamics.loss(leaves, ids, values, mask, VECTORS)[0], [leaves["action"]]
    )
    assert (grad.abs().sum(-1) > 0).all()


def test_prototypes_need_as_many_actions():
    with pytest.raises(UserError, match="3 prototypes for 5 actions"):
        replace(VECTORS, actions=5)
    for wrong in (((0.0,), (0.0, 1.0), (1.0,)), ((), (), ())):
        with pytest.raises(UserError, match="not of one length"):
            replace(VECTORS, prototypes=wrong)
