"""What the notebooks share: where they run, which world they open, clips of the game, and pictures of frames.

Importing it goes to the root of the checkout: paths read as in the README, and the package shown is this checkout's.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

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
    """The world that comes along; with `latent` rather the one whose actions were found without labels."""
    for path in sorted(WORLDS, key=lambda path: ("latent" in path) != latent):
        if Path(path).is_file():
            return path
    raise UserError(
        f"none of {', '.join(WORLDS)} is here: `make demo`, then python export_world.py --cfg.output {WORLDS[0]}"
    )


def choices(loaded: Bundle) -> dict[str, int]:
    """Actions worth holding, by name: all latent ones, or of recorded ones the keys that CoinRun knows."""
    if loaded.world.lam is not None:
        actions = loaded.world.dynamics.cfg.actions
        return {f"code {action}": action for action in range(actions)}
    known = bundle.recorded_actions(loaded)
    return {
        name: known[name] for name in ("LEFT", "NOOP", "RIGHT", "UP", "RIGHT+UP") if name in known
    }


@functools.cache
def collection(path: str) -> generate_dataset.Config:
    """How the data of a world was collected: its game, frames per step, who played."""
    known, told = (
        {field.name for field in fields(generate_dataset.Config)},
        bundle.load(path).dataset.meta,
    )
    return generate_dataset.Config(
        **{name: x for name, x in told.get("collection", {}).items() if name in known}
    )


def clips(
    levels: Iterable[int], frames: int, each: int = 1, steps: int = 80, latent: bool = False
) -> tuple[Tensor, Tensor]:
    """Play levels as they were played for the world of `world_file(latent)`, and cut `each` clips from the first
    `steps` frames of each.

    Returns uint8 frames (B, T, H, W, 3) and the actions between them (B, T-1). Levels that end in 9 are held out from
    every training (`data.split_of`). No clip crosses the start of an episode.
    """
    cfg, found = replace(collection(world_file(latent)), steps_per_level=steps), []
    for level in levels:
        played = generate_dataset.play_level(cfg, level)
        episode = np.cumsum(played.episode_starts)
        whole = np.flatnonzero(episode[: steps - frames + 1] == episode[frames - 1 :])
        for start in whole[np.linspace(0, len(whole) - 1, each + 2).astype(int)[1:-1]]:
            found.append(
                (played.frames[start : start + frames], played.actions[start : start + frames - 1])
            )
    video, actions = (torch.from_numpy(np.stack(x)) for x in zip(*found, strict=True))
    return video, actions.long()


def train(
    loss: Callable, spec: Tree, batch: Callable, steps: int, lr: float = 3e-3
) -> tuple[Tree, list[float]]:
    """The plainest loop: gradients of `loss(params, batch(step)) -> (loss, aux)`, clipping, AdamW. Returns the
    parameters and the loss of each step."""
    cfg, decay = OptimConfig(lr=lr, warmup=10), tree.map(lambda s: s.decay, spec)
    params, losses = tree.init(spec, random.key(0)), []
    moments = optim.adamw_init(params)
    for step in torch.arange(steps):
        (value, _), grads = tree.value_and_grad(loss)(params, batch(int(step)))
        grads, _ = optim.clip(grads, cfg.clip)
        rate = optim.learning_rate(step, steps, cfg)
        params, moments = optim.adamw(grads, moments, params, step, rate, decay, cfg)
        losses.append(value.item())
    return params, losses


def draws(items: Tensor, size: int) -> Callable[[int], Tensor]:
    """`batch(step)`: so many of the items, a function of the step alone, as in every training here."""
    return lambda step: items[data.clip_offsets(np.arange(len(items)), 0, step, size)]


def rows(
    *films: Tensor, labels: Sequence[str] = (), titles: Sequence = (), size: float = 0.85
) -> None:
    """Draw films (T, H, W, 3) uint8 below each other, `size` inches a frame; `labels` name rows, `titles` columns."""
    image = video.grid(np.stack([np.asarray(film) for film in films]), gap=2)
    (count, frames), (height, width) = (len(films), len(films[0])), image.shape[:2]
    _, axes = plt.subplots(figsize=(size * frames, size * frames * height / width))
    axes.imshow(image)
    axes.set_yticks((np.arange(len(labels)) + 0.5) * height / count, labels)
    axes.set_xticks((np.arange(len(titles)) + 0.5) * width / frames, titles)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    plt.show()
