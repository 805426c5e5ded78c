"""The suite `play`: the latency and frame rate of the page's server, over sockets of this machine.

A player requests a frame, waits until it arrives, and requests the next. The weights are random,
since they do not change the speed.
"""

import asyncio
import json
import socket
import threading
import time
from dataclasses import replace
from statistics import median, quantiles

import numpy as np
import torch

from benchmarks.timing import summarise
from genie_fn import dynamics, random, tokenizer, tree
from genie_fn.bundle import Bundle
from genie_fn.errors import UserError
from genie_fn.runtime import backend
from genie_fn.world import Stage, World

FRAMES = 20  # per measurement and player


def random_world(preset: str, device: torch.device) -> World:
    """An untrained world of a preset's sizes, with recorded actions."""
    frames = tokenizer.PRESETS[preset]
    codes = frames.quantizer.codes
    sizes = {"codes": codes, "tokens": frames.tokens, "columns": frames.grid[1]}
    model = replace(dynamics.PRESETS[preset], **sizes)
    return World(
        Stage(frames, tree.init(tokenizer.spec(frames), random.key(0, device))),
        Stage(model, tree.init(dynamics.spec(model), random.key(1, device))),
        None,
    )


def play_suite(cfg, device: torch.device) -> list[dict]:
    """One and several players; `seconds` is from request to frame, `frames/s` is per player."""
    try:
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise UserError(f"the suite play needs more packages ({error}): `make install`") from error
    compiled = cfg.compile != "off"
    if device.type != "cpu":
        compiled = backend.pick_compile(cfg.compile, device) != "off"
    presets = cfg.presets or (("demo", "coinrun") if device.type == "cuda" else ("demo",))
    rows = []
    for preset in presets:
        rows += measure(random_world(preset, device), preset, compiled, cfg, device)
    return rows


def measure(world: World, name: str, compiled: bool, cfg, device: torch.device) -> list[dict]:
    """The rows of one world."""
    from genie_fn.play.engine import Engine

    steps = cfg.sample.steps
    variants = {"1 player": (1, steps), "4 players, each": (4, steps)}
    if device.type == "cuda":
        variants["1 player, 25 steps"] = (1, 25)
    engine = Engine(Bundle(world, name), device, compiled, cfg.sample)
    began = time.perf_counter()
    while engine.ready == "compiling":
        time.sleep(0.1)
    first = time.perf_counter() - began
    if compiled and engine.ready != "compiled":
        raise UserError(
            "preparing faster programs failed on this machine: measure with --cfg.compile off"
        )
    try:
        waits = measure_waits(engine, name, variants, cfg.repeats)
    finally:
        engine.close()
    tokens = world.dynamics.cfg.tokens
    fast = "ONNX Runtime" if device.type == "cpu" else "compiled"
    mode = fast if compiled else "eager"
    case = f"{name} world, {tokens} tokens, {steps} steps, {mode}, over a socket"
    base = [median(repeat) for repeat in waits["1 player"]]
    return [row(case, variant, waits[variant], base) | {"first": first} for variant in variants]


def measure_waits(
    engine, name: str, variants: dict[str, tuple[int, int]], repeats: int
) -> dict[str, list[list[float]]]:
    """For each variant, the waits of every repeat; `variants` are numbers of players and steps."""
    from genie_fn.play.server import Limits, Server, serve_on

    waits = {variant: [] for variant in variants}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(engine, name, "", Limits())
        server.images["start"] = np.zeros((*server.size, 3), np.uint8)
        running = threading.Thread(target=serve_on, args=(server, listening), daemon=True)
        running.start()
        port = listening.getsockname()[1]
        try:
            for repeat in range(repeats + 1):
                order = list(variants) if repeat % 2 else list(reversed(variants))
                for variant in order:
                    taken = asyncio.run(play_together(port, *variants[variant]))
                    if repeat > 0:  # the first is a warm-up
                        waits[variant].append(taken)
        finally:
            server.stop()
            running.join()
    return waits


def row(case: str, variant: str, waits: list[list[float]], base: list[float]) -> dict:
    """One variant's row; `waits` holds those of each repeat, `base` the baseline's medians."""
    medians = [median(repeat) for repeat in waits]
    flat = sorted(wait for repeat in waits for wait in repeat)
    ratios = [b / m for b, m in zip(base, medians, strict=True)]
    return {
        "case": case,
        "variant": variant,
        "baseline": "1 player",
        "seconds": summarise(medians),
        "ratio": summarise(ratios),
        "frames/s": 1 / median(flat),
        "p50": 1000 * median(flat),
        "p95": 1000 * quantiles(flat, n=20)[-1],
    }


async def play_together(port: int, players: int, steps: int) -> list[float]:
    """Seconds from each request to its frame, of all players."""
    barrier = asyncio.Barrier(players)
    waits = await asyncio.gather(*(play(port, steps, barrier) for _ in range(players)))
    return [wait for player in waits for wait in player]


async def play(port: int, steps: int, barrier: asyncio.Barrier) -> list[float]:
    """One player's waits."""
    from websockets.asyncio.client import connect
    from websockets.typing import Origin

    origin = Origin(f"http://localhost:{port}")
    async with connect(f"ws://localhost:{port}/play", origin=origin, compression=None) as page:

        async def ask(**message) -> None:
            await page.send(json.dumps(message))
            while isinstance(answer := await page.recv(), str):
                if json.loads(answer)["type"] not in ("hello", "status"):
                    raise RuntimeError(answer)

        await page.send(json.dumps({"type": "settings", "steps": steps}))
        await ask(**{"type": "start", "from": "image", "image": "start", "seed": 0})
        await barrier.wait()
        waits = []
        for _ in range(FRAMES):
            began = time.perf_counter()
            await ask(type="act", action=0)
            waits.append(time.perf_counter() - began)
        await barrier.wait()  # no player leaves before all are done
        return waits
