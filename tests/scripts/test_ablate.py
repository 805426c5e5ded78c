"""Ablations: what variants share, that scripts understand every command, and the tables."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ablate
from ablate import Config, Variant
from benchmarks import report
from genie_fn import data
from genie_fn.errors import UserError
from genie_fn.evaluation import record_file
from genie_fn.runtime import cli
from tests.evaluation import examples

CFG = Config(out="runs/x", data="data/x")
VARIANTS = [
    Variant(name, variant, 1)
    for name, choice in ablate.CHOICES.items()
    for variant in choice.variants
]


def parsed(monkeypatch, words):
    """The configuration that a command line gives its script."""
    script, found = importlib.import_module(words[1].split("/")[-1].removesuffix(".py")), []

    def main(cfg):
        found.append(cfg)

    main.__annotations__ = {"cfg": script.Config}
    main.__module__ = script.__name__
    monkeypatch.setattr(sys, "argv", words[1:])
    cli.run(main, getattr(script, "PRESETS", None))
    return found[0]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.choice}-{v.name}")
def test_a_variant_changes_one_thing(monkeypatch, variant):
    demo = Variant(variant.choice, next(iter(ablate.CHOICES[variant.choice].variants)), 1)
    stage = ablate.CHOICES[variant.choice].stage
    own, plain = (parsed(monkeypatch, ablate.command(CFG, v, stage)) for v in (variant, demo))
    folders = {name: getattr(plain, name) for name in ("out", "root") if hasattr(plain, name)}
    assert (replace(own, **folders) == plain) == (variant == demo)


@pytest.mark.parametrize("stage", list(ablate.INPUTS))
def test_stages_read_what_earlier_ones_wrote(monkeypatch, stage):
    variant = Variant("quantizer", "lfq", 1)
    cfg = parsed(monkeypatch, ablate.command(CFG, variant, stage))
    at = {name: str(ablate.folder(CFG, variant, name)) for name in ablate.INPUTS}
    wanted = {
        "dataset": at["dataset"],
        "tokenizer": at["tokenizer"],
        "lam": at["lam"],
        "dynamics": at["dynamics"],
    }
    names = {"dataset": "data", "dynamics": "run", "tokenizer": "tokenizer", "lam": "lam"}
    if stage == "lam_evaluation":
        names["lam"] = "run"
    for earlier in ablate.INPUTS[stage]:
        given = getattr(cfg, names[earlier])
        assert given in (wanted[earlier], (wanted[earlier],))  # training takes several datasets


def test_variants_share_what_their_choice_does_not_touch():
    def at(stage, *variant):
        return ablate.folder(CFG, Variant(*variant), stage)

    assert at("dynamics", "steps", "2", 0) == at("dynamics", "actions", "add", 0)
    assert at("evaluation", "steps", "2", 0) != at("evaluation", "actions", "add", 0)
    assert at("lam", "quantizer", "lfq", 0) == at("lam", "actions", "add", 0)
    assert at("dynamics", "quantizer", "lfq", 0) != at("dynamics", "actions", "add", 0)
    assert at("lam", "data", "random", 0) != at("lam", "actions", "add", 0)
    assert at("lam", "actions", "add", 1) != at("lam", "actions", "add", 0)
    assert at("lam", "actions", "add", 0) != ablate.folder(
        replace(CFG, lam_steps=7), Variant("actions", "add", 0), "lam"
    )


def test_choices_of_latent_actions_are_measured_in_their_model_alone():
    assert Variant("stride", "4", 0).stages == ("dataset", "lam", "lam_evaluation")
    every = ("dataset", "tokenizer", "lam", "dynamics", "evaluation")
    assert Variant("quantizer", "lfq", 0).stages == Variant("steps", "2", 0).stages == every


def test_given_runs_are_used_by_all_seeds_where_the_choice_does_not_change_them():
    cfg = replace(CFG, tokenizer="runs/a/tokenizer")

    def at(cfg, stage, *variant):
        return ablate.folder(cfg, Variant(*variant), stage)

    for seed in (0, 1):
        assert at(cfg, "tokenizer", "masks", "0.1", seed) == Path("runs/a/tokenizer")
        assert ablate.is_done(cfg, Variant("masks", "0.1", seed), "tokenizer")
    assert not ablate.is_done(cfg, Variant("masks", "0.1", 0), "lam")
    assert at(cfg, "dynamics", "masks", "0.1", 0) != at(CFG, "dynamics", "masks", "0.1", 0)
    assert at(cfg, "lam", "masks", "0.1", 0) == at(CFG, "lam", "masks", "0.1", 0)
    for name in ("vq", "lfq"):  # a choice that changes the tokenizer trains all of its variants
        assert at(cfg, "tokenizer", "quantizer", name, 0) == at(
            CFG, "tokenizer", "quantizer", name, 0
        )
        assert not ablate.is_done(cfg, Variant("quantizer", name, 0), "tokenizer")
    given = replace(CFG, lam="runs/a/lam")
    measured = "lam_evaluation"
    assert at(given, measured, "masks", "0.1", 0) != at(CFG, measured, "masks", "0.1", 0)
    assert at(given, measured, "flips", "on", 0) == at(CFG, measured, "flips", "on", 0)
    assert at(cfg, measured, "flips", "on", 0) == at(CFG, measured, "flips", "on", 0)


def test_given_runs_that_do_not_exist_are_refused_first(tmp_path):
    cfg = Config(out=str(tmp_path / "out"), results=str(tmp_path / "results.json"), lam="runs/nope")
    with pytest.raises(UserError, match=r"--cfg\.lam runs/nope holds no checkpoint"):
        ablate.main(cfg)
    with pytest.raises(UserError, match="leave --cfg.tokenizer"):
        Config(choices=("steps",), worlds=("a",), lam="b")


def test_the_table_shows_means_and_paired_differences(tmp_path):
    rows = [
        {"name": n, "seed": s, "dB": x}
        for n, s, x in (("a", 0, 1.0), ("b", 0, 3.0), ("a", 1, 2.0), ("b", 1, 2.5))
    ]
    records = {"actions": {"about": "How", "scale": {"lam_steps": 3, "clips": 4}, "rows": rows}}
    table = report.ablations(records, {"dB": 2, "absent": 1})
    assert "| a | 1.50 |" in table and "| b | 2.75 (+0.50 to +2.00) |" in table
    assert "absent" not in table and "2 seeds, lam steps 3, clips 4" in table
    page, path = tmp_path / "page.md", tmp_path / "ablations.json"
    page.write_text("above\n{}\nold\n{}\nbelow\n".format(*ablate.MARKS))
    path.write_text(json.dumps(records))
    ablate.main(Config(choices=("table",), results=str(path), docs=str(page)))
    assert (
        "old" not in page.read_text()
        and page.read_text().startswith("above")
        and "### How" in page.read_text()
    )


def test_trained_worlds_replace_seeds(monkeypatch):
    cfg = replace(CFG, choices=("steps",), worlds=("runs/a/dynamics", "runs/b/dynamics"))
    every = list(ablate.variants(cfg))
    assert len(every) == 2 * len(ablate.CHOICES["steps"].variants)
    assert len({ablate.folder(cfg, variant, "evaluation") for variant in every}) == len(every)
    for variant in every:
        made = [stage for stage in variant.stages if not ablate.is_done(cfg, variant, stage)]
        assert made == ["evaluation"]
        found = parsed(monkeypatch, ablate.command(cfg, variant, "evaluation"))
        assert found.run == cfg.worlds[variant.seed] and found.sample.steps == int(variant.name)


def test_a_given_dataset_is_used_as_it_is(tmp_path):
    given = tmp_path / "data"
    cfg = replace(CFG, data=str(given), out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="no dataset at"):
        ablate.main(replace(cfg, results=str(tmp_path / "results.json")))
    data.create(given, {}, 16, 16, 0)
    assert ablate.is_done(cfg, Variant("data", "explorer", 0), "dataset")
    assert not ablate.is_done(cfg, Variant("data", "random", 0), "dataset")
    assert not ablate.is_done(replace(CFG, data=""), Variant("data", "explorer", 0), "dataset")


@pytest.mark.subprocess
def test_a_stage_that_fails_ends_with_a_sentence(tmp_path):
    (tmp_path / "other.txt").write_text("not a dataset")
    with pytest.raises(UserError, match="the lam failed"):
        ablate.measure(Config(choices=("stride",), data=str(tmp_path), out=str(tmp_path / "out")))


def test_bad_configs_are_a_sentence():
    sampled = {"choices": ("order", "data"), "worlds": ("a",)}
    for wrong in ({"seeds": ()}, {"frames": 3}, {"clips": 1}, {"action_clips": 1}, sampled):
        with pytest.raises(UserError):
            Config(**wrong)


def test_an_unknown_choice_is_refused(monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        parsed(monkeypatch, [sys.executable, "ablate.py", "--cfg.choices", "nope"])
    assert stopped.value.code == 2


def test_an_evaluation_of_other_clips_is_repeated(tmp_path):
    cfg, variant = replace(CFG, out=str(tmp_path), clips=5, frames=4), Variant("actions", "add", 0)
    at = ablate.folder(cfg, variant, "evaluation")
    at.mkdir(parents=True)
    assert not ablate.is_done(cfg, variant, "evaluation")
    config = {"clips": 5, "frames": 4, "action_clips": cfg.action_clips, "split": "val"}
    record_file.write(replace(examples.evaluation(), config=config), at)
    assert ablate.is_done(cfg, variant, "evaluation")
    assert not ablate.is_done(replace(cfg, frames=10), variant, "evaluation")
