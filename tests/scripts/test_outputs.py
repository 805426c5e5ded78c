"""Every script finds out before its work whether its results can be written."""

from dataclasses import replace

import pytest

import ablate
import benchmark
import clone
import evaluate
import evaluate_frames
import evaluate_lam
import export_world
import generate_dataset
import import_videos
import play
import speedrun
import train_dynamics
import train_lam
import train_tokenizer
from genie_fn.errors import UserError

CASES = {
    "play": (play.main, play.Config(actions="1"), "output", ".mp4"),
    "evaluate": (evaluate.main, evaluate.Config(), "out", ""),
    "compare": (evaluate.main, evaluate.Config(compare=("a",)), "out", ""),
    "evaluate a latent action model": (evaluate_lam.main, evaluate_lam.Config(), "out", ""),
    "clips": (evaluate_frames.main, evaluate_frames.Config(clips_to="x"), "clips_to", ""),
    "export": (export_world.main, export_world.Config(), "output", ".safetensors"),
    "export graphs": (export_world.main, export_world.Config(format="onnx"), "output", ""),
    "clone": (clone.main, clone.Config(), "out", ""),
    "collect": (generate_dataset.main, generate_dataset.Config(), "root", ""),
    "collect videos": (generate_dataset.main, generate_dataset.Config(), "export_mp4", ""),
    "import": (import_videos.main, import_videos.Config("nothing"), "root", ""),
    "benchmark": (benchmark.main, benchmark.Config(), "out", ""),
    "speedrun": (speedrun.main, speedrun.Config(out="new"), "out", ""),
    "speedrun's records": (speedrun.main, speedrun.Config(out="new"), "records", ""),
    "speedrun's world": (speedrun.main, speedrun.Config(out="new"), "world", ".safetensors"),
    "ablate": (ablate.main, ablate.Config(), "out", ""),
    "ablate's results": (ablate.main, ablate.Config(), "results", ".json"),
    "ablate's page": (ablate.main, ablate.Config(), "docs", ".md"),
    "tokenizer": (train_tokenizer.main, train_tokenizer.demo(), "out", ""),
    "lam": (train_lam.main, train_lam.demo(), "out", ""),
    "dynamics": (train_dynamics.main, train_dynamics.demo(), "out", ""),
}
"""The function, its configuration, the field that names the output, and how its name must end."""


@pytest.mark.parametrize("case", CASES)
def test_an_output_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, case):
    """Nothing else that these configurations name exists, and that is not complained about."""
    main, cfg, field, suffix = CASES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    flag = f"--cfg.{field.replace('_', '-')}"
    for place in (f"file/a{suffix}", "a" * 300 + suffix):
        with pytest.raises(UserError, match="cannot be written") as refused:
            main(replace(cfg, **{field: place}))
        assert flag in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
