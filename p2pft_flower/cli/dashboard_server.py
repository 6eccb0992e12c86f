"""The server of the live page: its files, and a stream of a run's state. It answers GET only."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pft_flower.report.live_page import Page
from p2pft_flower.typed import encoded

__all__ = ["FILES", "INTERVAL", "Board", "frames", "make_app"]

log = logging.getLogger("p2pft_flower")

FILES = Path(__file__).with_name("dashboard_page")

_TYPES = {"icon.svg": "image/svg+xml", "page.css": "text/css", "page.js": "text/javascript"}

INTERVAL = 1.0
"""Seconds between two looks at the files."""

_ALIVE = 15.0
"""Seconds after which an idle stream says that it is alive, so that a connection that broke is noticed."""

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


class Board:
    """The newest pages, from which all streams are sent; made in a thread once a second, whoever looks.

    Parameters
    ----------
    look : callable
        Given the time, Unix seconds, returns the page of each run; the newest run's comes first.
    closing : callable
        Returns whether the server is to end: then all streams end, within a second.
    """

    def __init__(
        self, look: Callable[[float], Mapping[str, Page]], closing: Callable[[], bool] = lambda: False
    ) -> None:
        self._look, self._closing = look, closing
        self._changed = asyncio.Condition()
        self._number = 0
        self._frames: dict[str, tuple[str, str]] = {}
        """By run: the page without its charts, and the charts, as JSON."""

    async def renew(self) -> None:
        """Look once, and wake all streams."""
        try:
            pages = await asyncio.to_thread(self._look, time.time())
            made = {run: frames(page, pages) for run, page in pages.items()}
        except Exception:
            log.exception("the page shows nothing new: the files of the runs could not be read")
            return
        async with self._changed:
            self._frames, self._number = made, self._number + 1
            self._changed.notify_all()

    async def run(self) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            await self.renew()
            await asyncio.sleep(INTERVAL)

    def _newer_than(self, number: int) -> bool:
        return self._number != number

    async def stream(self, run: str | None) -> AsyncIterator[str]:
        """Yield server-sent events: ``state`` with each look, ``charts`` when these have changed.

        ``run`` is the run's identifier; None: whichever is the newest at the moment. If there is none, the
        event is ``nothing``.
        """
        number, sent = 0, ""  # before the first look there is nothing to tell
        while not self._closing():
            if number != self._number:
                number = self._number
                state, charts = self._frames.get(run or next(iter(self._frames), ""), ("", ""))
                if not state:
                    yield "event: nothing\ndata: {}\n\n"
                    sent = ""
                else:
                    yield f"event: state\ndata: {state}\n\n"
                if charts != sent:
                    yield f"event: charts\ndata: {charts}\n\n"
                    sent = charts
            if not await self._renewed(number):
                yield ": alive\n\n"

    async def _renewed(self, number: int) -> bool:
        """Wait for a look after ``number``; return False if there is none for some seconds."""
        try:
            # In this task, not in one of its own as asyncio.wait_for does: a reader may go away at any time.
            async with self._changed, asyncio.timeout(_ALIVE):
                await self._changed.wait_for(partial(self._newer_than, number))
        except TimeoutError:
            return False
        return True


def frames(page: Page, pages: Mapping[str, Page]) -> tuple[str, str]:
    """Return the content of a run's two events, as JSON: the page without its charts, and the charts."""
    state = msgspec.to_builtins(page, str_keys=True)
    charts = state.pop("charts")
    state["runs"] = [{"run": run, "phase": p.phase} for run, p in pages.items()]
    curves = {"run": page.run, "charts": charts}
    return encoded(state).decode(), encoded(curves).decode()


class Guard:
    """Lets a request through if it may see the page, and adds the headers that all answers have.

    Parameters
    ----------
    app : ASGIApp
        The application.
    token : str
        The token that a request must have, in the address or in the cookie; empty: the server listens on
        loopback only, and a request must be addressed to loopback. A name that somebody has made point there
        (DNS rebinding) is refused.
    cookie : str
        The cookie's name.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        refusal = self._refusal(request)
        fresh = not refusal and bool(self._token) and self._token_given(request)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
                if fresh:
                    cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
                    own.append((b"set-cookie", cookie.encode()))
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        app = self._app if not refusal else PlainTextResponse(refusal[1], refusal[0])
        await app(scope, receive, sent)

    def _refusal(self, request: HTTPConnection) -> tuple[int, str] | None:
        host = request.headers.get("host", "")
        if not self._token and not _is_loopback(host):
            return 421, "This page is for this machine only: open it at 127.0.0.1 or localhost.\n"
        origin = request.headers.get("origin")
        if origin is not None and _place(origin) != host:
            return 403, "Another page may not read this one.\n"
        if not self._token or self._token_given(request):
            return None
        if self._same(request.cookies.get(self._cookie, "")):
            return None
        return 401, "A token is missing: open the address that p2pft dashboard has printed.\n"

    def _token_given(self, request: HTTPConnection) -> bool:
        return self._same(request.query_params.get("token", ""))

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _place(origin: str) -> str:
    """Return the host and port of a request's Origin; empty if it names none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    """Tell whether a request's Host names loopback, with any port: it may come through a tunnel."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def make_app(board: Board, token: str = "", cookie: str = "p2pft") -> Starlette:
    """Return the application; ``token`` and ``cookie`` as in :class:`Guard`."""

    async def page(_: Request) -> Response:
        return Response((FILES / "index.html").read_bytes(), media_type="text/html")

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _TYPES:
            return PlainTextResponse("there is no such file\n", 404)
        return Response((FILES / name).read_bytes(), media_type=_TYPES[name])

    async def events(request: Request) -> Response:
        return StreamingResponse(
            board.stream(request.query_params.get("run") or None), media_type="text/event-stream"
        )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(board.run())
        try:
            yield
        finally:
            looking.cancel()

    return Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Route("/events", events, methods=["GET"]),
            Route("/{name}", file, methods=["GET"]),
        ],
        middleware=[Middleware(Guard, token=token, cookie=cookie)],
        lifespan=lifespan,
    )
