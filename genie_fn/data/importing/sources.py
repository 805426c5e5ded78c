"""Finding what to import: videos, animations, folders of images, npy episodes, and the episodes of
HDF5, parquet and LeRobot data; with stable names.

The name of a source is its path relative to the folder asked for, with slashes. It decides the
split and identifies what was imported before, so it does not depend on the machine or on what else
is in the folder.
"""

import functools
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from genie_fn import data
from genie_fn.data import Segment, images
from genie_fn.data.importing import archives, containers
from genie_fn.data.importing.archives import ANYWHERE, Episode, Fields
from genie_fn.errors import UserError

# Endings of pictures, by which a damaged file is known as one. A damaged .gif is a video.
IMAGES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
LABELS = (".jsonl", ".csv")

Kind = Literal["video", "animation", "images", "npy", "archive"]


class Source(NamedTuple):
    """One video and the files that it consists of, in order."""

    name: str
    kind: Kind
    files: tuple[Path, ...]
    labels: Path | None = None
    """The file of recorded actions: the one beside it, or that of its archive."""
    digest: str = ""
    """See the function `digest`; empty until it is known."""
    episode: Episode | None = None
    """Which part of an archive it is, if it is one."""

    def size(self) -> int:
        """The bytes of all files."""
        return sum(path.stat().st_size for path in self.files)


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key that puts frame_2 before frame_10."""
    parts = re.split(r"(\d{1,18})", text)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


class Found(NamedTuple):
    """The result of `find`."""

    sources: list[Source]
    left_out: dict[str, str]
    """The reasons why files are no part of any source, by their names."""


def find(src: str, exclude: Path, fields: Fields = ANYWHERE) -> Found:
    """All sources in a folder, in a file, or under a glob, in the natural order of their names.

    What a file is is decided by its content: see `kind_of`. The pictures of a folder are one
    source, and so is every episode of an archive, in which `fields` name what is read. Hidden files
    and the folder `exclude` (the dataset's) are left out. Raises UserError if there is nothing to
    import.
    """
    base, paths = _expand(src)
    exclude = exclude.resolve()
    files = {path for path in paths if _is_importable(path, base, exclude)}
    found = _archives(files)
    sources, left_out = _read_archives(found, base, fields)
    files -= {file for file in files if not {file, *file.parents}.isdisjoint(found)}
    pictures: dict[Path, list[Path]] = {}
    for path in sorted(files, key=lambda path: natural(path.as_posix())):
        if path.suffix.lower() in LABELS:
            continue
        kind = kind_of(path)
        if kind == "images":
            pictures.setdefault(path.parent, []).append(path)
        else:
            name = _name(path, base)
            sources.append(Source(name, kind, (path,), _find_labels(path.with_suffix(""))))
    for folder, members in pictures.items():
        videos = [source.files[0] for source in sources if source.files[0].parent == folder]
        thumbnails = _thumbnails(members, videos)
        left_out |= {_name(path, base): reason for path, reason in thumbnails.items()}
        frames = tuple(path for path in members if path not in thumbnails)
        if frames:
            name = _printable(folder.resolve().name) if folder == base else _name(folder, base)
            sources.append(Source(name, "images", frames, _find_labels(folder)))
    if not sources and left_out:
        raise UserError(next(iter(left_out.values())))
    if not sources:
        raise UserError(
            f"there are no videos in {src}: name a folder of videos, of images or of npy files, or "
            "HDF5, parquet or LeRobot data"
        )
    return Found(sorted(sources, key=lambda source: natural(source.name)), left_out)


def _archives(files: set[Path]) -> list[Path]:
    """The archives among files: folders of LeRobot data, and files outside of them."""
    depth = len(archives.INFO.parts)
    folders = [
        path.parents[depth - 1]
        for path in sorted(files)
        if path.parts[-depth:] == archives.INFO.parts
    ]
    alone = [path for path in sorted(files) if not set(folders) & set(path.parents)]
    return [*folders, *filter(archives.is_archive, alone)]


def _read_archives(found: list[Path], base: Path, fields: Fields) -> Found:
    """The episodes of archives. Those that cannot be read are left out."""
    result = Found([], {})
    for path in found:
        name = "" if path == base else _name(path, base)
        try:
            result.sources.extend(_episodes(name, path, fields))
        except UserError as error:
            result.left_out[name or path.name] = str(error)
    return result


def _episodes(name: str, path: Path, fields: Fields) -> Iterator[Source]:
    """The sources of an archive."""
    for episode in archives.episodes(path, fields):
        kind: Kind = "video" if path.is_dir() else "archive"
        own_name = _printable("/".join(filter(None, (name, episode.name))))
        labels = episode.actions.file if episode.actions else None
        yield Source(own_name, kind, episode.files, labels, episode=episode)


def kind_of(path: Path) -> Kind:
    """What a file is, by its content: a picture ("images"), several of them, or a video.

    The ending decides for npy files, and for a file that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return "npy"
    count = images.count_pictures(path)
    if count > 1:
        return "animation"
    # A picture may begin a stream of them, such as .mjpeg.
    if count and suffix in IMAGES:
        return "images"
    is_picture = (count or suffix in IMAGES) and not containers.is_video(path, frames=2)
    return "images" if is_picture else "video"


def _thumbnails(pictures: list[Path], videos: list[Path]) -> dict[Path, str]:
    """The pictures with the name of a video beside them, and the reasons why they are left out.

    The name may be followed by its ending or by a word, as in clip.mp4.jpg and clip-poster.png.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in videos:
        by_stem.setdefault(path.stem.casefold(), []).append(path)
    is_video = functools.cache(containers.is_video)
    found: dict[Path, str] = {}
    for picture in pictures:
        name = picture.stem.casefold()
        word = re.search(r"[-_. ][^-_. \d]*$", name)
        for stem in {name, name[: word.start()] if word else name}:
            for video in by_stem.get(stem, ()):
                if picture not in found and is_video(video):
                    found[picture] = f"it is taken as a thumbnail of {video.name}, by its name"
    return found


def _expand(src: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and all files.

    For a glob this is the folder before the first wildcard.
    """
    path = Path(src)
    if path.is_dir():
        return path, _files_inside(path)
    if path.is_file():
        return path.parent, [path]
    if not glob.has_magic(src):
        raise UserError(f"there is no {src}: check the name of the folder")
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    files: list[Path] = []
    for match in map(Path, glob.glob(src, recursive=True)):
        files += _files_inside(match) if match.is_dir() else [match]
    return base, files


def _files_inside(folder: Path) -> list[Path]:
    return [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]


def _is_importable(path: Path, base: Path, exclude: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(base).parts)
    return not hidden and path.is_file() and exclude not in path.resolve().parents


def _name(path: Path, base: Path) -> str:
    return _printable(path.relative_to(base).as_posix())


def _printable(name: str) -> str:
    """A name with a replacement character for bytes that are not Unicode."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _find_labels(stem: Path) -> Path | None:
    """The file of actions beside clip.mp4 or the folder clip: clip.jsonl or clip.csv."""
    candidates = [stem.with_name(stem.name + suffix) for suffix in LABELS]
    existing = [path for path in candidates if path.is_file()]
    if len(existing) > 1:
        raise UserError(
            f"{existing[0]} and {existing[1]} are both beside {stem.name}: keep one of them"
        )
    return existing[0] if existing else None


def digest(source: Source) -> str:
    """A hash that identifies the content of a source under any name: all bytes of all files."""
    content = hashlib.sha256()
    for path in source.files:
        content.update(_file_digest(path, path.stat().st_mtime_ns))
    if source.episode is not None:
        part = (source.episode.frames, source.episode.rows, source.episode.seconds)
        content.update(repr(part).encode())
    return f"sha256:{content.hexdigest()}"


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, _modified: int) -> bytes:
    """The hash of a file, which may hold many episodes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# Splits


def folder_split(name: str) -> str:
    """The split named by the topmost folder of a source; empty if it names none."""
    top, _, rest = name.partition("/")
    return top if rest and top in data.SPLITS else ""


def split_of(name: str, piece: int = 0) -> str:
    """The split of a piece of a source: named by its folder, or else by a hash of name and piece.

    Files that are added later therefore move none.
    """
    key = f"{name}#{piece}" if piece else name
    number = int(hashlib.sha256(key.encode()).hexdigest(), 16)
    return folder_split(name) or data.split_of(number)


def fill_splits(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Give every split at least one video, unless folders name the splits.

    Where the hash left a split empty, the newest videos of the fullest split move. A world may have
    been trained on the videos of an earlier import. These have training and validation data, so
    only `test` can be empty, and the newest video is one that the world has not seen.
    """
    segments = tuple(segments)
    splits = {segment.level: segment.split for segment in segments}
    if any(folder_split(segment.info["file"]) for segment in segments):
        return segments
    for split in data.SPLITS:
        levels = {
            name: [level for level in splits if splits[level] == name] for name in data.SPLITS
        }
        fullest = max(levels.values(), key=len)
        if not levels[split] and len(fullest) > 1:
            splits[max(fullest)] = split
    return tuple(segment._replace(split=splits[segment.level]) for segment in segments)


def missing_splits(segments: Iterable[Segment]) -> str:
    """A sentence on the splits without a video and what they need; empty if none is missing."""
    segments = tuple(segments)
    present = {segment.split for segment in segments}
    missing = [split for split in data.SPLITS if split not in present]
    if not missing:
        return ""
    listed = " and ".join(missing)
    needed = "1 more video is needed"
    if len(missing) > 1:
        needed = f"{len(missing)} more videos are needed"
    if any(folder_split(segment.info["file"]) for segment in segments):
        return f"there is no video for {listed}: {needed}, in folders of these names"
    return (
        f"there is no video left for {listed}: {needed}, or import to a new folder with "
        "--cfg.split-seconds, which divides long ones"
    )
