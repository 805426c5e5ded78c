"""One visitor of the page: what a socket says and is told. What it says is checked before anything is done."""

import asyncio
import base64
import io
import json
import secrets
import struct
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image
from starlette.websockets import WebSocket, WebSocketDisconnect

from genie_fn import video
from genie_fn.errors import UserError
from genie_fn.player.engine import MAX_STEPS
from genie_fn.player.session import Session, moved

MESSAGE = 8 << 20  # bytes of a message: a long recording
FRAMES = 10_000  # of a recording
WAITING = 100  # messages that may wait to be answered
FORMAT = {"format": "genie_fn recording", "version": 1}


@dataclass
class Place:
    """A session's place on the server."""

    id: str
    session: Session | None = None
    temperature: float = 1.0
    steps: int = 8
    used: float = field(default_factory=time.monotonic)
    socket: WebSocket | None = None


class Visitor:
    """The conversation on one socket. Its outgoing messages have a task of their own, so that sending a frame and
    dreaming the next overlap."""

    def __init__(self, server, place: Place, socket: WebSocket):
        self.server, self.engine, self.place, self.socket = server, server.engine, place, socket
        self.incoming: list[dict] = []
        self.arrived = asyncio.Event()
        self.outgoing: asyncio.Queue = asyncio.Queue(8)

    async def hello(self) -> None:
        """What the page needs to know first."""
        place = self.place
        at = {"frame": None, "oldest": 0, "newest": 0}
        if place.session is not None:
            at = {"frame": place.session.at, "oldest": place.session.oldest(), "newest": place.session.newest}
        settings = {"temperature": place.temperature, "steps": place.steps}
        words = {"type": "hello", "session": place.id, "world": self.server.world(), "settings": settings}
        await self.socket.send_json(words | at | {"ready": self.engine.ready})

    async def converse(self) -> None:
        """Read, act and write, each at its own pace, until the visitor goes."""
        tasks = [asyncio.create_task(work()) for work in (self.read, self.answer, self.write)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def read(self) -> None:
        """Queue messages. Of acts that pile up the latest counts."""
        while True:
            text = await self.socket.receive_text()
            try:
                message = json.loads(text) if len(text) <= MESSAGE else None
                kind = message["type"]
            except (ValueError, TypeError, KeyError):
                message, kind = {"type": "unreadable"}, "unreadable"
            if kind == "act" and self.incoming and self.incoming[-1].get("type") == "act":
                self.incoming.pop()
            if len(self.incoming) > WAITING:
                raise WebSocketDisconnect(1008)
            self.incoming.append(message)
            self.arrived.set()

    async def write(self) -> None:
        """Send what is queued, in order."""
        while True:
            content = await self.outgoing.get()
            await (self.socket.send_bytes(content) if isinstance(content, bytes) else self.socket.send_json(content))

    async def answer(self) -> None:
        """Carry out one message after another; what is wrong with one is said in a sentence."""
        known = {name: getattr(self, f"on_{name}") for name in KINDS}
        while True:
            await self.arrived.wait()
            while self.incoming:
                message = self.incoming.pop(0)
                self.place.used = time.monotonic()
                try:
                    if message["type"] not in known:
                        raise UserError("This message is not understood: reload the page.")
                    await known[message["type"]](message)
                except UserError as error:
                    await self.outgoing.put({"type": "error", "message": sentence(str(error))})
            self.arrived.clear()

    async def on_start(self, message: dict) -> None:
        """Begin anew from a held-out frame, an image or a level of the real game."""
        seed, level, image = number(message, "seed", 0, 2**63 - 1), None, None
        if message.get("from") == "game":
            if not self.server.world()["game"]:
                raise UserError("The real game cannot stand beside this world: see its page for why.")
            level = number(message, "level", 0, 10**9)
        else:
            image = await asyncio.to_thread(self.server.first_image, message)
        self.place.session = await asyncio.wrap_future(self.engine.start(image, seed, level))
        await self.show()

    async def on_act(self, message: dict) -> None:
        """Dream the next frame."""
        await self.dream(message.get("action"), message.get("real"), self.place.temperature, self.place.steps)
        await self.show()

    async def dream(self, action: Any, real: Any, temperature: float, steps: int) -> None:
        """One frame of this session, if the actions are some."""
        session, choices = self.here(), self.engine.cfg[1].actions
        if real is not None:
            real = number({"real": real}, "real", 0, max(len(self.server.world()["names"]), 1) - 1)
            action = self.engine.to_latent(real) if action is None else action
        if session.level is not None and real is None:
            raise UserError("Beside the real game only its own actions count: use the arrow keys.")
        action = number({"action": action}, "action", 0, choices - 1)
        self.place.session = await asyncio.wrap_future(self.engine.act(session, action, real, temperature, steps))

    async def on_settings(self, message: dict) -> None:
        """How frames are sampled from now on."""
        temperature = message.get("temperature", self.place.temperature)
        if not isinstance(temperature, int | float) or not 0 <= temperature <= 10:
            raise UserError("The temperature is a number from 0 to 10.")
        self.place.steps = number(message, "steps", 1, MAX_STEPS, self.place.steps)
        self.place.temperature = float(temperature)

    async def on_goto(self, message: dict) -> None:
        """Show another frame of this session; the play goes on from it."""
        self.place.session = moved(self.here(), number(message, "frame", 0, 2**53))
        await self.show()

    async def on_branch(self, _: dict) -> None:
        """A copy of this session, which shares its frames, to go another way in."""
        self.here()
        copy = replace(self.place, id=secrets.token_urlsafe(12), socket=None, used=time.monotonic())
        self.server.places[copy.id] = copy
        self.server.expire()
        await self.outgoing.put({"type": "branched", "session": copy.id})

    async def on_record(self, _: dict) -> None:
        """All that it takes to dream this session again."""
        session, image = self.here(), io.BytesIO()
        if session.first:
            raise UserError("This session is too long to be recorded: its first frames are no longer kept.")
        Image.fromarray(session.start).save(image, "png")
        keys = ("action", "real", "temperature", "steps", "hash")
        frames = [{key: getattr(moment, key) for key in keys} for moment in session.past()[1:]]
        content = FORMAT | {"world": self.server.identity, "seed": session.seed}
        content |= {"start": base64.b64encode(image.getvalue()).decode(), "level": session.level, "frames": frames}
        await self.outgoing.put({"type": "recording", "recording": content})

    async def on_replay(self, message: dict) -> None:
        """Dream a recording again, and say whether the frames are the same."""
        content = message.get("recording")
        if (
            not isinstance(content, dict)
            or content.get("format") != "genie_fn recording"
            or content.get("version") != 1
        ):
            raise UserError("This file is not a recording of genie_fn.")
        frames, level = content.get("frames"), content.get("level")
        if not isinstance(frames, list) or len(frames) > FRAMES or not all(isinstance(f, dict) for f in frames):
            raise UserError(f"This recording is damaged: it should hold a list of at most {FRAMES} frames.")
        if content.get("world") != self.server.identity:
            raise UserError("This recording was made in another world: play it with that one.")
        try:
            png = base64.b64decode(content.get("start", ""), validate=True)
        except (ValueError, TypeError) as error:
            raise UserError("This recording is damaged: its first frame cannot be read.") from error
        seed = number(content, "seed", 0, 2**63 - 1)
        level = None if level is None else number(content, "level", 0, 10**9)
        image = None if level is not None else await asyncio.to_thread(video.decode_image, png, *self.server.size)
        self.place.session = await asyncio.wrap_future(self.engine.start(image, seed, level))
        await self.show()
        first = None
        for t, frame in enumerate(frames, 1):
            heat, steps = frame.get("temperature"), number(frame, "steps", 1, MAX_STEPS)
            if not isinstance(heat, int | float) or not 0 <= heat <= 10:
                raise UserError(f"This recording is damaged: frame {t} has no temperature.")
            await self.dream(frame.get("action"), frame.get("real"), float(heat), steps)
            if first is None and self.here().present.hash != frame.get("hash"):
                first = t
            await self.show()
        verdict = {"type": "replayed", "frames": len(frames), "same": first is None}
        await self.outgoing.put(verdict | ({} if first is None else {"first": first}))

    def here(self) -> Session:
        """This visitor's session, if it has begun."""
        if self.place.session is None:
            raise UserError("Nothing has begun yet: choose a first frame.")
        return self.place.session

    async def show(self) -> None:
        """Send the present frame."""
        await self.outgoing.put(packed(self.here()))


KINDS = ("start", "act", "settings", "goto", "branch", "record", "replay")


def packed(session: Session) -> bytes:
    """The present frame as the page reads it: length of the header, header, and arrays."""
    moment = session.present
    scores = [m.psnr for m in session.past()[1:] if m.psnr is not None]
    header = {"frame": session.at, "oldest": session.oldest(), "newest": session.newest, "seed": session.seed}
    header |= {key: getattr(moment, key) for key in ("action", "real", "temperature", "steps", "hash", "psnr")}
    header |= {"ms": round(moment.ms, 1), "mean_psnr": sum(scores) / len(scores) if scores else None}
    height, width, _ = moment.pixels.shape
    header |= {"height": height, "width": width, "grid": _grid(len(moment.ids), height, width)}
    header |= {"game": moment.game is not None}
    arrays = [moment.pixels, moment.probability, moment.revealed, moment.ids.astype("<u4")]
    arrays += [] if moment.game is None else [moment.game]
    text = json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)


def _grid(tokens: int, height: int, width: int) -> list[int]:
    side = round((height * width / tokens) ** 0.5)
    return [height // side, width // side]


def number(message: dict, name: str, low: int, high: int, default: int | None = None) -> int:
    """An integer of a message, if it is one in the range."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"The {name} should be a whole number from {low} to {high}.")
    return value


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
