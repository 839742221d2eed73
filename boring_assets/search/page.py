"""Search results as HTML; every text is escaped."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boring_assets.engine.samples import Failure
from boring_assets.errors import SettingsError
from boring_assets.search.pictures import Pictures, picture_limits
from boring_assets.settings import Settings

if TYPE_CHECKING:
    from boring_assets.search.query import Hit

PLACEHOLDER = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="224" height="224" viewBox="0 0 224 224">'
    b'<rect width="224" height="224" fill="#8884"/><path d="M72 72l80 80M152 72l-80 80" stroke="#888" '
    b'stroke-width="6"/></svg>'
)
"""Shown instead of a picture that cannot be read any more."""


def render(name: str, **values: Any) -> str:
    """Returns a template with its values.

    Raises:
        SettingsError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise SettingsError(
            'HTML needs Jinja2, which is not installed. Install it: pip install "boring_assets[search]".'
        ) from error
    loader = jinja2.PackageLoader("boring_assets.search")
    return (
        jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        .get_template(name)
        .render(**values)
    )


def open_pictures(settings: Settings) -> Pictures:
    """Returns the pictures of the input."""
    from resources.source import ShardSource

    return Pictures(ShardSource.from_settings(settings), picture_limits(settings))


def results_page(settings: Settings, asked: str, hits: "list[Hit]") -> str:
    """Returns a page of search results, with the pictures in it."""
    pictures = open_pictures(settings)

    def inline(hit: "Hit") -> str:
        jpeg = pictures.thumbnail(hit.partition, hit.key, hit.row)
        kind, data = ("svg+xml", PLACEHOLDER) if isinstance(jpeg, Failure) else ("jpeg", jpeg)
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    style = (Path(__file__).parent / "static" / "style.css").read_text()
    return render("results.html", asked=asked, hits=hits, picture=inline, style=style)
