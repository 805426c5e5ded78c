"""Every preset of every training script is a configuration whose stages fit together."""

from dataclasses import replace

import pytest

import train_dynamics
import train_lam
import train_tokenizer
from genie_fn import dynamics, lam, tokenizer
from genie_fn.runtime import stored_config

SCRIPTS = (train_tokenizer, train_lam, train_dynamics)


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in SCRIPTS for name in script.PRESETS]
)
def test_a_preset_is_named_after_itself_and_stored_as_it_is(script, name):
    cfg = script.PRESETS[name]()
    assert cfg.preset == name
    assert cfg.out.startswith(f"runs/{name}/")
    stored = stored_config.update_run(stored_config.to_store(cfg))
    assert stored_config.from_dict(type(cfg), stored) == cfg


@pytest.mark.parametrize("name", train_dynamics.PRESETS)
def test_the_stages_of_a_preset_fit_together(name):
    frames = train_tokenizer.PRESETS[name]()
    actions = train_lam.PRESETS[name]()
    cfg = train_dynamics.PRESETS[name]()
    assert cfg.stride in ("auto", actions.stride)
    assert (frames.flip, actions.flip) == (cfg.flip, cfg.flip)
    sizes = {"tokens": frames.model.tokens, "columns": frames.model.grid[1]}
    model = replace(cfg.model, codes=frames.model.quantizer.codes, **sizes)
    assert dynamics.spec(model) and lam.spec(actions.model) and tokenizer.spec(frames.model)
