"""What a training run sets up before its first step."""

import pytest
import torch
import torch.nn.functional as F

from genie_fn.training import setup
from genie_fn.training.config import RunConfig
from tests.data.test_data import make, recording


@pytest.fixture
def two_threads():
    yield torch.set_num_threads(2)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)


@pytest.mark.compile
def test_compiled_gradients_of_lookups_repeat(two_threads, tmp_path):
    """2,048 gradients of very different sizes for 40 rows: another order of summation is visible."""
    root = str(make(tmp_path / "data", [recording(0, 9)]).root)
    cfg, _, _ = setup.prepare(
        RunConfig(data=(root,), device="cpu", compile="step", out=str(tmp_path / "run"))
    )
    assert cfg.compile == "step"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (2048,), generator=generator)
    weight = torch.randn(2048, 8, generator=generator) * torch.logspace(-6, 6, 2048)[:, None]
    gradient = torch.compile(
        torch.func.grad(lambda table: (F.embedding(ids, table) * weight).sum())
    )
    table = torch.zeros(1024, 8)
    first = gradient(table)
    assert all(torch.equal(gradient(table), first) for _ in range(50))
