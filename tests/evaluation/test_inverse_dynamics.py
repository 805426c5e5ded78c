"""The supervised inverse dynamics model: its size, and that it predicts visible actions."""

import numpy as np
import pytest
import torch

from genie_fn import data, random, tree
from genie_fn.evaluation import actions, inverse_dynamics
from genie_fn.evaluation.actions import Transitions
from genie_fn.evaluation.inverse_dynamics import Model, Training
from genie_fn.evaluation.record import Agreement, Displacement, Recorded

CPU, NAMES = torch.device("cpu"), ("LEFT", "NOOP", "RIGHT")


@pytest.mark.parametrize("size", [1, 60_000, 400_000])
def test_its_size_is_at_most_that_of_the_encoder_beside_it(size):
    dim = inverse_dynamics.width_for(size, 64, 64, 15)
    count = tree.count(inverse_dynamics.spec(dim, 64, 64, 15))
    assert (
        dim == 4
        if size == 1
        else count <= size < tree.count(inverse_dynamics.spec(dim + 4, 64, 64, 15))
    )


def test_frames_of_odd_sides_and_no_look_ahead():
    net, params = (
        inverse_dynamics.network(4),
        tree.init(inverse_dynamics.spec(4, 30, 20, 5), random.key(0)),
    )
    video = random.randint(random.key(1), (2, 5, 30, 20, 3), 0, 256).to(torch.uint8)
    logits = inverse_dynamics.logits(params, video, net)
    assert logits.shape == (2, 4, 5)
    other = torch.cat((video[:, :3], 255 - video[:, 3:]), 1)
    changed = inverse_dynamics.logits(params, other, net)
    assert torch.equal(logits[:, :2], changed[:, :2]) and not torch.equal(
        logits[:, 2], changed[:, 2]
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A square that moves by the action, on a background of its level."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("probe")
    store = data.create(root / "data", {}, 32, 32, 3, NAMES)
    for level in (0, 1, 2, 3, 9, 19):
        actions, x = rng.integers(0, 3, 80), 12
        frames = np.full((80, 32, 32, 3), rng.integers(0, 200, 3), np.uint8)
        for t in range(80):
            frames[t, 12:20, x : x + 8] = 255
            x = int(np.clip(x + 4 * (actions[t] - 1), 0, 24))
        recording = data.Recording(level, frames, actions, np.zeros(80), np.zeros(80, bool))
        store = data.append_segments(store, [recording])
    return store


def latent(nmi: float, nmi_of_sides: float | None) -> Recorded:
    """Agreement of latent actions with the recorded ones, of which only the NMI counts here."""

    def agreement(nmi: float) -> Agreement:
        return Agreement([[1]], nmi, 0.0, 0.5, "levels", [nmi, nmi], 0.5, 0.5, 1.0)

    still = Displacement([0.0], [0.0], 0.0, 1.0, [0.0], [0.0], 0.0, 1.0, [], [])
    sides = None if nmi_of_sides is None else agreement(nmi_of_sides)
    return Recorded([*NAMES], still, agreement(nmi), sides)


def test_it_predicts_actions_that_can_be_seen(store):
    model = inverse_dynamics.fit(store, 20_000, inverse_dynamics.settings(60, 0, CPU))
    second = inverse_dynamics.fit(store, 20_000, inverse_dynamics.settings(60, 0, CPU))
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(tree.leaves(x.params) for x in (model, second)), strict=True)
    )
    offsets = actions.spread_clips(store, "test", 6, 100)
    predicted = actions.map_clips(
        store, offsets, 6, lambda frames, _: inverse_dynamics.predict(model, frames), CPU
    )
    transitions = actions.gather(store, offsets, 6, predicted)
    training = Training(20_000, 60, 1.0)
    result = inverse_dynamics.evaluate(
        model, training, transitions, predicted, latent(0.2, 0.1), NAMES
    )
    assert result.all.accuracy > 0.8
    assert result.parameters <= result.encoder_parameters == 20_000
    assert (result.all.nmi, result.all.accuracy) == (result.sides.nmi, result.sides.accuracy)
    assert result.all.ratio == pytest.approx(0.2 / result.all.nmi, abs=1e-3)


def test_a_model_that_predicts_nothing_has_no_ratio():
    recorded = torch.tensor([[0, 1, 2]])
    params = tree.init(inverse_dynamics.spec(4, 32, 32, 3), random.key(0))
    transitions = Transitions(recorded, recorded, torch.zeros(1), torch.zeros(1, 3, 2))
    result = inverse_dynamics.evaluate(
        Model(inverse_dynamics.network(4), params),
        Training(1, 1, 1.0),
        transitions,
        torch.zeros_like(recorded),
        latent(0.2, None),
        (),
    )
    assert result.all.nmi == 0 and result.all.ratio is None and result.sides is None
