"""Worlds to and from the Hugging Face Hub, with the package huggingface_hub.

`hf://owner/name` is the repository's world file, or the dynamics run that it holds;
`hf://owner/name/worlds/a.safetensors` is one file of several, and `hf://owner/name@v2` a branch, a tag
or a commit. What is downloaded stays in the package's cache.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import NamedTuple

from genie_fn.errors import UserError

PREFIX = "hf://"
PATTERN = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/([^@]+))?")
ENDING = ".safetensors"
RUN = "dynamics"
"""The folder of a dynamics run in a repository; those of the earlier stages are beside it."""
REASON = 200
"""Characters of an error of the package that are repeated."""


class Address(NamedTuple):
    """The parts of hf://owner/name@revision/file."""

    repository: str
    revision: str | None
    file: str


def is_address(path: str | Path) -> bool:
    """Whether a path names something on the Hub."""
    return str(path).startswith(PREFIX)


def name_of(address: str) -> str:
    """The name of a world on the Hub: that of its file or of its repository."""
    parts = parse(address)
    return PurePosixPath(parts.file).stem or parts.repository.partition("/")[2]


def parse(address: str) -> Address:
    """The parts of an address. Raises UserError if it is none."""
    found = PATTERN.fullmatch(address)
    if found is None:
        raise UserError(
            f"{address} is no address on the Hub: write hf://owner/name, hf://owner/name@revision or "
            "hf://owner/name/file.safetensors"
        )
    repository, revision, file = found.groups()
    return Address(repository, revision, file or "")


def fetch(path: str) -> str:
    """The local file or run that an address stands for, downloaded; other paths stay as they are."""
    if not is_address(path):
        return path
    address = parse(path)
    package = _package(path)
    try:
        file = address.file
        if not file:
            api = package.HfApi()
            names = api.list_repo_files(address.repository, revision=address.revision)
            file = _world_in(names, path)
        if file.endswith(ENDING):
            return package.hf_hub_download(address.repository, file, revision=address.revision)
        folder = package.snapshot_download(address.repository, revision=address.revision)
    except UserError:
        raise
    except Exception as error:  # the package raises many kinds
        raise UserError(
            f"{path} cannot be downloaded ({_reason(error)}): check the name and the network, and for "
            "a private repository log in by `hf auth login`"
        ) from error
    return str(Path(folder) / file)


def _world_in(names: list[str], path: str) -> str:
    """The world file or the dynamics run among the files of a repository."""
    worlds = [name for name in names if name.endswith(ENDING)]
    if len(worlds) == 1:
        return worlds[0]
    if not worlds and any(PurePosixPath(name).parts[:1] == (RUN,) for name in names):
        return RUN
    if not worlds:
        raise UserError(f"{path} holds neither a world file nor a run: check its files on the Hub")
    raise UserError(f"{path} holds several worlds: name one, as in {path}/{worlds[0]}")


def upload(address: str, world_file: Path, card: Mapping[str, str], licence: str = "mit") -> str:
    """Upload a world file, to a repository that is made if there is none, with a model card if it has
    none.

    Returns the page's address. Raises UserError if that fails.
    """
    target = parse(address)
    package = _package(address)
    name = target.file or world_file.name
    readme = model_card(target.repository, name, card, licence)
    try:
        api = package.HfApi()
        api.create_repo(target.repository, exist_ok=True)
        operations = [package.CommitOperationAdd(name, world_file)]
        if not api.file_exists(target.repository, "README.md", revision=target.revision):
            operations.append(package.CommitOperationAdd("README.md", readme.encode()))
        api.create_commit(
            target.repository,
            operations,
            commit_message=f"Add {name}",
            revision=target.revision,
        )
    except Exception as error:  # the package raises many kinds
        raise UserError(
            f"{world_file} cannot be uploaded to {address} ({_reason(error)}): log in by `hf auth "
            "login`, and check that the repository is yours; the file is kept"
        ) from error
    return f"https://huggingface.co/{target.repository}"


def model_card(repository: str, file: str, card: Mapping[str, str], licence: str) -> str:
    """The README.md of a repository: what the world is, how good, and how to play it."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in card.items())
    return f"""---
license: {licence}
library_name: genie_fn
tags:
- world-model
- genie
- video
---

# {repository.partition("/")[2]}

A world model that can be played, trained with genie_fn.

```bash
pip install genie_fn huggingface_hub
genie-fn play --cfg.world hf://{repository}/{file}
```

| | |
|---|---|
{rows}
"""


def check_upload(address: str) -> None:
    """Raise UserError, before the work, unless a world file can have this address."""
    target = parse(address)
    if target.file and not target.file.endswith(ENDING):
        raise UserError(
            f"--cfg.upload {address} should end in {ENDING}, or name the repository alone"
        )
    _package(address)


def _package(address: str) -> ModuleType:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            f"{address} needs huggingface_hub, which cannot be imported ({error}): run "
            "`pip install 'genie_fn[hub]'`"
        ) from error


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].strip()[:REASON]
