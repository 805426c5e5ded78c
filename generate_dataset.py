"""Collect video of a Procgen game into a dataset: lossless frames, actions, rewards, level seeds, episode starts.

A level's data is a function of (config, seed, level seed) alone, whatever the number of workers. A killed run keeps the
levels it had finished: the same command goes on from there, and with a larger --cfg.num-levels it appends.
"""

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from genie_fn import data
from genie_fn.data import procgen, video
from genie_fn.data.procgen import ACTIONS, MAX_LEVEL, SIZE
from genie_fn.errors import UserError
from genie_fn.runtime.cli import run
from genie_fn.runtime.signals import terminable

EXPLORER_WEIGHTS = {
    "coinrun": [0.5, 2, 2, 0.5, 2, 1, 0.5, 4, 9, 0, 0, 0, 0, 0, 0]
}  # by action: mostly right, jumping
EXPLORER_HOLD = (
    3  # mean frames: long enough to clear gaps, short enough that most 4-frame clips see a change
)


@dataclass(frozen=True)
class Config:
    env: str = "coinrun"  # any Procgen game
    root: str = ""  # folder of the dataset; empty: data/<env>
    num_levels: int = 200
    start_level: int = 0
    distribution_mode: Literal["easy", "hard", "extreme", "memory"] = "hard"
    steps_per_level: int = 1000
    frame_skip: int = (
        1  # frames of the game per step: the action is held for so many, and the last one is kept
    )
    policy: Literal["explorer", "random"] = (
        "explorer"  # explorer holds actions, in coinrun mostly right and jump
    )
    repeat_actions: bool = True  # off, with the random policy: never the same action twice in a row
    seed: int = 0
    workers: int = os.cpu_count() or 1
    export_mp4: str = (
        ""  # folder to also write one lossless mp4 per episode to, by split; empty: none
    )
    verify: bool = False  # read everything back and compare checksums


def check(cfg: Config) -> None:
    """Raise UserError for a config that cannot be collected."""
    procgen.check(cfg.env, cfg.distribution_mode)
    smallest = {
        "num-levels": 1,
        "start-level": 0,
        "steps-per-level": 1,
        "frame-skip": 1,
        "seed": 0,
        "workers": 1,
    }
    for flag, least in smallest.items():
        if not least <= (value := getattr(cfg, flag.replace("-", "_"))) <= MAX_LEVEL:
            raise UserError(
                f"--cfg.{flag} is {value}: choose a number from {least} to {MAX_LEVEL}."
            )
    if cfg.policy == "explorer" and not cfg.repeat_actions:
        raise UserError(
            "The explorer holds its actions: use --cfg.policy random with --cfg.no-repeat-actions."
        )


def choose_actions(cfg: Config, level: int) -> np.ndarray:
    """(steps_per_level,) uint8: what to press in `level`. Neither policy looks at the screen."""
    rng, steps = np.random.default_rng([cfg.seed, level]), cfg.steps_per_level
    if cfg.policy == "explorer":
        weights = np.array(EXPLORER_WEIGHTS.get(cfg.env, [1] * len(ACTIONS)), float)
        kinds = rng.choice(len(ACTIONS), steps, p=weights / weights.sum())
        chosen = np.repeat(kinds, rng.geometric(1 / EXPLORER_HOLD, steps))[:steps]
    elif cfg.repeat_actions:
        chosen = rng.integers(0, len(ACTIONS), steps)
    else:  # a step of 1..14 on the circle of actions is any action but the last one
        chosen = np.cumsum(rng.integers(1, len(ACTIONS), steps)) % len(ACTIONS)
    return chosen.astype(np.uint8)


def play_level(cfg: Config, level: int) -> data.Recording:
    """Play `level` for steps_per_level frames, over as many episodes as it takes."""
    env = procgen.make_env(cfg.env, level, cfg.distribution_mode)
    actions, steps = choose_actions(cfg, level), cfg.steps_per_level
    frames, rewards, starts = (
        np.empty((steps, SIZE, SIZE, 3), "u1"),
        np.empty(steps, "f4"),
        np.empty(steps, bool),
    )
    info = {
        "completed": 0,
        "reward": 0.0,
        "actions": np.bincount(actions, minlength=len(ACTIONS)).tolist(),
    }
    _, observation, first = env.observe()
    ended = first[0]
    for t in range(steps):
        frames[t], starts[t] = observation["rgb"][0], ended
        observation, ended, rewards[t] = procgen.advance(env, actions[t], cfg.frame_skip)
        info["completed"] += int(ended and env.get_info()[0]["prev_level_complete"])
    env.close()
    return data.Recording(
        level, frames, actions, rewards, starts, info=info | {"reward": float(rewards.sum())}
    )


def collect_level(cfg: Config, store: data.Store, index: int) -> data.Segment:
    """Play the dataset's `index`-th level and write it to its place. Runs in the workers."""
    recording = play_level(cfg, cfg.start_level + index)
    return data.write_segment(store, index * data.padded_length(cfg.steps_per_level), recording)


def _start_worker() -> None:
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # they are the parent's to handle, and its death ends the worker
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(
        target=lambda: os._exit(multiprocessing.parent_process().join() or 1), daemon=True
    ).start()


def collect_levels(cfg: Config, store: data.Store, indices: range) -> Iterator[data.Segment]:
    """Collect levels in parallel; yields them in order."""
    light = replace(store, segments=())  # it is sent to a worker with every level
    collect, workers = functools.partial(collect_level, cfg, light), min(cfg.workers, len(indices))
    if workers == 1:
        return (yield from map(collect, indices))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from pool.map(collect, indices)
    finally:
        pool.shutdown(cancel_futures=True)


def open_or_create(cfg: Config, root: Path) -> data.Store:
    """The dataset at `root`, new or to be continued; a UserError if it was collected with other options."""
    machine = (
        "root",
        "num_levels",
        "workers",
        "export_mp4",
        "verify",
    )  # these do not change what a level holds
    wanted = {name: value for name, value in asdict(cfg).items() if name not in machine}
    if not (root / data.MANIFEST).exists():
        return data.create(root, {"collection": wanted}, SIZE, SIZE, len(ACTIONS), ACTIONS)
    store = data.open_store(root)
    for name, value in wanted.items():
        if (found := store.meta.get("collection", {}).get(name, getattr(Config, name))) != value:
            raise UserError(
                f"{root} was collected with {name} {found}, not {value}: choose another --cfg.root."
            )
    if len(store.segments) > cfg.num_levels:
        raise UserError(
            f"{root} already holds {len(store.segments)} levels: choose another --cfg.root for fewer."
        )
    return store


def collect(cfg: Config, store: data.Store) -> data.Store:
    """Collect the levels that are missing. Whatever ends this, the levels finished by then are kept."""
    store = data.reserve(store, cfg.num_levels * data.padded_length(cfg.steps_per_level))
    segments, began, due = list(store.segments), time.monotonic(), 0.0
    with Progress(
        MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("", total=cfg.num_levels, completed=len(segments))
        try:
            for done, segment in enumerate(
                collect_levels(cfg, store, range(len(segments), cfg.num_levels)), 1
            ):
                segments.append(segment)
                now = time.monotonic()
                rate = f"levels, {done * segment.length / (now - began):,.0f} frames/s"
                bar.update(task, advance=1, description=rate)
                if (
                    now > due
                ):  # the manifest grows with the levels: spend a twentieth of the time on it, no more
                    data.commit(store, segments)
                    due = time.monotonic() + 20 * (time.monotonic() - now)
        finally:
            store = data.commit(store, segments)
            if len(segments) < cfg.num_levels:
                print(
                    f"Kept {len(segments)} levels in {store.root}: the same command collects the rest."
                )
    return store


def report(store: data.Store) -> None:
    """Print what the dataset holds."""
    infos = [segment.info for segment in store.segments]
    counts = np.sum([info["actions"] for info in infos], axis=0)
    used = ", ".join(
        f"{name} {share:.0%}"
        for name, share in zip(ACTIONS, counts / counts.sum(), strict=True)
        if share
    )
    size = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
    splits = ", ".join(f"{store.count(split):,} {split}" for split in data.SPLITS)
    print(f"{store.root}: {len(infos)} levels, frames: {splits}; {size / 2**20:,.0f} MiB")
    completed, reward = (sum(info[name] for info in infos) for name in ("completed", "reward"))
    print(f"levels completed {completed}, reward {reward:g}; actions: {used}")


def main(cfg: Config) -> None:
    """Collect video of a Procgen game."""
    check(cfg)
    root = Path(cfg.root or f"data/{cfg.env}")
    store = open_or_create(cfg, root) if (root / data.MANIFEST).exists() else None
    if store and len(store.segments) == cfg.num_levels:
        print(f"{root} is complete already: nothing to collect.")
    else:
        with (
            data.exclusive_writer(root, "collects into", "choose another --cfg.root"),
            terminable(),
        ):
            store = collect(cfg, open_or_create(cfg, root))
    if cfg.verify:
        print(f"{data.verify(store):,} frames match their checksums.")
    if cfg.export_mp4:
        for segment in store.segments:
            recording, folder = (
                data.read_segment(store, segment),
                Path(cfg.export_mp4) / segment.split,
            )
            video.write_episodes(
                folder, f"{segment.level:06d}", recording.frames, recording.episode_starts
            )
    report(store)


if __name__ == "__main__":
    run(main)
