"""Classifier-free guidance and its distillation."""

from dataclasses import replace

import pytest
import torch

from genie_fn import dynamics, guidance, random, tree
from genie_fn.errors import UserError
from tests.test_dynamics import (
    CHAIN,
    NEIGHBOURS,
    VECTORS,
    B,
    actions,
    chain_params,
    tokens,
)


def test_a_model_without_guidance_differs_from_itself_with_guidance_until_it_has_learnt_it():
    cfg = replace(NEIGHBOURS, distilled=1.5)
    teacher = tree.init(dynamics.spec(cfg), random.key(3))
    ids, between = tokens(cfg, 4, 5), actions(cfg, 4, 4)
    mask = dynamics.sample_mask(random.key(1), 4, 5, cfg)

    def loss(params, scale=1.5):
        model = replace(cfg, distilled=scale)
        return guidance.distillation_loss(params, teacher, ids, between, mask, model)

    before, (scores, _) = loss(teacher)
    assert before > 1e-3 and scores["agreement"] < 1
    none, (same, _) = loss(teacher, 0.0)  # without guidance a model equals itself
    assert abs(none) < 1e-6 and same["agreement"] > 0.999
    params = tree.map(torch.clone, teacher)
    for _ in range(60):
        (value, _), grads = tree.value_and_grad(loss)(params)
        params = tree.map(lambda p, g: p - 0.3 * g, params, grads)
    assert value < before / 3


def test_guidance_of_whole_clips_is_that_of_each_frame_after_a_memory(
    dynamics_params, dynamics_cfg
):
    cfg = dynamics_cfg
    ids = tokens(cfg, frames=6)  # more than the window holds
    entering = dynamics.entering(actions(cfg, count=5), cfg)
    hidden = ids.clone()
    hidden[:, 1:, ::2] = cfg.codes
    whole = guidance.guided_clip_logits(
        dynamics_params, hidden, entering, cfg, 2.0, unmasked_BTN=ids
    )
    memory = dynamics.empty_memory(cfg, len(ids))
    for t in range(6):
        now = slice(t, t + 1)
        single = guidance.guided_prediction(
            dynamics_params, hidden[:, now], entering[:, now], memory, cfg, 2.0
        ).logits_BTNV
        if t > 0:  # the first frame follows nothing
            torch.testing.assert_close(whole[:, now], single, atol=1e-4, rtol=1e-4)
        # In training the past is masked, too, but for the neighbourhood.
        _, masked = dynamics.logits_next(
            dynamics_params, hidden[:, now], entering[:, now], memory, cfg, unmasked_BTN=ids[:, now]
        )
        memory = masked


def test_guidance_amplifies_the_effect_of_the_action_and_nothing_else(
    dynamics_params, dynamics_cfg
):
    cfg, ids, moves = dynamics_cfg, tokens(dynamics_cfg, 2, 1), actions(dynamics_cfg, 2, 1)
    cache = dynamics.empty_memory(cfg, 2)

    def logits(params, weight):
        return guidance.guided_prediction(params, ids, moves, cache, cfg, weight).logits_BTNV

    plain, double, half = (logits(dynamics_params, x) for x in (0.0, 2.0, 0.5))
    assert torch.equal(plain, dynamics.logits_next(dynamics_params, ids, moves, cache, cfg)[0])
    torch.testing.assert_close(double - plain, 4 * (half - plain), rtol=1e-3, atol=1e-4)
    assert (double - plain).abs().max() > 0.01
    deaf = dynamics_params | {
        "action": dynamics_params["action"][:1].expand_as(dynamics_params["action"])
    }
    torch.testing.assert_close(logits(deaf, 2.0), logits(deaf, 0.0))


def test_guidance_moves_away_from_the_mean_of_the_actions_that_occur(dynamics_params, dynamics_cfg):
    cfg = replace(dynamics_cfg, occurring=(0, 2))
    ids, moves = tokens(cfg, 2, 1), torch.zeros(2, 1, dtype=torch.int64)
    memory = dynamics.empty_memory(cfg, 2)

    def guided(changed):
        table = dynamics_params["action"].clone()
        table[changed] += 1
        params = dynamics_params | {"action": table}
        return guidance.guided_prediction(params, ids, moves, memory, cfg, 1.0).logits_BTNV

    assert cfg.actions > 2
    assert torch.equal(guided([]), guided([1]))
    assert not torch.equal(guided([]), guided([2]))
    for wrong in ((cfg.actions,), (-1,), ("0",), (0.0,)):
        with pytest.raises(UserError, match="actions that occur"):
            replace(cfg, occurring=wrong)


def test_guidance_of_a_chain_is_that_of_its_logits():
    cfg, params = CHAIN, chain_params()
    ids = tokens(cfg, frames=2)
    entering = dynamics.entering(actions(cfg, count=1), cfg)
    hidden = torch.where(torch.arange(2)[:, None] == 1, cfg.codes, ids)
    whole = guidance.guided_clip_logits(
        params, hidden, entering, cfg, 2.0, unmasked_BTN=ids, given_BTN=ids
    )
    memory = dynamics.empty_memory(cfg, B)
    _, memory = dynamics.logits_next(params, ids[:, :1], entering[:, :1], memory, cfg)
    now = slice(1, 2)
    single = guidance.guided_prediction(params, hidden[:, now], entering[:, now], memory, cfg, 2.0)
    known = dynamics.digits(ids[:, now], cfg.sizes)
    for i, part in enumerate(single.logits_BTNV.split(cfg.sizes, -1)):
        added = single.chained(known[:i]) if i else 0
        expected = whole[:, now].split(cfg.sizes, -1)[i]
        torch.testing.assert_close(part + added, expected, atol=1e-4, rtol=1e-4)


def test_guidance_by_numbers_is_away_from_the_mean_prototype():
    """The prototypes here have another mean than the vectors, which have 0."""
    cfg = replace(VECTORS, prototypes=((0.0, 0.0), (1.0, -2.0), (-1.0, 2.0)))
    params = tree.init(dynamics.spec(VECTORS), random.key(3))
    ids = tokens(cfg)
    numbers = torch.full((len(ids), 1), 1)
    memory = dynamics.empty_memory(cfg, len(ids))
    by_number = guidance.guided_prediction(
        params, ids[:, :1], numbers, memory, cfg, 1.0
    ).logits_BTNV
    values = torch.tensor(cfg.prototypes)[numbers]
    by_vector = guidance.guided_prediction(params, ids[:, :1], values, memory, cfg, 1.0).logits_BTNV
    torch.testing.assert_close(by_number, by_vector)
    plain = guidance.guided_prediction(params, ids[:, :1], numbers, memory, cfg, 0.0).logits_BTNV
    assert not torch.allclose(by_number, plain)
