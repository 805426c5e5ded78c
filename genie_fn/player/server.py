"""The page's server: one socket per visitor, one session per socket, and nothing that another site could use.

It answers only to its own origin, and where it listens beyond this machine, only with a token. What it reads is bounded
before it is decoded, and nothing that it reads is unpickled or run.
"""

import asyncio
import contextlib
import hmac
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from genie_fn import data, video
from genie_fn.errors import UserError
from genie_fn.player.engine import MAX_STEPS, Engine

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles
    from starlette.websockets import WebSocket, WebSocketDisconnect

    from genie_fn.player.visitor import MESSAGE, Place, Visitor, number
except ImportError as error:
    raise UserError(f"playing in the browser needs more packages ({error}): `pip install 'genie_fn[play]'`") from error

PAGE = Path(__file__).parent / "page"
UPLOAD = 4 << 20  # bytes of an image
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


class Server:
    """The application and what it keeps: places, uploaded images, start frames. `app` is the ASGI application."""

    def __init__(self, engine: Engine, run: str, identity: str, store: data.Store | None, token: str, limits: Limits):
        self.engine, self.run, self.identity, self.store = engine, run, identity, store
        self.token, self.limits = token, limits
        self.places: dict[str, Place] = {}
        self.images: dict[str, np.ndarray] = {}
        coder, _ = engine.cfg
        self.clips = (
            data.eval_clips(store, "test", 1, min(64, len(data.clip_starts(store, "test", 1)))) if store else []
        )
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


def serve_on(server: Server, listening: socket.socket) -> None:
    """Serve on a bound socket until Ctrl-C."""
    settings = {"log_level": "warning", "ws_max_size": MESSAGE, "timeout_graceful_shutdown": 1, "server_header": False}
    config = uvicorn.Config(server.app, lifespan="on", **settings)
    uvicorn.Server(config).run(sockets=[listening])


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
