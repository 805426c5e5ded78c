"""The command `genie-fn`: names of subcommands, messages, and the demo."""

import signal
import sys

import pytest

from genie_fn import command
from genie_fn.errors import UserError


@pytest.fixture
def called(monkeypatch):
    """What `genie-fn` runs, instead of running it."""
    calls = []

    def remember(main, presets=None, *, translate):
        calls.append((sys.argv, main, presets))

    monkeypatch.setattr(command.cli, "run", remember)
    return calls


def genie(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["/somewhere/genie-fn", *words])
    command.main()


@pytest.mark.parametrize("name", command.SCRIPTS)
def test_every_subcommand_runs_its_script(name, called, monkeypatch):
    genie(monkeypatch, *name.split(), "--cfg.seed", "3")
    ((argv, main, presets),) = called
    assert argv == [f"genie-fn {name}", "--cfg.seed", "3"]
    module = sys.modules[main.__module__]
    assert module.__name__ == f"genie_fn.scripts.{command.SCRIPTS[name]}"
    assert presets is getattr(module, "PRESETS", None)


def test_every_subcommand_has_a_summary(monkeypatch, capsys):
    assert command.SUMMARIES.keys() == {*command.SCRIPTS, "demo"}
    for words in ((), ("--help",), ("-h",), ("train",), ("train", "--help")):
        with pytest.raises(SystemExit) as end:
            genie(monkeypatch, *words)
        assert not end.value.code
        printed = capsys.readouterr().out
        assert all(f"  {name} " in printed for name in command.SUMMARIES)


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("plya", "play"),
        ("train tokeniser", "train tokenizer"),
        ("--cfg.steps 3", ""),
        ("evaluate_lam", "evaluate-lam"),
    ],
)
def test_unknown_subcommands_are_a_sentence(words, nearest, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        genie(monkeypatch, *words.split())
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert f"did you mean '{nearest}" in (printed.out + printed.err).replace("\n", " ")


def test_messages_name_subcommands():
    assert command.translate("make one with `python train_lam.py --cfg.out x`") == (
        "make one with `genie-fn train lam --cfg.out x`"
    )
    assert command.translate("that evaluate.py chose") == "that genie-fn evaluate chose"
    for text in ("python other.py", "python replay.py", "genie_fn/layers.py"):
        assert command.translate(text) == text


def test_an_error_names_the_subcommand(monkeypatch, capsys):
    def fail(cfg):
        raise UserError("make one with `python evaluate.py`")

    import genie_fn.scripts.play as script

    def main(cfg: script.Config) -> None:
        fail(cfg)

    main.__module__ = script.__name__
    monkeypatch.setattr(script, "main", main)
    with pytest.raises(SystemExit) as end:
        genie(monkeypatch, "play")
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "`genie-fn evaluate`" in printed.out + printed.err


def test_the_demo_ends_with_the_stage_that_fails(monkeypatch):
    ran = []

    def call(words):
        ran.append(words)
        return 130 if words[:2] == ["train", "lam"] else 0

    monkeypatch.setattr(command, "_call", call)
    with pytest.raises(SystemExit) as end:
        genie(monkeypatch, "demo")
    assert end.value.code == 130
    assert [" ".join(words).partition(" --")[0] for words in ran] == [
        "collect",
        "train tokenizer",
        "train lam",
    ]


def test_the_demo_has_no_flags(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        genie(monkeypatch, "demo", "--cfg.steps", "3")
    assert end.value.code == 2
    assert "genie-fn train dynamics --cfg.preset demo" in capsys.readouterr().out


@pytest.mark.subprocess
def test_a_stage_of_the_demo_is_waited_for_after_ctrl_c(monkeypatch):
    """Both processes receive the signal; the stage saves, and its code is the demo's."""
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(1)\n"
        "sys.exit(130)\n"
    )

    class Stage(command.subprocess.Popen):
        def __init__(self, words):
            super().__init__([sys.executable, "-c", code])

    monkeypatch.setattr(command.subprocess, "Popen", Stage)
    before = signal.getsignal(signal.SIGINT)
    assert command._call(["collect"]) == 130
    assert signal.getsignal(signal.SIGINT) == before
