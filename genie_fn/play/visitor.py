"""One visitor of the page: what a socket says and is told. What it says is checked before anything is done."""

import asyncio
import contextlib
import json
import logging
import secrets
import struct
import time
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from genie_fn.errors import UserError
from genie_fn.play import recording
from genie_fn.play.recording import MAX_LEVEL, MAX_SEED, MAX_STEPS, number, temperature
from genie_fn.play.session import Note, Session, frame_hash, moved

MESSAGE = 8 << 20  # bytes of a message: a long recording
WAITING = 100  # messages that may wait to be answered
GONE = 4000  # the close code of a socket that lost its session
KINDS = ("start", "act", "settings", "goto", "branch", "record", "replay")
log = logging.getLogger("uvicorn.error")


@dataclass
class Place:
    """A session's place on the server, which stays for a while when its visitor goes."""

    id: str
    session: Session | None = None
    temperature: float = 1.0
    steps: int = 8
    used: float = field(default_factory=time.monotonic)
    visitor: "Visitor | None" = None


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
        if (session := place.session) is not None:
            at = {"frame": session.at, "oldest": session.oldest, "newest": session.newest}
        settings = {"temperature": place.temperature, "steps": place.steps}
        words = {
            "type": "hello",
            "session": place.id,
            "world": self.server.world,
            "settings": settings,
        }
        await self.socket.send_json(words | at | {"ready": self.engine.ready})

    async def converse(self) -> None:
        """Read, act and write, each at its own pace, until the visitor goes."""
        async with anyio.create_task_group() as tasks:  # the first that raises ends them all
            for work in (self.read, self.answer, self.write):
                tasks.start_soon(work)

    def say(self, message: dict) -> None:
        """Tell the visitor something that may be left out where much is still to be sent."""
        with contextlib.suppress(asyncio.QueueFull):
            self.outgoing.put_nowait(message)

    def dismiss(self, words: str) -> None:
        """End the conversation: the session is no longer this visitor's."""
        self.place = replace(
            self.place, visitor=None
        )  # what is still being dreamed changes nothing any more
        while not self.outgoing.empty():
            self.outgoing.get_nowait()
        self.outgoing.put_nowait({"type": "expired", "message": words, "wait": True})
        self.outgoing.put_nowait(None)

    async def read(self) -> None:
        """Queue messages. Of acts that pile up the latest counts."""
        while True:
            received = await self.socket.receive()
            if received["type"] != "websocket.receive":
                raise WebSocketDisconnect(received.get("code", 1000))
            message = parsed(received.get("text") or "")
            if message["type"] == "act" and self.incoming and self.incoming[-1]["type"] == "act":
                self.incoming.pop()
            if len(self.incoming) >= WAITING:
                await self.socket.close(1008)
                raise WebSocketDisconnect(1008)
            self.incoming.append(message)
            self.arrived.set()

    async def write(self) -> None:
        """Send what is queued, in order."""
        while (content := await self.outgoing.get()) is not None:
            await (
                self.socket.send_bytes(content)
                if isinstance(content, bytes)
                else self.socket.send_json(content)
            )
        await self.socket.close(GONE)
        raise WebSocketDisconnect(GONE)

    async def answer(self) -> None:
        """Carry out one message after another; what is wrong with one is said in a sentence."""
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            while self.incoming:
                message, words = self.incoming.pop(0), ""
                self.place.used = time.monotonic()
                try:
                    if message["type"] not in KINDS:
                        raise UserError("this message is not understood: reload the page")
                    await getattr(self, f"on_{message['type']}")(message)
                except UserError as error:
                    words = sentence(str(error))
                except Exception:  # a fault of ours must not cost the visitor the session
                    log.exception("a message of type %s failed", message["type"])
                    words = (
                        "Something went wrong here: the terminal in which play.py runs says more."
                    )
                if words:
                    await self.outgoing.put({"type": "error", "message": words})

    async def on_start(self, message: dict) -> None:
        """Begin anew from a held-out frame, an image or a level of the real game."""
        seed, level, image = number(message, "seed", 0, MAX_SEED), None, None
        if message.get("from") == "game":
            level = number(message, "level", 0, MAX_LEVEL)
        else:
            image = await asyncio.to_thread(self.server.first_image, message)
        await self.begin(image, seed, level)

    async def begin(self, image: np.ndarray | None, seed: int, level: int | None) -> None:
        """A new session in the place of the old one."""
        if level is not None and not self.server.world["game"]:
            raise UserError(
                "the real game stands beside worlds of 64x64 frames trained on it, once evaluate.py has measured what "
                "its keys mean in them: this is none"
            )
        self.place.session = await asyncio.wrap_future(self.engine.start(image, seed, level))
        await self.show()

    async def on_act(self, message: dict) -> None:
        """Dream the next frame."""
        session, action, real = self.here(), message.get("action"), message.get("real")
        if real is not None:
            real = number(message, "real", 0, max(len(self.server.world["names"]), 1) - 1)
            action = self.engine.to_latent(real)
        action = number({"action": action}, "action", 0, self.engine.cfg[1].actions - 1)
        await self.dream(session, action, real, self.place.temperature, self.place.steps)

    async def dream(self, session: Session, action: int, real: int | None, *how: Any) -> None:
        """One more frame, shown; `how` are the last arguments of an engine's act."""
        if session.level is not None and real is None:
            raise UserError("beside the real game only its own actions count: use the arrow keys")
        self.place.session = await asyncio.wrap_future(self.engine.act(session, action, real, *how))
        self.place.used = time.monotonic()
        await self.show()

    async def on_settings(self, message: dict) -> None:
        """How frames are sampled from now on."""
        heat = temperature(message, self.place.temperature)
        self.place.steps = number(message, "steps", 1, MAX_STEPS, self.place.steps)
        self.place.temperature = heat

    async def on_goto(self, message: dict) -> None:
        """Show another frame of this session; the play goes on from it."""
        self.place.session = moved(self.here(), number(message, "frame", 0, 2**53))
        await self.show()

    async def on_branch(self, _: dict) -> None:
        """A copy of this session, which shares its frames, to go another way in."""
        self.here()
        copy = replace(
            self.place, id=secrets.token_urlsafe(12), visitor=None, used=time.monotonic()
        )
        self.server.places[copy.id] = copy
        self.server.expire()
        await self.outgoing.put({"type": "branched", "session": copy.id})

    async def on_record(self, _: dict) -> None:
        """All that it takes to dream this session again."""
        made = await asyncio.to_thread(recording.made, self.here(), self.server.identity)
        await self.outgoing.put({"type": "recording", "recording": made})

    async def on_replay(self, message: dict) -> None:
        """Dream a recording again, and say whether the frames are the same."""
        content, choices = message.get("recording"), self.engine.cfg[1].actions
        read = await asyncio.to_thread(
            recording.read, content, self.server.identity, self.server.size, choices
        )
        await self.begin(read.start, read.seed, read.level)
        first = None
        for t, note in enumerate(read.notes, 1):
            await self.dream(self.here(), *note[:-1])
            if first is None and self.here().present.note.hash != note.hash:
                first = t
        verdict = {"type": "replayed", "frames": len(read.notes), "same": first is None}
        await self.outgoing.put(verdict | ({} if first is None else {"first": first}))

    def here(self) -> Session:
        """This visitor's session, if it has begun."""
        if self.place.session is None:
            raise UserError("nothing has begun yet: choose a first frame")
        return self.place.session

    async def show(self) -> None:
        """Send the present frame."""
        await self.outgoing.put(packed(self.here(), self.engine.cfg[0].grid))


def parsed(text: str) -> dict:
    """A message from outside; of type "" if it is none."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    return (
        message
        if isinstance(message, dict) and isinstance(message.get("type"), str)
        else {"type": ""}
    )


def packed(session: Session, grid: tuple[int, int]) -> bytes:
    """The present frame as the page reads it: length of the header, header, and arrays."""
    moment = session.present
    note = moment.note or Note(
        None, None, 1.0, 0, False, frame_hash(moment.pixels)
    )  # a start frame's
    header = {
        "frame": session.at,
        "oldest": session.oldest,
        "newest": session.newest,
        "seed": session.seed,
    }
    header |= {
        key: getattr(note, key) for key in ("action", "real", "temperature", "steps", "hash")
    }
    header |= {"ms": round(moment.ms, 1), "psnr": moment.psnr, "mean_psnr": moment.mean_psnr}
    height, width, _ = moment.pixels.shape
    header |= {
        "height": height,
        "width": width,
        "grid": list(grid),
        "game": moment.game is not None,
    }
    arrays = [moment.pixels, moment.probability, moment.revealed, moment.ids.astype("<u4")]
    arrays += [] if moment.game is None else [moment.game]
    text = json.dumps(header).encode()
    return (
        struct.pack("<I", len(text))
        + text
        + b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)
    )


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
