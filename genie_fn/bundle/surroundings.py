"""What stands beside a world when it is played: frames to start from, what the real actions mean in it, the real game.

A run has them in its folder and in its dataset; a world file carries its own, so that nothing else is needed.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from genie_fn import data
from genie_fn.bundle import action_map, loading, world_file
from genie_fn.bundle.action_map import ActionMap
from genie_fn.data import Store
from genie_fn.errors import UserError
from genie_fn.world import World

FRAMES = 64  # of a dataset, to start from
MOST_SKIPPED = 1000  # frames of the game per step


class Surroundings(NamedTuple):
    """All but the world itself."""

    starts: np.ndarray = np.empty((0, 0, 0, 3), np.uint8)
    """(M, H, W, 3) uint8, of levels that the world was not trained on; M may be 0."""
    names: tuple[str, ...] = ()
    """The recorded actions'."""
    meta: dict = {}
    """How the data was collected, which tells the real game."""
    found: ActionMap | None = None
    """What recorded actions mean in this world, where that was measured."""
    card: str = ""
    """Where a world file comes from, and how good its world is, in a line."""


def of_store(store: Store, most: int = FRAMES, found: ActionMap | None = None) -> Surroundings:
    """A dataset's, with at most so many frames of as many test levels as possible; none where all of a small dataset is
    for training."""
    starts = Surroundings().starts
    if store.count("test"):
        offsets = data.eval_clips(
            store, "test", 1, min(most, len(data.clip_starts(store, "test", 1)))
        )
        starts = data.read_clips(store, offsets, 1).frames[:, 0]
    return Surroundings(starts, store.action_names, store.meta, found)


def of(run: str | Path, dream: World, root: str | Path, most: int = FRAMES) -> Surroundings:
    """The surroundings of the world in a run's folder, with the dataset at `root`; or of a world file, without any."""
    if Path(run).is_file():
        return of_file(run)
    store = data.open_store(root)
    loading.check_resolution(dream.tokenizer, store.height, store.width, run)
    return of_store(store, most, action_map.load(run, dream.dynamics.cfg.actions))


def real_actions(beside: Surroundings, dream: World) -> dict[str, int]:
    """The world's action for each real one that is known by name."""
    if dream.lam:
        return (
            dict(zip(beside.found.names, beside.found.to_latent, strict=True))
            if beside.found
            else {}
        )
    known = len(beside.names) == dream.dynamics.cfg.actions
    return {name: action for action, name in enumerate(beside.names)} if known else {}


def results(run: str | Path) -> Path:
    """The folder for what is measured of a run, its own, or of a world file, one beside it of the same name."""
    return Path(run).with_suffix("") if Path(run).is_file() else Path(run)


def of_file(path: str | Path) -> Surroundings:
    """Those that a world file carries."""
    dream, starts, about = loading.unpack(path)
    try:
        found, names, meta = about["map"], tuple(about["names"]), about["data"]["meta"]
        card = "; ".join(f"{key} {value}" for key, value in about["card"].items())[:1000]
        map_ = ActionMap(**found) if found is not None else None
        sound = (
            _sound_map(map_, dream.dynamics.cfg.actions)
            and _sound_names(names)
            and _sound_meta(meta)
        )
    except Exception as error:  # what a file tells may be wrong in any way
        raise world_file.damaged(
            path, "what it tells of its actions or its data is not understood"
        ) from error
    if not sound:
        raise world_file.damaged(path, "what it tells of its actions or its data is impossible")
    return Surroundings(starts.numpy(), names, meta, map_, "".join(filter(str.isprintable, card)))


def _sound_map(found: ActionMap | None, actions: int) -> bool:
    return found is None or action_map.sensible(found, actions) and _sound_names(found.names)


def _sound_names(names: Any) -> bool:
    return len(names) <= 256 and all(isinstance(name, str) and len(name) <= 100 for name in names)


def _sound_meta(meta: dict) -> bool:
    collection = meta.get("collection", {})
    skip = collection.get("frame_skip", 1)  # a game held for long would not answer
    named = all(isinstance(collection.get(name, ""), str) for name in ("env", "distribution_mode"))
    return named and type(skip) is int and 1 <= skip <= MOST_SKIPPED


def pack(run: str, dream: World, store: Store, count: int, card: dict[str, str]) -> bytes:
    """The content of the file of a run's world, with `count` frames to start from; `card` is for people."""
    beside = of(run, dream, store.root, count)
    if not len(beside.starts):
        raise UserError(
            f"{store.root} has no test levels, of which a world file needs frames: name another --cfg.data"
        )
    about = {"map": beside.found and beside.found._asdict(), "names": beside.names, "card": card}
    game = {
        name: value for name, value in store.meta.items() if name == "collection"
    }  # other things may be private
    about["data"] = {"name": store.root.name, "hash": store.data_hash, "meta": game}
    return loading.pack(dream, torch.from_numpy(beside.starts), about)
