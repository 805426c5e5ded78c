"""Files: replaced atomically, read with a size limit; folders locked by one process."""

import multiprocessing
import os
from pathlib import Path

import pytest

from genie_fn.errors import UserError
from genie_fn.runtime import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"a.json cannot be written \(No space left on device\): free space"
    ):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_json_is_read_up_to_a_limit_only(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    assert files.read_json(path, 6) == [1, 2]
    for content, limit in (("[1, 2]", 5), ("[" * 100_000, 10**6), ("[1", 9)):
        path.write_text(content)
        with pytest.raises(ValueError):
            files.read_json(path, limit)


def _hold(folder, held, end):
    with files.exclusive(folder, "works in", "go"):
        held.set()
        end.wait()


@pytest.mark.subprocess
def test_a_folder_is_held_by_one_process_until_that_is_dead(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held, end = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(tmp_path / "new", held, end))
    process.start()
    assert held.wait(60)
    with pytest.raises(
        UserError, match="another process works in .*new: wait until it has ended, or go"
    ):
        with files.exclusive(tmp_path / "new", "works in", "go"):
            pass
    process.kill()
    process.join()
    with files.exclusive(tmp_path / "new", "works in", "go"):
        pass


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written"):
        with files.exclusive(tmp_path / "file", "works in", "go"):
            pass


def unwritable(tmp_path):
    """Places that nobody can write, root included."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir(exist_ok=True)
    return [tmp_path / "file" / "a", tmp_path / "file" / "b" / "a", tmp_path / ("a" * 300)] + [
        Path("/proc/nothing/a") if Path("/proc/self").exists() else tmp_path / "file" / "c",
        tmp_path / "a\0b",
    ]


@pytest.mark.parametrize("number", range(5))
def test_what_cannot_be_written_is_refused(tmp_path, number):
    path = unwritable(tmp_path)[number]
    before = sorted(tmp_path.rglob("*"))
    for check in (files.check_outputs, files.check_folder):
        with pytest.raises(UserError, match=r"cannot be written \(.*\): .* with --cfg.out"):
            check("--cfg.out", path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_instead_of_a_file_and_the_reverse(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Is a directory"):
        files.check_outputs("--cfg.out", tmp_path)
    with pytest.raises(UserError, match="Not a directory"):
        files.check_folder("--cfg.out", tmp_path / "file")


def test_what_can_be_written_is_left_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    os.utime(path, (1, 1))
    files.check_outputs("--cfg.out", path, tmp_path / "new" / "folder" / "b.json", os.devnull)
    files.check_folder("--cfg.out", tmp_path / "another" / "folder")
    files.check_folder("--cfg.out", tmp_path)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"old" and path.stat().st_mtime == 1


def test_text_is_utf_8_and_file_names_that_are_none_are_escaped(tmp_path):
    path = tmp_path / "new" / "page.html"
    files.write_text(path, "Δ₄ in runs/\udcff")
    assert path.read_bytes() == "Δ₄ in runs/\\udcff".encode()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "page.html", "")
