"""The recipes of docs/your-own-data.md are followed on small generated data (slow: `make docs-test`)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genie_fn.data import video

DOC = Path(__file__).parents[2] / "docs" / "your-own-data.md"
SHORT = "--cfg.steps 2 --cfg.batch-size 2 --cfg.compile off"
EXTRA = {
    "collect": "--cfg.steps-per-level 60",
    "train": SHORT,
    "evaluate": "--cfg.clips 2 --cfg.action-clips 4 --cfg.prompts 1 --cfg.brief",
    "play": "--cfg.actions 0,1 --cfg.output played.gif",
}
"""What is added to a command of a recipe, so that it takes seconds and ends."""


def phone(folder):
    """Three minutes of a picture that scrolls."""
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 256, (8, 64, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    frames = np.stack([wide[:, x % 400 : x % 400 + 100] for x in range(1900)])
    video.write_video(folder / "phone" / "walk.mp4", frames, fps=10)


def game(folder):
    pytest.importorskip("ale_py")


def lerobot(folder):
    pytest.importorskip("pyarrow")
    from tests.data.importing.test_archives import lerobot_v3

    lerobot_v3(folder / "pusht", shape=(2,))


def hdf5(folder):
    pytest.importorskip("h5py")
    from tests.data.importing.test_archives import robomimic

    robomimic(folder / "demos.hdf5")


RECIPES = {
    "Videos of a phone": phone,
    "A Gymnasium game": game,
    "A LeRobot data set": lerobot,
    "Somebody's HDF5": hdf5,
}


def commands(title):
    """The commands of a recipe."""
    section = DOC.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```bash\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return block.splitlines()


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_leads_to_a_world_that_plays(title, tmp_path):
    RECIPES[title](tmp_path)
    lines = commands(title)
    assert lines[-1].startswith("genie-fn play")
    for line in lines:
        program, name, *_ = line.split()
        assert program == "genie-fn"
        line = line.replace("--cfg.num-levels 100", "--cfg.num-levels 10")
        words = f"{line} {EXTRA.get(name, '')}".split()[1:]
        done = subprocess.run(
            [sys.executable, "-m", "genie_fn", *words],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "played.gif").is_file()
