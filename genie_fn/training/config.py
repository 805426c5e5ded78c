"""The configuration that every training stage shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Suppress

from genie_fn.errors import UserError
from genie_fn.runtime.backend import Backend
from genie_fn.training.inputs import Inputs
from genie_fn.training.log import SinkName
from genie_fn.training.optim import OptimConfig

AT_LEAST_ONE = (
    "steps",
    "batch_size",
    "num_frames",
    "stride",
    "save_every",
    "sample_every",
    "accumulate",
)
AT_LEAST_ZERO = ("minutes", "profile")


@dataclass(frozen=True)
class RunConfig:
    """The part of a stage's configuration that all stages share. Presets fill it in; flags override
    the preset."""

    preset: str = "demo"
    """The preset that fills in all other values."""
    data: str = ""
    """The folder of the dataset; by default the one that the run was made from, if it is continued,
    or else that of the earlier stages or of the runs beside `out`, or else data/coinrun."""
    out: str = "runs/demo/stage"
    """The folder of the run: checkpoints, metrics and sample images."""
    steps: int = 1000
    """The number of training steps."""
    minutes: float = 0
    """Train for this long instead of for `steps`; the learning rate then follows the share of the
    time that has elapsed. 0: train for `steps`."""
    batch_size: int = 16
    """Clips per step, over all processes and microbatches."""
    num_frames: int = 8
    """Frames per clip."""
    stride: int | Literal["auto"] = 1
    """Frames of the dataset from one frame of a clip to the next. The action between two frames of
    a clip is the first recorded one between them. `auto`: train_lam.py compares a few strides in
    short runs and takes the smallest at which shuffling the actions costs nearly the most;
    train_dynamics.py takes that of the earlier stages."""
    flip: bool = False
    """Horizontal-flip augmentation: every second clip is flipped, and of its recorded actions LEFT
    and RIGHT are swapped. It makes both directions equally frequent."""
    seed: int = 0
    """The seed of the parameters, the batches and all other random numbers."""
    resume: bool = False
    """Continue the run in `out` from its newest checkpoint."""
    save_every: int = 200
    """Steps between two checkpoints."""
    sample_every: int = 200
    """Steps between two sample images."""
    compile: Literal["off", "step", "split"] = "step"
    """`step`: the whole training step is one graph; `split`: the loss and the optimizer are two;
    `off`: eager."""
    cuda_graph: bool = True
    """On a GPU, and with a single process, replay the compiled step as a CUDA graph."""
    device: str = "auto"
    """A device of torch, such as cpu or cuda; `auto` is a GPU if there is one."""
    sharding: Literal["auto", "replicated", "sharded", "hybrid"] = "auto"
    """Where the state lies with several processes (torchrun): `replicated`: all of it on each;
    `sharded`: divided between all; `hybrid`: divided within each node; `auto`: hybrid, which on one
    node is sharded."""
    accumulate: int = 1
    """Compute each process's share of a batch in this many parts, one after the other, to save
    memory."""
    deterministic: bool = False
    """Use torch's deterministic algorithms, which are slower on a GPU. Torch warns of operations
    that have none."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """What happens when a file of the dataset cannot be read: `refuse` ends the run, `skip` reads
    other clips."""
    log: SinkName = "jsonl"
    """Where metrics are written besides metrics.jsonl: `tensorboard` and `trackio` need the package
    of that name."""
    profile: int = 0
    """Write a Chrome trace of this many steps, after the first few, to trace.json in `out`. 0:
    none."""
    backend: Backend = field(default_factory=Backend)
    """Which implementations compute the models."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    inputs: Suppress[Inputs] = field(default_factory=Inputs)
    """What the run was made from, as far as it is known; it is filled in when a run starts."""

    def __post_init__(self):
        for name in AT_LEAST_ONE:
            self._require(name, 1)
        for name in AT_LEAST_ZERO:
            self._require(name, 0)

    def watched(self) -> Mapping[str, str]:
        """The metrics that are the perplexity of codes: for each a sentence, which is printed if
        the codes collapse."""
        return {}

    def _require(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value != "auto" and not value >= least:
            flag = name.replace("_", "-")
            raise UserError(f"--cfg.{flag} is {value}, but must be at least {least}")
