"""The command line: values as people and shells write them, and errors as one sentence."""

import errno
import io
import os
import sys
from dataclasses import dataclass, field

import pytest

from genie_fn.errors import UserError
from genie_fn.runtime import cli


@dataclass(frozen=True)
class Inner:
    weights: str = "~/weights"
    size: int = 3


@dataclass(frozen=True)
class Config:
    run: str = ""
    worlds: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def parsed(monkeypatch, *words) -> Config:
    """The configuration of a command line."""
    found = []

    def main(cfg: Config) -> None:
        found.append(cfg)

    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    cli.run(main)
    return found[0]


def refused(monkeypatch, capsys, main, *words) -> str:
    """What a command line that fails prints."""
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_the_home_folder_is_found_anywhere_in_a_configuration(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    cfg = parsed(monkeypatch, "--cfg.run=~/runs/a", "--cfg.worlds", "b", "~/c", "d~/~e")
    assert cfg.run == "/home/me/runs/a" and cfg.worlds == ("b", "/home/me/c", "d~/~e")
    assert cfg.inner == Inner("/home/me/weights")
    unchanged = Config("a", ("b",), Inner("c"))
    assert cli.with_home(unchanged) is unchanged
    assert cli.with_home("~no-such-user/a") == "~no-such-user/a"


def test_a_pattern_that_the_shell_expanded(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    names = sorted(os.listdir())
    for words in (["--cfg.run", *names], ["--cfg.worlds", "a.mp4", "--cfg.run", *names]):

        def main(cfg: Config) -> None:
            pytest.fail("it must not run")

        said = refused(monkeypatch, capsys, main, *words)
        assert said.startswith("error: --cfg.run takes one value, not 3 files: ")
        assert "in quotes" in said and len(said.splitlines()) == 1
    assert parsed(monkeypatch, "--cfg.worlds", *names, "--cfg.run", "a.mp4").worlds == (*names,)
    said = refused(monkeypatch, capsys, main, "--cfg.worlds", *names, "--cfg.ru", "a.mp4")
    assert "in quotes" not in said and "--cfg.run" in said, "another mistake is another message"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a file cannot be written (No space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            "a/b cannot be read or written",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", b"c"),
            "c cannot be read or written (File",
        ),
        (UserError("no [/x] :cat: → sentence"), "no [/x] :cat: → sentence"),
    ],
)
def test_an_error_of_the_system_is_a_sentence(monkeypatch, capsys, error, expected):
    def main() -> None:
        raise error

    assert refused(monkeypatch, capsys, main).startswith(f"error: {expected}")


def test_other_errors_keep_their_traceback(monkeypatch):
    def main() -> None:
        raise OSError("a mistake in a program")

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(OSError, match="mistake"):
        cli.run(main)


def test_help_is_printed_in_any_encoding(monkeypatch):
    """The help of this configuration: Δ → …"""

    @dataclass(frozen=True)
    class Described:
        delta: float = 0.0
        """Δ₄ → the difference … – in dB."""

    def main(cfg: Described) -> None:
        pytest.fail("it must not run")

    main.__annotations__ = {"cfg": Described}
    for encoding in ("ascii", "cp1252"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "argv", ["script.py", "--help"])
        with pytest.raises(SystemExit) as left:
            cli.run(main)
        stream.flush()
        assert not left.value.code
        assert "D4 -> the difference" in stream.buffer.getvalue().decode(encoding)
