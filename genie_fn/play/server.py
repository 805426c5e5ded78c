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
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from genie_fn.bundle import Bundle
from genie_fn.data import procgen, video
from genie_fn.errors import UserError
from genie_fn.play.engine import Engine
from genie_fn.play.recording import MAX_STEPS, number

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles
    from starlette.websockets import WebSocket, WebSocketDisconnect

    from genie_fn.play.visitor import GONE, MESSAGE, Place, Visitor, sentence
except ImportError as error:
    raise UserError(
        f"playing in the browser needs more packages ({error}): `pip install 'genie_fn[play]'`"
    ) from error

PAGE = Path(__file__).parent / "page"
LOCAL = ("127.0.0.1", "localhost", "::1")
UPLOAD = 4 << 20  # bytes of an image
IMAGES = 32  # uploaded images kept
SAFE = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # an address may hold the token
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """How many may play, and how much is kept for how long when they do not."""

    visitors: int = 8
    idle: float = 600.0
    """Seconds without a wish after which a session is forgotten, connected or not."""
    memory: int = 2 << 30
    """Bytes that all sessions may take together before those without a visitor are forgotten, the oldest first."""


class Server:
    """The application and what it keeps: places, uploaded images, start frames. `app` is the ASGI application."""

    def __init__(
        self,
        engine: Engine,
        bundle: Bundle,
        identity: str,
        token: str,
        limits: Limits,
    ):
        self.engine, self.identity, self.starts, self.limits = (
            engine,
            identity,
            bundle.start_frames,
            limits,
        )
        self.places: dict[str, Place] = {}
        self.images: dict[str, np.ndarray] = {}
        self.size = engine.cfg[0].height, engine.cfg[0].width
        self.world = described(engine, bundle)
        self.heavy = asyncio.Semaphore(2)  # images and films in the making
        self.stop: Callable = lambda: None
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
        self.engine.when_ready(lambda: loop.call_soon_threadsafe(self.tell))
        sweeping = asyncio.create_task(self.sweep())
        yield
        self.engine.when_ready(lambda: None)
        sweeping.cancel()

    async def sweep(self) -> None:
        """Forget, now and then, the sessions that nobody has used for long."""
        while True:
            await asyncio.sleep(min(15.0, self.limits.idle / 4))
            self.expire()

    def expire(self) -> None:
        """Forget idle sessions, and of those without a visitor the longest unused while there are too many or they take
        too much memory."""
        idle, kept = time.monotonic() - self.limits.idle, {}
        for place in sorted(
            self.places.values(), key=lambda place: (place.visitor is None, -place.used)
        ):
            sizes = kept | {id(x): x.size for x in (place.session.moments if place.session else ())}
            fits = (
                len(self.places) <= 4 * self.limits.visitors
                and sum(sizes.values()) <= self.limits.memory
            )
            if place.used >= idle and (fits or place.visitor is not None):
                kept = sizes  # frames that branches share count once
                continue
            del self.places[place.id]
            if place.visitor is not None:
                place.visitor.dismiss(
                    "Nothing happened here for a while, and the session is forgotten."
                )

    def visitors(self) -> int:
        """How many sockets are open."""
        return sum(place.visitor is not None for place in self.places.values())

    def tell(self) -> None:
        """Tell every visitor how things stand."""
        for place in self.places.values():
            if place.visitor is not None:
                place.visitor.say(
                    {"type": "status", "ready": self.engine.ready, "visitors": self.visitors()}
                )

    async def page(self, _: Request) -> Response:
        """The page itself."""
        return FileResponse(PAGE / "index.html")

    async def upload(self, request: Request) -> Response:
        """Take an image file; answered by its id."""
        content, size = bytearray(), 0
        async for (
            chunk
        ) in request.stream():  # read to its end, or a browser would not read the answer
            size += len(chunk)
            if size > 16 * UPLOAD:
                break
            if size <= UPLOAD:
                content += chunk
        if size > UPLOAD:
            return refusal(
                f"This file is larger than {UPLOAD >> 20} MB: choose a smaller one.", 413
            )
        try:
            async with self.heavy:
                image = await asyncio.to_thread(video.decode_image, bytes(content), *self.size)
        except UserError as error:
            return refusal(sentence(str(error)), 400)
        name = secrets.token_urlsafe(9)
        self.images[name] = image
        while len(self.images) > IMAGES:
            self.images.pop(next(iter(self.images)))
        return JSONResponse({"image": name})

    async def render(self, request: Request) -> Response:
        """The frames of a session so far as a film."""
        place, kind = (
            self.places.get(request.query_params.get("session", "")),
            request.query_params.get("format"),
        )
        if place is None or place.session is None or kind not in ("mp4", "gif"):
            return refusal(
                "There is no such film: ask for mp4 or gif of a session that is still there.", 404
            )
        async with self.heavy:
            content = await asyncio.to_thread(
                film, [moment.pixels for moment in place.session.past()], kind
            )
        headers = {"Content-Disposition": f'attachment; filename="dream.{kind}"'}
        return Response(
            content, media_type={"mp4": "video/mp4", "gif": "image/gif"}[kind], headers=headers
        )

    async def play(self, socket: WebSocket) -> None:
        """A visitor, from hello to the end of the connection; the session stays for a while."""
        await socket.accept()
        self.expire()
        asked = socket.query_params.get("session", "")
        place = self.places.get(asked)
        if asked and place is None:
            await socket.send_json(
                {"type": "expired", "message": "That session is no longer kept."}
            )
            await socket.close(GONE)
            return
        if (place is None or place.visitor is None) and self.visitors() >= self.limits.visitors:
            words = (
                f"All {self.limits.visitors} places of this world are taken: try again in a while."
            )
            await socket.send_json({"type": "full", "message": words})
            await socket.close(1013)
            return
        visitor = Visitor(self, self.take(place), socket)
        if visitor.place.visitor is not None:
            visitor.place.visitor.dismiss("This session is played in another window now.")
        visitor.place.visitor = visitor
        try:
            await visitor.hello()
            self.tell()
            await visitor.converse()
        except* (
            WebSocketDisconnect,
            RuntimeError,
            OSError,
        ):  # gone, while being read from or written to
            pass
        finally:
            if visitor.place.visitor is visitor:
                visitor.place.visitor = None
            self.tell()

    def take(self, place: Place | None) -> Place:
        """The place, or a new one."""
        if place is None:
            sample = self.engine.sample
            place = Place(
                secrets.token_urlsafe(12), None, sample.temperature, min(sample.steps, MAX_STEPS)
            )
            self.places[place.id] = place
        place.used = time.monotonic()
        return place

    def first_image(self, message: dict) -> np.ndarray:
        """The image that a `start` message asks for."""
        if message.get("from") == "image":
            if not isinstance(message.get("image"), str) or message["image"] not in self.images:
                raise UserError("that image is no longer here: choose it again")
            return self.images[message["image"]]
        if not len(self.starts):
            raise UserError("this world has no dataset beside it: start from an image")
        return self.starts[number(message, "clip", 0, 10**9) % len(self.starts)]


def described(engine: Engine, bundle: Bundle) -> dict:
    """What the page is told of the world."""
    (coder, model), found = engine.cfg, engine.found
    names = list(found.names if found else bundle.action_names)
    known = not engine.latent or found is not None
    return {
        "run": bundle.path,
        "height": coder.height,
        "width": coder.width,
        "grid": list(coder.grid),
        "codes": model.codes,
        "actions": model.actions,
        "kind": "latent" if engine.latent else "true",
        "names": names,
        "map": found._asdict() if found and engine.latent else None,
        "clips": len(bundle.start_frames),
        "game": known
        and procgen.there(engine.meta or {})
        and (coder.height, coder.width) == (procgen.SIZE, procgen.SIZE),
    }


def film(frames: list[np.ndarray], kind: str) -> bytes:
    """Frames as the content of a file, enlarged to about 256 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"dream.{kind}"
        video.write_video(path, np.stack(frames), scale=max(1, 256 // frames[0].shape[0]))
        return path.read_bytes()


def serve_on(server: Server, listening: socket.socket) -> None:
    """Serve on a bound socket until Ctrl-C, or until `server.stop()`."""
    settings = {
        "log_level": "warning",
        "ws_max_size": MESSAGE,
        "timeout_graceful_shutdown": 1,
        "server_header": False,
    }
    settings |= {
        "ws_per_message_deflate": False
    }  # noise like frames hardly shrinks, and the time is missed
    runner = uvicorn.Server(uvicorn.Config(server.app, lifespan="on", **settings))
    server.stop = lambda: setattr(runner, "should_exit", True)
    runner.run(sockets=[listening])


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
        words = self.objection(scope)
        if words and scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": words})

        async def safely(message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in SAFE.items()]
                message = message | {"headers": [*message["headers"], *extra]}
            await send(message)

        return await (refusal(words, 403) if words else self.app)(scope, receive, safely)

    def objection(self, scope: dict) -> str:
        """Why a request is refused; empty if it is not."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        origin, host = headers.get("origin"), headers.get("host", "")
        if self.token and not scope["path"].startswith(
            "/static/"
        ):  # which holds nothing that is not public
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return "This page needs the whole address that play.py printed, with its token."
        if origin not in (None, f"http://{host}", f"https://{host}"):
            return "This page answers only to itself."
        if scope["type"] == "websocket" and origin is None:
            return "A socket has to name its origin."
        if (
            not self.token and hostname(host) not in LOCAL
        ):  # but another name that was made to point here
            return "Without a token this page answers only as localhost."
        return ""


def hostname(host: str) -> str | None:
    """The name in a Host header, without the port; None if it cannot be read."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
