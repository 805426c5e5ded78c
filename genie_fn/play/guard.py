"""Which requests the page's server accepts, and the headers that every answer carries."""

import hmac
from urllib.parse import parse_qs, urlsplit

from starlette.responses import JSONResponse, Response

LOCAL = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; manifest-src blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # an address may hold the token
    "Cache-Control": "no-store",
}
NO_TOKEN = "This page needs its token: open the whole address that the program printed when it last started."
PROXY_ADVICE = (
    "If a proxy publishes it, start `genie-fn play` with --cfg.origin and the address that visitors open, "
    "and open the address that it then prints."
)


def refusal(message: str, status: int) -> Response:
    """An error that the page shows."""
    return JSONResponse({"error": message}, status)


class Guard:
    """An ASGI application that passes on only requests with the token, from any origin.

    No other site knows the token, and no browser adds it by itself. Without a token, only requests
    of the page's own origin are passed on, and the page answers only as localhost: else another
    site could use the page in its visitors' browsers. Every answer gets HEADERS.
    """

    def __init__(self, app, token: str):
        self.app = app
        self.token = token

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        problem = self.objection(scope)
        if problem and scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": problem})

        async def send_with_headers(message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message["headers"], *extra]}
            await send(message)

        app = refusal(problem, 403) if problem else self.app
        return await app(scope, receive, send_with_headers)

    def objection(self, scope: dict) -> str:
        """Why a request is refused; empty if it is not."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if scope["path"].startswith("/static/"):
            return ""  # public, and a page that is refused needs them to say so
        if self.token:
            return "" if self._has_token(scope) else NO_TOKEN
        origin = headers.get("origin")
        host = headers.get("host", "")
        # Another site may have a name that was made to point to this machine.
        if host_name(host) not in LOCAL:
            return f"Without a token this page answers only as localhost. {PROXY_ADVICE}"
        if origin not in (None, f"http://{host}", f"https://{host}"):
            return f"This page answers only requests of its own origin, {host}. {PROXY_ADVICE}"
        if scope["type"] == "websocket" and origin is None:
            return "A socket has to name its origin."
        return ""

    def _has_token(self, scope: dict) -> bool:
        fields = parse_qs(scope["query_string"].decode("latin-1"))
        token = fields.get("token", [""])[0]
        return hmac.compare_digest(token.encode(), self.token.encode())


def host_name(host: str) -> str | None:
    """The name in a Host header, without the port; None if it cannot be parsed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
