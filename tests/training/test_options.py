"""A run that is continued says which of its options have changed, and refuses other sizes by flag."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from genie_fn import tokenizer
from genie_fn.errors import UserError
from genie_fn.layers import STConfig
from genie_fn.quantize import QuantizerConfig, initial_use
from genie_fn.random import key
from genie_fn.training import options, setup
from genie_fn.training.checkpointer import Checkpointer
from genie_fn.training.optim import OptimConfig
from genie_fn.training.step import init_state
from train_tokenizer import Config, magvit2_demo

STACK = STConfig(layers=1, dim=8, heads=1, mlp=1, window=2)
MODEL = tokenizer.TokenizerConfig(16, 16, 16, STACK, STACK, QuantizerConfig(codes=4))


@pytest.fixture
def saved(tmp_path) -> Config:
    """The configuration of a run with a checkpoint."""
    cfg = Config(out=str(tmp_path / "run"), compile="off", model=MODEL, steps=1)
    state = init_state(tokenizer.spec(MODEL), key(0), cfg.optim, initial_use(MODEL.quantizer))
    with Checkpointer(cfg.out) as checkpointer:
        checkpointer.save(1, state, cfg)
    return replace(cfg, resume=True)


def resume(cfg: Config) -> None:
    use = initial_use(cfg.model.quantizer)
    setup.start(tokenizer.spec(cfg.model), use, cfg, "tokenizer", torch.device("cpu"))


def test_what_changes_is_one_line_and_what_does_not_matter_is_none(saved, capsys):
    resume(replace(saved, device="cpu", save_every=7, data="elsewhere"))
    assert "other options" not in capsys.readouterr().err
    resume(replace(saved, steps=5, seed=3, optim=replace(saved.optim, lr=0.5)))
    said = " ".join(capsys.readouterr().err.split())
    expected = (
        f"--cfg.steps 5 (was 1), --cfg.seed 3 (was 0), --cfg.optim.lr 0.5 (was {OptimConfig().lr})"
    )
    assert expected in said and "has to be trained again" in said


def test_other_sizes_are_refused_by_flag(saved):
    wide = replace(MODEL, encoder=replace(STACK, dim=16))
    with pytest.raises(UserError, match=r"--cfg.model.encoder.dim 16 \(was 8\).*--cfg.out"):
        resume(replace(saved, model=wide, steps=9))
    with pytest.raises(UserError, match=r"model.height \(from --cfg.data\) 32 \(was 16\)"):
        resume(replace(saved, model=replace(MODEL, height=32, width=32)))
    with pytest.raises(UserError, match=r"--cfg.optim.ema 0.9 \(was 0.0\)"):
        resume(replace(saved, optim=replace(saved.optim, ema=0.9)))
    with pytest.raises(UserError, match=r"sizes: --cfg.preset small \(was demo\); give"):
        resume(replace(saved, model=wide, preset="small"))


def test_lists_are_compared_as_they_are_stored():
    cfg = magvit2_demo()
    assert not options.differences(json.loads(json.dumps(asdict(cfg))), cfg)
