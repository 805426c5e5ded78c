"""The speedrun with stand-ins for the scripts: how the time is divided, and what the row holds."""

import json
import sys
import textwrap
from dataclasses import asdict, replace

import pytest

import speedrun
from genie_fn.errors import UserError
from genie_fn.evaluation import record_file
from genie_fn.evaluation.report import headlines
from speedrun import Config
from tests.evaluation import examples

STEP = 0.02  # seconds that a step of the stand-in takes
TRAINER = f"""
    import json, pathlib, sys, time
    flags = dict(word.removeprefix("--cfg.").split("=", 1) for word in sys.argv[1:] if "=" in word)
    out = pathlib.Path(flags["out"]); out.mkdir(parents=True)
    assert "steps" not in flags and "--cfg.resume" not in sys.argv
    start = time.monotonic(); done = 0
    with open(out / "metrics.jsonl", "a") as log:
        while time.monotonic() < start + 60 * float(flags["minutes"]):
            time.sleep({STEP}); done += 1
            if done % 5 == 0:
                print(json.dumps(dict(step=done, seconds=done * {STEP})), file=log)
        print(json.dumps(dict(step=done, seconds=done * {STEP})), file=log)
"""
EVALUATION = {"schema": record_file.SCHEMA} | asdict(examples.evaluation())


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """The scripts' names, with programs that only take time."""
    for stage in speedrun.STAGES:
        (tmp_path / f"train_{stage}.py").write_text(textwrap.dedent(TRAINER))
    (tmp_path / "generate_dataset.py").write_text("")
    written = "import pathlib, sys; assert '--cfg.brief' in sys.argv\n"
    written += "run = [w.split('=')[1] for w in sys.argv if w.startswith('--cfg.run=')][0]\n"
    written += (
        f"pathlib.Path(run, 'metrics.json').write_text({json.dumps(json.dumps(EVALUATION))})\n"
    )
    (tmp_path / "evaluate.py").write_text(written)
    exported = "import pathlib, sys; out = [w.split('=')[1] for w in sys.argv if w.startswith('--cfg.output=')][0]\n"
    (tmp_path / "export_world.py").write_text(
        exported + "pathlib.Path(out).write_text(' '.join(sys.argv))\n"
    )
    monkeypatch.setattr(speedrun, "ROOT", tmp_path)
    return Config(
        minutes=0.1,
        lam=0.11,
        dynamics=0.45,
        out=str(tmp_path / "run"),
        records=str(tmp_path / "records"),
    )


@pytest.mark.subprocess
def test_every_stage_gets_its_share_of_the_time_and_the_row_says_so(stand_ins, tmp_path):
    speedrun.main(stand_ins)
    (path,) = (tmp_path / "records").glob("*.json")
    row = json.loads(path.read_text())
    assert row["results"]["tokenizer, PSNR"] == [23.456] and row["results"]["actions used"] == [3]
    assert row["config"]["seed"] == 0 and row["stages"]["dataset"]["levels"] == 200
    for stage in speedrun.STAGES:
        last = speedrun.metrics(tmp_path / "run" / stage)[-1]
        steps = row["stages"][stage]["steps"]
        assert 10 <= steps <= 60 * 0.1 * getattr(stand_ins, stage) / STEP, (
            "more steps than the share has room for"
        )
        assert last["step"] == steps
    assert row["stages"]["tokenizer"]["steps"] > row["stages"]["lam"]["steps"]


@pytest.mark.subprocess
def test_logs_are_kept_beside_the_row_and_the_world_on_request(stand_ins, tmp_path):
    world = tmp_path / "made.safetensors"
    speedrun.main(replace(stand_ins, world=str(world), actions="recorded"))
    (path,) = (tmp_path / "records").glob("*.json")
    assert {log.name for log in path.with_suffix("").iterdir()} == {
        "tokenizer.jsonl",
        "dynamics.jsonl",
    }
    log = (path.with_suffix("") / "dynamics.jsonl").read_text()
    assert log == (tmp_path / "run" / "dynamics" / "metrics.jsonl").read_text()
    assert f"--cfg.run={tmp_path / 'run' / 'dynamics'}" in world.read_text()
    row = json.loads(path.read_text())
    assert "lam" not in row["stages"], "recorded actions need no latent action model"
    assert row["stages"]["dynamics"]["seconds"] > row["stages"]["tokenizer"]["seconds"], (
        "its time goes to the dynamics"
    )


def test_no_result_hides_another():
    labels = [row.label for row in headlines.ROWS]
    assert len({*labels}) == len(labels)


def test_an_existing_folder_is_not_overwritten(stand_ins, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="delete it"):
        speedrun.main(stand_ins)


@pytest.mark.subprocess
def test_a_stage_that_fails_ends_it(stand_ins, tmp_path):
    (tmp_path / "train_tokenizer.py").write_text("import sys; sys.exit(2)")
    with pytest.raises(UserError, match="failed"):
        speedrun.main(stand_ins)
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "wrong", [{"tokenizer": 0.6}, {"lam": 0}, {"minutes": 0}, {"levels": 3}, {"world": "x.pt"}]
)
def test_bad_configs_are_a_sentence(wrong):
    with pytest.raises(UserError):
        Config(**wrong)


def test_flags_become_words_of_a_command_line(monkeypatch, stand_ins):
    flags = {"run": "x", "clips": 3, "resume": True, "save_every": 2}
    wanted = ["--cfg.run=x", "--cfg.clips=3", "--cfg.resume", "--cfg.save-every=2"]
    assert speedrun.words(flags) == wanted
    started = []

    class Process:
        def __init__(self, words):
            started.append(words)

        def wait(self):
            return 0

    monkeypatch.setattr(speedrun.subprocess, "Popen", Process)
    speedrun.call("evaluate", **flags)
    assert started == [[sys.executable, str(speedrun.ROOT / "evaluate.py"), *wanted]]
