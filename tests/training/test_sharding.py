"""Several processes, and accumulation, against a single process with the whole batch."""

import socket
import time
from pathlib import Path

import pytest
import torch

from benchmarks import scale
from genie_fn import random, tree
from genie_fn.errors import UserError
from genie_fn.microbatch import Microbatch
from genie_fn.runtime import cli
from genie_fn.runtime.console import console
from genie_fn.training import checkpoint, processes, sharding
from genie_fn.training.sharding import largest_shard, shard_axis
from genie_fn.tree import ParamSpec
from tests import forked
from tests.training import ranks

pytestmark = pytest.mark.subprocess

TWO = [
    "agreed",
    "sharded",
    "replicated",
    "traced",
    "counted_sharded",
    "counted_replicated",
    "stopped",
]
FOUR = ["hybrid", "counted_hybrid", "resumed", "continued"]
COMPILED = {
    "compiled": 2,
    "compiled_hybrid": 4,
    "compiled_vq": 2,
    "compiled_dynamics": 2,
    "compiled_accumulated": 2,
    "compiled_split": 2,
}
STAGE_OF = {"sharded": "gan", "hybrid": "dynamics", "replicated": "vq", "traced": "toy"}
STAGE_OF |= {
    "compiled": "toy",
    "compiled_hybrid": "toy",
    "compiled_vq": "vq",
    "compiled_dynamics": "dynamics",
    "compiled_accumulated": "gan",
    "compiled_split": "lfq",
}


def together(folder: Path, count: int, node: int, jobs: list[str]) -> None:
    """Run jobs of tests/training/ranks.py in `count` processes, `node` of them on each node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    where |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(node)}
    logs = [folder / f"log_{count}_{rank}" for rank in range(count)]
    processes = []
    for rank, log in enumerate(logs):
        environment = where | {"RANK": str(rank), "LOCAL_RANK": str(rank % node)}
        processes.append(forked.start(log, ranks.main, environment, folder, jobs))
    while None in (codes := [process.exitcode for process in processes]) and not any(codes):
        time.sleep(0.1)
    for process in processes:
        process.kill()
        process.join()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Results of two processes, and then of four on two nodes."""
    folder = tmp_path_factory.mktemp("ranks")
    together(folder, 2, 2, TWO)
    (folder / "stopped_at").write_text(str(checkpoint.latest(folder / "run")))
    saved = checkpoint.load(folder / "run", stage="tokenizer").state
    torch.save(saved, folder / "saved.pt")
    assert ranks.fitted(folder / "single", stop_at=3)["stopped"]
    begun = checkpoint.load(folder / "single" / "run", stage="tokenizer").state
    torch.save(begun, folder / "begun.pt")
    together(folder, 4, 2, FOUR)
    return folder


@pytest.fixture(scope="module")
def single():
    """Results of a single process, computed when a test asks for them."""
    small, sharding.SMALL, found = sharding.SMALL, 30, {}

    def run(stage: str) -> dict:
        found[stage] = found.get(stage) or ranks.run(stage)
        return found[stage]

    yield run
    sharding.SMALL = small


def assert_equal_runs(ours: dict, theirs: dict) -> None:
    """States and losses equal to 1e-5; gradient norms, whose quantisers have kinks and poles, to 1e-3."""
    assert ours["rows"][0].keys() == theirs["rows"][0].keys()
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        for name, value in mine.items():
            tolerance = 1e-3 if "grad_norm" in name else 1e-5
            assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance), name
    assert_close(ours["state"], theirs["state"], 1e-5)


def assert_close(ours: tree.Tree, theirs: tree.Tree, tolerance: float) -> None:
    ours, theirs = tree.paths(ours), tree.paths(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        torch.testing.assert_close(
            value, theirs[path], rtol=0, atol=tolerance, msg=lambda m, path=path: f"{path}: {m}"
        )


@pytest.mark.parametrize("job", ["sharded", "hybrid", "replicated", "traced"])
def test_many_processes_are_one(folder, single, job):
    """A tokenizer with its discriminator, VQ, dynamics with jointly trained latent actions, a traced toy."""
    assert_equal_runs(torch.load(folder / f"{job}.pt"), single(STAGE_OF[job]))


@pytest.mark.slow
@pytest.mark.parametrize(("job", "count"), COMPILED.items())
def test_compiled_many_processes_are_one(tmp_path, single, job, count):
    together(tmp_path, count, 2, [job])
    assert_equal_runs(torch.load(tmp_path / f"{job}.pt"), single(STAGE_OF[job]))


@pytest.mark.parametrize("name", ranks.STAGES)
def test_statistics_are_those_that_the_loss_asks_for(name):
    """By name and by value: accumulation computes them in a pass of their own."""
    stage = ranks.STAGES[name]()
    params = tree.init(stage.spec, random.key(1))
    asked = {}

    def record(name: str, x: torch.Tensor) -> torch.Tensor:
        assert name not in asked
        asked[name] = x.detach()
        return x

    step = torch.tensor(7)
    batch = tree.map(lambda x: x[4:], stage.batch(0))  # the second half of the batch
    args = (batch, random.key(2), step)
    tree.value_and_grad(stage.objective.loss)(params, *args, Microbatch(1, 2, record))
    measured = stage.objective.statistics(params, *args, Microbatch(1, 2))
    assert measured.keys() == asked.keys()
    for statistic, value in measured.items():
        torch.testing.assert_close(value.detach(), asked[statistic], rtol=0, atol=0)


@pytest.mark.parametrize("stage", ["gan", "dynamics"])
def test_accumulated_is_undivided(single, stage):
    assert_equal_runs(ranks.run(stage, accumulate=4), single(stage))


@pytest.mark.parametrize("stage", ["gan", "dynamics"])
def test_no_operation_of_training_gives_other_bits_when_repeated(single, stage):
    """torch refuses operations that are not deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        again = ranks.run(stage)
    finally:
        torch.use_deterministic_algorithms(False)
    assert again["rows"] == single(stage)["rows"]
    assert_close(again["state"], single(stage)["state"], 0.0)


def test_the_state_is_divided(folder, single):
    """Moments and moving average are divided like the parameters.

    In the hybrid run Muon moves the stacks, which are divided by layers, and some of them have a single one.
    """
    for job, most in (("sharded", 0.53), ("hybrid", 0.57), ("replicated", 1.0)):
        assert torch.load(folder / f"{job}.pt")["held"] <= most * single(STAGE_OF[job])["held"]


@pytest.mark.parametrize(
    ("job", "rows"), [("counted_sharded", 1), ("counted_hybrid", 2), ("counted_replicated", 2)]
)
def test_memory_and_traffic_follow_the_formulae_of_scale(folder, single, job, rows):
    found, spec = torch.load(folder / f"{job}.pt"), ranks.dynamics_stage().spec
    shards = found["shards"]
    assert found["held"] == scale.state_bytes(spec, shards, copies=4)
    traffic = scale.traffic(spec, shards, rows)
    assert found["bytes"]["all_gather_into_tensor"] == traffic.gather
    assert found["bytes"]["reduce_scatter_tensor"] == traffic.scatter
    # 6 metrics and the use of 7 actions, the codebook's use and 7 rows of 5, what the losses average (hidden tokens,
    # motion), and where gradients are divided their norm.
    others = 6 + 7 + 7 + 7 * 5 + 2 + (shards > 1)
    assert found["bytes"]["all_reduce"] == traffic.columns + traffic.everyone + 4 * others
    single = ranks.counted("sharded")
    assert single["held"] == scale.state_bytes(spec, 1, copies=4) and not any(
        single["bytes"].values()
    )
    assert scale.wire(spec, 1, 1) == (0, 0)


def test_all_leave_at_the_same_step_and_the_first_writes(folder):
    """One of two processes got a signal; four continued, to the state of a single process."""
    assert torch.load(folder / "stopped.pt")["stopped"]
    assert (folder / "stopped_at").read_text() == "3"
    assert (folder / "run" / "samples" / "0000003.png").exists()


def test_all_get_the_error_of_one(folder):
    one, other = torch.load(folder / "agreed.pt")
    assert one == other and len(one) == 4
    assert one["on_first"].startswith("level 0: restore it") and one["on_all"].startswith(
        "level 1: restore it"
    )
    assert (
        one["raise_together"] == "the last has ended"
        and "the data is not the same" in one["check_same"]
    )


def test_a_process_that_fails_by_itself_prints_why(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli.distributed.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(console, "quiet", True)  # as `setup.prepare` does in all but the first
    monkeypatch.setattr(cli.sys, "argv", ["train"])

    def main() -> None:
        raise UserError("the disk of this node is full")

    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 2 and "the disk of this node is full" in capsys.readouterr().err


def test_a_checkpoint_fits_any_number_of_processes_to_the_bit(folder, single):
    saved, resumed = (torch.load(folder / f"{name}.pt") for name in ("saved", "resumed"))
    assert saved["step"] == 3
    assert_close(resumed["begun"], saved, 0.0)
    end = ranks.fitted(folder, resume=True)  # the end of four, in one
    assert_close(end["begun"], resumed["state"], 0.0)
    whole = ranks.fitted(folder / "whole")
    assert_close(resumed["state"], whole["state"], 1e-5)

    # Four processes continue what a single one has begun, and a single one reads what they saved.
    begun, continued = (torch.load(folder / f"{name}.pt") for name in ("begun", "continued"))
    assert begun["step"] == 2
    assert_close(continued["begun"], begun, 0.0)
    assert_close(continued["state"], whole["state"], 1e-5)
    end = ranks.fitted(folder / "single", resume=True)
    assert_close(end["begun"], continued["state"], 0.0)


def test_every_process_writes_its_own_shards(folder):
    """With a hybrid layout only those of the first row, because the others hold the same."""
    for run, writers in (("run", 4), ("single/run", 2)):
        state = folder / run / "checkpoints" / "6" / "state"
        sizes = [path.stat().st_size for path in state.glob("*.safetensors")]
        assert len(sizes) == writers
        assert max(sizes) < 2 * sum(sizes) / writers, "no process has written much of the others'"


def test_leaves_are_divided_as_torch_chunks_and_small_ones_are_not(monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 100)
    assert shard_axis(ParamSpec((3, 64, 50)), 8) == 1 and shard_axis(ParamSpec((8, 64)), 8) == 0
    assert (
        shard_axis(ParamSpec((9, 9)), 2) is None
        and shard_axis(ParamSpec((64, 64), whole=True), 2) is None
    )
    for shape, shards in (((7, 30), 4), ((11, 10), 4), ((5, 25), 8)):
        axis = shard_axis(ParamSpec(shape), shards)
        assert (
            largest_shard(ParamSpec(shape), shards)
            == torch.empty(shape).chunk(shards, axis)[0].numel()
        )


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch):
    with pytest.raises(UserError, match="8 clips.*3 equal parts.*multiple of 3"):
        processes.own_clips(8, 3)
    monkeypatch.setattr(processes, "count", lambda: 4)
    monkeypatch.setattr(processes, "rank", lambda: 2)
    assert processes.own_clips(8, 2) == slice(4, 6)
    with pytest.raises(
        UserError, match="10 clips.*processes: 4.*make --cfg.batch-size a multiple of 4"
    ):
        processes.own_clips(10, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="nodes of 3"):
        sharding.layout("hybrid")
