"""The documents as a site, and their links on a git host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import PROJECT, pages
from tests.waiting import HANG_SECONDS

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


class Links(HTMLParser):
    """What a page of the site loads, and where it leads to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value:
                (self.leads if tag == "a" else self.loads).append(value)


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=PROJECT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert (site / "index.html").is_file()
    for path in site.rglob("*.html"):
        links = Links(path.read_text())
        for link in links.loads:
            assert not urlsplit(link).netloc, f"{path} loads {link}"
        if path.name == "404.html":  # its links begin at the root of a host
            continue
        for link in links.loads + links.leads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            target = path.parent / unquote(parts.path)
            assert (target / "index.html" if target.is_dir() else target).is_file(), f"{path}: {link}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import\s+[\"']https?:", style.read_text()), style


@pytest.mark.parametrize("page", pages())
def test_links_work_on_a_git_host(page: str) -> None:
    text = CODE.sub("", (PROJECT / page).read_text())
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (PROJECT / page).parent / path
        assert target.exists(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in [_anchor(heading) for heading in headings], f"{page}: {link}"


def _anchor(heading: str) -> str:
    """How git hosts and the site name a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
