"""Functions shared by the notebooks: the world they load, clips of the game, a training loop, plots.

Importing this module changes to the root of the checkout, so that paths are those of the README, and
puts the checkout first on the import path.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))

import generate_dataset  # noqa: E402
from genie_fn import bundle, data, random, tree
from genie_fn.bundle import Bundle
from genie_fn.data import video
from genie_fn.errors import UserError
from genie_fn.training import optim
from genie_fn.training.optim import OptimConfig
from genie_fn.tree import Tree

WORLDS = ("assets/worlds/coinrun.safetensors", "assets/worlds/coinrun-latent.safetensors")
plt.rcParams |= {
    "figure.dpi": 80,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
plt.rcParams |= {"image.cmap": "magma", "image.interpolation": "nearest"}


def world_file(latent: bool = False) -> str:
    """The path of a bundled pretrained world, preferably one with recorded (or `latent`) actions.

    Raises UserError if there is none.
    """
    recorded, inferred = WORLDS
    preferred = (inferred, recorded) if latent else (recorded, inferred)
    for path in preferred:
        if Path(path).is_file():
            return path
    raise UserError(
        f"The bundled world {WORLDS[0]} is missing: run `make demo`, then "
        f"`python export_world.py --cfg.output {WORLDS[0]}`."
    )


def choices(loaded: Bundle) -> dict[str, int]:
    """Actions to compare, by name: all latent actions, or the keys that have an effect in CoinRun."""
    if loaded.world.lam is not None:
        actions = loaded.world.dynamics.cfg.actions
        return {f"code {action}": action for action in range(actions)}
    known = bundle.recorded_actions(loaded)
    return {
        name: known[name] for name in ("LEFT", "NOOP", "RIGHT", "UP", "RIGHT+UP") if name in known
    }


@functools.cache
def collection(path: str) -> generate_dataset.Config:
    """The configuration with which the dataset of a world was collected."""
    stored = bundle.load(path).dataset.meta.get("collection", {})
    known = {field.name for field in fields(generate_dataset.Config)}
    options = {name: x for name, x in stored.items() if name in known}
    return generate_dataset.Config(**(generate_dataset.FORMER_OPTIONS | options))


def clips(
    levels: Iterable[int], frames: int, each: int = 1, steps: int = 80, latent: bool = False
) -> tuple[Tensor, Tensor]:
    """Play levels for `steps` steps and take `each` clips from every one of them.

    The levels are played as for the dataset of the world `world_file(latent)`, and the clips have its
    stride. Returns uint8 frames (B, T, H, W, 3) and the first action between each frame and the next
    (B, T-1). No clip crosses the start of an episode. Levels whose number ends in 9 are held out from
    all training (`data.split_of`).
    """
    cfg = replace(collection(world_file(latent)), steps_per_level=steps)
    stride = bundle.load(world_file(latent)).dataset.stride
    span = (frames - 1) * stride + 1
    frame_clips = []
    action_clips = []
    for level in levels:
        played = generate_dataset.play_level(cfg, level)
        episode = np.cumsum(played.episode_starts)
        starts = np.flatnonzero(episode[: steps - span + 1] == episode[span - 1 :])
        places = np.linspace(0, len(starts) - 1, each + 2).astype(int)[1:-1]
        for start in starts[places]:
            frame_clips.append(played.frames[start : start + span : stride])
            action_clips.append(played.actions[start : start + span - 1 : stride])
    actions = torch.from_numpy(np.stack(action_clips)).long()
    return torch.from_numpy(np.stack(frame_clips)), actions


def train(
    loss: Callable, spec: Tree, batch: Callable, steps: int, lr: float = 3e-3
) -> tuple[Tree, list[float]]:
    """Train by AdamW with gradient clipping; `loss(params, batch(step))` returns (loss, aux).

    Returns the parameters and the loss of each step.
    """
    cfg = OptimConfig(lr=lr, warmup=10)
    decay = tree.map(lambda leaf: leaf.decay, spec)
    params = tree.init(spec, random.key(0))
    moments = optim.adamw_init(params)
    losses = []
    for step in torch.arange(steps):
        (value, _), grads = tree.value_and_grad(loss)(params, batch(int(step)))
        grads, _ = optim.clip(grads, cfg.clip)
        rate = optim.learning_rate(step, steps, cfg)
        params, moments = optim.adamw(grads, moments, params, step, rate, decay, cfg)
        losses.append(value.item())
    return params, losses


def draws(items: Tensor, size: int) -> Callable[[int], Tensor]:
    """A function `batch(step)` that returns `size` of the items and depends on the step only."""
    return lambda step: items[data.clip_offsets(np.arange(len(items)), 0, step, size)]


def rows(
    *films: Tensor, labels: Sequence[str] = (), titles: Sequence = (), size: float = 0.85
) -> None:
    """Plot films (T, H, W, 3) uint8 as rows of frames, each `size` inches wide.

    `labels` are the names of the rows, `titles` those of the columns.
    """
    image = video.grid(np.stack([np.asarray(film) for film in films]), gap=2)
    count, frames = len(films), len(films[0])
    height, width = image.shape[:2]
    _, axes = plt.subplots(figsize=(size * frames, size * frames * height / width))
    axes.imshow(image)
    axes.set_yticks((np.arange(len(labels)) + 0.5) * height / count, labels)
    axes.set_xticks((np.arange(len(titles)) + 0.5) * width / frames, titles)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    plt.show()
