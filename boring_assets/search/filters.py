"""Filters of the search page as LanceDB's SQL; they come from a URL and are not trusted."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

import pyarrow as pa

from boring_assets.errors import SettingsError

Operator = Literal["=", "!=", ">=", "<=", "contains"]


def condition(columns: dict[str, pa.DataType], filters: Sequence[tuple[str, str, str]]) -> str:
    """Returns filters as SQL, for values that are not trusted.

    Args:
        columns: The index's; see `Searcher.columns`.
        filters: Column, operator and value of each.

    Raises:
        SettingsError: There is no such column or operator, or the value is none of the column's.
    """
    return " AND ".join(_comparison(columns, *each) for each in filters)


def _comparison(columns: dict[str, pa.DataType], name: str, operator: str, value: str) -> str:
    if name not in columns:
        raise SettingsError(f"There is no column {name!r}; there are {', '.join(columns)}.")
    if operator not in get_args(Operator):
        raise SettingsError(f"There is no operator {operator!r}; there are {', '.join(get_args(Operator))}.")
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


def quote(text: str) -> str:
    """A text as a literal of LanceDB's SQL."""
    return "'" + text.replace("'", "''") + "'"
