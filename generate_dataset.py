"""Collect video of a game into a dataset: of Procgen, or of any Gymnasium environment.

    python generate_dataset.py                                        # 200 levels of CoinRun
    python generate_dataset.py --cfg.env maze --cfg.num-levels 50
    python generate_dataset.py --cfg.frame-skip 2 --cfg.root data/coinrun-skip2
    python generate_dataset.py --cfg.visuals plain                    # to data/coinrun-plain
    python generate_dataset.py --cfg.env gym:ALE/Breakout-v5          # to data/Breakout-v5
    python generate_dataset.py --cfg.env gym:mygame:MyGame-v0 --cfg.policy mygame:player

The dataset holds lossless frames, actions, rewards, level seeds and episode starts. The data of a
level is a function of (config, seed, level seed) alone, whatever the number of workers, if the
environment is deterministic given its seed. A killed run keeps the levels it had finished, and the
same command continues. With a larger number of levels it appends.
"""

import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

import numpy as np

from genie_fn import data
from genie_fn.data import expert, framing, games, gym_game, procgen, video
from genie_fn.data.framing import Fit, Size
from genie_fn.data.game import MAX_LEVEL, Game
from genie_fn.data.gym_game import GymGame
from genie_fn.errors import UserError
from genie_fn.runtime import cpus, files
from genie_fn.runtime.cli import run
from genie_fn.runtime.progress import Progress, stage, track
from genie_fn.runtime.signals import terminable

# Weights of the explorer's actions by game: in CoinRun mostly to the right, jumping.
EXPLORER_WEIGHTS = {"coinrun": [0.5, 2, 2, 0.5, 2, 1, 0.5, 4, 9, 0, 0, 0, 0, 0, 0]}
# Options of datasets that were collected before these were options.
FORMER_OPTIONS = {"hold": 3.0}


@dataclass(frozen=True)
class Config:
    env: str = "coinrun"
    """The game: one of Procgen's, as coinrun or procgen:coinrun, or a Gymnasium environment that draws
    `rgb_array` and has a finite number of actions, by its id, as in gym:ALE/Breakout-v5 or, where a
    module registers it, gym:mygame:MyGame-v0."""
    env_options: str = ""
    """Arguments of a Gymnasium environment, as in frameskip=1, mode='hard'."""
    root: str = ""
    """The folder of the dataset; empty: data/<env>, or data/<env>-plain with plain visuals."""
    size: Size = 64
    """Height and width of the frames in pixels; one number for squares. Procgen's are 64."""
    fit: Fit = "crop"
    """How frames of another shape get this one: `crop` keeps the middle and cuts off the rest, `pad`
    keeps all between black bars, `stretch` keeps all and changes its shape."""
    num_levels: int = 200
    """The number of levels in the dataset."""
    start_level: int = 0
    """The seed of the first level; the others follow it."""
    distribution_mode: Literal["easy", "hard", "extreme", "memory"] = "hard"
    """Procgen's variant of the levels; `extreme` and `memory` exist for a few games."""
    visuals: procgen.Visuals = "full"
    """`full`: the game as published; `plain`: a black background and a single theme, with the same
    levels and the same physics, for worlds that learn sharp pictures sooner."""
    steps_per_level: int = 1000
    """Frames collected in every level, over as many episodes as that takes."""
    frame_skip: int = 1
    """Frames of the game per step: an action is held for these, and the last one is kept."""
    policy: str = "explorer"
    """`explorer` holds actions, in CoinRun mostly right and jump; `random` holds none; neither looks
    at the frames. `expert` searches in a game of Procgen for a reward and plays one episode per level.
    module:function names a function of yours, in a module of this folder or an installed one: it takes
    the observation (Procgen's are the frames) and a numpy random generator, and returns an action."""
    hold: float = 6
    """Mean frames for which the explorer holds an action. An agent that turns around needs several
    frames to stop first; in shorter holds, actions hardly show."""
    repeat_actions: bool = True
    """If off, the random policy never takes the same action twice in a row."""
    seed: int = 0
    """The seed of the actions."""
    workers: int = field(default_factory=lambda: cpus.available(MAX_LEVEL))
    """Processes that collect levels; by default one for each CPU that this process may use."""
    export_mp4: str = ""
    """A folder for one lossless mp4 per episode, by split; empty: none are written."""
    verify: bool = False
    """Read the dataset back and compare checksums."""


SMALLEST = {
    "num_levels": 1,
    "start_level": 0,
    "steps_per_level": 1,
    "frame_skip": 1,
    "hold": 1,
    "seed": 0,
    "workers": 1,
}
MOST_WORKERS = 61 if sys.platform == "win32" else MAX_LEVEL
"""The largest number of processes of a pool."""
# Fields that do not change the data of a level.
RUN_FIELDS = ("root", "num_levels", "workers", "export_mp4", "verify")


PROCGEN_FIELDS = {"distribution_mode": "hard", "visuals": "full"}
"""Options that a Gymnasium environment does not have, and their defaults."""
GYM_FIELDS = {"env_options": "", "size": 64, "fit": "crop"}
"""Options that Procgen does not have."""
HELD = ("explorer", "expert")
POLICIES = (*HELD, "random")


def check(cfg: Config) -> None:
    """Raise UserError for a config that cannot be collected."""
    others = PROCGEN_FIELDS if games.is_gym(cfg.env) else GYM_FIELDS
    for name, default in others.items():
        if getattr(cfg, name) != default:
            flag = name.replace("_", "-")
            whose = "Procgen's games" if games.is_gym(cfg.env) else "Gymnasium environments"
            raise UserError(f"--cfg.{flag} is for {whose}, and {cfg.env} is none: leave it out")
    if games.is_gym(cfg.env):
        _check_gym(cfg)
    else:
        procgen.check(cfg.env, cfg.distribution_mode)
    if cfg.policy not in POLICIES and ":" not in cfg.policy:
        raise UserError(
            f"there is no policy {cfg.policy!r}: choose {', '.join(POLICIES)}, or name a function of "
            "yours as in mymodule:policy"
        )
    for name, smallest in SMALLEST.items():
        value = getattr(cfg, name)
        if not smallest <= value <= MAX_LEVEL:
            flag = name.replace("_", "-")
            raise UserError(
                f"--cfg.{flag} is {value}: choose a number from {smallest} to {MAX_LEVEL}"
            )
    if cfg.policy in HELD and not cfg.repeat_actions:
        raise UserError(
            f"the {cfg.policy} holds its actions: use --cfg.policy random with "
            "--cfg.no-repeat-actions"
        )
    if ":" in cfg.policy:
        own_policy(cfg.policy)


def _check_gym(cfg: Config) -> None:
    if cfg.policy == "expert":
        raise UserError(
            "the expert plays Procgen's games alone: choose another --cfg.policy, such as a function "
            "of yours"
        )
    framing.check(cfg.size)
    gym_game.parse_options(cfg.env_options)


def own_policy(name: str) -> Callable[[Any, np.random.Generator], int]:
    """The function that `module:function` names. Raises UserError if there is none."""
    module, _, function = name.partition(":")
    gym_game.look_in_this_folder()
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:  # the module is the user's
        raise UserError(
            f"--cfg.policy {name} cannot be imported ({type(error).__name__}: {error}): name a "
            "module of this folder, or an installed one, and a function in it"
        ) from error


# One level


def open_level(cfg: Config, level: int) -> Game:
    """The game at the beginning of a level."""
    return games.open_game(level, {"collection": options(cfg)}, own_modules=True)


def choose_actions(cfg: Config, level: int, count: int) -> np.ndarray:
    """(steps_per_level,) int64: the actions to take in `level`, out of `count`, by a policy that does
    not look at the frames."""
    rng = np.random.default_rng([cfg.seed, level])
    steps = cfg.steps_per_level
    if cfg.policy == "explorer":
        weights = np.array(EXPLORER_WEIGHTS.get(cfg.env, [1] * count), float)
        drawn = rng.choice(count, steps, p=weights / weights.sum())
        actions = np.repeat(drawn, rng.geometric(1 / cfg.hold, steps))[:steps]
    elif cfg.repeat_actions:
        actions = rng.integers(0, count, steps)
    else:  # a step of 1..count-1 on the circle of actions leads to any action but the last one
        actions = np.cumsum(rng.integers(1, count, steps)) % count
    return actions


def actor(cfg: Config, level: int, game: Game) -> Callable[[int, np.ndarray], int]:
    """The policy, as a function of the step's number and the current frame."""
    if ":" not in cfg.policy:
        actions = choose_actions(cfg, level, len(game.action_names))
        return lambda t, _: int(actions[t])
    policy = own_policy(cfg.policy)
    rng = np.random.default_rng([cfg.seed, level])

    def act(_: int, frame: np.ndarray) -> int:
        observation = game.observation if isinstance(game, GymGame) else frame
        action = policy(observation, rng)
        try:
            return int(action)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{cfg.policy} returned {action!r}, which is no number of an action: return one from "
                f"0 to {len(game.action_names) - 1}"
            ) from error

    return act


def play_level(cfg: Config, level: int) -> data.Recording:
    """Play `level` for steps_per_level frames, over as many episodes as that takes.

    The expert plays one episode, of at most so many frames.
    """
    game = open_level(cfg, level)
    try:
        if isinstance(game, procgen.ProcgenGame) and cfg.policy == "expert":
            search = expert.open_search(
                cfg.env, cfg.distribution_mode, cfg.frame_skip, visuals=cfg.visuals
            )
            return expert.play(search, game, cfg.steps_per_level)
        return record(cfg, level, game)
    finally:
        game.close()


def record(cfg: Config, level: int, game: Game) -> data.Recording:
    """What the policy sees and does in a level."""
    steps = cfg.steps_per_level
    act = actor(cfg, level, game)
    frame = game.frame()
    frames = np.empty((steps, *frame.shape), np.uint8)
    actions = np.empty(steps, np.int64)
    rewards = np.empty(steps, np.float32)
    episode_starts = np.empty(steps, bool)
    completed = 0
    ended = True
    for t in range(steps):
        frames[t] = frame
        episode_starts[t] = ended
        action = act(t, frame)
        frame, ended, rewards[t], level_completed = game.step(action)  # which refuses wrong ones
        actions[t] = action
        completed += level_completed
    info = {"completed": completed, "reward": float(rewards.sum())}
    return data.Recording(level, frames, actions, rewards, episode_starts, info=info)


# All levels


def collect_level(cfg: Config, store: data.Store, index: int) -> data.Segment:
    """Play the `index`-th level of the dataset and write it to its place. Runs in the workers."""
    recording = play_level(cfg, cfg.start_level + index)
    return data.write_segment(store, index * data.padded_length(cfg.steps_per_level), recording)


def _start_worker() -> None:
    """Leave signals to the parent process, and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def collect_levels(cfg: Config, store: data.Store, indices: range) -> Iterator[data.Segment]:
    """Collect levels in parallel and yield their segments in order."""
    workers = min(cfg.workers, len(indices), MOST_WORKERS)
    # The store is sent to a worker with every level; segments would make it large.
    collect = functools.partial(collect_level, cfg, replace(store, segments=()))
    if workers == 1:
        yield from map(collect, indices)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from pool.map(collect, indices)
    finally:
        pool.shutdown(cancel_futures=True)


def default_root(cfg: Config) -> str:
    """The folder of the dataset where none is given."""
    name = games.folder_name(cfg.env)
    return f"data/{name}" if cfg.visuals == "full" else f"data/{name}-{cfg.visuals}"


def options(cfg: Config) -> dict[str, Any]:
    """The options that decide what is collected, as the dataset keeps them."""
    left_out = {*RUN_FIELDS, *(PROCGEN_FIELDS if games.is_gym(cfg.env) else GYM_FIELDS)}
    kept = {name: value for name, value in asdict(cfg).items() if name not in left_out}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in kept.items()}


def open_or_create(cfg: Config, root: Path) -> data.Store:
    """The dataset at `root`, new or to be continued.

    Raises UserError if it was collected with other options.
    """
    wanted = options(cfg)
    if not (root / data.MANIFEST).exists():
        return games.new_store(root, wanted, cfg.start_level)
    store = data.open_store(root)
    collection = store.meta.get("collection", {})
    for name, value in wanted.items():
        stored = collection.get(name, FORMER_OPTIONS.get(name, getattr(Config, name)))
        if stored != value:
            raise UserError(
                f"{root} was collected with {name} {stored}, not {value}: choose another --cfg.root, "
                f"or pass --cfg.{name.replace('_', '-')} {stored} as before"
            )
    if len(store.segments) > cfg.num_levels:
        raise UserError(
            f"{root} already holds {len(store.segments)} levels: choose another --cfg.root for "
            "fewer"
        )
    return store


def collect(cfg: Config, store: data.Store) -> data.Store:
    """Collect the missing levels. The levels that are finished are kept, however this ends."""
    store = data.reserve(store, cfg.num_levels * data.padded_length(cfg.steps_per_level))
    segments = list(store.segments)
    missing = range(len(segments), cfg.num_levels)
    began = time.monotonic()
    commit_now_and_then = data.PeriodicCommit()
    with Progress() as progress:
        task = progress.task("collecting, level", cfg.num_levels, len(segments))
        try:
            for done, segment in enumerate(collect_levels(cfg, store, missing), 1):
                segments.append(segment)
                rate = done * segment.length / (time.monotonic() - began)
                task.advance(f"{rate:,.0f} frames/s")
                commit_now_and_then(store, segments)
        finally:
            store = data.commit(store, segments)
            if len(segments) < cfg.num_levels:
                print(
                    f"Kept {len(segments)} levels in {store.root}: the same command collects the "
                    "rest."
                )
    return store


# After collection


def export(store: data.Store, folder: Path) -> None:
    """Write every episode as a lossless mp4 to a folder of its split."""
    for segment in track(store.segments, f"writing mp4 files to {folder}, level"):
        recording = data.read_segment(store, segment)
        name = f"{segment.level:06d}"
        split = folder / segment.split
        video.write_episodes(split, name, recording.frames, recording.episode_starts)


def report(store: data.Store) -> None:
    """Print what the dataset holds."""
    infos = [segment.info for segment in store.segments]
    counts = data.action_counts(store, store.segments)
    shares = zip(store.action_names, counts / counts.sum(), strict=True)
    used = ", ".join(f"{name} {share:.0%}" for name, share in shares if share)
    size = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
    splits = ", ".join(f"{store.count(split):,} {split}" for split in data.SPLITS)
    print(f"{store.root}: {len(infos)} levels, frames: {splits}; {size / 2**20:,.0f} MiB")
    completed = sum(info["completed"] for info in infos)
    reward = sum(info["reward"] for info in infos)
    print(f"levels completed {completed}, reward {reward:g}; actions: {used}")


def main(cfg: Config) -> None:
    """Collect video of a game into a dataset."""
    cfg = replace(cfg, env=cfg.env.removeprefix("procgen:"))
    check(cfg)
    root = Path(cfg.root or default_root(cfg))
    if cfg.export_mp4:
        files.check_folder("--cfg.export-mp4", cfg.export_mp4)
    store = open_or_create(cfg, root) if os.path.exists(root / data.MANIFEST) else None
    if store and len(store.segments) == cfg.num_levels:
        print(f"{root} is complete already: nothing to collect.")
    else:
        files.check_folder("--cfg.root", root)
        instead = "choose another --cfg.root"
        with data.exclusive_writer(root, "collects into", instead), terminable():
            store = collect(cfg, open_or_create(cfg, root))
    if cfg.verify:
        with stage("comparing checksums"):
            count = data.verify(store)
        print(f"{count:,} frames match their checksums.")
    if cfg.export_mp4:
        export(store, Path(cfg.export_mp4))
    report(store)


if __name__ == "__main__":
    run(main)
