"""Worlds to and from the Hub, through a local stand-in of its HTTP interface."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genie_fn import bundle
from genie_fn.bundle import hub, pretrained
from genie_fn.errors import UserError
from tests import hub_server

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://owner/name", ("owner/name", None, "")),
        ("hf://owner/na.me@v2", ("owner/na.me", "v2", "")),
        ("hf://owner/name/a/b.safetensors", ("owner/name", None, "a/b.safetensors")),
        ("hf://owner/name@main/b.safetensors", ("owner/name", "main", "b.safetensors")),
    ],
)
def test_addresses_have_parts(address, parts):
    assert hub.is_address(address)
    assert hub.parse(address) == parts


@pytest.mark.parametrize("address", ["hf://", "hf://owner", "hf://owner/name@", "hf:/owner/name"])
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="no address on the Hub"):
        hub.parse(address)


def test_other_paths_stay_as_they_are():
    for path in ("runs/a/dynamics", "a.safetensors", "/hf:/x"):
        assert hub.fetch(path) == path


def test_names():
    assert hub.name_of("hf://owner/maze@v1") == "maze"
    assert hub.name_of("hf://owner/maze/worlds/a.safetensors") == "a"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'genie_fn\[hub\]'"):
        hub.fetch("hf://owner/name")


@pytest.fixture(scope="module")
def server():
    with hub_server.serving() as running:
        yield running


@pytest.fixture
def run(server, tmp_path):
    """Runs a script with the stand-in as its Hub; returns its exit code and what it printed."""

    def call(script, *flags):
        env = os.environ | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_friend",
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, ROOT / f"{script}.py", *flags],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return call


@pytest.mark.subprocess
def test_a_world_goes_to_the_hub_and_is_played_from_there(server, run, tmp_path):
    world = str(pretrained.path("coinrun"))
    code, printed = run("export_world", "--cfg.run", world, "--cfg.output", "own.safetensors",
                        "--cfg.upload", "hf://friend/maze")  # fmt: skip
    assert code == 0, printed[-600:] + str(server.seen)
    assert "huggingface.co/friend/maze" in printed
    files = server.repositories["friend/maze"]
    assert files["own.safetensors"] == (tmp_path / "own.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    assert "genie-fn play --cfg.world hf://friend/maze/own.safetensors" in card
    for key, value in bundle.load(world).card.items():
        assert f"| {key} | {value} |" in card
    for address in ("hf://friend/maze", "hf://friend/maze/own.safetensors"):
        flags = ("--cfg.world", address, "--cfg.actions", "7,7", "--cfg.output", "out.gif")
        code, printed = run("play", *flags)
        assert code == 0, printed
        (tmp_path / "out.gif").unlink()


@pytest.mark.subprocess
def test_what_cannot_be_found_or_written_is_a_sentence(server, run):
    server.repositories["friend/two"] = {"a.safetensors": b"1", "b.safetensors": b"2"}
    server.repositories["friend/none"] = {"README.md": b"nothing"}
    for address, sentence in (
        ("hf://friend/nowhere", "hf://friend/nowhere cannot be downloaded"),
        ("hf://friend/two", "several worlds: name one, as in hf://friend/two/a.safetensors"),
        ("hf://friend/none", "neither a world file nor a run"),
        ("hf://friend/two/a.safetensors", "is not a world file"),
    ):
        code, printed = run("play", "--cfg.world", address, "--cfg.actions", "1")
        assert code == 2, printed
        assert sentence in printed
        assert "Traceback" not in printed
