"""Sampling: each MaskGIT step, and generation against an uncached reference."""

import math
from dataclasses import replace

import pytest
import torch

from genie_fn import dynamics, maskgit, random, tree
from genie_fn.guidance import guided_prediction
from genie_fn.maskgit import SampleConfig, Step
from tests.test_dynamics import FACTORS, B, actions, tokens

N, V = 12, 7


def test_ranks_by_pairs_are_those_of_a_stable_sort():
    score = random.randint(random.key(0), (5, 40), 0, 9).float()  # with equal ones
    score[:, 7] = torch.inf
    score[:, 3] = torch.inf
    assert torch.equal(maskgit._rank(score), maskgit._rank_by_pairs(score))
    assert (maskgit._rank(score)[:, [3, 7]] == torch.tensor([0, 1])).all()


@pytest.mark.parametrize("steps", [1, 2, 8, 25])
@pytest.mark.parametrize("count", [1, 6, 64, 256])
def test_the_schedule_is_a_cumulative_cosine_that_ends_at_every_token(steps, count):
    known = [maskgit.revealed(torch.tensor(k), steps, count).item() for k in range(steps)]
    assert known[-1] == count
    assert known == sorted(known) and known[0] >= 1
    for k, n in enumerate(known):
        assert n == pytest.approx(
            count - math.floor(count * math.cos(math.pi / 2 * (k + 1) / steps)), abs=1
        )
    if steps == 8 and count == 64:
        assert known[3] == 64 - math.floor(64 * math.cos(math.pi / 4)) == 19


def logits_of(batch=3, seed=0):
    return random.normal(random.key(seed), (batch, N, V)) * 2


def hidden_frame(batch=3):
    return torch.full((batch, N), V)


def reveal(logits, ids, k, sample, temperature=None, seed=0, key=None):
    temperature = sample.temperature if temperature is None else temperature
    step = Step(torch.tensor(k), torch.tensor(sample.steps), torch.tensor(temperature))
    noise = maskgit.noise_of(random.key(seed) if key is None else key, tuple(ids.shape))
    return maskgit.reveal(logits, ids, step, noise, sample)


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("steps", [1, 5, 30])
def test_revealed_tokens_never_change_and_the_last_step_leaves_none_hidden(steps, order):
    sample, ids = SampleConfig(steps=steps, order=order, noise=3.0), hidden_frame()
    for k in range(steps):
        new, _ = reveal(logits_of(seed=k), ids, k, sample, seed=k)
        known = ids != V
        assert torch.equal(new[known], ids[known]), "a known token changed"
        assert ((new != V).sum(-1) == maskgit.revealed(torch.tensor(k), steps, N)).all()
        ids = new
    assert (ids < V).all() and (ids >= 0).all()


def test_more_revealed_tokens_than_the_schedule_requires_stay():
    ids = hidden_frame()
    ids[:, :9] = 3
    new, p = reveal(logits_of(), ids, 0, SampleConfig(steps=8))
    assert torch.equal(new, ids)
    torch.testing.assert_close(p[:, :9], logits_of().softmax(-1)[:, :9, 3])


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_temperature_zero_is_argmax(temperature):
    ids, _ = reveal(logits_of(50), hidden_frame(50), 0, SampleConfig(steps=1), temperature)
    assert torch.equal(ids, logits_of(50).argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_samples_follow_the_tempered_softmax(temperature):
    logits = logits_of(1)[:, :1].expand(2000, N, V)
    ids, _ = reveal(logits, hidden_frame(2000), 0, SampleConfig(steps=1), temperature)
    share = torch.bincount(ids.flatten(), minlength=V) / ids.numel()
    torch.testing.assert_close(share, (logits[0, 0] / temperature).softmax(-1), rtol=0, atol=0.015)


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_confidence_is_the_samples_own_probability_without_temperature(temperature):
    logits = logits_of()
    ids, p = reveal(logits, hidden_frame(), 0, SampleConfig(steps=1), temperature)
    torch.testing.assert_close(p, logits.softmax(-1).gather(-1, ids[..., None])[..., 0])


def test_without_noise_the_most_confident_samples_are_kept_at_any_temperature():
    """Sure tokens are those whose own sample is likely, not those whose best code is."""
    sample = SampleConfig(steps=3, noise=0.0)
    for temperature in (0.3, 4.0):
        ids, p = reveal(logits_of(40), hidden_frame(40), 0, sample, temperature)
        kept = ids != V
        least_kept = p.masked_fill(~kept, 2).amin(-1)
        assert (least_kept >= p.masked_fill(kept, -1).amax(-1)).all()


def test_noise_fades_from_high_to_none():
    """At the first step strong noise decides which tokens stay; with one step left it has no say any more."""
    logits, ids = logits_of(40), hidden_frame(40)
    quiet, loud = SampleConfig(steps=4, noise=0.0), SampleConfig(steps=4, noise=1e4)
    assert not torch.equal(reveal(logits, ids, 0, quiet)[0], reveal(logits, ids, 0, loud)[0])
    kept = [(reveal(logits, ids, 2, replace(quiet, noise=n))[0] != V) for n in (0.0, 0.5, 50.0)]
    agreement = [(kept[0] == k).float().mean().item() for k in kept]
    assert agreement[0] == 1 and agreement[1] > agreement[2]
    assert torch.equal(reveal(logits, ids, 3, quiet)[0], reveal(logits, ids, 3, loud)[0])


def test_random_order_ignores_confidence():
    logits = logits_of(1)[:, :1] * torch.linspace(0, 3, N)[:, None]
    kept = torch.stack(
        [
            (
                reveal(logits, hidden_frame(1), 0, SampleConfig(steps=2, order="random"), seed=s)[0]
                != V
            )[0]
            for s in range(300)
        ]
    )
    shares = kept.float().mean(0)
    assert shares.max() - shares.min() < 0.2, "some places are revealed first"


def uncached_generate(params, ids, actions, key, cfg, sample):
    """The definition: at every MaskGIT step the logits of the whole sequence, from the first frame on."""
    entering, video = dynamics.entering(actions, cfg), ids
    for t in range(ids.shape[1], entering.shape[1]):
        frame, frame_key = torch.full_like(ids[:, 0], cfg.codes), random.fold_in(key, t)
        for k in range(sample.steps):
            sequence = torch.cat((video, frame[:, None]), 1)
            logits, _ = dynamics.logits_next(params, sequence, entering[:, : t + 1], None, cfg)
            if sample.guidance:
                table, none = params["action"], entering[:, : t + 1].clone()
                none[:, -1] = len(table)
                mean = params | {"action": torch.cat((table, table[:-1].mean(0, keepdim=True)))}
                logits += sample.guidance * (
                    logits - dynamics.logits_next(mean, sequence, none, None, cfg)[0]
                )
            frame, _ = reveal(logits[:, -1], frame, k, sample, key=random.fold_in(frame_key, k))
        video = torch.cat((video, frame[:, None]), 1)
    return video


@pytest.mark.parametrize(
    ("prompt", "sample"),
    [(1, SampleConfig(3)), (6, SampleConfig(2, 0.7, "random")), (2, SampleConfig(2, guidance=1.5))],
)
def test_cached_generation_equals_uncached_past_the_window(
    dynamics_params, dynamics_cfg, prompt, sample
):
    ids, moves = tokens(dynamics_cfg, frames=prompt), actions(dynamics_cfg, count=prompt - 1 + 7)
    cached = maskgit.generate(dynamics_params, ids, moves, random.key(7), dynamics_cfg, sample)
    expected = uncached_generate(dynamics_params, ids, moves, random.key(7), dynamics_cfg, sample)
    assert cached.shape == (B, prompt + 7, dynamics_cfg.tokens)
    assert torch.equal(cached, expected)


@pytest.mark.parametrize(
    "sample",
    [SampleConfig(1), SampleConfig(25), SampleConfig(4, temperature=0.0), SampleConfig(3, 5.0)],
)
@pytest.mark.parametrize(("batch", "prompt", "new"), [(1, 1, 1), (1, 1, 3), (2, 3, 2), (2, 2, 0)])
def test_generate_for_every_shape_and_never_the_mask(
    dynamics_params, dynamics_cfg, sample, batch, prompt, new
):
    ids, moves = tokens(dynamics_cfg, batch, prompt), actions(dynamics_cfg, batch, prompt - 1 + new)
    video = maskgit.generate(dynamics_params, ids, moves, random.key(0), dynamics_cfg, sample)
    assert video.shape == (batch, prompt + new, dynamics_cfg.tokens)
    assert torch.equal(video[:, :prompt], ids), "the prompt changed"
    assert (video >= 0).all() and (video < dynamics_cfg.codes).all(), "the mask id was generated"


def test_an_action_changes_its_frame_and_no_earlier_one(dynamics_params, dynamics_cfg):
    ids, moves, sample = tokens(dynamics_cfg, 8, 2), actions(dynamics_cfg, 8, 4), SampleConfig(2)
    other = moves.clone()
    other[:, 2] = (other[:, 2] + 1) % dynamics_cfg.actions
    a, b = (
        maskgit.generate(dynamics_params, ids, m, random.key(0), dynamics_cfg, sample)
        for m in (moves, other)
    )
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.equal(a[:, 3], b[:, 3])


def test_generation_is_a_function_of_its_key(dynamics_params, dynamics_cfg):
    ids, moves, sample = tokens(dynamics_cfg, 4, 1), actions(dynamics_cfg, 4, 2), SampleConfig(2)
    a, b, c = (
        maskgit.generate(dynamics_params, ids, moves, random.key(s), dynamics_cfg, sample)
        for s in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert not torch.equal(a[0, 1:], a[1, 1:]), "the samples of a batch share their noise"


def test_a_sampled_frame_records_the_step_that_revealed_each_token(dynamics_params, dynamics_cfg):
    """As many tokens by step k as the schedule says, and exactly those that `unmask` had revealed by then."""
    cfg, sample, seen = dynamics_cfg, SampleConfig(4), []

    def unmask(*arguments):
        ids, p = maskgit.unmask(*arguments)
        seen.append(ids)
        return ids, p

    cache = maskgit.remember(
        dynamics_params,
        tokens(cfg, frames=1),
        actions(cfg, count=1),
        dynamics.empty_memory(cfg, B),
        cfg,
    )
    programs = maskgit.Programs(unmask)
    new = maskgit.next_frame(
        dynamics_params, actions(cfg, count=1)[:, 0], cache, random.key(3), cfg, sample, programs
    )
    for k, ids in enumerate(seen):
        assert torch.equal(new.step <= k + 1, ids != cfg.codes)
    assert new.step.min() == 1 and new.step.max() == 4


def test_revealing_factors_follows_their_joint_distribution():
    """Samples have the frequencies of the product, and their confidence is the product of the probabilities."""
    cfg, sizes = SampleConfig(steps=1), (4, 8)
    logits = random.normal(random.key(0), (12,)) * 2
    low, high = (x.softmax(-1) for x in logits.split(sizes))
    joint = (high[:, None] * low[None]).flatten()
    count = 40_000
    hidden = torch.full((1, count), 32)
    step = Step(torch.tensor(0), torch.tensor(1), torch.tensor(1.0))
    noise = maskgit.noise_of(random.key(1), (1, count), 2)
    ids, p = maskgit.reveal(logits.expand(1, count, 12), hidden, step, noise, cfg, sizes)
    share = torch.bincount(ids[0], minlength=33) / count
    assert share[32] == 0 and (share[:32] - joint).abs().max() < 0.01
    torch.testing.assert_close(p[0], joint[ids[0]])


def test_chained_digits_follow_their_joint_distribution():
    """Samples have the frequencies of p(low) p(high | low), and their confidence is that product."""
    sizes, count = (4, 8), 40_000
    logits = random.normal(random.key(0), (12,)) * 2
    given = random.normal(random.key(1), sizes) * 2
    low = logits[:4].softmax(-1)
    joint = ((logits[4:] + given).softmax(-1) * low[:, None]).T.flatten()  # id = low + 4 · high
    step = Step(torch.tensor(0), torch.tensor(1), torch.tensor(1.0))
    noise = maskgit.noise_of(random.key(2), (1, count), 2)
    hidden = torch.full((1, count), 32)
    hidden[0, 0] = 7  # revealed before
    ids, p = maskgit.reveal(
        logits.expand(1, count, 12),
        hidden,
        step,
        noise,
        SampleConfig(steps=1),
        sizes,
        lambda known: given[known[0]],
    )
    share = torch.bincount(ids[0], minlength=33) / count
    assert ids[0, 0] == 7 and (share[:32] - joint).abs().max() < 0.01
    torch.testing.assert_close(p[0], joint[ids[0]])


@pytest.mark.parametrize("guidance", [None, 1.0])
def test_a_frame_of_chained_digits_has_the_probabilities_of_the_model(guidance):
    cfg = replace(FACTORS, chain=True)
    params = tree.init(dynamics.spec(cfg), random.key(0))
    down = random.normal(random.key(4), params["chain"]["down"].shape)
    params["chain"] = params["chain"] | {"down": down}
    ids = tokens(cfg, frames=2)
    action = actions(cfg, count=1)[:, 0]
    memory = maskgit.remember(
        params,
        ids,
        dynamics.entering(actions(cfg, count=1), cfg),
        dynamics.empty_memory(cfg, B),
        cfg,
    )
    sample = SampleConfig(steps=1, guidance=guidance)
    new = maskgit.next_frame(params, action, memory, random.key(3), cfg, sample)
    hidden = torch.full_like(new.ids[:, None], cfg.codes)
    prediction = guided_prediction(params, hidden, action[:, None], memory, cfg, guidance)
    low, high = prediction.logits_BTNV[:, 0].split(cfg.sizes, -1)
    digits = dynamics.digits(new.ids, cfg.sizes)
    high = high + prediction.chained([digits[0][:, None]])[:, 0]
    expected = [
        x.softmax(-1).gather(-1, digit[..., None])[..., 0]
        for x, digit in zip((low, high), digits, strict=True)
    ]
    torch.testing.assert_close(new.probability, expected[0] * expected[1])


def test_factors_generate_ids_of_the_whole_vocabulary():
    cfg, params = FACTORS, tree.init(dynamics.spec(FACTORS), random.key(0))
    sample = SampleConfig(steps=3)
    video = maskgit.generate(
        params, tokens(cfg, frames=2), actions(cfg, count=6), random.key(1), cfg, sample
    )
    assert video.shape == (B, 7, cfg.tokens) and torch.equal(video[:, :2], tokens(cfg, frames=2))
    assert (video < cfg.codes).all() and (video >= cfg.sizes[0]).any()


@pytest.mark.parametrize("steps", [1, 3])
def test_joint_decoding(dynamics_cfg, dynamics_params, steps):
    """For one frame it equals `next_frame`; for several it reveals all tokens and keeps the prompt."""
    cfg, sample = dynamics_cfg, SampleConfig(steps=steps)
    ids = random.randint(random.key(0), (2, 2, cfg.tokens), 0, cfg.codes)
    actions = random.randint(random.key(1), (2, 4), 0, cfg.actions)
    entering, key = dynamics.entering(actions, cfg), random.key(2)
    cache = dynamics.empty_memory(cfg, 2)
    cache = maskgit.remember(dynamics_params, ids, entering[:, :2], cache, cfg)
    frame = maskgit.next_frame(dynamics_params, entering[:, 2], cache, key, cfg, sample).ids
    one = maskgit.generate_jointly(dynamics_params, ids, actions[:, :2], key, cfg, sample)
    assert torch.equal(one[:, :2], ids) and torch.equal(one[:, 2], frame)
    many = maskgit.generate_jointly(dynamics_params, ids, actions, key, cfg, sample)
    assert many.shape == (2, 5, cfg.tokens) and torch.equal(many[:, :2], ids)
    assert many.min() >= 0 and many.max() < cfg.codes
