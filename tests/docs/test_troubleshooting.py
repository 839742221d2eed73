"""The page of error messages, held against the code that raises them."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from boring_assets import errors
from tests.docs.pages import PROJECT

PAGE = (PROJECT / "docs" / "troubleshooting.md").read_text()
FAMILY = {
    name for name, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.BoringError)
}
# What a row begins with: `the message`, where `...` stands for anything and may itself hold code.
EXCERPTS = [text for _, text in re.findall(r"^\| (`+) ?(.+?) ?\1 \| ", PAGE, re.MULTILINE)]
OF_OTHERS = {  # Dagster's
    "Couldn't import module boring_assets.instance.local_storage",
    "Another ... daemon is still sending heartbeats",
    "SupersessionWarning: ... Use 'dg dev' instead",
    "Found a dagster instance configuration value (dagster.yaml) in the current folder",
}
VARYING = "\0"


def sources() -> Iterator[Path]:
    for folder in ("boring_assets", "partitions", "resources"):
        yield from sorted((PROJECT / folder).rglob("*.py"))


def literal(node: ast.AST) -> str:
    """What a text says, with a mark for each part that is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else VARYING
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    return VARYING


TREES = [ast.parse(path.read_text()) for path in sources()]
TEXTS = {
    literal(node)
    for tree in TREES
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant | ast.JoinedStr)
}
# The message of each place that raises an error of the family, where it has a text of its own.
RAISED = {
    literal(node.args[0])
    for tree in TREES
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id in FAMILY
    and node.args
    and re.search(r"\w{3}", literal(node.args[0]))
}


def says(text: str, excerpt: str) -> bool:
    """Whether a text of the code reads like an excerpt of the page."""
    pattern = ".*".join(re.escape(piece.strip()) for piece in excerpt.split("..."))
    return re.search(pattern, text, re.DOTALL) is not None


def test_every_class_of_error_is_explained() -> None:
    assert len(FAMILY) > 5
    assert {name for name in FAMILY if f"| `{name}` |" not in PAGE} == set()


def test_messages_quoted_in_the_documents_are_in_the_code() -> None:
    quoted = {one for one in EXCERPTS if " " in one} - OF_OTHERS
    assert len(quoted) > 90
    invented = {one for one in quoted if not any(says(text, one) for text in TEXTS)}
    assert invented == set()


def test_every_message_that_is_raised_is_on_the_page() -> None:
    assert len(RAISED) > 90
    useful = [one for one in EXCERPTS if len(one) > 12]
    missing = {text for text in RAISED if not any(says(text, one) for one in useful)}
    assert {text.replace(VARYING, "...") for text in missing} == set()
