"""The server of the search page, by default only for this machine.

It is protected against other web pages in a visitor's browser: the Host header must be an allowed name
(against DNS rebinding), uploads must come from the page's own origin, and the content security policy allows
only the page's own files. Pictures come from the input's shards and are encoded again.
"""

import io
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import BoringError, SettingsError
from boring_assets.search.pictures import PLACEHOLDER, Pictures, open_pictures
from boring_assets.search.query import Hit, Searcher, to_json
from boring_assets.search.request import SearchRequest, Term, condition, pack_vector, unpack_vector
from boring_assets.settings import Settings

_LOOPBACK = ("127.0.0.1", "localhost")
_STATIC = Path(__file__).parent / "static"
_LARGE = 1024  # longest side of the large picture, in pixels
_DOWNLOADS = {"csv": "text/csv", "json": "application/json", "parquet": "application/vnd.apache.parquet"}
_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Site:
    """Answers the page's requests. Starlette calls it from many threads."""

    def __init__(self, settings: Settings, searcher: Searcher) -> None:
        self._searcher, self._settings = searcher, settings
        self._model = "loading"
        threading.Thread(target=self._load_model, name="load-model", daemon=True).start()

    def _load_model(self) -> None:
        """Loads the model beside the first requests, and encodes a text so that the first search is fast."""
        try:
            self._searcher.of_text("a picture")
            self._model = "ready"
        except BoringError as error:
            self._model = str(error)

    def info(self, request: Request) -> Response:
        """`GET /api/info`: the dataset, the filter columns, and whether the model is `ready` or `loading`."""
        self._searcher.refresh()
        output = self._settings.output_dir.rstrip("/").rpartition("/")[2]
        return JSONResponse(
            {
                "name": self._settings.dataset or output,
                "count": self._searcher.count(),
                "columns": {name: str(kind) for name, kind in self._searcher.columns.items()},
                "model": self._model,
            }
        )

    def search(self, request: Request) -> Response:
        """`GET /api/search`: results of a search, or a sample of the dataset if there is no term."""
        return Response(to_json(self._find(request)), media_type="application/json")

    def values(self, request: Request) -> Response:
        """`GET /api/values?column=C`: the most frequent values of a column, with their counts."""
        return JSONResponse(self._searcher.count_values(request.query_params.get("column", "")))

    def download(self, request: Request) -> Response:
        """`GET /api/download?format=csv|json|parquet`: the results of a search as a file."""
        kind = request.query_params.get("format", "csv")
        if kind not in _DOWNLOADS:
            raise SettingsError(f"format is one of {', '.join(_DOWNLOADS)}.")
        hits = self._find(request)
        data = to_json(hits).encode() if kind == "json" else _table_bytes(hits, kind)
        headers = {"Content-Disposition": f'attachment; filename="search.{kind}"'}
        return Response(data, media_type=_DOWNLOADS[kind], headers=headers)

    async def embed(self, request: Request) -> Response:
        """`POST /api/embed`: embeds a picture, and returns its vector for the page's URL."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return _error("Only this page may send pictures.", 403)
        limit = self._settings.max_image_bytes
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                return _error(f"The picture is too large: the limit is {limit:,} bytes.", 413)
        vector = await run_in_threadpool(self._searcher.of_picture, bytes(body))
        if isinstance(vector, Failure):
            return _error(f"This picture cannot be read: {vector.detail}.", 415)
        return JSONResponse({"vector": pack_vector(vector)})

    def _find(self, request: Request) -> list[Hit]:
        asked = SearchRequest.read(request.query_params)
        where = condition(self._searcher.columns, asked.filters)
        if not asked.terms:
            return self._searcher.sample(limit=asked.limit, offset=asked.offset, where=where)
        vector = np.sum([term.weight * self._vector(term) for term in asked.terms], axis=0)
        norm = float(np.linalg.norm(vector))
        if norm < 1e-6:
            raise SettingsError("The terms cancel each other out. Change a weight.")
        return self._searcher.nearest(
            (vector / norm).astype(np.float32),
            limit=asked.limit,
            offset=asked.offset,
            where=where,
            least_score=asked.least_score,
        )

    def _vector(self, term: Term) -> np.ndarray:
        """float32 [dim], the embedding of a term."""
        if term.kind == "text":
            return self._searcher.of_text(term.value)
        if term.kind == "picture":
            return unpack_vector(term.value, self._searcher.dim)
        partition, _, row = term.value.rpartition(":")
        if not row.isdecimal() or len(row) > 12:
            raise SettingsError("A row term is `row:WEIGHT:PARTITION:ROW`.")
        return self._searcher.of_row(partition, int(row))


def picture_endpoint(pictures: Pictures) -> Callable[[Request], Response]:
    """Returns the handler of `GET /api/picture`: a JPEG of one picture, or a placeholder with status 404."""

    def picture(request: Request) -> Response:
        params = request.query_params
        row, side = params.get("row", ""), _LARGE if "large" in params else None
        jpeg: bytes | Failure = Failure(Reason.MISSING_IMAGE, "no row")
        if row.isdecimal() and len(row) < 12:
            jpeg = pictures.thumbnail(params.get("partition", ""), params.get("key"), int(row), side)
        if isinstance(jpeg, Failure):
            return Response(PLACEHOLDER, 404, media_type="image/svg+xml")
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return picture


def _table_bytes(hits: list[Hit], kind: str) -> bytes:
    import polars as pl

    frame = pl.DataFrame([hit.as_json() for hit in hits], infer_schema_length=None)
    out = io.BytesIO()
    if kind == "csv":
        frame.write_csv(out)
    else:
        frame.write_parquet(out)
    return out.getvalue()


def _error(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status)


def listen(settings: Settings, searcher: Searcher, host: str, port: int, more_hosts: tuple[str, ...]) -> None:
    """Serves the page until Ctrl-C; see `run_server`.

    Raises:
        SettingsError: The server cannot listen there.
    """
    site = Site(settings, searcher)
    index: Callable[..., Any] = lambda request: FileResponse(_STATIC / "index.html")  # noqa: E731
    app = Starlette(
        routes=[
            Route("/", index),
            Route("/api/info", site.info),
            Route("/api/search", site.search),
            Route("/api/values", site.values),
            Route("/api/download", site.download),
            Route("/api/picture", picture_endpoint(open_pictures(settings))),
            Route("/api/embed", site.embed, methods=["POST"]),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        exception_handlers={BoringError: lambda request, error: _error(str(error), 400)},
    )
    run_server(app, _POLICY, "Search at", host, port, more_hosts)


def run_server(
    app: ASGIApp, policy: str, title: str, host: str, port: int, more_hosts: tuple[str, ...]
) -> None:
    """Serves an application until Ctrl-C, and prints its address.

    Args:
        app: The application.
        policy: Its content security policy.
        title: Printed before the address.
        host: Address to listen on.
        port: Port to listen on. 0 takes a free one.
        more_hosts: Names that the Host header may have besides `host` and the loopback names; `*` allows all.

    Raises:
        SettingsError: The server cannot listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise SettingsError(f"Cannot listen on {host}:{port}: {error}. Choose another --port.") from error
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"{title} http://{shown}:{listener.getsockname()[1]} (stop with Ctrl-C)")
    guarded = TrustedHostMiddleware(app, [*_LOOPBACK, host, *more_hosts], www_redirect=False)
    served = _SecurityHeaders(guarded, policy)
    config = uvicorn.Config(served, log_level="warning", server_header=False, limit_concurrency=100)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


class _SecurityHeaders:
    """Adds the security headers to every response."""

    def __init__(self, app: Any, policy: str) -> None:
        self._app, self._headers = app, _HEADERS | {"Content-Security-Policy": policy}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request (ASGI)."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
