"""Hooks of MkDocs: pages that live outside `docs/`, and links that lead out of it.

Everything is written so that its links work on a git host. Here they become those of the site: README.md is
the first page, and a file that a page links to, such as `deploy/docker/compose.yaml`, comes along.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# Code, which is left alone, or a relative link.
_LINK = re.compile(
    r"```.*?```|`[^`\n]+`(?!\])|\[(?P<text>[^\]]*)\]\((?P<target>(?![a-z]+:|#)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL,
)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and the linked files that lie outside `docs/`."""
    outside = {page: (ROOT / name).read_text() for name, page in PAGES.items()}
    texts = [("docs", file.content_string) for file in files.documentation_pages()]
    for folder, text in [*texts, *(("", text) for text in outside.values())]:
        for target in filter(None, (match["target"] for match in _LINK.finditer(text))):
            path = _place(folder, target)
            if path not in PAGES and not path.startswith("docs/") and (ROOT / path).is_file():
                files.append(_generated(config, path, abs_src_path=str(ROOT / path)))
    for page, text in outside.items():
        files.append(_generated(config, page, content=_to_site("", text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links of a page in `docs/` that lead out of it into links of the site."""
    return markdown if page.file.src_uri in PAGES.values() else _to_site("docs", markdown)


def _generated(config: Any, path: str, **content: str) -> File:
    return File.generated(config, path, inclusion=InclusionLevel.INCLUDED, **content)


def _to_site(folder: str, markdown: str) -> str:
    """Turns the links of a text that lies in a folder of the project into links of the site."""

    def turned(match: re.Match[str]) -> str:
        if not match["target"]:
            return match[0]
        path = _place(folder, match["target"])
        if (ROOT / path).is_dir():  # a git host lists it; the site has no page for it
            return match["text"]
        return f"[{match['text']}]({PAGES.get(path, path.removeprefix('docs/'))}{match['anchor'] or ''})"

    return _LINK.sub(turned, markdown)


def _place(folder: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(folder, target))
