"""Reads what the search page asks for from a URL, so that every link to the page is a complete search.

    term=text:1:two red circles      a text, with its weight
    term=row:-0.5:part-1/00017:42    a picture of the index: weight, partition, row
    term=picture:1:AAEC...           a dropped picture: weight, its embedding (see `pack_vector`)
    filter=meta_width:>=:512         column, operator, value
    least=0.25 n=48 offset=96        lowest score, number of results, results to skip

`q=two red circles` is short for `term=text:1:two red circles`.
"""

import base64
import binascii
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
import pyarrow as pa

from boring_assets.errors import SettingsError
from boring_assets.search.lance import quote

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams

_MAX_RESULTS = 10_000
_MAX_TEXT = 1000
_MAX_TERMS = 16
_OPERATORS = ("=", "!=", ">=", "<=", "contains")
Kind = Literal["text", "row", "picture"]


@dataclass(frozen=True)
class Term:
    """One part of a search.

    Attributes:
        kind: `text`, `row` (a picture of the index) or `picture` (a dropped one).
        weight: Its share of the combined vector; negative for "less like this".
        value: The text, `partition:row`, or the packed embedding.
    """

    kind: Kind
    weight: float
    value: str


@dataclass(frozen=True)
class SearchRequest:
    """A search of the page; without terms, a sample of the dataset."""

    terms: list[Term]
    filters: list[tuple[str, str, str]]  # column, operator, value
    least_score: float
    limit: int
    offset: int

    @classmethod
    def read(cls, params: "QueryParams") -> "SearchRequest":
        """Reads the query of a URL.

        Raises:
            SettingsError: A value is wrong.
        """
        terms = [_term(text) for text in params.getlist("term")]
        terms += [_term(f"text:1:{text}") for text in params.getlist("q") if text.strip()]
        if len(terms) > _MAX_TERMS:
            raise SettingsError(f"A search has at most {_MAX_TERMS} terms.")
        least = _number(params, "least", -1.0, -1, 1)
        limit = int(_number(params, "n", 48, 1, _MAX_RESULTS))
        offset = int(_number(params, "offset", 0, 0, 1_000_000))
        return cls(terms, [_filter(text) for text in params.getlist("filter")], least, limit, offset)


def _term(text: str) -> Term:
    kind, _, rest = text.partition(":")
    weight, _, value = rest.partition(":")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if kind not in get_args(Kind) or not math.isfinite(number) or abs(number) > 100 or not value.strip():
        raise SettingsError(
            "A term is `text:WEIGHT:TEXT`, `row:WEIGHT:PARTITION:ROW` or `picture:WEIGHT:VECTOR`."
        )
    if kind == "text" and len(value) > _MAX_TEXT:
        raise SettingsError(f"A text has at most {_MAX_TEXT} characters.")
    return Term(cast(Kind, kind), number, value)


def _filter(text: str) -> tuple[str, str, str]:
    column, _, rest = text.partition(":")
    operator, separator, value = rest.partition(":")
    if not separator:
        raise SettingsError("A filter is `COLUMN:OPERATOR:VALUE`.")
    return column, operator, value


def _number(params: "QueryParams", name: str, default: float, least: float, most: float) -> float:
    try:
        value = float(params.get(name) or default)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise SettingsError(f"{name} is a number from {least:,} to {most:,}.")
    return value


def condition(columns: dict[str, pa.DataType], filters: list[tuple[str, str, str]]) -> str:
    """Returns filters as LanceDB's SQL; their values come from a URL and are not trusted.

    Raises:
        SettingsError: There is no such column or operator, or the value is none of the column's.
    """
    return " AND ".join(_comparison(columns, *each) for each in filters)


def _comparison(columns: dict[str, pa.DataType], name: str, operator: str, value: str) -> str:
    if name not in columns:
        raise SettingsError(f"There is no column {name!r}; there are {', '.join(columns)}.")
    if operator not in _OPERATORS:
        raise SettingsError(f"There is no operator {operator!r}; there are {', '.join(_OPERATORS)}.")
    quoted = "`" + name.replace("`", "``") + "`"
    kind = columns[name]
    if operator == "contains":
        return f"contains(lower(CAST({quoted} AS STRING)), {quote(value.lower())})"
    if pa.types.is_string(kind):
        return f"{quoted} {operator} {quote(value)}"
    if pa.types.is_boolean(kind):
        if value.lower() not in ("true", "false"):
            raise SettingsError(f"{name} is true or false, not {value!r}.")
        return f"{quoted} {operator} {value.lower()}"
    if not re.fullmatch(r"[+-]?\d{1,18}(\.\d{1,18})?", value.strip()):
        raise SettingsError(f"{name} is a number, not {value!r}.")
    return f"{quoted} {operator} {value.strip()}"


def pack_vector(vector: np.ndarray) -> str:
    """Packs an embedding, float32 [dim], for a URL: base64 of int8 [dim], scaled to the largest number."""
    scaled = np.round(vector / max(float(np.abs(vector).max()), 1e-12) * 127).astype(np.int8)
    return base64.urlsafe_b64encode(scaled.tobytes()).decode().rstrip("=")


def unpack_vector(text: str, dim: int) -> np.ndarray:
    """Reads what `pack_vector` packed; returns float32 [dim], L2-normalized.

    Raises:
        SettingsError: It is not an embedding of this length.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    vector = np.frombuffer(data, np.int8).astype(np.float32)
    norm = float(np.linalg.norm(vector))
    if len(vector) != dim or not norm:
        raise SettingsError("This link holds a picture that another model embedded. Drop the picture again.")
    return vector / np.float32(norm)
