"""One visitor of the page: the messages on one socket, each checked before anything is done."""

import asyncio
import contextlib
import json
import logging
import secrets
import struct
import time
from dataclasses import dataclass, field, replace

import anyio
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from genie_fn.errors import UserError
from genie_fn.play import recording
from genie_fn.play.recording import MAX_LEVEL, MAX_SEED, MAX_STEPS, number, temperature
from genie_fn.play.session import Moment, Session, frame_hash, moved

MAX_MESSAGE = 8 << 20  # bytes: a long recording
MAX_WAITING = 100  # unanswered messages of one visitor
CLOSED = 4000  # the close code of a socket that lost its session
KINDS = ("start", "act", "settings", "goto", "branch", "record", "replay")
log = logging.getLogger("uvicorn.error")


@dataclass
class Place:
    """A session's place on the server, which stays for a while after its visitor has left."""

    id: str
    session: Session | None = None
    temperature: float = 1.0
    steps: int = 8
    used: float = field(default_factory=time.monotonic)
    visitor: "Visitor | None" = None


class Visitor:
    """The conversation on one socket.

    Outgoing messages have a task of their own, so that sending a frame and generating the next
    overlap.
    """

    def __init__(self, server, place: Place, socket: WebSocket):
        self.server = server
        self.engine = server.engine
        self.place = place
        self.socket = socket
        self.incoming: list[dict] = []
        self.arrived = asyncio.Event()
        self.outgoing: asyncio.Queue = asyncio.Queue(8)

    async def hello(self) -> None:
        """Send what the page needs to know first."""
        place = self.place
        position = {"frame": None, "oldest": 0, "newest": 0}
        if place.session is not None:
            position = _position(place.session)
        message = {
            "type": "hello",
            "session": place.id,
            "world": self.server.world,
            "settings": {"temperature": place.temperature, "steps": place.steps},
            "ready": self.engine.ready,
        }
        await self.socket.send_json(message | position)

    async def converse(self) -> None:
        """Read, answer and write, each at its own pace, until the visitor leaves."""
        async with anyio.create_task_group() as tasks:  # the first that raises ends them all
            for work in (self.read, self.answer, self.write):
                tasks.start_soon(work)

    def notify(self, message: dict) -> None:
        """Send a message that may be dropped where many others are waiting."""
        with contextlib.suppress(asyncio.QueueFull):
            self.outgoing.put_nowait(message)

    def dismiss(self, message: str) -> None:
        """End the conversation: the session is no longer this visitor's."""
        # A copy, so that a frame still being generated does not change the session any more.
        self.place = replace(self.place, visitor=None)
        while not self.outgoing.empty():
            self.outgoing.get_nowait()
        self.outgoing.put_nowait({"type": "expired", "message": message, "wait": True})
        self.outgoing.put_nowait(None)

    async def read(self) -> None:
        """Queue messages. Of several actions in a row only the latest is kept."""
        while True:
            received = await self.socket.receive()
            if received["type"] != "websocket.receive":
                raise WebSocketDisconnect(received.get("code", 1000))
            message = parse(received.get("text") or "")
            if message["type"] == "act" and self.incoming and self.incoming[-1]["type"] == "act":
                self.incoming.pop()
            if len(self.incoming) >= MAX_WAITING:
                await self.socket.close(1008)
                raise WebSocketDisconnect(1008)
            self.incoming.append(message)
            self.arrived.set()

    async def write(self) -> None:
        """Send the queued messages in order."""
        while (content := await self.outgoing.get()) is not None:
            if isinstance(content, bytes):
                await self.socket.send_bytes(content)
            else:
                await self.socket.send_json(content)
        await self.socket.close(CLOSED)
        raise WebSocketDisconnect(CLOSED)

    async def answer(self) -> None:
        """Carry out one message after another; an error is sent to the page as a sentence."""
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            while self.incoming:
                problem = await self.carry_out(self.incoming.pop(0))
                if problem:
                    await self.outgoing.put({"type": "error", "message": problem})

    async def carry_out(self, message: dict) -> str:
        """Carry out one message; returns what is wrong with it, as a sentence."""
        self.place.used = time.monotonic()
        try:
            if message["type"] not in KINDS:
                raise UserError("this message has an unknown type: reload the page")
            await getattr(self, f"on_{message['type']}")(message)
        except UserError as error:
            return sentence(str(error))
        except Exception:  # an error of the server must not cost the visitor the session
            log.exception("a message of type %s failed", message["type"])
            return "Something went wrong: see the terminal in which play.py runs."
        return ""

    async def on_start(self, message: dict) -> None:
        """Start a new session from a held-out frame, an image or a level of the real game."""
        seed = number(message, "seed", 0, MAX_SEED)
        if message.get("from") == "game":
            level = number(message, "level", 0, MAX_LEVEL)
            return await self.begin(None, seed, level)
        image = await asyncio.to_thread(self.server.first_image, message)
        await self.begin(image, seed, None)

    async def begin(self, image: np.ndarray | None, seed: int, level: int | None) -> None:
        """Replace the session by a new one."""
        if level is not None and not self.server.world["game"]:
            raise UserError(
                "the real game can run next to worlds of its own frames that were trained on it, "
                "once evaluate.py has measured the action map of latent actions: not in this world"
            )
        self.place.session = await asyncio.wrap_future(self.engine.start(image, seed, level))
        await self.send_frame()

    async def on_act(self, message: dict) -> None:
        """Generate the next frame."""
        session = self.session()
        action = message.get("action")
        recorded = message.get("recorded")
        if recorded is not None:
            names = self.server.world["names"]
            recorded = number(message, "recorded", 0, max(len(names), 1) - 1)
            action = self.engine.to_latent(recorded)
        choices = self.engine.world.dynamics.cfg.actions
        action = number({"action": action}, "action", 0, choices - 1)
        await self.generate(session, action, recorded, self.place.temperature, self.place.steps)

    async def generate(self, session: Session, action: int, recorded: int | None, *options) -> None:
        """Generate and send one more frame; `options` are the last arguments of `Engine.act`."""
        if session.level is not None and recorded is None:
            raise UserError("next to the real game only its own keys can be used: the arrow keys")
        future = self.engine.act(session, action, recorded, *options)
        self.place.session = await asyncio.wrap_future(future)
        self.place.used = time.monotonic()
        await self.send_frame()

    async def on_settings(self, message: dict) -> None:
        """Change how the following frames are sampled."""
        new_temperature = temperature(message, self.place.temperature)
        self.place.steps = number(message, "steps", 1, MAX_STEPS, self.place.steps)
        self.place.temperature = new_temperature

    async def on_goto(self, message: dict) -> None:
        """Go to another frame of this session; play continues from it."""
        self.place.session = moved(self.session(), number(message, "frame", 0, 2**53))
        await self.send_frame()

    async def on_branch(self, _: dict) -> None:
        """Copy this session, which shares its frames, to continue in another way."""
        self.session()
        name = secrets.token_urlsafe(12)
        copy = replace(self.place, id=name, visitor=None, used=time.monotonic())
        self.server.places[name] = copy
        self.server.expire()
        await self.outgoing.put({"type": "branched", "session": name})

    async def on_record(self, _: dict) -> None:
        """Send the recording of this session."""
        content = await asyncio.to_thread(recording.write, self.session(), self.server.identity)
        await self.outgoing.put({"type": "recording", "recording": content})

    async def on_replay(self, message: dict) -> None:
        """Generate the frames of a recording again, and say whether they are the same."""
        content = message.get("recording")
        choices = self.engine.world.dynamics.cfg.actions
        replayed = await asyncio.to_thread(
            recording.read, content, self.server.identity, self.server.size, choices
        )
        await self.begin(replayed.start, replayed.seed, replayed.level)
        different = None
        for t, record in enumerate(replayed.records, 1):
            await self.generate(self.session(), *record[:-1])
            if different is None and frame_hash(self.session().present.pixels) != record.hash:
                different = t
        verdict = {"type": "replayed", "frames": len(replayed.records), "same": different is None}
        if different is not None:
            verdict["first"] = different
        await self.outgoing.put(verdict)

    def session(self) -> Session:
        """This visitor's session, if one has begun."""
        if self.place.session is None:
            raise UserError("no session has begun yet: choose a first frame")
        return self.place.session

    async def send_frame(self) -> None:
        """Send the present frame."""
        grid = self.engine.world.tokenizer.cfg.grid
        await self.outgoing.put(pack(self.session(), grid))


def parse(text: str) -> dict:
    """A message of the page; of type "" where it is invalid."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict) and isinstance(message.get("type"), str):
        return message
    return {"type": ""}


def _position(session: Session) -> dict[str, int]:
    return {"frame": session.at, "oldest": session.oldest, "newest": session.newest}


def _record(moment: Moment) -> dict:
    """What led to a frame, for its header."""
    record = moment.record
    if record is None:  # a start frame
        start = {"action": None, "recorded": None, "temperature": 1.0, "steps": 0}
        return start | {"hash": frame_hash(moment.pixels)}
    fields = record._asdict()
    del fields["compiled"]
    return fields


def pack(session: Session, grid: tuple[int, int]) -> bytes:
    """The present frame as the page reads it: length of the header, header, and arrays."""
    moment = session.present
    height, width, _ = moment.pixels.shape
    header = {
        "seed": session.seed,
        "ms": round(moment.ms, 1),
        "psnr": moment.psnr,
        "mean_psnr": moment.mean_psnr,
        "height": height,
        "width": width,
        "grid": list(grid),
        "game": moment.game is not None,
    }
    header |= _position(session) | _record(moment)
    arrays = [moment.pixels, moment.probability, moment.revealed, moment.ids.astype("<u4")]
    if moment.game is not None:
        arrays.append(moment.game)
    text = json.dumps(header).encode()
    content = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)
    return struct.pack("<I", len(text)) + text + content


def sentence(text: str) -> str:
    """A text with a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
