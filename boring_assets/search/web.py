"""The web page: search by text or by a picture, on this machine alone unless told otherwise.

Strangers' pages must not use it through a visitor's browser: the Host header must be a name that is allowed
(against DNS rebinding), a picture is taken from this page's own origin alone, and the content security policy
allows nothing but this page's own files. Pictures come from the source shards, as thumbnails encoded anew.
"""

import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlencode, urlsplit

import numpy as np

from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import BoringError, SettingsError
from boring_assets.search.page import PLACEHOLDER, open_pictures, render
from boring_assets.search.query import Hit, Operator, Searcher, condition, to_json
from boring_assets.settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.datastructures import QueryParams
    from starlette.requests import Request
    from starlette.responses import Response

SIZES = (24, 100, 1000)
LOOPBACK = ("127.0.0.1", "localhost")
_MOST_TEXT = 1000
_MOST_PAGE = 1000
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


@dataclass(frozen=True)
class Question:
    """What a page asks for: a text, a picture that was given, or one that is in the index; see `read`.

    Attributes:
        text: The text.
        picture: Name of a picture that was given before.
        partition: Of a picture in the index.
        row: Of a picture in the index; None where the question is another.
        filters: Column, operator and value of each.
        least_score: Results with a lower score are left out.
        size: Results on a page.
        page: From 1.
    """

    text: str
    picture: str
    partition: str
    row: int | None
    filters: list[tuple[str, str, str]]
    least_score: float
    size: int
    page: int

    @property
    def offset(self) -> int:
        """Results before this page."""
        return (self.page - 1) * self.size

    @classmethod
    def read(cls, params: "QueryParams") -> "Question":
        """Reads the query of a URL.

        Raises:
            SettingsError: A value is none.
        """
        given = zip(
            params.getlist("column"), params.getlist("operator"), params.getlist("value"), strict=False
        )
        try:
            size, page = int(params.get("n", SIZES[0])), int(params.get("page", 1))
            least = float(params.get("least") or -1)
            row = int(params["row"]) if "row" in params else None
        except ValueError as error:
            raise SettingsError(f"n, page, least and row are numbers: {error}.") from error
        if not 1 <= size <= SIZES[-1] or not 1 <= page <= _MOST_PAGE:
            raise SettingsError(f"n goes from 1 to {SIZES[-1]}, and page from 1 to {_MOST_PAGE}.")
        text = params.get("q", "").strip()
        if len(text) > _MOST_TEXT:
            raise SettingsError(f"The text is longer than {_MOST_TEXT} characters.")
        filters = [each for each in given if each[0]]
        picture, partition = params.get("picture", ""), params.get("partition", "")
        return cls(text, picture, partition, row, filters, least, size, page)

    def url(self, page: int) -> str:
        """The URL of a page of the same question."""
        pairs: list[tuple[str, object]] = [("q", self.text)] if self.text else []
        pairs += [("picture", self.picture)] if self.picture else []
        pairs += [("partition", self.partition), ("row", self.row)] if self.row is not None else []
        for column, operator, value in self.filters:
            pairs += [("column", column), ("operator", operator), ("value", value)]
        return "/?" + urlencode([*pairs, ("least", self.least_score), ("n", self.size), ("page", page)])


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
            more=len(hits) > question.size and question.page < _MOST_PAGE,
            asked=_is_asked(question),
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
        if not _is_asked(question):
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


def _is_asked(question: Question) -> bool:
    return bool(question.text or question.picture or question.row is not None)


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
