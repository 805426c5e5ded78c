"""Blueprints: every layer is causal, pure and hashable; mistakes are reported with positions."""

import json
from functools import partial

import pytest
import torch
from rich.console import Console

from genie_fn import random, tree
from genie_fn.errors import UserError
from genie_fn.nets import blueprint, designs, registry
from genie_fn.runtime import stored_config
from genie_fn.runtime.compilation import with_traced_gradients

# One or more entries for every name: (layer, channels that it takes, width of its condition).
ENTRIES = [
    ("space_attn", {"n_embd": 16}, 16, 0),
    ("time_attn", {"n_embd": 16, "window": 3}, 16, 0),
    ("time_attn", {"n_embd": 16, "window": 3, "has_ext": True, "key_dim": 5}, 16, 5),
    ("space-time_attn", {"n_embd": 16, "n_rep": 2}, 16, 0),
    ("space-time_attn", {"n_embd": 16, "has_ext": True, "time_attn_kw": {"key_dim": 5}}, 16, 5),
    ("blur_pool", {"time_factor": 2}, 8, 0),
    ("blur_pool", {}, 8, 0),
    ("space_downsample", {"in_channels": 8, "out_channels": 12}, 8, 0),
    ("spacetime_downsample", {"in_channels": 8, "out_channels": 12}, 8, 0),
    ("spacetime_downsample", {"in_channels": 8, "time_factor": 1}, 8, 0),
    ("image-residual", {"in_channels": 8, "downsample": (1, 2)}, 8, 0),
    ("video-residual", {"in_channels": 8, "out_channels": 16}, 8, 0),
    (
        "video-residual",
        {"in_channels": 8, "downsample": 2, "use_blur": True, "act_fn": "leaky"},
        8,
        0,
    ),
    ("video-residual", {"in_channels": 8, "downsample": 2}, 8, 0),
    ("causal-conv3d", {"in_channels": 8, "out_channels": 4}, 8, 0),
    ("causal-conv3d", {"in_channels": 8, "out_channels": 4, "stride": (2, 1)}, 8, 0),
    (
        "causal-conv3d",
        {"in_channels": 8, "out_channels": 4, "kernel_size": (5, 3), "stride": (2, 2)},
        8,
        0,
    ),
    (
        "causal-conv3d",
        {"in_channels": 8, "out_channels": 4, "kernel_size": 1, "stride": (2, 1)},
        8,
        0,
    ),
    ("causal-conv3d-transpose", {"in_channels": 8, "out_channels": 4}, 8, 0),
    (
        "causal-conv3d-transpose",
        {"in_channels": 8, "out_channels": 4, "kernel_size": 3, "stride": (1, 2)},
        8,
        0,
    ),
    (
        "causal-conv3d-transpose",
        {"in_channels": 8, "out_channels": 4, "kernel_size": 3, "stride": 2},
        8,
        0,
    ),
    ("depth2space_upsample", {"in_channels": 8}, 8, 0),
    ("depth2time_upsample", {"in_channels": 8}, 8, 0),
    ("depth2spacetime_upsample", {"in_channels": 8, "out_channels": 4}, 8, 0),
    ("group_norm", {"num_channels": 8, "num_groups": 2}, 8, 0),
    ("adaptive_group_norm", {"num_channels": 8, "num_groups": 2, "dim_cond": 5}, 8, 5),
    ("proj_out", {"in_channels": 8, "out_channels": 5}, 8, 0),
    ("gelu", {}, 8, 0),
    ("relu", {}, 8, 0),
    ("leaky_relu", {}, 8, 0),
    ("silu", {}, 8, 0),
]
NAMES = [f"{i}-{entry[0]}" for i, entry in enumerate(ENTRIES)]
every_layer = pytest.mark.parametrize(
    ("name", "options", "channels", "condition"), ENTRIES, ids=NAMES
)


def build(*description, seed=0):
    """A parsed blueprint and parameters without zeros, so that no path is closed at the start."""
    net = blueprint.parse(description)
    params = tree.init(blueprint.spec(net), random.key(seed))
    noise = tree.init(
        tree.map(lambda s: type(s)(s.shape, std=0.05), blueprint.spec(net)), random.key(seed + 1)
    )
    return net, tree.map(torch.add, params, noise)


def noise(*shape, seed=0):
    return random.normal(random.key(seed + 50), shape)


def test_every_name_of_the_registry_is_tested():
    assert {entry[0] for entry in ENTRIES} == registry.REGISTRY.keys()


def rates(net):
    [(layer, _)] = blueprint._layers(net)
    return layer.grows[0], layer.shrinks[0]


def out_span(frame, up, down, alone):
    """The last output frame that may not see input frames after `frame`, by the two rules of
    genie_fn/nets/causal.py."""
    if down > 1:
        return frame // down if alone else (frame + 1) // down - 1
    return up * frame if alone else up * (frame + 1) - 1


@every_layer
@pytest.mark.parametrize("alone", [False, True])
def test_no_layer_sees_the_future(name, options, channels, condition, alone):
    """A change of later frames and conditions changes later outputs, and no earlier ones."""
    net, params = build((name, options))
    up, down = rates(net)
    frames = 9 if alone else 8
    x, external = noise(2, frames, 4, 4, channels), noise(2, frames, condition, seed=1)
    run = partial(blueprint.apply, params, blueprint=net, first_frame_alone=alone)
    y, _ = run(x_BTHWC=x, condition=external)
    assert y.shape[1] == ((frames - 1) * up // down + 1 if alone else frames * up // down)
    for t in range(frames - 1):
        other, changed = x.clone(), external.clone()
        other[:, t + 1 :] += noise(2, frames - t - 1, 4, 4, channels, seed=2)
        changed[:, t + 1 :] += 1
        z, _ = run(x_BTHWC=other, condition=changed)
        last = out_span(t, up, down, alone)
        torch.testing.assert_close(z[:, : last + 1], y[:, : last + 1], rtol=0, atol=1e-6)
        assert not torch.allclose(z[:, last + 1 :], y[:, last + 1 :], atol=1e-4), (
            "the change reached nothing"
        )


@every_layer
def test_a_layer_uses_its_condition(name, options, channels, condition):
    if not condition:
        pytest.skip("has none")
    net, params = build((name, options))
    x, a, b = noise(1, 4, 4, 4, channels), noise(1, 4, condition), noise(1, 4, condition, seed=9)
    (y, _), (z, _) = (blueprint.apply(params, x, net, condition=c) for c in (a, b))
    assert ((y - z).abs().amax((0, 2, 3, 4)) > 1e-4).all(), (
        "the condition does not reach every frame"
    )


@every_layer
def test_a_video_in_pieces_is_the_video(name, options, channels, condition):
    """With its cache, a layer continues a video as if it had received all of it at once."""
    net, params = build((name, options))
    if rates(net) != (1, 1):
        pytest.skip("changes the frame rate")
    x, external = noise(2, 9, 4, 4, channels), noise(2, 9, condition, seed=1)
    whole, _ = blueprint.apply(params, x, net, condition=external)
    cache = None
    pieces = []
    for start, end in ((0, 1), (1, 2), (2, 6), (6, 9)):
        piece, cache = blueprint.apply(
            params, x[:, start:end], net, condition=external[:, start:end], cache=cache
        )
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)


@every_layer
def test_a_single_image_is_a_video(name, options, channels, condition):
    net, params = build((name, options))
    x, external = noise(1, 5, 4, 4, channels), noise(1, 5, condition, seed=1)
    up, down = rates(net)
    run = partial(blueprint.apply, params, blueprint=net, first_frame_alone=True)
    first, _ = run(x_BTHWC=x[:, :1], condition=external[:, :1])
    video, _ = run(x_BTHWC=x, condition=external)
    assert first.shape[1] == 1
    torch.testing.assert_close(first, video[:, :1], rtol=1e-4, atol=1e-5)


def test_an_adaptive_norm_takes_the_condition_of_its_own_coarse_frame():
    net, params = build(
        ("adaptive_group_norm", {"num_channels": 8, "num_groups": 2, "dim_cond": 3})
    )
    external = noise(1, 3, 2, 2, 3)  # a grid per coarse frame: averaged over space
    for frames, alone, expected in (
        (12, False, [0] * 4 + [1] * 4 + [2] * 4),
        (9, True, [0] + [1] * 4 + [2] * 4),
    ):
        x = noise(1, frames, 4, 4, 8)
        y, _ = blueprint.apply(params, x, net, first_frame_alone=alone, condition=external)
        for t, own in enumerate(expected):
            z, _ = blueprint.apply(
                params,
                x[:, t : t + 1],
                net,
                first_frame_alone=True,
                condition=external[:, own : own + 1],
            )
            torch.testing.assert_close(y[:, t : t + 1], z, rtol=1e-4, atol=1e-5)


def test_a_blueprint_builds_the_same_network_twice_and_keeps_its_description():
    options = {"in_channels": 8, "n_rep": 2, "downsample": [1, 1]}
    description = [("residual", options), "silu", ("causal", {"in_channels": 8, "out_channels": 3})]
    first, second = blueprint.parse(description), blueprint.parse(description)
    assert options == {"in_channels": 8, "n_rep": 2, "downsample": [1, 1]}
    assert first == second and hash(first) == hash(second)
    assert blueprint.parse(first) == first
    assert blueprint.parse(json.loads(json.dumps(first))) == first
    assert stored_config.as_tuples(json.loads(json.dumps(first))) == first
    assert [name for name, _ in first] == ["video-residual", "silu", "causal-conv3d"]
    assert blueprint.spec(first) == blueprint.spec(second)


def test_repeated_layers_have_parameters_of_their_own():
    net, params = build(("residual", {"in_channels": 8, "n_rep": 3}))
    [stacked] = params.values()
    assert stacked["conv1"]["w"].shape == (3, 8, 8, 3, 3, 3)
    x = noise(1, 2, 4, 4, 8)
    y = x
    single, _ = build(("residual", {"in_channels": 8}))
    for i in range(3):
        block = tree.map(lambda p, i=i: p[i : i + 1], stacked)
        y, _ = blueprint.apply({"00_video-residual": block}, y, single)
    torch.testing.assert_close(blueprint.apply(params, x, net)[0], y)


def test_every_parameter_has_a_gradient():
    net, params = build(
        ("causal", {"in_channels": 3, "out_channels": 8}),
        ("residual", {"in_channels": 8, "out_channels": 16, "downsample": 2}),
        ("space-time_attn", {"n_embd": 16, "has_ext": True, "time_attn_kw": {"key_dim": 5}}),
        ("adaptive_group_norm", {"num_channels": 16, "dim_cond": 5}),
        ("spacetime_upsample", {"in_channels": 16, "out_channels": 3}),
    )
    x, external = noise(2, 8, 4, 4, 3), noise(2, 4, 5)

    def loss(params):
        y, _ = blueprint.apply(params, x, net, condition=external)
        return (y - x).square().mean(), ()

    _, grads = tree.value_and_grad(loss)(params)
    assert all(g.abs().max() > 0 for g in tree.leaves(grads))


def check_compiled(loss, params, backend):
    """Loss and gradients of a compiled function against those of the eager one."""

    def step(params):
        return tree.value_and_grad(lambda params: (loss(params), ()))(params)

    (expected, _), expected_grads = step(params)
    fast = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    (value, _), grads = with_traced_gradients(fast)(params)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(tree.leaves(grads), tree.leaves(expected_grads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_layer_of_every_name_can_be_compiled(backend):
    """All in one graph, with their gradients; by default it is traced, without generating code."""
    entries = {entry[0]: entry for entry in ENTRIES}
    built = {name: build((name, options)) for name, options, _, _ in entries.values()}
    inputs = {
        name: (noise(1, 4, 4, 4, channels), noise(1, 4, condition, seed=1))
        for name, _, channels, condition in entries.values()
    }

    def loss(params):
        total = 0.0
        for name, (x, external) in inputs.items():
            net, _ = built[name]
            y, _ = blueprint.apply(params[name], x, net, condition=external)
            total = total + y.square().mean()
        return total

    check_compiled(loss, {name: params for name, (_, params) in built.items()}, backend)


CONVOLUTIONS = [
    ("causal", {"in_channels": 3, "out_channels": 8}),
    ("residual", {"in_channels": 8, "downsample": 2, "use_blur": True}),
    ("spacetime_upsample", {"in_channels": 8, "out_channels": 3}),
]
ATTENTION = ("space-time_attn", {"n_embd": 8, "n_rep": 2})


@pytest.mark.compile
@pytest.mark.parametrize(
    "description",
    [
        CONVOLUTIONS,
        pytest.param([*CONVOLUTIONS[:2], ATTENTION, CONVOLUTIONS[2]], marks=pytest.mark.slow),
    ],
    ids=["convolutions", "attention"],
)
def test_compiled_is_eager(description):
    net, params = build(*description)
    x = noise(2, 4, 8, 8, 3)

    def loss(params):
        y, _ = blueprint.apply(params, x, net)
        return (y - x).square().mean()

    check_compiled(loss, params, "inductor")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            [("causl", {})],
            r"layer 0 of the blueprint has the unknown name 'causl': did you mean 'causal'",
        ),
        (
            ["silu", ("residual", {"in_channel": 8})],
            r"layer 1 .* no option 'in_channel': did you mean 'in_channels'",
        ),
        (
            ["silu", ("causal", {"in_channels": 3})],
            r"layer 1 of the blueprint, causal-conv3d, needs .* 'out_channels'",
        ),
        (
            [
                ("causal", {"in_channels": 3, "out_channels": 8}),
                "silu",
                ("residual", {"in_channels": 16}),
            ],
            r"layer 2 of the blueprint, video-residual, takes 16 channels, but the layers before it give 8",
        ),
        ([("group_norm", {"num_channels": 12})], "12 channels cannot be divided into num_groups=8"),
        (
            [("residual", {"in_channels": 8, "out_channels": 16, "n_rep": 2})],
            "layer 0 .* cannot be repeated 2 times",
        ),
        (
            [("residual", {"in_channels": 8, "use_causal": False})],
            "would let a frame see later ones",
        ),
        ([("time_attn", {"n_embd": 8, "has_ext": True})], "has_ext and key_dim"),
        ([("adaptive_group_norm", {"num_channels": 8, "has_ext": False})], "use group_norm"),
        (
            [("causal-conv3d-transpose", {"in_channels": 8, "out_channels": 8, "kernel_size": 1})],
            "smaller than its",
        ),
        ([("residual", {"in_channels": 8, "act_fn": "tanh"})], "act_fn 'tanh' is none of"),
        ([("causal", {"in_channels": 3, "out_channels": 8, "kernel_size": (3, 4)})], "even"),
        ([("image-residual", {"in_channels": 8, "downsample": (2, 2)})], "divides time"),
        ([("depth2space_upsample", {"in_channels": 8, "time_factor": 2})], "it keeps time"),
        ([("depth2time_upsample", {"in_channels": 8, "space_factor": 2})], "it keeps space"),
        (
            [("space_attn", {"n_embd": 8, "impl": "flash"})],
            "has no option 'impl'",
        ),
    ],
)
def test_mistakes_are_reported_with_their_position(description, message):
    with pytest.raises(UserError, match=message):
        blueprint.parse(description)


def test_lengths_that_do_not_fit_are_refused():
    assert not blueprint.codes_first_frame_alone(16, 4)
    assert blueprint.codes_first_frame_alone(17, 4) and blueprint.codes_first_frame_alone(1, 4)
    with pytest.raises(UserError, match="give it 16 or 17"):
        blueprint.codes_first_frame_alone(18, 4)


def test_the_table_shows_shapes_and_counts():
    net, params = build(
        ("causal", {"in_channels": 3, "out_channels": 8}),
        ("residual", {"in_channels": 8, "downsample": 2, "n_rep": 2}),
        ("adaptive_group_norm", {"num_channels": 8, "dim_cond": 5}),
    )
    console = Console(width=100, record=True)
    console.print(blueprint.table(net, (4, 8, 8), "net"))
    text = console.export_text()
    assert "video-residual × 2" in text and "1 × 2 × 2 × 8" in text
    assert f"{tree.count(params):,}" in text
    assert blueprint.growth(net) == (1 / 4, 1 / 4)


@pytest.mark.filterwarnings("ignore:var_mean")
@pytest.mark.parametrize("description", [designs.conv_encoder(), designs.small_magvit2_encoder()])
def test_a_grid_that_is_too_small_is_known_before_it_is_computed(description):
    net = blueprint.parse(description)
    params = tree.init(blueprint.spec(net), random.key(0))
    channels, _ = blueprint.channels(net)
    for side in range(1, 6):
        grid = torch.zeros((1, 1, side, side, channels))
        try:
            computed = blueprint.apply(params, grid, net, first_frame_alone=True)[0].numel() > 0
        except RuntimeError:
            computed = False
        assert blueprint.fits(net, side, side) == computed
