"""A map of the embeddings in Apple's Embedding Atlas (https://apple.github.io/embedding-atlas).

Embedding Atlas projects the vectors to two dimensions by UMAP and keeps the result in the user's cache. The
page reads the pictures one by one from the input's shards, when they are shown.
"""

import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import embedding_atlas
import polars as pl
from embedding_atlas.data_source import DataSource
from embedding_atlas.options import make_embedding_atlas_props
from embedding_atlas.projection import compute_projection
from embedding_atlas.server import make_server
from starlette.routing import Route

from boring_assets.errors import SettingsError
from boring_assets.search.pictures import open_pictures
from boring_assets.search.query import Searcher
from boring_assets.search.rows import VECTOR
from boring_assets.search.web import picture_endpoint, run_server
from boring_assets.settings import Settings

# Embedding Atlas runs DuckDB as WebAssembly in workers, and sets styles in its elements.
_POLICY = (
    "default-src 'self'; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' blob: data:; base-uri 'none'; frame-ancestors 'none'"
)
_FEWEST = 5
_PICTURE_STYLE = {
    "display": "full",
    "renderer": "liquid-template",
    "options": {"template": '<img src="{{value}}" alt="" style="max-height: 12rem">'},
}


def open_map(settings: Settings, searcher: Searcher, limit: int, where: str, **server: Any) -> None:
    """Computes the map of at most `limit` images and serves it until Ctrl-C; see `run_server`.

    Without an input, the map has no pictures. `where` is a condition in LanceDB's SQL.

    Raises:
        SettingsError: An argument is wrong.
        StorageError: The index cannot be read.
    """
    frame = _project(searcher, limit, where)
    styles = {}
    if settings.input_dir:
        frame = frame.with_columns(_picture_column(frame))
        styles["picture"] = _PICTURE_STYLE
    props = make_embedding_atlas_props(
        row_id="id",
        x="x",
        y="y",
        neighbors="neighbors",
        text="caption",
        initial_state={"version": embedding_atlas.__version__, "columnStyles": styles},
    )
    data = DataSource(settings.output_dir, frame, {"props": props})
    app = make_server(data, static_path=str(Path(embedding_atlas.__file__).parent / "static"))
    if settings.input_dir:
        app.router.routes.insert(0, Route("/api/picture", picture_endpoint(open_pictures(settings))))
    run_server(app, _POLICY, f"Map of {frame.height:,} images at", **server)


def _project(searcher: Searcher, limit: int, where: str) -> pl.DataFrame:
    """Returns a sample of the index: its columns without the vector, and `x`, `y` and `neighbors` (UMAP)."""
    logging.getLogger("embedding_atlas").setLevel(logging.WARNING)
    frame = pl.DataFrame(pl.from_arrow(searcher.sample_vectors(limit, where)))
    if frame.height < _FEWEST:
        raise SettingsError(f"A map needs at least {_FEWEST} images; there are {frame.height}.")
    with redirect_stdout(sys.stderr):  # it prints the path of its cache
        projected = compute_projection(
            frame, inputs=VECTOR, modality="vector", x="x", y="y", neighbors="neighbors"
        )
    return projected.drop(VECTOR).with_columns(id=pl.int_range(pl.len()))


def _picture_column(frame: pl.DataFrame) -> pl.Series:
    names = ("partition", "row", "key")
    return pl.Series(
        "picture",
        [
            f"/api/picture?{urlencode({name: value for name, value in row.items() if value is not None})}"
            for row in frame.select(names).iter_rows(named=True)
        ],
    )
