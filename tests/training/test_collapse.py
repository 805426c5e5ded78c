"""The warning about collapsed codes: once, not too early, and not for a single batch."""

import pytest

import train_dynamics
import train_lam
import train_tokenizer
from genie_fn.training import collapse
from genie_fn.training.collapse import CollapseWarning


def warnings(capsys, values, steps=1000, every=10):
    """What is printed for perplexities at every tenth step."""
    sink = CollapseWarning({"perplexity": "they collapsed; raise --cfg.x"}, steps)
    for i, value in enumerate(values, 1):
        sink.write(i * every, {"loss": 1.0, "perplexity": value})
    return [line for line in capsys.readouterr().err.splitlines() if line]


def test_a_collapse_is_reported_once(capsys):
    (line,) = warnings(capsys, [1.0] * 100)
    assert line == "warning at step 120, perplexity 1.00: they collapsed; raise --cfg.x"


@pytest.mark.parametrize("values", [[1.0] * 9 + [3.0] * 90, [3.0, 1.0, 1.0] * 30, [1.5] * 100])
def test_codes_that_recover_or_are_merely_few_are_not(capsys, values):
    assert not warnings(capsys, values)


def test_a_short_training_has_time_to_begin(capsys):
    assert not warnings(capsys, [1.0] * 6, steps=1)
    assert len(warnings(capsys, [1.0] * 7, steps=1)) == 1


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (train_tokenizer.Config(), "perplexity"),
        (train_lam.Config(), "perplexity"),
        (train_dynamics.Config(), "action_perplexity"),
        (train_dynamics.Config(actions="recorded"), "action_perplexity"),
        (train_dynamics.Config(train_lam=True), "lam_perplexity"),
    ],
)
def test_every_stage_watches_its_codes(config, name):
    (sentence,) = config.watched().values()
    assert config.watched().keys() == {name} and ";" in sentence


def test_the_watched_metrics_are_measured(monkeypatch):
    """A row without them is no collapse."""
    sink = CollapseWarning({"perplexity": "no"}, 1)
    monkeypatch.setattr(collapse.console, "print", lambda *_, **__: pytest.fail("it warned"))
    for step in range(1000):
        sink.write(step, {"loss": 1.0})
