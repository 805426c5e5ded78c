"""The page for those who come from the seed: its Python is run, block after block, as a reader would type it."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "from-the-seed.md"


def test_every_block_of_the_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 7
    names = {}
    with torch.no_grad():  # value_and_grad turns gradients on for itself
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    shown = capsys.readouterr().out
    assert "144,878,738" in shown and "4 × 8 × 8 × 18" in shown
