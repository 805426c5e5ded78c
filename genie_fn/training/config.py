"""The configuration that every training stage shares."""

from dataclasses import dataclass, field

from genie_fn.errors import UserError
from genie_fn.training import sharding
from genie_fn.training.optim import OptimConfig


@dataclass(frozen=True)
class RunConfig:
    """What every stage's configuration holds. A preset fills it in; flags override the preset."""

    preset: str = "demo"
    data: str = "data/coinrun"
    out: str = "runs/demo/stage"
    steps: int = 1000
    batch_size: int = 16
    num_frames: int = 8
    seed: int = 0
    resume: bool = False
    """Continue the run in `out` from its newest checkpoint."""
    save_every: int = 200
    sample_every: int = 200
    compile: str = "step"
    """`step`: the whole training step is one graph; `split`: loss and optimizer are two; `off`: eager."""
    cuda_graph: bool = True
    """On a GPU, and with one process, replay the compiled step as a CUDA graph."""
    device: str = "auto"
    sharding: str = "auto"
    """Where the state of several processes (torchrun) lies: `replicated`, all of it on each; `sharded`, divided between
    all; `hybrid`, divided within each node; `auto`: hybrid, which on one node is sharded."""
    accumulate: int = 1
    """Compute each process's share of a batch in so many parts, one after the other, to save memory."""
    deterministic: bool = False
    """Take torch's deterministic algorithms, slower on a GPU; where an operation has none, torch says so."""
    damaged: str = "refuse"
    """What a file of the dataset that cannot be read does: `refuse` ends the run, `skip` takes other clips."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        for name in (
            "steps",
            "batch_size",
            "num_frames",
            "save_every",
            "sample_every",
            "accumulate",
        ):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--cfg.{flag} is {getattr(self, name)}, but must be at least 1")
        if self.compile not in ("off", "step", "split"):
            raise UserError(f"--cfg.compile is off, step or split, not {self.compile!r}")
        if self.sharding not in sharding.KINDS:
            raise UserError(
                f"--cfg.sharding is one of {', '.join(sharding.KINDS)}, not {self.sharding!r}"
            )
        if self.damaged not in ("refuse", "skip"):
            raise UserError(f"--cfg.damaged is refuse or skip, not {self.damaged!r}")
