"""A world with all that playing it needs, loaded from a run or a world file, and saved.

A run has its models in its folder and the rest in its dataset; a world file holds all of it.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genie_fn import data as datasets
from genie_fn import lam, tree
from genie_fn.bundle import action_effects, action_map, format, run
from genie_fn.bundle.action_effects import ActionEffects
from genie_fn.bundle.action_map import ActionMap
from genie_fn.data import Store, games
from genie_fn.data.storage import MAX_ACTIONS
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.runtime import files, progress, stored_config, versions
from genie_fn.runtime.backend import AUTO
from genie_fn.runtime.versions import NewerVersion
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import checkpoint, inputs, setup
from genie_fn.tree import Tree
from genie_fn.world import Stage, World, empty_state

NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)
START_FRAMES = 64  # start frames taken from a dataset
MAX_START_FRAMES = 1024  # in a world file
MAX_STATE_BYTES = 1 << 30  # of one session of a world from a file
MAX_FRAME_SKIP = 1000  # frames of the game per step
MAX_NAME_LENGTH = 100
MAX_CARD_LENGTH = 1000


class Dataset(NamedTuple):
    """The dataset that start frames were taken from."""

    name: str = ""
    hash: str = ""
    meta: dict = {}  # noqa: RUF012, never changed
    """How the data was collected; it names the real game."""
    stride: int = 1
    """Frames of the dataset from one frame of the world to the next."""


class Bundle(NamedTuple):
    """A world and what playing it needs."""

    world: World
    path: str = ""
    """The run's folder or the world file that it was loaded from."""
    start_frames: np.ndarray = NO_FRAMES
    """(M, H, W, 3) uint8, of levels that the world was not trained on; M may be 0."""
    action_names: tuple[str, ...] = ()
    """The names of the recorded actions."""
    dataset: Dataset = Dataset()
    action_map: ActionMap | None = None
    """Which latent action stands for each recorded one, where that was measured."""
    card: dict[str, str] = {}  # noqa: RUF012, never changed
    """Where a world file comes from and how good its world is, for people."""
    effects: ActionEffects | None = None
    """What the latent actions do, where that was measured."""

    def describe(self) -> str:
        """The card in one line of printable characters."""
        line = "; ".join(f"{key} {value}" for key, value in self.card.items())[:MAX_CARD_LENGTH]
        return "".join(filter(str.isprintable, line))


ABOUT: dict[str, tuple[str, ...]] = {
    "map": ActionMap._fields,
    "names": (),
    "card": (),
    "data": Dataset._fields,
    "starts": (),
    "effects": ActionEffects._fields,
}
"""What the description in a world file holds, and the fields of its parts that have some."""


def is_world_file(path: str | Path) -> bool:
    """Whether a path names a world file and not the folder of a run."""
    return Path(path).is_file()


def results_folder(path: str | Path) -> Path:
    """Where measurements of a world go: a run's folder, or a folder named like the world file."""
    return Path(path).with_suffix("") if is_world_file(path) else Path(path)


def name_of(path: str | Path) -> str:
    """The name of a world: of its file, or of its run's folder, or of the folder around the three stages."""
    place = checkpoint.run_of(results_folder(path)).resolve()
    name = place.parent.name if place.name in setup.STAGES else place.name
    return name or "world"


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    compiled: bool = False,
    data: str | Path | Store | None = None,
    start_frames: int = START_FRAMES,
    *,
    tokenizer: str = "",
    lam: str = "",
) -> Bundle:
    """The world in the folder of a dynamics run, or in a world file, with what belongs to it.

    A run's start frames and names of actions are taken from the dataset `data`, or from the one
    that it was made from if that is ""; a world file has its own. `tokenizer` and `lam` name the
    runs of these stages, where they are not where the run expects them.
    """
    if is_world_file(path):
        if tokenizer or lam:
            raise UserError(f"{path} holds its own models: leave --cfg.tokenizer and --cfg.lam out")
        return _load_file(path, device, compiled)
    world = run.load_world(path, device, compiled, tokenizer=tokenizer, lam=lam)
    mapping = action_map.load(path, world.dynamics.cfg.actions)
    effects = action_effects.load(world, path) if world.lam is not None else None
    loaded = Bundle(world, str(path), action_map=mapping, effects=effects)
    return loaded if data is None else with_dataset(loaded, data, start_frames)


def with_dataset(
    bundle: Bundle, data: str | Path | Store, start_frames: int = START_FRAMES
) -> Bundle:
    """A bundle with a dataset's names, metadata and up to `start_frames` frames of test levels.

    `data` is a dataset, its folder, or "" as for `open_dataset`, whose errors this raises. A
    dataset without test levels gives no start frames.
    """
    store = data if isinstance(data, Store) else open_dataset(bundle, data)
    run.check_resolution(bundle.world.tokenizer, store.height, store.width, bundle.path)
    frames = NO_FRAMES
    if store.count("test"):
        count = min(start_frames, len(datasets.clip_starts(store, "test", 1)))
        offsets = datasets.eval_clips(store, "test", 1, count)
        frames = datasets.read_clips(store, offsets, 1).frames[:, 0]
    dataset = Dataset(store.root.name, store.data_hash, store.meta, store.stride)
    return bundle._replace(start_frames=frames, action_names=store.action_names, dataset=dataset)


def load_complete(
    path: str | Path,
    data: str | Path = "",
    start_frames: int = START_FRAMES,
    *,
    tokenizer: str = "",
    lam: str = "",
) -> Bundle:
    """A world with start frames and the effects of its actions, to be given away.

    They are taken from the dataset `data`, as in `open_dataset`, except those that a world file holds.
    """
    bundle = load(path, tokenizer=tokenizer, lam=lam)
    in_file = is_world_file(path)
    known = bundle.effects is not None or bundle.world.lam is None
    if in_file and known and not data:
        return bundle
    store = open_dataset(bundle, data)
    if not in_file:
        bundle = with_dataset(bundle, store, start_frames)
    return with_effects(bundle, store)


def rounded(bundle: Bundle) -> Bundle:
    """A bundle with the parameters that a world file would hold, on the CPU.

    So its fingerprint is that of the file, and the parameters compress to half their size.
    """
    stages = {name: stage for name, stage in bundle.world._asdict().items() if stage is not None}
    params = _for_play({name: stage.params for name, stage in stages.items()})
    own = {
        name: stage._replace(params=tree.map(_round, params[name]))
        for name, stage in stages.items()
    }
    return bundle._replace(world=bundle.world._replace(**own))


def _round(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.bfloat16).float()


def with_effects(bundle: Bundle, store: Store) -> Bundle:
    """A bundle with the effects of its latent actions, measured in a dataset if they are unknown.

    They are stored in the folder of a run, where it can be written. A dataset without a clip that is
    long enough, or a damaged one, leaves them unknown.
    """
    if bundle.world.lam is None or bundle.effects is not None:
        return bundle
    with suppress(UserError), progress.stage("measuring what each action does"):
        effects = action_effects.measure(bundle.world, store)
        bundle = bundle._replace(effects=effects)
        if bundle.path and not is_world_file(bundle.path):
            action_effects.save(effects, bundle.world, bundle.path)
    return bundle


def open_dataset(bundle: Bundle, data: str | Path = "") -> Store:
    """The dataset in the folder `data`, or by default the one that the world was made from.

    A line is printed for a given dataset that is another one, and for one that has grown. Raises
    UserError for one that cannot be found, or whose frames or recorded actions are others.
    """
    if is_world_file(bundle.path):
        store = _dataset_of_file(bundle, data)
    else:
        store = inputs.open_dataset(bundle.path, data)
    run.check_resolution(bundle.world.tokenizer, store.height, store.width, bundle.path)
    choices = bundle.world.dynamics.cfg.actions
    if bundle.world.lam is None and store.num_actions != choices:
        raise UserError(
            f"{bundle.path} was trained on {choices} recorded actions, and {store.root} has "
            f"{store.num_actions}: name a dataset with the same actions with --cfg.data"
        )
    return store


def _dataset_of_file(bundle: Bundle, data: str | Path) -> Store:
    """The dataset of a world file, by its name beside the file or in the folder `data`."""
    name = bundle.dataset.name
    where: list[Path] = []
    if not data and name.isprintable() and Path(name).name == name:
        where = [Path(bundle.path).parent / name, Path("data") / name]
    found = [Path(data)] if data else list(filter(datasets.is_store, where))
    if not found:
        looked = " or ".join(map(str, where)) or "any known place"
        raise UserError(
            f"the dataset of {bundle.path} is not at {looked}: name a dataset with --cfg.data"
        )
    store = datasets.open_store(found[0])
    if store.data_hash != bundle.dataset.hash:
        count = len(bundle.action_names)
        inputs.check_actions(count, bundle.action_names, store, bundle.path)
        inputs.say(f"{store.root} is not the dataset of {bundle.path}, or has grown since")
    return replace(store, stride=bundle.dataset.stride)


def recorded_actions(bundle: Bundle) -> dict[str, int]:
    """The world's action for each recorded action that is known by name."""
    if bundle.world.lam is not None:
        mapping = play_map(bundle)
        return {} if mapping is None else dict(zip(mapping.names, mapping.to_latent, strict=True))
    if len(bundle.action_names) != bundle.world.dynamics.cfg.actions:
        return {}
    return {name: action for action, name in enumerate(bundle.action_names)}


def play_map(bundle: Bundle) -> ActionMap | None:
    """The map from recorded to latent actions with which a world is played; None without one.

    Where it is known what each latent action does, recorded actions that are directions have one of
    those that move the agent that way. Co-occurrence chooses between them, and decides for the
    others. Alone it is less reliable for directions, because an agent that stands, falls or turns
    around while a key is held does not do what the key says.
    """
    mapping = bundle.action_map
    if mapping is None or bundle.effects is None:
        return mapping
    return action_map.restricted(mapping, action_effects.candidates(bundle.effects, mapping.names))


def world_actions(bundle: Bundle) -> Sequence[int]:
    """The world's action for each recorded action, by their numbers.

    Raises UserError if latent actions were never compared with recorded ones.
    """
    if bundle.world.lam is None:
        return range(bundle.world.dynamics.cfg.actions)
    mapping = play_map(bundle)
    if mapping is None:
        raise UserError(
            "this world's latent actions were never compared with recorded ones: run evaluate.py once"
        )
    return mapping.to_latent


def key_actions(bundle: Bundle) -> dict[str, int]:
    """The world's action for each key, by the name of a recorded action.

    Where no recorded action is a direction, the arrow keys follow from the effects of the actions.
    """
    recorded = recorded_actions(bundle)
    if bundle.effects is None or any(map(action_effects.is_direction, recorded)):
        return recorded
    return action_effects.keys(bundle.effects) | recorded


def arrows_by_motion(bundle: Bundle) -> bool:
    """Whether every arrow key that selects a latent action selects one that moves the agent so."""
    if bundle.world.lam is None or bundle.effects is None:
        return False
    arrows = [name for name in recorded_actions(bundle) if action_effects.is_direction(name)]
    if not arrows:
        return bool(action_effects.keys(bundle.effects))
    return all(action_effects.candidates(bundle.effects, arrows))


# Saving


def save(path: str | Path, bundle: Bundle) -> int:
    """Write a world file; returns its size in bytes."""
    content = encode(bundle)
    files.write_atomically(Path(path), content)
    return len(content)


def encode(bundle: Bundle) -> bytes:
    """The content of a world file: parameters in bfloat16, and without what only training needs.

    Raises UserError for a bundle without start frames.
    """
    if not len(bundle.start_frames):
        raise UserError(
            "a world file needs start frames, and the dataset has no test levels: "
            "name another --cfg.data"
        )
    stages = {name: stage for name, stage in bundle.world._asdict().items() if stage is not None}
    params = tree.paths(_for_play({name: stage.params for name, stage in stages.items()}))
    tensors = {name: x.detach().to("cpu", torch.bfloat16) for name, x in params.items()}
    tensors["starts"] = torch.from_numpy(bundle.start_frames)
    if bundle.effects is not None:
        strips = bytearray().join(bundle.effects.strips)
        tensors["strips"] = torch.from_numpy(np.array(strips, np.uint8))
    models = {name: asdict(stage.cfg) for name, stage in stages.items()}
    return format.encode(models, _about(bundle), tensors)


def _about(bundle: Bundle) -> dict:
    # Of the metadata only how the data was collected: the rest may be private.
    meta = {name: value for name, value in bundle.dataset.meta.items() if name == "collection"}
    return {
        "map": bundle.action_map and bundle.action_map._asdict(),
        "names": bundle.action_names,
        "card": bundle.card,
        "data": bundle.dataset._replace(meta=meta)._asdict(),
        "starts": len(bundle.start_frames),
        "effects": bundle.effects and action_effects.facts(bundle.effects),
    }


def _for_play(models: Tree) -> Tree:
    """Of the models' parameters or specs by name, those that are used once a world is trained."""
    return {
        name: lam.encoder(params) if name == "lam" else params for name, params in models.items()
    }


# Loading


class _Models(NamedTuple):
    """What the header of a world file says about its models."""

    cfgs: dict
    spec: Tree
    expected: dict[str, format.TensorSpec]


def _load_file(path: str | Path, device: torch.device | str, compiled: bool) -> Bundle:
    """The bundle in a world file, in float32 on `device`. Raises UserError for anything else."""
    header = format.read_header(path)
    _check_known(path, header.about)
    models = _read_models(path, header)
    about = _read_about(path, header, models.cfgs["dynamics"].actions)
    tensors = format.read_tensors(path, header, models.expected)
    world = _assemble(models, tensors, device, compiled)
    effects = _read_effects(path, header, tensors, world)
    return Bundle(world, str(path), tensors["starts"].numpy(), *about, effects)


def _check_known(path: str | Path, about: dict) -> None:
    """Raise NewerVersion if a description holds what this version does not know."""
    versions.check_names(path, about, ABOUT)
    for name, fields in ABOUT.items():
        if fields and isinstance(about.get(name), dict):
            versions.check_names(path, about[name], fields)


def _read_models(path: str | Path, header: format.Header) -> _Models:
    try:
        cfgs = {
            name: stored_config.from_dict(
                run.MODELS[name][1], stored_config.update_model(cfg), path
            )
            for name, cfg in header.models.items()
        }
        spec = _for_play({name: run.MODELS[name][0].spec(cfg) for name, cfg in cfgs.items()})
        starts = header.about["starts"]
        effects = header.about.get("effects")  # older files have none
        strips = None if effects is None else action_effects.strips_size(effects)
        counted = isinstance(starts, int) and 0 < starts <= MAX_START_FRAMES
        valid = counted and _compatible(**cfgs)
    except NewerVersion:
        raise
    except UserError as error:
        raise format.damaged(path, str(error)) from error
    except Exception as error:  # a configuration from outside may be wrong in any way
        raise format.damaged(path, f"its configurations are impossible: {error!r:.200}") from error
    if not valid:
        raise format.damaged(path, "its models do not fit together")
    expected = {
        name: format.TensorSpec("BF16", leaf.shape) for name, leaf in tree.paths(spec).items()
    }
    shape = (starts, cfgs["tokenizer"].height, cfgs["tokenizer"].width, 3)
    expected["starts"] = format.TensorSpec("U8", shape)
    if strips is not None:
        expected["strips"] = format.TensorSpec("U8", (strips,))
    return _Models(cfgs, spec, expected)


def _compatible(
    tokenizer: TokenizerConfig, dynamics: DynamicsConfig, lam: LamConfig | None = None
) -> bool:
    """Whether models fit together, and a session of theirs needs no more than MAX_STATE_BYTES."""
    size = (tokenizer.height, tokenizer.width)
    state = empty_state(tokenizer, dynamics, 1, "meta")
    return (
        (dynamics.codes, dynamics.tokens) == (tokenizer.quantizer.codes, tokenizer.tokens)
        and (not dynamics.neighbourhood or dynamics.columns == tokenizer.grid[1])
        and tokenizer.time_factor == 1
        and (lam is None or (lam.actions, lam.height, lam.width) == (dynamics.actions, *size))
        and sum(x.numel() * x.element_size() for x in tree.leaves(state)) <= MAX_STATE_BYTES
    )


def _assemble(
    models: _Models, tensors: dict[str, Tensor], device: torch.device | str, compiled: bool
) -> World:
    params = tree.map_with_path(
        lambda name, _: tensors[name].to(device, torch.float32), models.spec
    )
    stages = {}
    for name, cfg in models.cfgs.items():
        stages[name] = Stage(cfg, params[name], AUTO.resolve(device, compiled))
    return World(stages["tokenizer"], stages["dynamics"], stages.get("lam"))


class _About(NamedTuple):
    """What the header of a world file says beside its models, as in `Bundle`."""

    action_names: tuple[str, ...]
    dataset: Dataset
    action_map: ActionMap | None
    card: dict[str, str]


def _read_about(path: str | Path, header: format.Header, actions: int) -> _About:
    about = header.about
    try:
        mapping = None if about["map"] is None else ActionMap(**about["map"])
        names = tuple(about["names"])
        dataset = Dataset(**about["data"])
        card = {str(key): str(value) for key, value in about["card"].items()}
        valid = (
            _valid_map(mapping, actions)
            and _valid_names(names)
            and isinstance(dataset.name, str)
            and isinstance(dataset.hash, str)
            and _valid_meta(dataset.meta)
            and type(dataset.stride) is int
            and 1 <= dataset.stride <= MAX_FRAME_SKIP
        )
    except Exception as error:  # a description from outside may be wrong in any way
        problem = "the description of its actions or its data cannot be parsed"
        raise format.damaged(path, problem) from error
    if not valid:
        raise format.damaged(path, "the description of its actions or its data is impossible")
    return _About(names, dataset, mapping, card)


def _read_effects(
    path: str | Path, header: format.Header, tensors: dict[str, Tensor], world: World
) -> ActionEffects | None:
    about = header.about.get("effects")
    if about is None:
        return None
    try:
        effects = action_effects.from_facts(about, tensors["strips"].numpy().tobytes())
        valid = action_effects.is_valid(effects, world)
    except Exception as error:  # as in `_read_about`
        raise format.damaged(path, "the effects of its actions cannot be parsed") from error
    if not valid:
        raise format.damaged(path, "the effects of its actions are impossible")
    return effects


def _valid_map(mapping: ActionMap | None, actions: int) -> bool:
    if mapping is None:
        return True
    return action_map.is_valid(mapping, actions) and _valid_names(mapping.names)


def _valid_names(names: Any) -> bool:
    short = all(isinstance(name, str) and len(name) <= MAX_NAME_LENGTH for name in names)
    return len(names) <= MAX_ACTIONS and short


def _valid_meta(meta: dict) -> bool:
    collection = meta.get("collection", {})
    skip = collection.get("frame_skip", 1)  # with too many frames the game would not answer
    return games.is_valid(collection) and type(skip) is int and 1 <= skip <= MAX_FRAME_SKIP
