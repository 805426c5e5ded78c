"""What there is to import: video files, folders of images and npy episodes, each under a name that stays the same.

The name is the path relative to the folder asked for, with slashes. It decides the split and recognises what has been
imported, so it must not depend on the machine or on what else lies there.
"""

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from genie_fn import data
from genie_fn.data import Segment
from genie_fn.errors import UserError

IMAGES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".webp",
}  # a folder of these is a video; a .gif is one by itself
LABELS = (".jsonl", ".csv")
EDGE = 1 << 16  # bytes at either end of a file by which it is recognised


class Source(NamedTuple):
    """One video: its `kind` (video, images, npy), and the files that it consists of, in order."""

    name: str
    kind: str
    files: tuple[Path, ...]
    labels: Path | None = None  # the actions beside it

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)


def natural(text: str) -> list:
    """A sort key that puts frame_2 before frame_10."""
    return [
        (0, int(part), part) if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d{1,18})", text)
    ]


def find(src: str, apart: Path) -> list[Source]:
    """All sources in a folder, in a file, or under a glob, in the natural order of their names.

    Hidden files and the folder `apart` (the dataset's) are left out. Raises UserError where there is nothing.
    """
    base, paths = _expand(src)
    apart = apart.resolve()
    files = sorted(
        {path for path in paths if _counts(path, base, apart)},
        key=lambda path: natural(path.as_posix()),
    )
    found, folders = [], {}
    for path in files:
        suffix = path.suffix.lower()
        if suffix in IMAGES:
            folders.setdefault(path.parent, []).append(path)
        elif suffix not in LABELS:
            name = _unicode(path.relative_to(base).as_posix())
            found.append(
                Source(
                    name,
                    "npy" if suffix == ".npy" else "video",
                    (path,),
                    _labels(path.with_suffix("")),
                )
            )
    for folder, images in folders.items():
        name = _unicode(
            folder.resolve().name if folder == base else folder.relative_to(base).as_posix()
        )
        found.append(Source(name, "images", tuple(images), _labels(folder)))
    if not found:
        raise UserError(
            f"There are no videos in {src}: name a folder of videos, of images or of npy files."
        )
    return sorted(found, key=lambda source: natural(source.name))


def _expand(src: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and all files; of a glob it is the part before the first wildcard."""
    path = Path(src)
    if path.is_dir():
        return path, _inside(path)
    if path.is_file():
        return path.parent, [path]
    if not glob.has_magic(src):
        raise UserError(f"There is no {src}: check the name of the folder.")
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    matches = [Path(match) for match in glob.glob(src, recursive=True)]
    return base, [
        file for match in matches for file in (_inside(match) if match.is_dir() else [match])
    ]


def _inside(folder: Path) -> list[Path]:
    return [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]


def _counts(path: Path, base: Path, apart: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(base).parts)
    return not hidden and path.is_file() and apart not in path.resolve().parents


def _unicode(name: str) -> str:
    """A name with a sign in place of what is not Unicode, so that it can be printed and stored."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _labels(stem: Path) -> Path | None:
    """The file of actions beside clip.mp4 or the folder clip: clip.jsonl or clip.csv."""
    found = [path for suffix in LABELS if (path := stem.with_name(stem.name + suffix)).is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} are both beside {stem.name}: keep one of them.")
    return found[0] if found else None


def digest(source: Source) -> str:
    """What tells a source's content from another's under whatever name: sizes, and both ends of the outer files."""
    told = hashlib.sha256(repr([path.stat().st_size for path in source.files]).encode())
    for path in {source.files[0], source.files[-1]}:
        with open(path, "rb") as file:
            told.update(file.read(EDGE))
            file.seek(max(0, path.stat().st_size - EDGE))
            told.update(file.read(EDGE))
    return told.hexdigest()[:32]


def given_split(name: str) -> str:
    """The split that the topmost folder of a name says; empty where it says none."""
    top, _, rest = name.partition("/")
    return top if rest and top in data.SPLITS else ""


def split_of(name: str) -> str:
    """The split of a source: what its folder says, or by a hash of its name, so that files added later move none."""
    return given_split(name) or data.split_of(int(hashlib.sha256(name.encode()).hexdigest(), 16))


def settle(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Give every split at least one video, where the hash left one empty and nothing was said by folders.

    The newest videos move, from the fullest split. With training and validation data a world may have been trained on
    what was there before, and then only `test` can be empty, and the newest video is new.
    """
    segments = tuple(segments)
    splits = {segment.level: segment.split for segment in segments}
    if any(given_split(segment.info["file"]) for segment in segments):
        return segments
    for split in data.SPLITS:
        held = {name: [level for level in splits if splits[level] == name] for name in data.SPLITS}
        fullest = max(held.values(), key=len)
        if not held[split] and len(fullest) > 1:
            splits[max(fullest)] = split
    return tuple(segment._replace(split=splits[segment.level]) for segment in segments)


def lacking(segments: Iterable[Segment]) -> str:
    """A sentence on the splits that have no video, and how many are needed; empty where none is missing."""
    segments = tuple(segments)
    missing = [
        split for split in data.SPLITS if split not in {segment.split for segment in segments}
    ]
    if not missing:
        return ""
    count, them = len(missing), " and ".join(missing)
    need = f"{count} more video{'s are' if count > 1 else ' is'} needed"
    if any(given_split(segment.info["file"]) for segment in segments):
        return f"There is no video for {them}: {need}, in folders of these names."
    return f"There is no video left for {them}: {need} (a long one can be cut)."
