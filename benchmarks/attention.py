"""The suite `attention`: QK-norm, rotary positions and attention over each axis, with gradients."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from benchmarks import baselines, counts, timing
from benchmarks.timing import Work
from genie_fn import layers, random, tree
from genie_fn.kernels import attention
from genie_fn.runtime import backend, compilation
from genie_fn.runtime.console import console

BASELINE = "SDPA with transposes"
SHAPES = {"cpu": (4, 16, 64, 4, 32), "cuda": (48, 16, 256, 8, 64)}


class Inputs(NamedTuple):
    """Queries, keys and values (B, T, N, G, E), and the scales of their norms (E,)."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_scale: Tensor
    k_scale: Tensor


def attention_suite(cfg, device: torch.device) -> list[dict]:
    """Every implementation over both axes; the baseline transposes and copies."""
    shape = cfg.shape or SHAPES[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    mode = backend.pick_compile(cfg.compile, device)
    inputs = _inputs(shape, dtype, device)
    ceiling = timing.measure_ceiling(device, dtype)
    rows = []
    for axis in ("time", "space"):
        functions = _implementations(axis, shape[1], device)
        steps = {name: _with_gradients(f, inputs, mode) for name, f in functions.items()}
        steps = _working(steps, axis, tolerance=2e-2 if device.type == "cuda" else 1e-4)
        work = _work(axis, shape, dtype)
        case = f"{axis}, {' x '.join(map(str, shape))}, {dtype}".replace("torch.", "")
        measured = timing.compare(case, steps, cfg.repeats, 0, work, ceiling)
        rows += timing.with_peaks(measured, steps, device)
    for row in rows:
        del row["first"]  # `_working` called them before
    return rows


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Views of one product, as a model's projection gives them."""
    batch, frames, places, heads, dim = shape
    keys = random.split(random.key(0, device), 3)
    packed = random.normal(keys[0], (batch, frames, places, 3, heads, dim)).to(dtype)
    q, k, v = packed.unbind(3)
    q_scale, k_scale = (1 + 0.1 * random.normal(key, (dim,)) for key in keys[1:])
    return Inputs(q, k, v, q_scale, k_scale)


def _implementations(axis: str, frames: int, device: torch.device) -> dict[str, Callable]:
    """Functions of `Inputs` that attend over an axis, by name; the first is the baseline."""
    position = torch.arange(frames, device=device)[:, None]
    visible = layers.visible_frames(frames, frames, None, device)

    def over_time(impl, q, k, v, q_scale, k_scale):
        return attention.attend_new_frames(q, k, v, q_scale, k_scale, position, visible, impl=impl)

    def over_space(impl, q, k, v, q_scale, k_scale):
        return attention.attend_within(q, k, v, q_scale, k_scale, impl=impl)

    gpu = device.type == "cuda"
    attend = over_time if axis == "time" else over_space
    names = get_args(backend.TimeImpl if axis == "time" else backend.SpaceImpl)
    transposed = partial(baselines.transposed_attention, axis, position)
    functions: dict[str, Callable] = {BASELINE: transposed}
    for name in names:
        if name != "auto" and (gpu or name != "triton"):
            functions[name] = partial(attend, name)
    if gpu:
        for name in ("flash", "cudnn"):
            functions[f"SDPA {name}"] = baselines.with_backend(name, transposed)
    return functions


def _with_gradients(attend: Callable, inputs: Inputs, mode: str) -> Callable:
    """Attention and its gradients, compiled as one function as in a training step."""

    def forward_and_backward(leaves):
        def loss(leaves):
            y = attend(*leaves)
            return y.float().square().sum(), y

        (_, y), grads = tree.value_and_grad(loss)(leaves)
        return y, grads

    function = forward_and_backward
    if mode != "off":
        fast = torch.compile(forward_and_backward, dynamic=False)
        function = compilation.with_traced_gradients(fast)
    return partial(function, list(inputs))


def _working(steps: dict[str, Callable], axis: str, tolerance: float) -> dict[str, Callable]:
    """The implementations that run on this machine, after comparing their results.

    Only torch's own attention backends may be missing.
    """
    expected = None
    working = {}
    for name, step in steps.items():
        try:
            y, _ = step()
        except RuntimeError as error:
            if not name.startswith("SDPA "):
                raise
            console.print(f"{name} does not run over {axis}: {str(error).splitlines()[0]}")
            continue
        expected = y if expected is None else expected
        baselines.check_same(y, expected, f"attention over {axis}", tolerance=tolerance)
        working[name] = step
    return working


def _work(axis: str, shape: tuple[int, ...], dtype: torch.dtype) -> Work:
    batch, frames, places, heads, dim = shape
    if axis == "time":
        flops, moved = counts.attention(
            batch * places, frames, (frames + 1) / 2, heads, dim, dtype.itemsize
        )
    else:
        flops, moved = counts.attention(batch * frames, places, places, heads, dim, dtype.itemsize)
    return Work(flops, moved)
