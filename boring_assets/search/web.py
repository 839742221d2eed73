"""The web page: search by text or by a picture, on this machine alone unless told otherwise.

Strangers' pages must not use it through a visitor's browser: the Host header must be a name that is allowed
(against DNS rebinding), a picture is taken from this page's own origin alone, and the content security policy
allows nothing but this page's own files. Pictures come from the source shards, as thumbnails encoded anew.
"""

import secrets
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlencode, urlsplit

import numpy as np

from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import BoringError, SettingsError
from boring_assets.search.page import PLACEHOLDER, open_pictures, render
from boring_assets.search.query import Hit, Operator, Searcher, condition, to_json
from boring_assets.search.question import MOST_PAGE, SIZES, Question
from boring_assets.settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = ("127.0.0.1", "localhost")
_PICTURES = 200
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Site:
    """What the page's requests are answered with. Starlette calls it from many threads."""

    def __init__(self, settings: Settings, searcher: Searcher) -> None:
        self._searcher, self._most_bytes = searcher, settings.max_image_bytes
        self._pictures = open_pictures(settings)
        self._given: OrderedDict[str, np.ndarray] = OrderedDict()

    def page(self, request: "Request") -> "Response":
        """`GET /`: the form, and the results of what it asks for."""
        from starlette.responses import HTMLResponse

        question, hits, message, status = Question("", "", "", None, [], -1.0, SIZES[0], 1), [], "", 200
        try:
            self._searcher.refresh()
            question = Question.read(request.query_params)
            hits = self._find(question, question.size + 1)
        except BoringError as error:
            message, status = str(error), 400
        text = render(
            "search.html",
            question=question,
            hits=hits[: question.size],
            more=len(hits) > question.size and question.page < MOST_PAGE,
            asked=question.asked,
            message=message,
            columns=list(self._searcher.columns),
            operators=get_args(Operator),
            sizes=SIZES,
            count=self._searcher.count(),
            picture=lambda hit: "/thumbnail?" + urlencode(_place(hit)),
            like=lambda hit: "/?" + urlencode({"partition": hit.partition, "row": hit.row}),
            turn=lambda step: question.url(question.page + step),
        )
        return HTMLResponse(text, status)

    def search(self, request: "Request") -> "Response":
        """`GET /search.json`: the same question, as JSON."""
        from starlette.responses import Response

        try:
            question = Question.read(request.query_params)
            return Response(to_json(self._find(question, question.size)), media_type="application/json")
        except BoringError as error:
            return _error(str(error), 400)

    def thumbnail(self, request: "Request") -> "Response":
        """`GET /thumbnail`: a small JPEG of one picture, or a placeholder with status 404."""
        from starlette.responses import Response

        params = request.query_params
        row = params.get("row", "0")
        made: bytes | Failure = Failure(Reason.MISSING_IMAGE, "no row")
        if row.isdecimal() and len(row) < 12:
            made = self._pictures.thumbnail(params.get("partition", ""), params.get("key"), int(row))
        if isinstance(made, Failure):
            return Response(PLACEHOLDER, 404, media_type="image/svg+xml")
        return Response(made, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def picture(self, request: "Request") -> "Response":
        """`POST /picture`: takes a picture, and gives the name by which a page can ask for it."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return _error("Pictures are taken from this page alone.", 403)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._most_bytes:
                return _error(f"The picture is too large: the limit is {self._most_bytes:,} bytes.", 413)
        found = await run_in_threadpool(self._searcher.of_picture, bytes(body))
        if isinstance(found, Failure):
            return _error("This is no picture that can be read, or it is too large.", 415)
        name = secrets.token_urlsafe(12)
        self._given[name] = found
        while len(self._given) > _PICTURES:
            self._given.popitem(last=False)
        return JSONResponse({"picture": name})

    def _find(self, question: Question, limit: int) -> list[Hit]:
        if not question.asked:
            return []
        if question.picture:
            vector = self._given.get(question.picture)
            if vector is None:
                raise SettingsError("That picture is forgotten. Drop it again.")
        elif question.row is not None:
            vector = self._searcher.of_row(question.partition, question.row)
        else:
            vector = self._searcher.of_text(question.text)
        return self._searcher.nearest(
            vector,
            limit=limit,
            offset=question.offset,
            where=condition(self._searcher.columns, question.filters),
            least_score=question.least_score,
        )


def _place(hit: Hit) -> dict[str, object]:
    return {"partition": hit.partition, "row": hit.row} | ({} if hit.key is None else {"key": hit.key})


def _error(text: str, status: int) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse({"error": text}, status)


def build_app(settings: Settings, searcher: Searcher, allowed_hosts: list[str]) -> "Starlette":
    """The web application.

    Args:
        settings: Where the pictures are, and the limits.
        searcher: Answers the questions.
        allowed_hosts: Names that a request's Host header may have, without ports; `*` allows all.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    site = Site(settings, searcher)
    return Starlette(
        routes=[
            Route("/", site.page),
            Route("/search.json", site.search),
            Route("/thumbnail", site.thumbnail),
            Route("/picture", site.picture, methods=["POST"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts, www_redirect=False),
        ],
    )


class _Headers:
    """Adds the security headers to every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.datastructures import MutableHeaders

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def listen(
    settings: Settings, searcher: Searcher, host: str, port: int, more_hosts: tuple[str, ...] = ()
) -> None:
    """Serves the page until it is interrupted.

    Args:
        settings: See `build_app`.
        searcher: See `build_app`.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        more_hosts: Names besides the loopback ones and `host` by which the page may be asked for.

    Raises:
        SettingsError: The web server is not installed, or cannot listen there.
    """
    import socket

    import click

    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise SettingsError(
            'The web page needs uvicorn and Starlette. Install them: pip install "boring_assets[search]".'
        ) from error
    app = build_app(settings, searcher, [*LOOPBACK, host, *more_hosts])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise SettingsError(f"Cannot listen on {host}:{port}: {error}. Choose another --port.") from error
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"Search at http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends it)")
    config = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=100)
    with suppress(KeyboardInterrupt):  # the way that it is meant to end
        uvicorn.Server(config).run(sockets=[listener])
