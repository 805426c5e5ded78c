"""The suite `play`: how fast a world answers its players, over real sockets on this machine.

A player asks for a frame, waits until it is there, and asks for the next. Random weights play as fast as trained ones.
"""

import asyncio
import json
import socket
import threading
import time
from statistics import median, quantiles

import numpy as np
import torch

from genie_fn import dynamics, random, tokenizer, tree
from genie_fn.bundle import Bundle
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.layers import STConfig
from genie_fn.runtime import backend
from genie_fn.world import Stage, World

STACKS = {
    "demo": STConfig(4, 128, 4),
    "small": STConfig(8, 384, 6, dtype="bfloat16"),
    "coinrun": STConfig(12, 512, 8, dtype="bfloat16"),
}
"""The dynamics models of train_dynamics.py's presets."""
FRAMES = 20  # per measurement and player


def random_world(preset: str, device: torch.device) -> World:
    """A world of a preset's sizes, of true actions."""
    coder = tokenizer.PRESETS[preset]
    model = DynamicsConfig(coder.quantizer.codes, coder.tokens, stack=STACKS[preset])
    stages = ((tokenizer, coder), (dynamics, model))
    return World(
        *(Stage(c, tree.init(m.spec(c), random.key(i, device))) for i, (m, c) in enumerate(stages)),
        None,
    )


def play_suite(cfg, device: torch.device) -> list[dict]:
    """Players alone and together; `seconds` is from the wish to the frame, `frames/s` what each player sees."""
    try:
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the suite play needs more packages ({error}): `pip install 'genie_fn[play]'`"
        ) from error
    rows, mode = [], backend.pick_compile(cfg.compile, device)
    for preset in cfg.presets or (("demo", "coinrun") if device.type == "cuda" else ("demo",)):
        rows += measure(random_world(preset, device), preset, mode != "off", cfg, device)
    return rows


def measure(dream: World, name: str, compiled: bool, cfg, device: torch.device) -> list[dict]:
    """The rows of one world."""
    from genie_fn.play.engine import Engine
    from genie_fn.play.server import Limits, Server, serve_on

    steps = cfg.sample.steps
    variants = {"1 player": (1, steps), "4 players, each": (4, steps)}
    if device.type == "cuda":
        variants["1 player, 25 steps"] = 1, 25
    engine = Engine(Bundle(dream, name), device, compiled, cfg.sample)
    began = time.perf_counter()
    while engine.ready == "compiling":
        time.sleep(0.1)
    first = time.perf_counter() - began
    if compiled and engine.ready != "compiled":
        raise UserError("compiling failed here: measure with --cfg.compile off")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(engine, name, "", Limits())
        server.images["start"] = np.zeros((*server.size, 3), np.uint8)
        running = threading.Thread(target=serve_on, args=(server, listening), daemon=True)
        running.start()
        port = listening.getsockname()[1]
        taken = {variant: [] for variant in variants}
        try:
            for repeat in range(cfg.repeats + 1):
                for variant in list(variants)[:: 1 if repeat % 2 else -1]:
                    waits = asyncio.run(play_together(port, *variants[variant]))
                    taken[variant] += [waits] if repeat else []  # the first time warms up
        finally:
            server.stop()
            running.join()
            engine.close()
    tokens, how = dream.dynamics.cfg.tokens, "compiled" if compiled else "eager"
    case = f"{name} world, {tokens} tokens, {steps} steps, {how}, over a socket"
    base = [median(waits) for waits in taken["1 player"]]
    return [row(case, variant, waits, base) | {"first": first} for variant, waits in taken.items()]


def row(case: str, variant: str, taken: list[list[float]], base: list[float]) -> dict:
    """One variant's row; `taken` holds the waits of each repeat."""
    medians, waits = [median(waits) for waits in taken], sorted(sum(taken, []))
    times = {"seconds": medians, "ratio": [b / m for b, m in zip(base, medians, strict=True)]}
    found = {
        key: {"median": median(x), "min": min(x), "max": max(x), "all": x}
        for key, x in times.items()
    }
    tail = {"p50": 1000 * median(waits), "p95": 1000 * quantiles(waits, n=20)[-1]}
    return (
        {"case": case, "variant": variant, "baseline": "1 player"}
        | found
        | {"frames/s": 1 / median(waits)}
        | tail
    )


async def play_together(port: int, players: int, steps: int) -> list[float]:
    """Seconds from each wish to its frame, of all players."""
    together = asyncio.Barrier(players)
    return sum(await asyncio.gather(*(play(port, steps, together) for _ in range(players))), [])


async def play(port: int, steps: int, together: asyncio.Barrier) -> list[float]:
    """One player's waits."""
    from websockets.asyncio.client import connect

    async with connect(
        f"ws://localhost:{port}/play", origin=f"http://localhost:{port}", compression=None
    ) as page:

        async def ask(**message) -> None:
            await page.send(json.dumps(message))
            while isinstance(answer := await page.recv(), str):
                if json.loads(answer)["type"] not in ("hello", "status"):
                    raise RuntimeError(answer)

        await page.send(json.dumps({"type": "settings", "steps": steps}))
        await ask(**{"type": "start", "from": "image", "image": "start", "seed": 0})
        await together.wait()
        waits = []
        for _ in range(FRAMES):
            began = time.perf_counter()
            await ask(type="act", action=0)
            waits.append(time.perf_counter() - began)
        await together.wait()  # nobody leaves, and nobody plays alone, before all are done
        return waits
