"""The programs of a world as ONNX graphs, which ONNX Runtime runs without a compiler.

A graph is a pure function, as `world.Programs` are: parameters are constants in it, and what a session
keeps of the past is an input and an output. It is made for one session at a time, one frame at a
time.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from genie_fn import maskgit, quantize, random, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig, Memory
from genie_fn.maskgit import Noise, SampleConfig, Step
from genie_fn.runtime.backend import Backend
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.tree import Tree
from genie_fn.world import Programs, State, World, empty_state

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What exporting and running graphs needs."""
OPSET = 20


def missing() -> list[str]:
    """The packages that exporting and running graphs needs and that are not installed."""
    return [name for name in PACKAGES if util.find_spec(name) is None]


class Graph(NamedTuple):
    """A function of named tensors, with an example of them."""

    function: Callable[..., Any]
    """Its result is a tree of tensors. The names of a dictionary's leaves become those of outputs."""
    example: dict[str, Any]
    """Trees of tensors, by the names of the function's arguments."""


def graphs_of(world: World, sample: SampleConfig) -> dict[str, Graph]:
    """What `Programs` do for one session of a world, as functions of tensors alone.

    `sample` says the guidance, the order and the noise; steps and temperature are arguments.
    """
    state = empty_state(world.tokenizer.cfg, world.dynamics.cfg, 1, "cpu")
    return {
        "unmask": unmask_graph(world, state, sample),
        "remember": _remember(world, state),
        "decode": _decode(world, state),
    }


def unmask_graph(world: World, state: State, sample: SampleConfig) -> Graph:
    """`maskgit.unmask` of a world for one session, whose steps and temperature are arguments."""
    cfg, params, _ = world.dynamics
    fixed = replace(sample, steps=1, temperature=1.0)

    def unmask(ids: Tensor, action: Tensor, memory: Memory, step: Step, noise: Noise):
        return maskgit.unmask(params, ids, action, memory, step, noise, cfg, fixed)

    example = {
        "ids": torch.full((1, cfg.tokens), cfg.codes),
        "action": torch.tensor([0]),
        "memory": state.dynamics,
        "step": Step(torch.tensor(0), torch.tensor(4), torch.tensor(1.0)),
        "noise": maskgit.noise_of(random.key(0), (1, cfg.tokens), len(cfg.sizes)),
    }
    return Graph(unmask, example)


def _remember(world: World, state: State) -> Graph:
    cfg, params, _ = world.dynamics

    def remember(ids: Tensor, action: Tensor, memory: Memory):
        return maskgit.remember(params, ids, action, memory, cfg)

    example = {
        "ids": torch.zeros((1, 1, cfg.tokens), dtype=torch.int64),
        "action": torch.tensor([[0]]),
        "memory": state.dynamics,
    }
    return Graph(remember, example)


def _decode(world: World, state: State) -> Graph:
    cfg, params, _ = world.tokenizer

    def decode(codes: Tensor, cache: Tree):
        return tokenizer.decode_next(params, codes, cache, cfg)

    ids = torch.zeros((1, 1, cfg.tokens), dtype=torch.int64)
    codes = quantize.lookup(params["quantizer"], ids, cfg.quantizer)
    return Graph(decode, {"codes": codes, "cache": state.decoder})


class _Module(torch.nn.Module):
    """A graph as the exporter wants it: a module, called with the leaves of its arguments."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def forward(self, *leaves: Tensor) -> list[Tensor]:
        arguments = pytree.tree_unflatten(leaves, pytree.tree_structure(self.graph.example))
        return tree.leaves(self.graph.function(**arguments))


@torch.no_grad()
def write(graph: Graph, path: Path, simplified: bool = False) -> None:
    """Write a graph as an ONNX file.

    Its inputs are named after the leaves of the arguments, as in memory/cache/k_LBSNGE, and its outputs
    likewise where the result is a dictionary. With `simplified`, constants are folded and the
    exporter's helper functions are inlined, which ONNX Runtime does itself in a second.
    """
    leaves = tree.paths(graph.example)
    result = graph.function(**graph.example)
    names = list(tree.paths(result)) if isinstance(result, dict) else None
    with _quiet():
        exported = torch.onnx.export(
            _Module(graph).eval(),
            tuple(leaves.values()),
            input_names=list(leaves),
            output_names=names,
            dynamo=True,
            opset_version=OPSET,
            optimize=simplified,
            verbose=False,
        )
    assert exported is not None, "an exporter with dynamo returns the program"
    exported.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, which are about packages and passes that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def optimise(path: Path, optimised: Path) -> None:
    """Write the graph that ONNX Runtime makes of a file for this machine, which opens sooner."""
    _open(path, 1, optimised)


def _open(path: Path, threads: int, optimised: Path | None = None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Threads that wait in a loop take the cores from torch and from the browser: twice the time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Runtime:
    """An ONNX file, opened by ONNX Runtime; called with the leaves of a graph's arguments."""

    def __init__(self, path: Path, threads: int):
        self._session = _open(path, threads)
        self._names = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, *arguments: Tree) -> list[Tensor]:
        """The leaves of the result."""
        feed = dict(zip(self._names, map(_array, tree.leaves(arguments)), strict=True))
        return [torch.from_numpy(array) for array in self._session.run(None, feed)]


def _array(x: Tensor):
    return x.detach().contiguous().numpy()


def programs(folder: Path, threads: int) -> Programs:
    """The programs of the graphs in a folder, for one session and one frame at a time.

    They ignore the parameters and configurations that they are called with, which are in the graphs.
    """
    unmask, remember, decode = (Runtime(folder / f"{name}.onnx", threads) for name in NAMES)

    def run_unmask(  # noqa: PLR0913 (as maskgit.unmask)
        params: Tree,
        ids: Tensor,
        action: Tensor,
        memory: Memory,
        step: Step,
        noise: Noise,
        cfg: DynamicsConfig,
        sample: SampleConfig,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        new, probability = unmask(ids, action, memory, step, noise)
        return new, probability

    def run_remember(
        params: Tree,
        ids: Tensor,
        action: Tensor,
        memory: Memory,
        cfg: DynamicsConfig,
        backend: Backend,
    ) -> Memory:
        leaves = remember(ids, action, memory)
        return pytree.tree_unflatten(leaves, pytree.tree_structure(memory))

    def run_decode(
        params: Tree, codes: Tensor, cache: Tree, cfg: TokenizerConfig, backend: Backend
    ) -> tuple[Tensor, Tree]:
        video, *leaves = decode(codes, cache)
        return video, pytree.tree_unflatten(leaves, pytree.tree_structure(cache))

    return Programs(run_unmask, run_remember, run_decode)


NAMES = Programs._fields
"""The files of a world's graphs: unmask.onnx, remember.onnx, decode.onnx."""
