"""What can be wrong with an output, in words that `verify` and its readers share."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What can be wrong with a partition, or with an output."""

    UNREADABLE = "unreadable"
    FACTS = "facts"
    SCHEMA = "schema"
    COUNTS = "counts"
    NOT_FINITE = "not_finite"
    NOT_UNIT = "not_unit"
    REPEATED = "repeated_rows"
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
    """`error`: something is to be done. `note`: worth knowing, and left alone."""

    ERROR = "error"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what sort of thing, and what exactly, as a sentence."""

    kind: Kind
    text: str
    severity: Severity = Severity.ERROR


@dataclass(frozen=True)
class Checked:
    """What was found in one partition.

    Attributes:
        facts: What its embeddings file says of itself; empty where that cannot be read.
        findings: What is wrong with it.
    """

    facts: Mapping[str, Any]
    findings: list[Finding]
