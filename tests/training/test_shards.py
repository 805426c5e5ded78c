"""Pieces of a checkpoint: written by several processes, put together by any number of others."""

import json

import numpy as np
import pytest
import torch

from genie_fn import tree
from genie_fn.training import shards
from genie_fn.training.shards import Damaged, Part

WHOLE = np.arange(35, dtype=np.float32).reshape(5, 7)
STATE = {"params": {"w": torch.from_numpy(WHOLE)}, "ema": {}, "step": torch.tensor(3)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint of three processes, which hold 2, 2 and 1 rows."""
    for rank, rows in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        monkeypatch.setattr(shards.processes, "rank", lambda rank=rank: rank)
        pieces = {"params/w": ((rows.start, 0), WHOLE[rows].copy())}
        if rank == 0:
            pieces["step"] = ((), np.array(3))
        shards.write_pieces(tmp_path, pieces)
    (tmp_path / shards.INDEX).write_text(json.dumps(shards.index_of(STATE)))
    return tmp_path


def read(folder, **parts):
    """Parts of the leaves of a checkpoint; "params/w" is written params_w."""
    parts = {name.replace("_", "/"): part for name, part in parts.items()}
    return shards.read_parts(folder, parts, shards.read_index(folder))


def test_the_index_describes_all_leaves_and_empty_trees(folder):
    leaves = shards.read_index(folder)
    assert leaves["ema"] == {}
    for path, leaf in tree.paths(STATE).items():
        assert tree.paths(leaves)[path].shape == leaf.shape
        assert tree.paths(leaves)[path].dtype == leaf.dtype


@pytest.mark.parametrize("rank", range(4))
def test_any_part_is_put_together(folder, monkeypatch, rank):
    monkeypatch.setattr(shards.processes, "rank", lambda: rank)
    for rows in (slice(0, 5), slice(1, 3), slice(3, 5), slice(4, 5)):
        for columns in (slice(0, 7), slice(2, 6)):
            size = (rows.stop - rows.start, columns.stop - columns.start)
            part = Part((rows.start, columns.start), size)
            found = read(folder, params_w=part, step=Part((), ()))
            assert (found["params/w"] == WHOLE[rows, columns]).all()
            assert found["step"] == 3 and found["step"].dtype == np.int64
    assert read(folder, params_w=Part((5, 0), (0, 7)))["params/w"].shape == (0, 7)


def test_the_same_layout_reads_its_own_file_and_the_first(folder, monkeypatch):
    monkeypatch.setattr(shards.processes, "rank", lambda: 2)
    (folder / "00001.safetensors").write_bytes(b"unreadable")
    found = read(folder, params_w=Part((4, 0), (1, 7)), step=Part((), ()))
    assert (found["params/w"] == WHOLE[4:]).all()


def test_a_missing_file_is_noticed(folder):
    (folder / "00001.safetensors").unlink()
    with pytest.raises(Damaged, match="params/w.* not complete"):
        read(folder, params_w=Part((0, 0), (5, 7)))


def test_a_flipped_bit_is_noticed(folder):
    path = folder / "00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    with pytest.raises(Damaged, match="params/w.* not as it was saved"):
        read(folder, params_w=Part((0, 0), (5, 7)))


def test_a_piece_in_the_wrong_place_is_noticed(folder):
    path = folder / "00002.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[4, 0]", b"[3, 0]"))
    with pytest.raises(Damaged, match="params/w.* not as it was saved"):
        read(folder, params_w=Part((3, 0), (2, 7)))


def test_a_changed_index_is_noticed(folder):
    path = folder / shards.INDEX
    path.write_text(path.read_text().replace("[5, 7]", "[5, 9]"))
    with pytest.raises(Damaged, match="index.json"):
        shards.read_index(folder)
