"""The configuration that every training stage shares."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Suppress
from tyro.constructors import PrimitiveConstructorSpec

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


Folders = Annotated[
    str | tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="FOLDER [FOLDER ...]",
        instance_from_str=tuple,
        is_instance=lambda value: isinstance(value, str | tuple),
        str_from_instance=lambda value: [value] if isinstance(value, str) else list(value),
    ),
]
"""One folder, or any number of them: several words on the command line."""


@dataclass(frozen=True)
class RunConfig:
    """The part of a stage's configuration that all stages share. Presets fill it in; flags override
    the preset."""

    preset: str = "demo"
    """The preset that fills in all other values."""
    data: Folders = ()
    """The folder of the dataset, or those of several, from which clips are drawn in proportion to
    their number of clips; by default what the run was made from, if it is continued, or else what
    the earlier stages or the runs beside `out` were made from, or else data/coinrun."""
    data_weights: tuple[float, ...] = ()
    """The share of the clips that is drawn from each of several datasets, such as 1 3: only the
    proportions count. By default every clip is as likely as any other."""
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
    """Use torch's deterministic algorithms, which are slower on a GPU. On a CPU compiled runs always use
    them. Torch warns of operations that have none."""
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
        object.__setattr__(self, "data", self.datasets)
        for weight in self.data_weights:
            if not 0 < weight < math.inf:
                raise UserError(f"--cfg.data-weights has {weight:g}, but takes positive numbers")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The folders of the datasets; none if --cfg.data is not given."""
        folders = (self.data,) if isinstance(self.data, str) else self.data
        return tuple(filter(None, folders))

    def watched(self) -> Mapping[str, str]:
        """The metrics that are the perplexity of codes: for each a sentence, which is printed if
        the codes collapse."""
        return {}

    def _require(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value != "auto" and not value >= least:
            flag = name.replace("_", "-")
            raise UserError(f"--cfg.{flag} is {value}, but must be at least {least}")
