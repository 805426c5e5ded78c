"""Shared fixtures: tiny models, which one core runs fastest without threads."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # before anything imports Triton: its kernels run as Python here
    )

from genie_fn import data, dynamics, lam, metrics, random, tokenizer, tree, world
from genie_fn.bundle import Bundle, action_effects, action_map, with_dataset
from genie_fn.data import procgen
from genie_fn.dynamics import DynamicsConfig
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.tokenizer import TokenizerConfig

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # others would import torch first
torch.set_num_threads(1)

STACK = STConfig(layers=2, dim=32, heads=2, mlp=2, window=4)
TOKENIZER = TokenizerConfig(
    32, 32, 16, encoder=STACK, decoder=STACK, quantizer=QuantizerConfig(codes=16)
)
LAM = LamConfig(
    32,
    32,
    16,
    encoder=STACK,
    decoder=STACK,
    quantizer=QuantizerConfig(kind="vq", codes=5, latent_dim=8),
)


LONG = ("compile", "subprocess", "browser")
"""The marks of tests that take seconds."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files with long tests come first, so that all cores have work until the end."""
    long = {item.path for item in items if any(map(item.get_closest_marker, LONG))}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def stack_cfg():
    return STACK


@pytest.fixture(scope="session")
def tokenizer_cfg():
    return TOKENIZER


@pytest.fixture(scope="session")
def tokenizer_params():
    return tree.init(tokenizer.spec(TOKENIZER), random.key(1))


@pytest.fixture(scope="session")
def lam_cfg():
    return LAM


@pytest.fixture(scope="session")
def lam_params():
    return tree.init(lam.spec(LAM), random.key(2))


@pytest.fixture(scope="session", params=[("add", 3, True), ("prepend", 0, False)])
def dynamics_cfg(request):
    mode, neighbourhood, pointer = request.param
    return DynamicsConfig(
        codes=11,
        tokens=6,
        actions=3,
        columns=3,
        action_mode=mode,
        stack=STACK,
        neighbourhood=neighbourhood,
        neighbour_dim=8,
        pointer=pointer,
    )


@pytest.fixture(scope="session")
def dynamics_params(dynamics_cfg):
    return tree.init(dynamics.spec(dynamics_cfg), random.key(3))


def tiny_world():
    """Random models that fit together: 32 x 32 frames, 4 tokens, 5 actions."""
    cfg = DynamicsConfig(
        TOKENIZER.quantizer.codes,
        TOKENIZER.tokens,
        LAM.actions,
        TOKENIZER.grid[1],
        stack=STACK,
        neighbourhood=3,
    )
    return world.World(
        world.Stage(TOKENIZER, tree.init(tokenizer.spec(TOKENIZER), random.key(1))),
        world.Stage(cfg, tree.init(dynamics.spec(cfg), random.key(5))),
        world.Stage(LAM, tree.init(lam.spec(LAM), random.key(2))),
    )


@pytest.fixture(scope="session")
def world_model():
    return tiny_world()


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """A random world for frames of 64 x 64 pixels, an action map, and a dataset."""
    tokenizer_cfg = replace(TOKENIZER, height=64, width=64)
    codes, tokens = tokenizer_cfg.quantizer.codes, tokenizer_cfg.tokens
    dynamics_cfg = DynamicsConfig(codes, tokens, LAM.actions, stack=STACK)
    lam_cfg = replace(LAM, height=64, width=64)
    stages = ((tokenizer, tokenizer_cfg), (dynamics, dynamics_cfg), (lam, lam_cfg))
    model = world.World(
        *(world.Stage(c, tree.init(m.spec(c), random.key(i))) for i, (m, c) in enumerate(stages))
    )
    rng, names = np.random.default_rng(0), procgen.ACTIONS
    meta = {"collection": {"env": "coinrun", "distribution_mode": "hard"}}
    store = data.create(tmp_path_factory.mktemp("stage") / "data", meta, 64, 64, len(names), names)
    frames = rng.integers(0, 256, (40, 64, 64, 3), np.uint8)
    recording = data.Recording(9, frames, rng.integers(0, 15, 40), np.zeros(40), np.zeros(40, bool))
    recorded, latent = (
        torch.from_numpy(rng.integers(0, n, (50, 9))) for n in (len(names), LAM.actions)
    )
    table = metrics.contingency(recorded, latent, len(names), LAM.actions)
    mapping = action_map.make([*names], table.tolist(), agreement=0.3, chance=0.2)
    return model, mapping, data.append_segments(store, [recording])


def effects_of(store, actions):
    """Effects of latent actions: left, right, up, down, none, and examples from a store."""
    shift = torch.tensor([[2, 0], [-2, 0], [0, 3], [0, -1], [0, 0]])
    codes = torch.arange(actions)[:, None].expand(-1, 7)
    return action_effects.describe(store, np.arange(actions), codes, shift[codes], actions)


@pytest.fixture(scope="session")
def playable(stage):
    """The world of `stage` as a bundle, with its dataset, its map of actions and their effects."""
    world_model, mapping, store = stage
    effects = effects_of(store, LAM.actions)
    loaded = Bundle(world_model, "runs/tiny/dynamics", action_map=mapping, effects=effects)
    return with_dataset(loaded, store)


@pytest.fixture
def clip():
    """uint8 noise, more frames (7) than the window holds: (2, 7, 32, 32, 3)."""
    return random.randint(random.key(4), (2, 7, 32, 32, 3), 0, 256).to(torch.uint8)


@pytest.fixture
def careful():
    """No more than a gigabyte of memory beyond what the process has already, where Linux can see to that."""
    if not sys.platform.startswith("linux"):
        return (yield)
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


GENERATIONS = [("90",), pytest.param(("80", "100"), marks=pytest.mark.slow)]
"""The GPUs that kernels are compiled for without one: sm_90 by default, sm_80 and sm_100 too in `make test-all`."""


@pytest.fixture(scope="session")
def cubin_sizes():
    """Compile a module's kernels without a GPU, for generations such as "90": the sizes of the cubins."""

    def build(module: str, generations: tuple[str, ...]) -> list[int]:
        command = [sys.executable, "-m", "tests.cubins", module, *generations]
        environment, root = os.environ | {"TRITON_INTERPRET": "0"}, Path(__file__).parent.parent
        built = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
        assert built.returncode == 0, built.stderr[-2000:]
        sizes = [int(line.split()[-1]) for line in built.stdout.splitlines()]
        assert min(sizes) > 1000
        return sizes

    return build
