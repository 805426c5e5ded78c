"""The flags of a run, as a command line and as Python give them."""

import sys

import pytest

import train_lam
from genie_fn.errors import UserError
from genie_fn.runtime import cli
from genie_fn.training.config import RunConfig


def parsed(monkeypatch, *words) -> RunConfig:
    """The configuration of a command line."""
    found = []

    def main(cfg: train_lam.Config) -> None:
        found.append(cfg)

    main.__annotations__ = {"cfg": train_lam.Config}
    monkeypatch.setattr(sys, "argv", ["train_lam.py", *words])
    cli.run(main, train_lam.PRESETS)
    return found[0]


def test_one_dataset_or_several(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    cfg = parsed(monkeypatch, "--cfg.data", "a", "~/b", "--cfg.data-weights", "1", "3")
    assert cfg.data == cfg.datasets == ("a", "/home/me/b") and cfg.data_weights == (1.0, 3.0)
    for words in (["--cfg.data", "a", "--cfg.steps", "2"], ["--cfg.data=a"]):
        assert parsed(monkeypatch, *words).datasets == ("a",)
    assert parsed(monkeypatch).datasets == RunConfig(data="").datasets == ()
    assert RunConfig(data="a") == RunConfig(data=("a",)) and hash(RunConfig(data="a"))
    with pytest.raises(SystemExit):
        parsed(monkeypatch, "--help")
    assert "--cfg.data FOLDER [FOLDER ...]" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_positive(weight):
    with pytest.raises(UserError, match="--cfg.data-weights has .* positive"):
        RunConfig(data=("a", "b"), data_weights=(1.0, weight))
