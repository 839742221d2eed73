"""Search results as one HTML file with its images; every text is escaped."""

import base64
from pathlib import Path

from boring_assets.engine.samples import Failure
from boring_assets.errors import SettingsError
from boring_assets.search.pictures import PLACEHOLDER, open_pictures
from boring_assets.search.query import Hit
from boring_assets.settings import Settings


def results_page(settings: Settings, asked: str, hits: list[Hit]) -> str:
    """Returns a page of search results, with the pictures in it.

    Raises:
        SettingsError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise SettingsError(
            'HTML needs Jinja2, which is not installed. Install it: pip install "boring_assets[search]".'
        ) from error
    pictures = open_pictures(settings)

    def inline(hit: Hit) -> str:
        jpeg = pictures.thumbnail(hit.partition, hit.key, hit.row)
        kind, data = ("svg+xml", PLACEHOLDER) if isinstance(jpeg, Failure) else ("jpeg", jpeg)
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    style = (Path(__file__).parent / "static" / "style.css").read_text()
    loader = jinja2.PackageLoader("boring_assets.search")
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return pages.get_template("results.html").render(asked=asked, hits=hits, picture=inline, style=style)
