"""Make a dataset of your own videos: video files, folders of images, npy episodes, with their actions where there are.

    python import_videos.py --cfg.src videos                       # everything in the folder, to data/mine
    python import_videos.py --cfg.src 'videos/*.mp4' --cfg.fps 10 --cfg.fit pad --cfg.root data/game

A dataset's content is a function of the files and the options alone, whatever the number of workers. A killed import
keeps the videos it had finished: the same command goes on from there, and takes in what was added since.
docs/your-own-data.md says what is read, and how.
"""

import functools
import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from genie_fn import data
from genie_fn.data import Store
from genie_fn.data.importing import action_labels, resampling, sources
from genie_fn.data.importing.action_labels import Known
from genie_fn.data.importing.resampling import Shape
from genie_fn.data.importing.sources import Source
from genie_fn.errors import UserError
from genie_fn.runtime import files
from genie_fn.runtime.cli import run
from genie_fn.runtime.signals import terminable

REPORT = "imported.json"
SHOWN = 10  # lines of a list on the console


@dataclass(frozen=True)
class Config:
    src: str
    """A folder, a file, or a glob in quotes. Folders train, val and test at its top decide the split."""
    root: str = "data/mine"
    """The folder of the dataset, new or to be added to."""
    size: int = 64
    """Height and width of the frames, in pixels."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How a frame becomes a square: its middle, between black bars, or out of shape."""
    fps: float = 0
    """Frames per second to take; 0: every frame."""
    cuts: float = 0.4
    """The change of colours, from 0 to 1, that begins a new scene; 0: a video is one scene."""
    min_frames: int = 16
    """A video without a scene as long as this is left out."""
    actions: bool = True
    """Read the actions beside the videos, clip.jsonl or clip.csv."""
    workers: int = os.cpu_count() or 1

    def __post_init__(self):
        limits = {
            "size": (8, 512),
            "fps": (0, 240),
            "cuts": (0, 1),
            "min-frames": (2, 10**6),
            "workers": (1, 256),
        }
        for flag, (least, most) in limits.items():
            if not least <= (value := getattr(self, flag.replace("-", "_"))) <= most:
                raise UserError(f"--cfg.{flag} is {value}: choose a number from {least} to {most}.")
        if 0 < self.fps < 0.1:
            raise UserError(f"--cfg.fps is {self.fps}: choose 0, for every frame, or at least 0.1.")


def open_or_create(cfg: Config, root: Path, names: tuple[str, ...]) -> Store:
    """The dataset at `root`, new or to be added to; a UserError if it was imported with other options."""
    wanted = {
        name: value for name, value in asdict(cfg).items() if name not in ("src", "root", "workers")
    }
    if not (root / data.MANIFEST).exists():
        return data.create(root, {"import": wanted}, cfg.size, cfg.size, len(names), names)
    store = data.open_store(root)
    if "import" not in store.meta:
        raise UserError(f"{root} holds a dataset that was not imported: choose another --cfg.root.")
    for name, value in wanted.items():
        if (found := store.meta["import"].get(name)) != value:
            raise UserError(
                f"{root} was imported with {name} {found}, not {value}: choose another --cfg.root."
            )
    if names and not store.num_actions:
        raise UserError(
            f"{root} was imported without actions, and now there are some: choose another --cfg.root."
        )
    return store


def choose(store: Store, found: list[Source]) -> tuple[list[Source], dict[str, str]]:
    """The sources that are new, and why others are left out. Those imported already are neither."""
    known = {segment.info["file"]: segment.info["bytes"] for segment in store.segments}
    content = {segment.info["digest"]: segment.info["file"] for segment in store.segments}
    new, skipped = [], {}
    for source in found:
        try:
            size, identity = source.size(), "" if source.name in known else sources.digest(source)
        except OSError as error:
            skipped[source.name] = f"it cannot be opened ({(error.strerror or str(error)).lower()})"
            continue
        if source.name in known:
            if size != known[source.name]:
                skipped[source.name] = (
                    "it has changed since it was imported: import it to a new folder"
                )
        elif (same := content.setdefault(identity, source.name)) != source.name:
            skipped[source.name] = f"it is the same as {same}"
        elif store.num_actions and not source.labels:
            skipped[source.name] = (
                "others have actions and it has none: add them, or leave all out (--cfg.no-actions)"
            )
        else:
            new.append(source)
    return new, skipped


def import_all(
    cfg: Config, store: Store, new: list[Source], labels: dict[str, Known], skipped: dict
) -> Store:
    """Import the new sources in their order. Whatever ends this, the videos finished by then are kept."""
    shape, stop = Shape(cfg.size, cfg.fit, cfg.fps, cfg.cuts), threading.Event()
    streams = (
        functools.partial(resampling.parts, s, shape, labels.get(s.name), stop, cfg.workers)
        for s in new
    )
    results = resampling.in_order(streams, cfg.workers)
    segments, at, done = list(store.segments), data.next_offset(store), False
    level = max((segment.level for segment in segments), default=-1) + 1
    began, due, frames = time.monotonic(), 0.0, 0
    with Progress(
        MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("", total=len(new))
        try:
            for source, stream in zip(new, results, strict=True):
                store, written, why = resampling.write(
                    store, source, level, stream, at, cfg.min_frames
                )
                segments, level = segments + written, level + bool(written)
                if why:
                    skipped[source.name] = why
                at += sum(data.padded_length(segment.length) for segment in written)
                frames += sum(segment.length for segment in written)
                rate = f"videos, {frames / (time.monotonic() - began):,.0f} frames/s"
                bar.update(task, advance=1, description=rate)
                if (
                    now := time.monotonic()
                ) > due:  # the manifest grows: spend a twentieth of the time on it, no more
                    data.commit(store, segments)
                    due = time.monotonic() + 20 * (time.monotonic() - now)
            done = True
        finally:
            stop.set()
            results.close()
            store = data.commit(store, sources.settle(segments) if done else segments)
            if not done:
                count = len(resampling.videos(segments))
                print(f"Kept {count} videos in {store.root}: the same command imports the rest.")
    return store


def report(store: Store, skipped: dict[str, str]) -> None:
    """Say what the dataset holds and what was left out; the whole list goes to a file in its folder."""
    held = [
        {"file": name, "split": own[0].split, "frames": sum(s.length for s in own)}
        | {"episodes": sum(s.info["episodes"] for s in own), "note": own[0].info["note"]}
        for name, own in resampling.videos(store.segments).items()
    ]
    told = {"meta": store.meta, "actions": store.action_names, "imported": held}
    told |= {"skipped": [{"file": name, "why": why} for name, why in skipped.items()]}
    files.write_atomically(store.root / REPORT, json.dumps(told, indent=1).encode() + b"\n")
    size = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
    splits = ", ".join(f"{store.count(split):,} {split}" for split in data.SPLITS)
    scenes, kinds = sum(video["episodes"] for video in held), store.num_actions or "no"
    print(
        f"{store.root}: {len(held)} videos, {scenes} scenes, {kinds} actions; frames: {splits}; {size / 2**20:,.0f} MiB"
    )
    cut = {video["file"]: video["note"] for video in held if video["note"]}
    for title, lines in (("ended early", cut), ("left out", skipped)):
        for name, why in list(lines.items())[:SHOWN]:
            print(
                f"{title}: {name}, {why}" if title == "ended early" else f"{title}: {name}: {why}"
            )
        if len(lines) > SHOWN:
            print(f"… and {len(lines) - SHOWN} more {title}: see {store.root / REPORT}")


def main(cfg: Config) -> None:
    """Import videos."""
    root = Path(cfg.root)
    found = sources.find(cfg.src, root)
    read = {
        source.name: action_labels.read(source.labels)
        for source in found
        if source.labels and cfg.actions
    }
    with data.exclusive_writer(root, "imports to", "choose another --cfg.root"), terminable():
        store = open_or_create(cfg, root, action_labels.names(list(read.values())))
        new, skipped = choose(store, found)
        labels = {
            s.name: action_labels.to_ids(read[s.name], store.action_names)
            for s in new
            if s.name in read
        }
        if new:
            store = import_all(cfg, store, new, labels, skipped)
    report(store, skipped)
    if wrong := sources.lacking(store.segments):
        raise UserError(f"{wrong} What there is has been kept in {root}.")


if __name__ == "__main__":
    run(main)
