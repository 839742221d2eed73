"""Helpers for messages: numbers with nouns, lists, expected values, texts that are safe to print."""

from collections.abc import Mapping
from typing import Any

_EXPECTED = {
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "missing": "a value",
    "extra_forbidden": "no entry of that name",
    "too_short": "at least {min_length} entry",
}
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text"}
_TYPES |= {"dict": "a table of names and values", "model": "a table of names and values"}


def some(number: int, noun: str) -> str:
    """Returns a number with its noun: `1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_of(names: list[str], most: int = 5) -> str:
    """Returns the first few names of a list, and dots if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def expected(problem: Mapping[str, Any]) -> str:
    """Returns what a value must be, e.g. `expected a number greater than 0`.

    Args:
        problem: An entry of pydantic's `ValidationError.errors()`. Its message is for programmers, and is
            used only where a validator of this project wrote it.
    """
    kind = str(problem["type"])
    wanted = _EXPECTED.get(kind) or _TYPES.get(kind.split("_")[0])
    return f"expected {wanted.format(**problem.get('ctx', {}))}" if wanted else str(problem["msg"])


def printable(text: str) -> str:
    """Returns a name or a path for messages: invisible characters and wrong bytes are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def plain(text: str) -> str:
    """Returns a text that is safe to print in a terminal: names and URLs in it come from the data.

    Each line is made printable, and local URIs become paths.
    """
    return "\n".join(map(printable, text.replace("file:///", "/").split("\n")))
