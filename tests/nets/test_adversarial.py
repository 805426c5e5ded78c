"""The adversarial and perceptual losses: which term trains which parameters, against separate
losses by autograd."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

import train_tokenizer
from genie_fn import data, random, tokenizer, tree
from genie_fn.errors import UserError
from genie_fn.microbatch import WHOLE_BATCH
from genie_fn.nets import adversarial, blueprint, discriminator
from genie_fn.nets import vgg as vgg16
from genie_fn.nets.adversarial import AdversarialConfig
from genie_fn.nets.blueprint import Blueprints
from genie_fn.nets.discriminator import DiscriminatorConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training.execution import make_step
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import init_state

NET = DiscriminatorConfig(dim=8, mults=(1, 2), down=(1, 2), groups=4, heads=2, head_dim=8)
BLUEPRINT = discriminator.network(NET)
TINY = replace(NET, mults=(1,), down=(2,))
ENCODER = (
    ("causal", {"in_channels": 3, "out_channels": 8, "kernel_size": (1, 3)}),
    ("residual", {"in_channels": 8, "out_channels": 16, "downsample": (1, 4)}),
    ("proj_out", {"in_channels": 16, "out_channels": 6}),
)
DECODER = (
    ("causal", {"in_channels": 6, "out_channels": 16}),
    ("adaptive_group_norm", {"num_channels": 16, "dim_cond": 6}),
    (
        "spacetime_upsample",
        {"in_channels": 16, "time_factor": 1, "space_factor": 4, "out_channels": 8},
    ),
    ("causal", {"in_channels": 8, "out_channels": 3}),
)
MODEL = TokenizerConfig(
    16,
    16,
    arch="magvit2",
    blueprints=Blueprints(ENCODER, DECODER),
    quantizer=QuantizerConfig(codes=64),
)
LOSSES = AdversarialConfig(gan=1.0, frames=2, discriminator=NET, adaptive=False)
OPTIM = OptimConfig(lr=1e-2, warmup=1, weight_decay=0.0, ema=0.9)
CFG = train_tokenizer.Config(
    steps=10,
    compile="off",
    optim=OPTIM,
    critic=replace(OPTIM, lr=3e-3, ema=0.0),
    model=MODEL,
    adversarial=LOSSES,
)
FRAMES = random.randint(random.key(9), (2, 3, 16, 16, 3), 0, 256).to(torch.uint8)
BATCH = data.Batch(FRAMES, torch.zeros((2, 2), dtype=torch.int64))


@pytest.fixture(scope="module")
def critic():
    return tree.init(blueprint.spec(BLUEPRINT), random.key(3))


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """A file of torchvision's format and names, an eighth as wide."""
    path, inputs, state = tmp_path_factory.mktemp("vgg") / "vgg.pth", 3, {}
    widths = iter((8, 8, 16, 16, 32, 32, 32, 64, 64, 64, 64, 64, 64))
    for i, kind in enumerate(vgg16.LAYERS):
        if kind == "conv":
            outputs = next(widths)
            w = (
                random.normal(random.fold_in(random.key(1), i), (outputs, inputs, 3, 3))
                * (2 / (9 * inputs)) ** 0.5
            )
            state |= {f"features.{i}.weight": w, f"features.{i}.bias": torch.zeros(outputs)}
            inputs = outputs
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return str(path)


def video(seed, count=4):
    return random.uniform(random.key(seed), (count, 16, 16, 3)) * 2 - 1


def run(cfg, steps=1, vgg=None):
    net = discriminator.network(cfg.adversarial.discriminator)
    spec = tokenizer.spec(cfg.model) | {"discriminator": blueprint.spec(net)}
    optimizers = {"discriminator": cfg.critic}
    state = init_state(spec, random.key(0), cfg.optim, {}, optimizers)
    step = make_step(train_tokenizer.objective(cfg, vgg or {}), spec, cfg, optimizers)
    rows = []
    first = state
    if cfg.compile != "off":
        first = tree.map(torch.clone, state)
    for _ in range(steps):
        state, row = step(state, BATCH, random.key(4))
        rows.append(row)
    return first, state, rows


def changed(a, b):
    return {
        name
        for name in a
        if any(
            (x != y).any() for x, y in zip(tree.leaves(a[name]), tree.leaves(b[name]), strict=True)
        )
    }


def test_the_discriminator_gives_a_map_of_logits(critic):
    for blur, attention in ((True, True), (False, False)):
        net = discriminator.network(replace(NET, blur=blur, attention=attention))
        params = tree.init(blueprint.spec(net), random.key(0))
        assert discriminator.logits(params, video(0), net).shape == (4, 8, 8)
    seed = discriminator.network(DiscriminatorConfig())  # the seed's sizes
    params = tree.map(lambda s: torch.empty(s.shape, device="meta"), blueprint.spec(seed))
    assert discriminator.logits(params, torch.empty((2, 64, 64, 3), device="meta"), seed).shape == (
        2,
        16,
        16,
    )


def separate_gradients(params, vgg, step):
    """Each side's gradient from a loss of its own, without detached terms."""
    model, extra = CFG.model, CFG.adversarial
    target = tokenizer.layers.to_float(FRAMES)
    real, _ = adversarial.sample_frames(random.fold_in(random.key(4), step), 2, target, target)
    leaves = tree.map(lambda x: x.clone().requires_grad_(), params)
    reconstructed, q = tokenizer.reconstruct(leaves, target, model)
    _, fake = adversarial.sample_frames(
        random.fold_in(random.key(4), step), 2, target, reconstructed
    )
    generator = (reconstructed - target).square().mean() + q.loss
    generator = (
        generator
        - extra.gan * discriminator.logits(leaves["discriminator"], fake, BLUEPRINT).mean()
    )
    own = {name: leaves[name] for name in ("encoder", "decoder")}
    ours = torch.autograd.grad(generator, tree.leaves(own), retain_graph=True)
    real.requires_grad_()
    logits = discriminator.logits(leaves["discriminator"], real, BLUEPRINT)
    (slope,) = torch.autograd.grad(logits.mean((1, 2)).sum(), real, create_graph=True)
    critic = F.relu(1 - logits).mean() + slope.flatten(1).square().sum(1).mean() * extra.penalty
    critic = (
        critic
        + F.relu(1 + discriminator.logits(leaves["discriminator"], fake.detach(), BLUEPRINT)).mean()
    )
    return dict(zip(tree.paths(own), ours, strict=True)), torch.autograd.grad(
        critic, tree.leaves(leaves["discriminator"])
    )


def test_each_side_gets_the_gradient_of_its_own_loss(critic):
    """One backward pass over one scalar gives the gradients of two separate losses, with the
    gradient penalty."""
    params = tree.init(tokenizer.spec(MODEL), random.key(0)) | {"discriminator": critic}
    loss = train_tokenizer.objective(CFG, {}).loss
    step = torch.tensor(0)
    _, grads = tree.value_and_grad(loss)(
        params, BATCH, random.fold_in(random.key(4), step), step, WHOLE_BATCH
    )
    generator, discriminator = separate_gradients(params, {}, step)
    for path, expected in generator.items():
        torch.testing.assert_close(
            tree.paths(grads)[path], expected, rtol=1e-4, atol=1e-6, msg=path
        )
    for ours, expected in zip(tree.leaves(grads["discriminator"]), discriminator, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_two_steps_change_both_sides_and_the_average_keeps_the_generator_only():
    first, state, rows = run(CFG, steps=2)
    assert changed(first.params, state.params) == {"encoder", "decoder", "discriminator"}
    assert state.ema.keys() == {"encoder", "quantizer", "decoder"}
    assert rows[0]["lr"] != rows[0]["lr_discriminator"]
    assert rows[0]["grad_norm_discriminator"] > 0


def test_before_its_start_the_discriminator_learns_and_the_tokenizer_ignores_it():
    late = replace(CFG, adversarial=replace(LOSSES, start=2))
    first, state, _ = run(late, steps=2)
    assert changed(first.params, state.params) == {"encoder", "decoder", "discriminator"}
    none = replace(CFG, adversarial=replace(LOSSES, gan=1e-12))
    kept = ("encoder", "decoder")
    ours, theirs = (
        {name: x[name] for name in kept} for x in (state.params, run(none, steps=2)[1].params)
    )
    for a, b in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    later = replace(CFG, adversarial=replace(LOSSES, start=5))
    assert changed(state.params, run(later, steps=2)[1].params) == set()
    assert changed(run(late, steps=3)[1].params, run(later, steps=3)[1].params) == {
        "encoder",
        "decoder",
    }


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer(critic):
    params = tree.init(tokenizer.spec(MODEL), random.key(0))
    last = tokenizer.last_weight(params, MODEL).requires_grad_()
    target = tokenizer.layers.to_float(FRAMES)
    reconstructed, _ = tokenizer.reconstruct(params, target, MODEL)
    mse = (reconstructed - target).square().mean()
    generator = -discriminator.logits(critic, reconstructed.flatten(0, 1), BLUEPRINT).mean()
    weight = adversarial.adaptive_weight(mse, generator, last)
    a, b = (
        torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (mse, weight * generator)
    )
    torch.testing.assert_close(a, b, rtol=0.1, atol=0)
    assert not weight.requires_grad


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_is_eager(vgg_file, monkeypatch, backend):
    """All terms in one step. Compilation takes most of the time, so the networks are small, and by
    default the step is traced into one graph, with its gradients, without generating code."""
    encoder = (
        ("causal", {"in_channels": 3, "out_channels": 8, "kernel_size": (1, 3), "stride": (1, 4)}),
        "silu",
    )
    decoder = (
        (
            "spacetime_upsample",
            {"in_channels": 8, "time_factor": 1, "space_factor": 4, "out_channels": 3},
        ),
    )
    model = replace(
        MODEL, blueprints=Blueprints(encoder, decoder), quantizer=QuantizerConfig(codes=2**8)
    )
    losses = replace(
        LOSSES,
        adaptive=True,
        perceptual=1.0,
        vgg=vgg_file,
        features=("features.2",),
        discriminator=TINY,
    )
    cfg = replace(CFG, model=model, adversarial=losses)
    vgg = adversarial.load_vgg(losses)
    _, eager, expected = run(cfg, vgg=vgg)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    _, fast, rows = run(replace(cfg, compile="step"), vgg=vgg)
    for name, value in expected[0].items():
        torch.testing.assert_close(
            rows[0][name].float(), value.float(), rtol=2e-3, atol=1e-4, msg=name
        )
    for (path, a), b in zip(
        tree.paths(eager.opt["m"]).items(), tree.leaves(fast.opt["m"]), strict=True
    ):
        torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-5, msg=path)


def test_the_perceptual_gradient_is_not_zero_and_vanishes_at_the_target(vgg_file):
    vgg = adversarial.load_vgg(AdversarialConfig(perceptual=1.0, vgg=vgg_file))
    names, real, fake = AdversarialConfig().features, video(0, 2), video(1, 2).requires_grad_()
    real, fake = (
        F.interpolate(x.permute(0, 3, 1, 2), size=32).permute(0, 2, 3, 1) for x in (real, fake)
    )
    (slope,) = torch.autograd.grad(adversarial.perceptual_loss(vgg, real, fake, names), fake)
    assert (slope.abs().amax((1, 2, 3)) > 0).all()
    assert adversarial.perceptual_loss(vgg, real, real, names) == 0
    shapes = [f.shape[1:] for f in vgg16.features(vgg, real, names)]
    assert shapes == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (64, 2, 2)]


def test_frames_that_are_too_small_for_the_perceptual_term_are_refused(vgg_file):
    cfg = AdversarialConfig(perceptual=1.0, vgg=vgg_file)
    adversarial.check_size(replace(cfg, perceptual=0.0), 8, 8)
    adversarial.check_size(cfg, 16, 16)
    vgg = adversarial.load_vgg(cfg)
    assert vgg16.features(vgg, torch.zeros(1, 16, 16, 3), cfg.features)[-1].shape[2:] == (1, 1)
    with pytest.raises(UserError, match="at least 16x16 pixels, not 64x8"):
        adversarial.check_size(cfg, 64, 8)


def test_vgg_sees_images_normalised_as_imagenet():
    """A first layer that is the identity shows its inputs: RGB normalised per channel."""
    w = torch.zeros(3, 3, 3, 3)
    w[range(3), range(3), 1, 1] = 1
    params = {"features.0": {"w": w, "b": torch.zeros(3)}}
    white = torch.ones(1, 4, 4, 3)
    (seen,) = vgg16.features(params, white, ("features.0",))
    expected = [
        (1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor(expected))


def test_files_that_are_not_vgg16_are_refused(tmp_path, capsys):
    wanted = AdversarialConfig(perceptual=1.0, vgg=str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="there is no file"):
        adversarial.load_vgg(wanted)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "some.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name in ("some.pth", "text.pth"):
        with pytest.raises(UserError, match="does not hold torchvision's vgg16"):
            adversarial.load_vgg(replace(wanted, vgg=str(tmp_path / name)))
    assert adversarial.load_vgg(replace(wanted, vgg="")) == {}
    assert "without the perceptual term" in capsys.readouterr().err


def test_the_same_frames_are_sampled_from_every_video():
    a = torch.arange(24).reshape(2, 12, 1, 1, 1)
    picked, same = adversarial.sample_frames(random.key(0), 5, a, a * 10)
    assert picked.shape == (10, 1, 1, 1) and torch.equal(picked * 10, same)
    assert len(picked.unique()) == 10 and (picked[:5] < 12).all() and (picked[5:] >= 12).all()
    assert not torch.equal(picked, adversarial.sample_frames(random.key(1), 5, a)[0])


def test_impossible_configurations_of_a_discriminator_are_refused():
    with pytest.raises(UserError, match="cannot be compiled alone"):
        replace(CFG, compile="split")
    with pytest.raises(UserError, match="no moving average"):
        replace(CFG, critic=OPTIM)
    with pytest.raises(UserError, match="differ in length"):
        DiscriminatorConfig(mults=(1, 2), down=(1, 2, 2))
