"""A world as a folder of ONNX graphs for engines elsewhere: ONNX Runtime in any language, or others.

Three graphs play it: `start` begins a session at an image, `unmask` predicts tokens of the next
frame and reveals some of them, `finish` decodes the frame and adds it to what the session keeps of
the past. The graphs share one file of weights. Random numbers are inputs.
"""

import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genie_fn import quantize, tokenizer
from genie_fn import world as worlds
from genie_fn.dynamics import Memory
from genie_fn.errors import UserError
from genie_fn.export import graphs
from genie_fn.export.graphs import Graph
from genie_fn.maskgit import SampleConfig
from genie_fn.runtime import progress
from genie_fn.tree import Tree
from genie_fn.world import State, World

VERSION = 1
"""Of the graphs' inputs and outputs, and of world.json."""
DESCRIPTION = "world.json"
WEIGHTS = "weights.bin"
SHARED = 1024
"""Bytes from which a constant is kept in the file of weights."""
ALIGNMENT = 64
"""Constants begin at multiples of this many bytes, as vector instructions want."""
FORMAT = "genie_fn ONNX graphs"
"""What world.json names as its format."""
CONTENT = (
    "README.md",
    "play.py",
    "frames",
    "starts",
    "start.onnx",
    "unmask.onnx",
    "finish.onnx",
    WEIGHTS,
    DESCRIPTION,
)
"""The names in the folder."""
FILES = Path(__file__).parent / "folder_files"


def graphs_of(world: World, sample: SampleConfig) -> dict[str, Graph]:
    """The graphs of a world, for one session.

    `sample` says the guidance, the order and the noise; steps and temperature are inputs.
    """
    height, width = world.tokenizer.cfg.height, world.tokenizer.cfg.width
    state = worlds.empty_state(world.tokenizer.cfg, world.dynamics.cfg, 1, "cpu")
    kept = {"memory": state.dynamics, "decoder": state.decoder}
    ids = torch.zeros((1, world.dynamics.cfg.tokens), dtype=torch.int64)

    def start(frame: Tensor) -> dict[str, Tree]:
        cfg, params, backend = world.tokenizer
        codes, own_ids = tokenizer.tokenize(params, frame[None, None], cfg, backend=backend)
        no_action = own_ids.new_zeros((1, 0))
        new, frames = worlds.start(world, codes, own_ids, no_action)
        return {"pixels": frames[0, 0], "ids": own_ids[:, 0]} | _kept(new)

    def finish(ids: Tensor, action: Tensor, memory: Memory, decoder: Tree) -> dict[str, Tree]:
        cfg, params, _ = world.tokenizer
        codes = quantize.lookup(params["quantizer"], ids[:, None], cfg.quantizer)
        before = State(memory, decoder)
        new, frames = worlds.observe(world, before, codes, ids[:, None], action[:, None])
        return {"pixels": frames[0, 0]} | _kept(new)

    predict = graphs.unmask_graph(world, state, sample)

    def unmask(**arguments: Tree) -> dict[str, Tree]:
        new_ids, probability = predict.function(**arguments)
        return {"next": {"ids": new_ids}, "probability": probability}

    frame = torch.zeros((height, width, 3), dtype=torch.uint8)
    return {
        "start": Graph(start, {"frame": frame}),
        "unmask": Graph(unmask, predict.example),
        "finish": Graph(finish, {"ids": ids, "action": torch.tensor([0]), **kept}),
    }


def _kept(state: State) -> dict[str, Tree]:
    """What a session keeps of the past, as outputs."""
    return {"next": {"memory": state.dynamics, "decoder": state.decoder}}


def describe(world: World, sample: SampleConfig) -> dict[str, Any]:
    """What a program has to know to play a world's graphs."""
    sizes = world.tokenizer.cfg
    cfg = world.dynamics.cfg
    return {
        "format": FORMAT,
        "version": VERSION,
        "height": sizes.height,
        "width": sizes.width,
        "tokens": cfg.tokens,
        "columns": cfg.columns,
        "codes": cfg.codes,
        "factors": len(cfg.sizes),
        "actions": cfg.actions,
        "steps": sample.steps,
        "temperature": sample.temperature,
        "guidance": sample.guidance,
    }


def write(
    folder: Path,
    world: World,
    sample: SampleConfig,
    start_frames: np.ndarray,
    about: dict[str, Any],
) -> int:
    """Write a world with its start frames (M, H, W, 3) to a folder; returns its size in bytes.

    `about` is added to world.json. A folder that was written before is replaced once the new one is
    complete. Raises UserError where the packages are missing, or `folder` holds something else.
    """
    check(folder)
    world = worlds.in_float32(world)
    sample = worlds.play_sample(sample, world.dynamics.cfg)
    with replacing(folder) as partial:
        models = {}
        for name, graph in progress.track(graphs_of(world, sample).items(), "exporting graphs"):
            graphs.write(graph, partial / f"{name}.onnx", simplified=True)
            models[name] = partial / f"{name}.onnx"
        _share_weights(list(models.values()), partial / WEIGHTS)
        starts = []
        for i, frame in enumerate(start_frames):
            path = partial / "starts" / f"{i:02d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(frame).save(path)
            starts.append(str(path.relative_to(partial)))
        content = describe(world, sample) | {"starts": starts} | about
        (partial / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_readme(models), encoding="utf-8")
        shutil.copy(FILES / "play.py", partial / "play.py")
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    return size


def check_packages() -> None:
    """Raise UserError where packages for exporting graphs are missing."""
    absent = graphs.missing()
    if absent:
        raise UserError(
            f"exporting ONNX graphs needs some packages: run `pip install {' '.join(absent)}`"
        )


def check(folder: Path, format: str = FORMAT, names: Collection[str] = CONTENT) -> None:
    """Raise UserError where a world cannot be exported to a folder.

    It may hold an earlier export: its world.json names the `format`, and it has files of these `names`
    alone. That is then replaced.
    """
    check_packages()
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = present - {*names}
    if present and (others or not _is_export(folder / DESCRIPTION, format)):
        raise UserError(
            f"{folder} holds something else than an exported world ({min(others or present)}): "
            "choose another --cfg.output"
        )


def _is_export(path: Path, format: str) -> bool:
    """Whether a world.json was written by an export of a format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == format


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder, which replaces `folder` when the context ends without an error."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    partial = temporary / "new"
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.replace(temporary / "old")
        partial.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _share_weights(paths: list[Path], weights: Path) -> None:
    """Move the large constants of ONNX files to one file beside them, equal ones once."""
    onnx = importlib.import_module("onnx")
    places: dict[bytes, int] = {}
    with weights.open("wb") as file:
        for path in paths:
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                content = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(content) < SHARED:
                    continue
                digest = hashlib.sha256(content).digest()
                if digest not in places:
                    file.write(bytes(-file.tell() % ALIGNMENT))
                    places[digest] = file.tell()
                    file.write(content)
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                del tensor.external_data[:]
                where = {
                    "location": weights.name,
                    "offset": places[digest],
                    "length": len(content),
                }
                for key, value in where.items():
                    tensor.external_data.add(key=key, value=str(value))
            path.write_bytes(model.SerializeToString())


def _readme(models: dict[str, Path]) -> str:
    """The folder's README.md, with the inputs and outputs of every graph."""
    text = [(FILES / "README.md").read_text(encoding="utf-8")]
    for name, path in models.items():
        onnx = importlib.import_module("onnx")
        graph = onnx.load(path, load_external_data=False).graph
        text.append(f"## {name}.onnx\n")
        for title, entries in (("Input", graph.input), ("Output", graph.output)):
            text.append(f"| {title} | Type | Shape |\n|---|---|---|")
            text.extend(_row(onnx, entry) for entry in entries)
            text.append("")
    return "\n".join(text)


def _row(onnx: Any, entry: Any) -> str:
    """A row of a table of inputs or outputs."""
    kind = entry.type.tensor_type
    shape = " × ".join(str(axis.dim_value) for axis in kind.shape.dim) or "scalar"
    dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    return f"| `{entry.name}` | {dtype} | {shape} |"
