"""Play actions in this world with NumPy and ONNX Runtime; the frames are written to the folder `frames`.

pip install numpy onnxruntime pillow
python play.py 0 0 3 3
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

here = Path(__file__).parent
world = json.loads((here / "world.json").read_text(encoding="utf-8"))
graphs = {
    name: onnxruntime.InferenceSession(str(here / f"{name}.onnx"))
    for name in ("start", "unmask", "finish")
}
rng = np.random.default_rng(0)


def stop(sentence: str) -> None:
    """End because of what was asked for."""
    print(sentence, file=sys.stderr)
    sys.exit(2)


def run(name: str, **inputs: Any) -> dict[str, Any]:
    """The outputs of a graph, by name."""
    graph = graphs[name]
    return dict(zip([x.name for x in graph.get_outputs()], graph.run(None, inputs), strict=True))


def state_of(outputs: dict[str, Any]) -> dict[str, Any]:
    """What a session keeps of the past: the outputs next/X are the inputs X of the next frame."""
    return {x.removeprefix("next/"): y for x, y in outputs.items() if x.startswith("next/")}


known = [str(action) for action in range(world["actions"])]
if len(sys.argv) < 2 or not set(sys.argv[1:]) <= set(known):
    stop(
        f"name the actions to play, numbers from 0 to {known[-1]}, as in: python play.py 0 0 {known[-1]}"
    )
if not world["starts"]:
    stop("this world has no start frames: give the graph `start` an image of your own")
(here / "frames").mkdir(exist_ok=True)
state = state_of(run("start", frame=np.asarray(Image.open(here / world["starts"][0]))))
for t, action in enumerate(map(int, sys.argv[1:]), 1):
    given = {"action": np.array([action], np.int64)}
    memory = {x: y for x, y in state.items() if x.startswith("memory/")}
    ids = np.full((1, world["tokens"]), world["codes"], np.int64)  # all hidden
    for k in range(world["steps"]):
        step = {
            "step/k": np.array(k, np.int64),
            "step/steps": np.array(world["steps"], np.int64),
            "step/temperature": np.array(world["temperature"], np.float32),
            "noise/threshold": rng.random((*ids.shape, world["factors"]), np.float32),
            "noise/score": rng.gumbel(size=ids.shape).astype(np.float32),
        }
        ids = run("unmask", ids=ids, **given, **memory, **step)["next/ids"]
    outputs = run("finish", ids=ids, **given, **state)
    state = state_of(outputs)
    Image.fromarray(outputs["pixels"]).save(here / "frames" / f"{t:03d}.png")
