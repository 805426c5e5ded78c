"""Graphs of worlds that this machine has exported before.

Exporting takes a minute, so graphs are kept in the user's cache folder, under a name that depends on
the models, on how they are sampled, on the processor, and on the code and the packages.
They are exported by another process, so that a world can be played meanwhile.
"""

import atexit
import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch

import genie_fn
from genie_fn import tree
from genie_fn.export import graphs
from genie_fn.maskgit import SampleConfig
from genie_fn.world import Programs, Stage, World

KEPT = 16
"""Sets of graphs that are kept."""
ABANDONED = 3600.0
"""Seconds after which a folder that is still incomplete belongs to a process that was killed."""
COMMAND = ("-m", "genie_fn.export.prepared")
"""The arguments of Python that run `main`."""


def cache(what: str = "graphs") -> Path:
    """The folder of what is kept on this machine: genie_fn/`what` in XDG_CACHE_HOME, by default in
    ~/.cache.

    Where nothing can be written there, it is one for this process alone.
    """
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(root).expanduser() / "genie_fn" / what
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # a user without a home, too
        own = tempfile.mkdtemp(prefix=f"genie_fn-{what}-")
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return Path(own)


def programs(world: World, sample: SampleConfig, threads: int) -> Programs:
    """The programs of a world's graphs, which are exported first if this machine has not done so.

    Graphs that cannot be read are exported once more.
    """
    place = cache() / name_of(world, sample)
    try:
        kept = graphs.programs(place, threads)
    except Exception:  # missing or damaged files, of which ONNX Runtime raises several kinds
        shutil.rmtree(place, ignore_errors=True)
        _export(world, sample, place)
        return graphs.programs(place, threads)
    with suppress(OSError):
        os.utime(place)  # used now
    return kept


def name_of(world: World, sample: SampleConfig) -> str:
    """A name that differs where the graphs do."""
    digest = hashlib.sha256()
    fixed = replace(sample, steps=1, temperature=1.0)
    versions = [metadata.version("torch"), *map(_version, graphs.PACKAGES)]
    processor = (platform.machine(), torch.backends.cpu.get_cpu_capability())
    digest.update(
        repr((versions, processor, fixed, world.tokenizer.cfg, world.dynamics.cfg)).encode()
    )
    for path in sorted(Path(genie_fn.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for stage in (world.tokenizer, world.dynamics):
        for path, leaf in tree.paths(stage.params).items():
            digest.update(path.encode())
            digest.update(leaf.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _version(package: str) -> str:
    """The version of a package, which several distributions may contain (onnxruntime-gpu)."""
    return str(importlib.import_module(package).__version__)


def _export(world: World, sample: SampleConfig, place: Path) -> None:
    """Export in another process, to a folder that becomes `place` when it is complete."""
    _remove_old(place.parent)
    partial = Path(tempfile.mkdtemp(dir=place.parent, prefix="."))
    try:
        models = partial / "models.pt"
        stages = {"tokenizer": world.tokenizer, "dynamics": world.dynamics}
        content = {name: (stage.cfg, stage.params) for name, stage in stages.items()}
        torch.save(content | {"sample": sample}, models)
        _run(models)
        models.unlink()
        with suppress(OSError):  # another process was faster
            os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(models: Path) -> None:
    """Export in a process that has one thread, and that ends with this one."""
    package = Path(genie_fn.__file__).parents[1]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, *COMMAND, str(models)],
        env=environment,
        stdin=subprocess.PIPE,  # closed when this process ends, however that happens
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the server, which ends it
    )
    atexit.register(process.kill)
    try:
        assert process.stderr is not None, "it is a pipe"
        errors = process.stderr.read()  # `communicate` would close its input
        process.wait()
    finally:
        process.kill()
        atexit.unregister(process.kill)
    if process.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"exporting graphs failed: {' '.join(last) or process.returncode}")


def _remove_old(root: Path) -> None:
    """Remove the graphs that were used longest ago, and what killed processes have left."""
    used: dict[Path, float] = {}
    for place in root.iterdir():
        with suppress(OSError):  # removed by another process meanwhile
            used[place] = place.stat().st_mtime
    partial = {place for place in used if place.name.startswith(".")}
    complete = sorted(used.keys() - partial, key=used.__getitem__, reverse=True)
    abandoned = {place for place in partial if used[place] < time.time() - ABANDONED}
    for place in [*complete[KEPT - 1 :], *abandoned]:
        shutil.rmtree(place, ignore_errors=True)


def _end_with_parent() -> None:
    """End this process, and leave nothing, when the one that started it has ended."""
    os.read(sys.stdin.fileno(), 1)  # the buffered reader would hold a lock when Python ends
    shutil.rmtree(Path(sys.argv[1]).parent, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Export the models in a file that `_export` has written, into its folder."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)
    models = Path(sys.argv[1])
    # Written by `_export` just now: a file of this user, not of somebody else.
    read = torch.load(models, weights_only=False)
    world = World(Stage(*read["tokenizer"]), Stage(*read["dynamics"]), None)
    for name, graph in graphs.graphs_of(world, read["sample"]).items():
        written = models.parent / f"{name}.raw"
        graphs.write(graph, written)
        graphs.optimise(written, models.parent / f"{name}.onnx")
        written.unlink()


if __name__ == "__main__":
    main()
