"""The game that a dataset was collected from, if it is one that can be opened here."""

import importlib.util
import re
from pathlib import Path
from typing import Any, get_args

from genie_fn.data import framing, gym_game, procgen, store
from genie_fn.data.game import MAX_LEVEL, Game
from genie_fn.data.gym_game import GymGame
from genie_fn.data.storage import MAX_SIDE
from genie_fn.data.store import Store
from genie_fn.errors import UserError


def is_gym(name: str) -> bool:
    """Whether a game is a Gymnasium environment; otherwise it is Procgen's."""
    return name.startswith(gym_game.PREFIX)


def folder_name(name: str) -> str:
    """The name of a folder for data of a game: the last part of the game's name."""
    return re.sub(r"[^\w.-]+", "-", name.rpartition(":")[2].rpartition("/")[2])


def new_store(root: Path, collection: dict[str, Any], level: int) -> Store:
    """An empty store for data collected with these options; `level` shows what frames look like."""
    game = open_game(level, {"collection": collection}, own_modules=True)
    height, width = game.frame().shape[:2]
    names = game.action_names
    game.close()
    return store.create(root, {"collection": collection}, height, width, len(names), names)


def available(meta: dict[str, Any]) -> bool:
    """True if a store with this `meta` was collected from a game that can be opened beside a world: its
    package is installed, and no module has to be imported that the data names.

    Nothing is imported.
    """
    name = meta.get("collection", {}).get("env", "")
    if not name:
        return False
    package = gym_game.package_of(name) if is_gym(name) else "procgen"
    return bool(package) and importlib.util.find_spec(package) is not None


def collection(meta: dict[str, Any]) -> dict[str, Any]:
    """How a store with this `meta` was collected from a game; raises UserError if it was not."""
    options = meta.get("collection", {})
    if "env" not in options:
        raise UserError("this data was not collected from a game: no game can be played beside it")
    return options


def draws(meta: dict[str, Any], height: int, width: int) -> bool:
    """True if the game is `available` and its frames are height × width pixels."""
    return available(meta) and _size(meta["collection"]) == (height, width)


def is_valid(collection: dict[str, Any]) -> bool:
    """Whether the options of a collection, which may be anybody's, are what `open_game` reads."""
    words = ("env", "env_options", "distribution_mode", "visuals")
    named = all(isinstance(collection.get(word, ""), str) for word in words)
    size = collection.get("size", procgen.SIZE)
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    sized = all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides)
    return named and sized and collection.get("fit", "crop") in get_args(framing.Fit)


def _size(collection: dict[str, Any]) -> tuple[int, int]:
    size = collection.get("size", procgen.SIZE)
    return framing.height_and_width(size if isinstance(size, int) else tuple(size))


def open_game(
    level: int,
    meta: dict[str, Any],
    height: int = 0,
    width: int = 0,
    stride: int = 1,
    *,
    own_modules: bool = False,
) -> Game:
    """Open `level` of the game that a store with this `meta` was collected from.

    `height` and `width` are those of the frames to compare with; 0: any. An action is held for
    `stride` frames of the store. With `own_modules`, for a name that the user has just given, it may
    name a module, which is imported. Raises UserError if the data is not from a game, if the game's
    package is missing, or if the frames have another size.
    """
    options = collection(meta)
    if not is_valid(options):
        raise UserError("this data does not say how its game was collected: collect it again")
    own = _size(options)
    if height and (height, width) != own:
        raise UserError(
            f"the game draws {own[0]}x{own[1]} frames and this world {height}x{width}: to see them "
            f"side by side, play a world of {own[0]}x{own[1]} frames"
        )
    if not 0 <= level <= MAX_LEVEL:
        raise UserError(f"there is no level {level}: choose a number from 0 to {MAX_LEVEL}")
    skip = stride * options.get("frame_skip", 1)
    if is_gym(options["env"]):
        arguments = gym_game.parse_options(options.get("env_options", ""))
        if not own_modules and gym_game.names_module(options["env"]):
            raise UserError(
                f"{options['env']} names a module, which is not imported because of data alone: play "
                "without the game"
            )
        return GymGame(options["env"], level, skip, own, options.get("fit", "crop"), arguments)
    return procgen.open_level(level, options, skip)
