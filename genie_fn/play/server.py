"""The page's server: one socket and one session per visitor.

It answers only its own origin, or where others can reach it, only requests with a token. What it
reads is bounded before it is decoded, and nothing that it reads is unpickled or executed.
"""

import asyncio
import contextlib
import mimetypes
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from genie_fn.data import images, video
from genie_fn.errors import UserError
from genie_fn.play.description import describe
from genie_fn.play.engine import Engine
from genie_fn.play.guard import Guard, refusal
from genie_fn.play.recording import MAX_STEPS, number
from genie_fn.play.visitor import CLOSED, MAX_MESSAGE, Place, Visitor, sentence

PAGE = Path(__file__).parent / "page"
mimetypes.add_type("text/javascript", ".js")  # Windows may have another type for it
MAX_UPLOAD = 32 << 20  # bytes of an image, such as a photo of a phone; it is scaled down here
MAX_IMAGES = 32  # uploaded images kept
MEDIA_TYPES = {"mp4": "video/mp4", "gif": "image/gif"}


@dataclass(frozen=True)
class Limits:
    """How many visitors may play, and how much of their sessions is kept for how long."""

    visitors: int = 8
    idle: float = 600.0
    """Seconds without a message after which a session is dropped, connected or not."""
    memory: int = 2 << 30
    """Bytes of all sessions beyond which those without a visitor are dropped, the oldest first."""


class Server:
    """The application and what it keeps: places, uploaded images, start frames.

    `app` is the ASGI application; `identity` is the world's fingerprint.
    """

    def __init__(self, engine: Engine, identity: str, token: str, limits: Limits):
        self.engine = engine
        self.identity = identity
        self.start_frames = engine.bundle.start_frames
        self.limits = limits
        self.world = describe(engine.bundle)
        self.size = (self.world["height"], self.world["width"])
        self.background: images.Background = images.background_of(engine.bundle.dataset.meta)
        self.places: dict[str, Place] = {}
        self.images: dict[str, np.ndarray] = {}
        self.heavy = asyncio.Semaphore(2)  # images and videos that are being decoded or written
        self.stop: Callable[[], None] = lambda: None
        routes = [
            Route("/", self.page),
            Route("/upload", self.upload, methods=["POST"]),
            Route("/render", self.render),
            Route("/examples", self.examples),
            Route("/play", self.answer, methods=["POST"]),
            WebSocketRoute("/play", self.play),
            Mount("/static", StaticFiles(directory=PAGE)),
        ]
        self.app = Guard(Starlette(routes=routes, lifespan=self.lifespan), token)

    @contextlib.asynccontextmanager
    async def lifespan(self, _) -> AsyncIterator[None]:
        """While the server runs, drop idle sessions, and notify visitors of compiled programs."""
        loop = asyncio.get_running_loop()
        self.engine.when_ready(lambda: loop.call_soon_threadsafe(self.notify_all))
        sweeping = asyncio.create_task(self.sweep())
        yield
        self.engine.when_ready(lambda: None)
        sweeping.cancel()

    async def sweep(self) -> None:
        """Drop expired sessions again and again."""
        while True:
            await asyncio.sleep(min(15.0, self.limits.idle / 4))
            self.expire()

    def expire(self) -> None:
        """Drop idle sessions, and those without a visitor beyond the limits.

        Of the latter those unused for longest are dropped first. Frames that branches share count
        once.
        """
        oldest = time.monotonic() - self.limits.idle
        kept: dict[int, int] = {}

        def rank(place: Place) -> tuple[bool, float]:
            return place.visitor is None, -place.used

        for place in sorted(self.places.values(), key=rank):
            moments = place.session.moments if place.session is not None else ()
            sizes = kept | {id(moment): moment.size for moment in moments}
            fits = (
                len(self.places) <= 4 * self.limits.visitors
                and sum(sizes.values()) <= self.limits.memory
            )
            if place.used >= oldest and (fits or place.visitor is not None):
                kept = sizes
            else:
                self.drop(place)

    def drop(self, place: Place) -> None:
        """Drop a session, and inform its visitor."""
        del self.places[place.id]
        if place.visitor is not None:
            place.visitor.dismiss("This session was idle for too long and is no longer kept.")

    def visitors(self) -> int:
        """The number of open sockets."""
        return sum(place.visitor is not None for place in self.places.values())

    def notify_all(self) -> None:
        """Send every visitor the state of the server."""
        message = {"type": "status", "ready": self.engine.ready, "visitors": self.visitors()}
        for place in self.places.values():
            if place.visitor is not None:
                place.visitor.notify(message)

    async def page(self, _: Request) -> Response:
        """Answer with the page itself."""
        return FileResponse(PAGE / "index.html")

    async def upload(self, request: Request) -> Response:
        """Take an image file; answer with its id."""
        content = await read_body(request)
        if content is None:
            limit = MAX_UPLOAD >> 20
            return refusal(f"This file is larger than {limit} MB: choose a smaller one.", 413)
        try:
            async with self.heavy:
                image = await asyncio.to_thread(
                    images.decode_image, content, *self.size, background=self.background
                )
        except UserError as error:
            return refusal(sentence(str(error)), 400)
        name = secrets.token_urlsafe(9)
        self.images[name] = image
        while len(self.images) > MAX_IMAGES:
            self.images.pop(next(iter(self.images)))
        return JSONResponse({"image": name})

    async def render(self, request: Request) -> Response:
        """Answer with the frames of a session so far as a video."""
        place = self.places.get(request.query_params.get("session", ""))
        kind = request.query_params.get("format")
        if place is None or place.session is None or kind not in MEDIA_TYPES:
            message = "There is no such video: ask for mp4 or gif of a session that is still kept."
            return refusal(message, 404)
        frames = [moment.pixels for moment in place.session.past()]
        async with self.heavy:
            content = await asyncio.to_thread(encode_video, frames, kind)
        headers = {"Content-Disposition": f'attachment; filename="rollout.{kind}"'}
        return Response(content, media_type=MEDIA_TYPES[kind], headers=headers)

    async def examples(self, request: Request) -> Response:
        """Answer with recorded transitions with an action: a PNG file, as in `ActionEffects`."""
        effects = self.engine.bundle.effects
        strips = enumerate(() if effects is None else effects.strips)
        by_name = {str(action): strip for action, strip in strips}
        strip = by_name.get(request.query_params.get("action", ""))
        if not strip:
            return refusal("There are no examples of this action: ask for another.", 404)
        return Response(strip, media_type="image/png")

    async def answer(self, _: Request) -> Response:
        """Answer a page whose socket was not opened, of which browsers hide the reason.

        A POST request names its origin, as a socket does, so that it is refused for the same
        reasons.
        """
        return Response(status_code=204)

    async def play(self, socket: WebSocket) -> None:
        """Talk to a visitor until the connection ends; the session stays for a while."""
        await socket.accept()
        self.expire()
        name = socket.query_params.get("session", "")
        place = self.places.get(name)
        if name and place is None:
            message = "That session is no longer kept."
            await socket.send_json({"type": "expired", "message": message})
            return await socket.close(CLOSED)
        if (place is None or place.visitor is None) and self.visitors() >= self.limits.visitors:
            message = f"All {self.limits.visitors} places of this world are taken."
            await socket.send_json({"type": "full", "message": message})
            return await socket.close(1013)
        await self.converse(Visitor(self, self.take(place), socket))

    async def converse(self, visitor: Visitor) -> None:
        """Give the visitor its place, and talk to it until the connection ends."""
        if visitor.place.visitor is not None:
            visitor.place.visitor.dismiss("This session was opened in another window.")
        visitor.place.visitor = visitor
        try:
            await visitor.hello()
            self.notify_all()
            await visitor.converse()
        except* (WebSocketDisconnect, RuntimeError, OSError):  # the visitor left
            pass
        finally:
            if visitor.place.visitor is visitor:
                visitor.place.visitor = None
            self.notify_all()

    def take(self, place: Place | None) -> Place:
        """The place, or a new one."""
        if place is None:
            sample = self.engine.sample
            steps = min(sample.steps, MAX_STEPS)
            place = Place(secrets.token_urlsafe(12), None, sample.temperature, steps)
            self.places[place.id] = place
        place.used = time.monotonic()
        return place

    def first_image(self, message: dict) -> np.ndarray:
        """The image that a `start` message asks for."""
        if message.get("from") == "image":
            name = message.get("image")
            if not isinstance(name, str) or name not in self.images:
                raise UserError("that image is no longer kept: choose it again")
            return self.images[name]
        if not len(self.start_frames):
            raise UserError("this world has no held-out frames: start from an image")
        return self.start_frames[number(message, "clip", 0, 10**9) % len(self.start_frames)]


async def read_body(request: Request) -> bytes | None:
    """The body of a request; None where it is larger than MAX_UPLOAD.

    A body that is not too large for that is read to its end, or a browser would not read the
    answer.
    """
    content = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > 4 * MAX_UPLOAD:
            return None
        if size <= MAX_UPLOAD:
            content += chunk
    return bytes(content) if size <= MAX_UPLOAD else None


def encode_video(frames: list[np.ndarray], kind: str) -> bytes:
    """Frames as the content of a video file, enlarged to about 256 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rollout.{kind}"
        video.write_video(path, np.stack(frames), scale=max(1, 256 // frames[0].shape[0]))
        return path.read_bytes()


class Application(Protocol):
    """What can be served."""

    app: Any
    stop: Callable[[], None]


def serve_on(server: Application, listening: socket.socket) -> None:
    """Serve on a bound socket until Ctrl-C, or until `server.stop()`."""
    config = uvicorn.Config(
        server.app,
        lifespan="on",
        log_level="warning",
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,  # frames hardly shrink, and compressing them takes time
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    runner = uvicorn.Server(config)

    def stop() -> None:
        runner.should_exit = True

    server.stop = stop
    runner.run(sockets=[listening])
