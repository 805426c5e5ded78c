"""The wheel: what it holds, and that it works where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from genie_fn import command
from genie_fn.data import video

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).parents[1]
SHORT = ["--cfg.steps", "2", "--cfg.batch-size", "2", "--cfg.compile", "off"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder in which the wheel is installed, without what it depends on."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True)
    return folder


def python(site, cwd, *words):
    """Run Python in `cwd` with the installed package in place of the checkout's."""
    env = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def genie(site, cwd, line, *more):
    return python(site, cwd, "-m", "genie_fn", *line.split(), *more)


def test_it_holds_every_script_of_a_subcommand_and_the_bundled_worlds(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"genie_fn/scripts/{script}.py" for script in command.SCRIPTS.values()} <= names
    worlds = {path.name for path in (ROOT / "assets" / "worlds").glob("*.safetensors")}
    assert worlds
    assert {f"genie_fn/worlds/{name}" for name in worlds} <= names
    assert not [name for name in names if not name.startswith("genie_fn")]


def test_procgen_is_not_needed_and_the_checkout_not_imported(site, tmp_path):
    required = [r for r in metadata.requires("genie_fn") or () if "extra ==" not in r]
    assert not [r for r in required if r.startswith(("procgen", "numpy<"))]
    show = (
        "import sys; sys.modules['procgen'] = None\n"
        "import genie_fn.scripts.play as play\n"
        "print(play.__file__, play.newest_world(), 'jax' in sys.modules)"
    )
    file, pretrained, with_jax = python(site, tmp_path, "-c", show).split()
    assert Path(file) == site / "genie_fn" / "scripts" / "play.py"
    assert Path(pretrained) == site / "genie_fn" / "worlds" / "coinrun-plain.safetensors"
    assert with_jax == "False", "play imports JAX, which takes seconds"


def test_a_bundled_world_plays(site, tmp_path):
    genie(site, tmp_path, "play --cfg.actions 3,3,1 --cfg.output out.gif")
    assert len(iio.imread(tmp_path / "out.gif")) == 4


def test_a_video_becomes_a_world(site, tmp_path):
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 256, (8, 64, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    frames = np.stack([wide[:, x : x + 64] for x in range(400)])
    video.write_video(tmp_path / "film.mp4", frames)
    genie(site, tmp_path, "import --cfg.src film.mp4 --cfg.root data/own --cfg.split-seconds 2")
    for stage in ("tokenizer", "lam", "dynamics"):
        genie(site, tmp_path, f"train {stage} --cfg.data data/own --cfg.stride 1", *SHORT)
    printed = genie(
        site, tmp_path, "export --cfg.run runs/demo/dynamics --cfg.output own.safetensors"
    )
    assert "genie-fn play --cfg.world own.safetensors" in printed
    genie(site, tmp_path, "play --cfg.world own.safetensors --cfg.actions 0,1 --cfg.output o.gif")


@pytest.mark.slow
def test_in_an_environment_of_its_own(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [binaries / "python", "-m", "pip", "install", "--quiet", str(wheel)]
    subprocess.run(pip, check=True)
    play = [binaries / "genie-fn", "play", "--cfg.actions", "3,3", "--cfg.output", "out.gif"]
    subprocess.run(play, cwd=tmp_path, check=True)
    assert (tmp_path / "out.gif").is_file()
