"""The Python blocks of docs/from-the-seed.md run in order, as a reader would type them."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "from-the-seed.md"


def test_every_block_of_the_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 7
    names = {}
    with torch.no_grad():  # value_and_grad enables gradients itself
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    output = capsys.readouterr().out
    assert "144,878,738" in output and "4 × 8 × 8 × 18" in output
