"""The findings of `verify`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """The kinds of findings."""

    UNREADABLE = "unreadable"
    FACTS = "facts"
    SCHEMA = "schema"
    COUNTS = "counts"
    NOT_FINITE = "not_finite"
    NOT_UNIT = "not_unit"
    REPEATED = "repeated_rows"
    ROWS = "rows"
    OTHER_SHARD = "other_shard"
    OTHER_INPUT = "other_input"
    NO_FAILURES = "no_failures_file"
    FAILURES = "failures"
    OTHER_MODEL = "other_model"
    CUT_SHORT = "cut_short"
    STALE = "stale"
    MISSING = "missing"
    TOTALS = "totals"
    GONE = "gone"
    STRAY = "stray"


class Severity(StrEnum):
    """`error` needs a repair; `note` does not."""

    ERROR = "error"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One problem: its kind, and a sentence about it."""

    kind: Kind
    text: str
    severity: Severity = Severity.ERROR


@dataclass(frozen=True)
class Checked:
    """The result of checking one partition.

    Attributes:
        facts: Metadata of its embeddings file; empty where that cannot be read.
        findings: Its problems.
    """

    facts: Mapping[str, Any]
    findings: list[Finding]
