"""The page's server: one socket per visitor, one session per socket, and nothing that another site could use.

It answers only to its own origin, and where it listens beyond this machine, only with a token. What it reads is bounded
before it is decoded, and nothing that it reads is unpickled or run.
"""

import asyncio
import base64
import contextlib
import hmac
import io
import json
import secrets
import struct
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from genie_fn import data, video
from genie_fn.errors import UserError
from genie_fn.player.engine import MAX_STEPS, Engine
from genie_fn.player.session import Session, moved

try:
    from PIL import Image
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError as error:
    raise UserError(f"playing in the browser needs more packages ({error}): `pip install 'genie_fn[play]'`") from error

PAGE = Path(__file__).parent / "page"
UPLOAD = 4 << 20  # bytes of an image
MESSAGE = 8 << 20  # bytes of a message: a long recording
FRAMES = 10_000  # of a recording
IMAGES = 32  # uploaded images kept
SAFE = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """How many may play, and for how long a session is kept when nobody does."""

    visitors: int = 8
    sessions: int = 32
    idle: float = 600.0
    """Seconds."""


@dataclass
class Place:
    """A session's place on the server."""

    id: str
    session: Session | None = None
    temperature: float = 1.0
    steps: int = 8
    used: float = field(default_factory=time.monotonic)
    socket: WebSocket | None = None


class Server:
    """The application and what it keeps: places, uploaded images, start frames. `app` is the ASGI application."""

    def __init__(self, engine: Engine, run: str, identity: str, store: data.Store | None, token: str, limits: Limits):
        self.engine, self.run, self.identity, self.store = engine, run, identity, store
        self.token, self.limits = token, limits
        self.places: dict[str, Place] = {}
        self.images: dict[str, np.ndarray] = {}
        coder, _ = engine.cfg
        self.clips = data.eval_clips(store, "test", 1, min(64, len(data.clip_starts(store, "test", 1)))) if store else []
        self.size = coder.height, coder.width
        routes = [
            Route("/", self.page),
            Route("/upload", self.upload, methods=["POST"]),
            Route("/render", self.render),
            WebSocketRoute("/play", self.play),
            Mount("/static", StaticFiles(directory=PAGE)),
        ]
        self.app = Guard(Starlette(routes=routes, lifespan=self.lifespan), token)

    @contextlib.asynccontextmanager
    async def lifespan(self, _) -> AsyncIterator[None]:
        """Expire idle sessions, and tell everybody when the programs are compiled, as long as the server runs."""
        loop = asyncio.get_running_loop()
        self.engine.when_ready(lambda: loop.call_soon_threadsafe(lambda: loop.create_task(self.tell())))
        sweeping = asyncio.create_task(self.sweep())
        yield
        sweeping.cancel()

    async def sweep(self) -> None:
        """Forget, now and then, the sessions that nobody has used for long."""
        while True:
            await asyncio.sleep(min(15.0, self.limits.idle / 4))
            self.expire()

    def expire(self) -> None:
        """Forget idle sessions, and of those without a socket the longest unused where there are too many."""
        idle = time.monotonic() - self.limits.idle
        for place in sorted(self.places.values(), key=lambda place: place.used):
            if place.socket is None and (place.used < idle or len(self.places) > self.limits.sessions):
                del self.places[place.id]

    def visitors(self) -> int:
        """How many sockets are open."""
        return sum(place.socket is not None for place in self.places.values())

    async def tell(self) -> None:
        """Tell every visitor how things stand."""
        message = {"type": "status", "ready": self.engine.ready, "visitors": self.visitors()}
        for place in [*self.places.values()]:
            with contextlib.suppress(Exception):  # a socket that is just closing
                if place.socket is not None:
                    await place.socket.send_json(message)

    async def page(self, _: Request) -> Response:
        """The page itself."""
        return FileResponse(PAGE / "index.html")

    async def upload(self, request: Request) -> Response:
        """Take an image file; answered by its id."""
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > UPLOAD:
                return refusal(f"This file is larger than {UPLOAD >> 20} MB: choose a smaller one.", 413)
        try:
            image = await asyncio.to_thread(video.decode_image, bytes(content), *self.size)
        except UserError as error:
            return refusal(f"This file cannot be used: {error}.", 400)
        name = secrets.token_urlsafe(9)
        self.images[name] = image
        while len(self.images) > IMAGES:
            self.images.pop(next(iter(self.images)))
        return JSONResponse({"image": name})

    async def render(self, request: Request) -> Response:
        """The frames of a session so far as a film."""
        place, kind = self.places.get(request.query_params.get("session", "")), request.query_params.get("format")
        if place is None or place.session is None or kind not in ("mp4", "gif"):
            return refusal("There is no such film: ask for mp4 or gif of a session that is still there.", 404)
        frames = np.stack([moment.pixels for moment in place.session.past()])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"dream.{kind}"
            await asyncio.to_thread(video.write_video, path, frames, fps=15, scale=max(1, 256 // frames.shape[1]))
            content = path.read_bytes()
        headers = {"Content-Disposition": f'attachment; filename="{path.name}"'}
        return Response(content, media_type={"mp4": "video/mp4", "gif": "image/gif"}[kind], headers=headers)

    async def play(self, socket: WebSocket) -> None:
        """A visitor, from hello to the end of the connection; the session stays for a while."""
        await socket.accept()
        self.expire()
        place = self.places.get(socket.query_params.get("session", ""))
        if (place is None or place.socket is None) and self.visitors() >= self.limits.visitors:
            words = f"All {self.limits.visitors} places of this world are taken: try again in a while."
            await socket.send_json({"type": "full", "message": words})
            await socket.close(1013)
            return
        if place is None:
            place = Place(secrets.token_urlsafe(12), steps=min(self.engine.sample.steps, MAX_STEPS))
            place.temperature = self.engine.sample.temperature
            self.places[place.id] = place
        place.socket = socket
        visitor = Visitor(self, place, socket)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # gone, while being read from or written to
            await visitor.hello()
            await self.tell()
            await visitor.converse()
        if place.socket is socket:
            place.socket, place.used = None, time.monotonic()
        await self.tell()

    def first_image(self, message: dict) -> np.ndarray:
        """The image that a `start` message asks for."""
        if message.get("from") == "image":
            if message.get("image") not in self.images:
                raise UserError("That image is no longer here: choose it again.")
            return self.images[message["image"]]
        if self.store is None:
            raise UserError("This world has no dataset beside it: start from an image.")
        clip = number(message, "clip", 0, 10**9) % len(self.clips)
        return data.read_clips(self.store, self.clips[clip : clip + 1], 1).frames[0, 0]

    def world(self) -> dict:
        """What the page is told of the world."""
        coder, model = self.engine.cfg
        found, store = self.engine.found, self.store
        mapped = found._asdict() if found and self.engine.latent else None
        known = mapped is not None or not self.engine.latent
        game = known and store is not None and "collection" in store.meta and self.size == (64, 64)
        names = list(found.names) if found else list(store.action_names) if store else []
        kind = "latent" if self.engine.latent else "true"
        facts = {"run": self.run, "height": self.size[0], "width": self.size[1], "grid": list(coder.grid), "kind": kind}
        facts |= {"codes": model.codes, "actions": model.actions, "names": names, "map": mapped, "game": game}
        return facts | {"clips": len(self.clips)}


class Visitor:
    """The conversation on one socket. Its outgoing messages have a task of their own, so that sending a frame and
    dreaming the next overlap."""

    def __init__(self, server: Server, place: Place, socket: WebSocket):
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
            if len(self.incoming) > 100:
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
        content = {"format": "genie_fn recording", "version": 1, "world": self.server.identity, "seed": session.seed}
        content |= {"start": base64.b64encode(image.getvalue()).decode(), "level": session.level, "frames": frames}
        await self.outgoing.put({"type": "recording", "recording": content})

    async def on_replay(self, message: dict) -> None:
        """Dream a recording again, and say whether the frames are the same."""
        content = message.get("recording")
        if not isinstance(content, dict) or content.get("format") != "genie_fn recording" or content.get("version") != 1:
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


def refusal(words: str, status: int) -> Response:
    """An error that the page shows."""
    return JSONResponse({"error": words}, status)


class Guard:
    """Every request: from this origin, with the token where there is one; and safe headers on every answer."""

    def __init__(self, app: Starlette, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        origin, words = headers.get("origin"), ""
        asked = dict(part.partition("=")[::2] for part in scope["query_string"].decode("latin-1").split("&"))
        if self.token and not scope["path"].startswith("/static/"):
            if not hmac.compare_digest(asked.get("token", ""), self.token):
                words = "This page needs the whole address that play.py printed, with its token."
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            words = "This page answers only to itself."
        if scope["type"] == "websocket" and origin is None:
            words = "A socket has to name its origin."
        if not words and not self.token and urlsplit(f"//{headers.get('host')}").hostname not in LOCAL:
            words = "Without a token this page answers only as localhost."  # not to a name that was pointed at it
        if words and scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": words})
        if words:
            return await refusal(words, 403)(scope, receive, send)

        async def safely(message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in SAFE.items()]
                message = message | {"headers": [*message["headers"], *extra]}
            await send(message)

        return await self.app(scope, receive, safely)


LOCAL = ("127.0.0.1", "localhost", "::1")
