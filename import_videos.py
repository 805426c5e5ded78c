"""Make a dataset from your own videos: video files, animations, folders of images, npy episodes, HDF5,
parquet with pictures, and LeRobot data.

    python import_videos.py --cfg.src videos                # everything in the folder, to data/mine
    python import_videos.py --cfg.src 'videos/*.mp4' --cfg.fps 10 --cfg.fit pad --cfg.root data/game
    python import_videos.py --cfg.src demo.hdf5 --cfg.fields frames=obs/agentview_image
    python import_videos.py --cfg.src pusht --cfg.fields frames=observation.image

Actions recorded in a file beside a video are stored with it. The content of a dataset is a function
of the files and the options alone, whatever the number of workers. A killed import keeps the videos
it had finished: the same command continues, and imports what was added since.
docs/your-own-data.md describes what is read, and how.
"""

import functools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import genie_fn.runtime.startup  # noqa: F401  # isort: skip


from genie_fn import data
from genie_fn.data import Store, vectors
from genie_fn.data.framing import Fit, Size, height_and_width
from genie_fn.data.images import Background
from genie_fn.data.importing import action_labels, archives, pipeline, sources
from genie_fn.data.importing.action_labels import ActionTrack, LabelFile
from genie_fn.data.importing.pipeline import End, VideoPart
from genie_fn.data.importing.resampling import FrameFormat
from genie_fn.data.importing.sources import Source
from genie_fn.data.vectors import Prototypes
from genie_fn.errors import UserError
from genie_fn.runtime import cpus, files
from genie_fn.runtime.cli import run
from genie_fn.runtime.progress import Progress, Task
from genie_fn.runtime.signals import terminable

REPORT = "imported.json"
MAX_LINES = 10  # of a list on the console
MAX_WORKERS = 256


@dataclass(frozen=True)
class Config:
    src: str
    """A folder, a file, or a glob in quotes. Folders train, val and test in it decide the split."""
    root: str = "data/mine"
    """The folder of the dataset, new or to be added to."""
    size: Size = 64
    """Height and width of the frames in pixels; one number for squares."""
    fit: Fit = "crop"
    """How frames of another shape get this one: `crop` keeps the middle and cuts off the rest, `pad`
    keeps all between black bars, `stretch` keeps all and changes its shape."""
    background: Background = "black"
    """The colour that is seen through transparent pixels."""
    fps: float = 0
    """Frames per second to take; 0: every frame."""
    cuts: float = 0.4
    """The lasting change of colours, from 0 to 1, that begins a new scene; 0: a video is one scene."""
    min_frames: int = 16
    """A video without a scene of this length is left out."""
    split_seconds: float = 0
    """Divide videos into pieces of at most this many seconds, each with a split of its own, so that
    one long recording can be split; 0: a video belongs to one split."""
    actions: bool = True
    """Read recorded actions, from clip.jsonl or clip.csv beside the videos or from an archive."""
    fields: str = ""
    """Where HDF5, parquet and LeRobot data hold what is read, if that is not clear, as in
    frames=obs/rgb,actions=action or frames=observation.images.top."""
    action_choices: int = 8
    """The most prototypes of actions that are vectors. Training learns from the vectors; play and
    evaluation take the prototypes."""
    workers: int = field(default_factory=lambda: cpus.available(MAX_WORKERS))
    """Threads that decode videos; by default one for each CPU that this process may use."""

    def __post_init__(self):
        for name, (smallest, largest) in LIMITS.items():
            value = getattr(self, name)
            numbers = height_and_width(value) if name == "size" else (value,)
            if not all(smallest <= number <= largest for number in numbers):
                flag = name.replace("_", "-")
                raise UserError(
                    f"--cfg.{flag} is {value}: choose a number from {smallest} to {largest}"
                )
        if 0 < self.fps < 0.1:
            raise UserError(f"--cfg.fps is {self.fps}: choose 0, for every frame, or at least 0.1")
        if 0 < self.split_seconds * self.fps < self.min_frames:
            raise UserError(
                f"pieces of --cfg.split-seconds {self.split_seconds:g} have fewer frames than "
                f"--cfg.min-frames {self.min_frames}: choose more seconds"
            )


LIMITS = {
    "size": (8, 512),
    "fps": (0, 240),
    "cuts": (0, 1),
    "min_frames": (2, 10**6),
    "split_seconds": (0, 10**6),
    "action_choices": (2, 256),
    "workers": (1, MAX_WORKERS),
}
SAME_SHAPE = 1e-3
"""The largest relative difference between two ratios of width and height that counts as none."""
# Options of datasets that were imported before these options existed.
ADDED_OPTIONS = {"background": "black", "split_seconds": 0, "fields": "", "action_choices": 8}
# Fields that do not change how a video is stored.
RUN_FIELDS = ("src", "root", "workers")


def open_or_create(
    cfg: Config, root: Path, action_names: tuple[str, ...], prototypes: Prototypes | None = None
) -> Store:
    """The dataset at `root`, new or to be added to.

    Raises UserError if it was imported with other options.
    """
    options = {name: value for name, value in asdict(cfg).items() if name not in RUN_FIELDS}
    if not (root / data.MANIFEST).exists():
        count = len(action_names)
        height, width = height_and_width(cfg.size)
        meta: dict[str, Any] = {"import": options}
        size = 0
        if prototypes is not None:
            meta["prototypes"] = vectors.to_meta(prototypes)
            size = len(prototypes.mean)
        return data.create(root, meta, height, width, count, action_names, size)
    store = data.open_store(root)
    if "import" not in store.meta:
        raise UserError(f"{root} holds a dataset that was not imported: choose another --cfg.root")
    stored_options = ADDED_OPTIONS | store.meta["import"]
    for name, value in options.items():
        stored = stored_options.get(name)
        if stored != (list(value) if isinstance(value, tuple) else value):
            raise UserError(
                f"{root} was imported with {name} {stored}, not {value}: choose another --cfg.root"
            )
    size = 0 if prototypes is None else len(prototypes.mean)
    if action_names and store.num_actions and store.action_size != size:
        raise UserError(
            f"the actions of {root} are vectors of {store.action_size or 'no'} numbers, and the new "
            f"ones of {size or 'no'}: choose another --cfg.root"
        )
    if action_names and not store.num_actions:
        raise UserError(
            f"{root} was imported without actions, and now there are some: choose another "
            "--cfg.root"
        )
    return store


def select_new(
    store: Store, found: list[Source], threads: int = 1
) -> tuple[list[Source], dict[str, str]]:
    """The sources to import, with their digests, and the reasons why others are left out.

    Sources that were imported before are neither. Content is compared as a whole.
    """
    imported_bytes = {segment.info["file"]: segment.info["bytes"] for segment in store.segments}
    name_of = {segment.info["digest"]: segment.info["file"] for segment in store.segments}
    new: list[Source] = []
    skipped: dict[str, str] = {}
    candidates: list[Source] = []
    for source in found:
        if source.name not in imported_bytes:
            candidates.append(source)
        elif (problem := _change(source, imported_bytes[source.name])) is not None:
            skipped[source.name] = problem
    with ThreadPoolExecutor(threads) as pool:
        digests = list(pool.map(_digest, candidates))
    for source, digest in zip(candidates, digests, strict=True):
        if isinstance(digest, OSError):
            skipped[source.name] = _unopened(digest)
            continue
        original = name_of.setdefault(digest, source.name)
        if original != source.name:
            skipped[source.name] = f"it is the same as {original}"
        elif store.num_actions and not source.labels:
            skipped[source.name] = (
                "others have actions and it has none: add them, or leave all out (--cfg.no-actions)"
            )
        else:
            new.append(source._replace(digest=digest))
    return new, skipped


def _digest(source: Source) -> str | OSError:
    try:
        return sources.digest(source)
    except OSError as error:
        return error


def _change(source: Source, imported_bytes: int) -> str | None:
    """Why a source that was imported before is left out; None if it is unchanged."""
    try:
        if source.size() == imported_bytes:
            return None
    except OSError as error:
        return _unopened(error)
    return "it has changed since it was imported: import it to a new folder (--cfg.root)"


def _unopened(error: OSError) -> str:
    return f"it cannot be opened ({(error.strerror or str(error)).lower()})"


class FrameCount:
    """The frames imported so far, which are shown beside the number of videos."""

    def __init__(self, task: Task):
        self._task = task
        self._frames = 0
        self._began = time.monotonic()

    def watch(self, stream: Iterable[VideoPart | End]) -> Iterator[VideoPart | End]:
        """The parts of a video, counted as they pass."""
        for part in stream:
            yield part
            if isinstance(part, VideoPart):
                self._frames += len(part.frames)
                rate = self._frames / (time.monotonic() - self._began)
                self._task.update(note=f"{self._frames:,} frames, {rate:,.0f} frames/s")


def import_all(
    cfg: Config,
    store: Store,
    new: list[Source],
    tracks: dict[str, ActionTrack],
    skipped: dict[str, str],
) -> Store:
    """Import the new sources in order, and add to `skipped` why some are left out.

    The videos that are finished are kept, however this ends.
    """
    stop = threading.Event()
    results = pipeline.in_order(_streams(cfg, new, tracks, stop), cfg.workers)
    segments = list(store.segments)
    offset = data.next_offset(store)
    level = max((segment.level for segment in segments), default=-1) + 1
    complete = False
    commit_now_and_then = data.PeriodicCommit()
    with Progress() as progress:
        task = progress.task("importing, video", len(new))
        count = FrameCount(task)
        try:
            for source, stream in zip(new, results, strict=True):
                store, written, reason = pipeline.write(
                    store, source, level, count.watch(stream), offset, frame_format(cfg)
                )
                segments += written
                level = max([level, *(segment.level + 1 for segment in written)])
                if reason:
                    skipped[source.name] = reason
                offset += sum(data.padded_length(segment.length) for segment in written)
                task.advance()
                commit_now_and_then(store, segments)
            complete = True
        finally:
            stop.set()
            results.close()
            store = data.commit(store, sources.fill_splits(segments) if complete else segments)
            if not complete:
                kept = len(pipeline.segments_by_video(segments))
                print(f"Kept {kept} videos in {store.root}: the same command imports the rest.")
    return store


def _streams(
    cfg: Config, new: list[Source], tracks: dict[str, ActionTrack], stop: threading.Event
) -> Iterator[functools.partial]:
    """For each source a function that reads it."""
    for source in new:
        track = tracks.get(source.name)
        yield functools.partial(
            pipeline.read_parts, source, frame_format(cfg), track, stop, cfg.workers
        )


def frame_format(cfg: Config) -> FrameFormat:
    """How frames are stored."""
    return FrameFormat(
        size=cfg.size,
        fit=cfg.fit,
        fps=cfg.fps,
        cuts=cfg.cuts,
        min_frames=cfg.min_frames,
        background=cfg.background,
        split_seconds=cfg.split_seconds,
    )


# The report


def report(store: Store, skipped: dict[str, str]) -> None:
    """Print what the dataset holds and what was left out, and write the complete list to a file."""
    videos = [
        {
            "file": name,
            "split": ", ".join(dict.fromkeys(segment.split for segment in own)),
            "frames": sum(segment.length for segment in own),
            "episodes": sum(segment.info["episodes"] for segment in own),
            "note": own[0].info["note"],
        }
        for name, own in pipeline.segments_by_video(store.segments).items()
    ]
    content = {
        "meta": store.meta,
        "actions": store.action_names,
        "imported": videos,
        "skipped": [{"file": name, "why": reason} for name, reason in skipped.items()],
    }
    files.write_atomically(store.root / REPORT, json.dumps(content, indent=1).encode() + b"\n")
    size = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
    splits = ", ".join(f"{store.count(split):,} {split}" for split in data.SPLITS)
    scenes = sum(video["episodes"] for video in videos)
    actions = store.num_actions or "no"
    print(
        f"{store.root}: {len(videos)} videos, {scenes} scenes, {actions} actions; "
        f"frames: {splits}; {size / 2**20:,.0f} MiB"
    )
    _print_shapes(store)
    ended_early = [f"{video['file']}, {video['note']}" for video in videos if video["note"]]
    _print_list("ended early", ended_early, store.root)
    _print_list("left out", [f"{name}: {reason}" for name, reason in skipped.items()], store.root)


def _print_shapes(store: Store) -> None:
    """Say what happened to frames of another shape."""
    shape = store.width / store.height
    videos = pipeline.segments_by_video(store.segments).values()
    # Datasets of earlier versions do not say which shape the frames had.
    found = [own[0].info.get("aspect", shape) / shape for own in videos]
    others = [aspect for aspect in found if abs(aspect - 1) > SAME_SHAPE]
    if not others:
        return
    how = store.meta["import"]["fit"]
    lost = max(1 - min(aspect, 1 / aspect) for aspect in others)
    action, instead = {
        "crop": (f"the middle was kept and up to {lost:.0%} cut off", "pad or stretch keep all"),
        "pad": ("bars were added", "crop or stretch fill the frame"),
        "stretch": ("their shape was changed", "crop or pad keep it"),
    }[how]
    print(
        f"the frames of {len(others)} videos have another shape than {store.height}x{store.width}: "
        f"{action} (--cfg.fit {how}; {instead})"
    )


def report_actions(found: list[Source]) -> None:
    """Say why archives have no actions in the dataset."""
    notes = Counter(source.episode.note for source in found if source.episode)
    for note, count in notes.items():
        if note:
            print(f"of {count} episodes: {note}; a world with latent actions needs none")


def known_actions(
    cfg: Config, label_files: list[LabelFile]
) -> tuple[tuple[str, ...], Prototypes | None]:
    """The names of the actions, and their prototypes where they are vectors. Raises UserError where
    some are and some are not."""
    own = [file.vectors for file in label_files if file.vectors is not None]
    if not own:
        return action_labels.action_names(label_files), None
    if len(own) < len(label_files):
        raise UserError(
            "some actions are vectors and others are not: import them to datasets of their own, or "
            "without actions by --cfg.no-actions"
        )
    prototypes = vectors.make(own, cfg.action_choices)
    return tuple(map(str, range(len(prototypes.centres)))), prototypes


def to_track(file: LabelFile, store: Store) -> ActionTrack:
    """The actions of a file as the store has them."""
    if file.vectors is None:
        return action_labels.to_ids(file, store.action_names)
    return action_labels.nearest_prototypes(file, vectors.prototypes_of(store.meta))


def read_labels(source: Source) -> LabelFile:
    """The recorded actions of a source that has some."""
    if source.episode is not None:
        return archives.labels(source.episode)
    assert source.labels is not None
    return action_labels.read(source.labels)


def _print_list(title: str, lines: list[str], root: Path) -> None:
    for line in lines[:MAX_LINES]:
        print(f"{title}: {line}")
    if len(lines) > MAX_LINES:
        print(f"… and {len(lines) - MAX_LINES} more {title}: see {root / REPORT}")


def main(cfg: Config) -> None:
    """Make a dataset from your own videos: video files, animations, folders of images, npy episodes."""
    root = Path(cfg.root)
    files.check_folder("--cfg.root", root)
    found, left_out = sources.find(cfg.src, root, archives.parse_fields(cfg.fields))
    label_files = {
        source.name: read_labels(source) for source in found if source.labels and cfg.actions
    }
    with data.exclusive_writer(root, "imports to", "choose another --cfg.root"), terminable():
        names, prototypes = known_actions(cfg, [*label_files.values()])
        store = open_or_create(cfg, root, names, prototypes)
        new, skipped = select_new(store, found, cfg.workers)
        tracks = {
            source.name: to_track(label_files[source.name], store)
            for source in new
            if source.name in label_files
        }
        if new:
            store = import_all(cfg, store, new, tracks, skipped)
    report(store, skipped | left_out)
    if cfg.actions:
        report_actions(found)
    missing = sources.missing_splits(store.segments)
    if missing:
        raise UserError(f"{missing}; what was imported is kept in {root}")


if __name__ == "__main__":
    run(main)
