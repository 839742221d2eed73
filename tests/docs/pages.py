"""The documents as they are written: which there are, and the code blocks in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
# In the order in which they are read: a page may use what the commands of an earlier one made.
FIRST = ("README.md", "docs/guide.md", "docs/search.md")
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+?) -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Path of its page in the project.
        line: Of its first line there, from 1.
        language: As the fence says; empty without one.
        text: What stands in it.
        why_not: The reason given for not running it, or an empty text.
    """

    page: str
    line: int
    language: str
    text: str
    why_not: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Paths of all documents, the first ones first."""
    found = [*PROJECT.glob("*.md"), *sorted((PROJECT / "docs").glob("*.md"))]
    names = [str(path.relative_to(PROJECT)) for path in found]
    return [*FIRST, *(name for name in names if name not in FIRST)]


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = (PROJECT / page).read_text()
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(page, line, match["language"], match["text"], match["why"] or "")
