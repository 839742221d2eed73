"""For `boring-assets verify`: checks a whole output, in parallel over its partitions."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boring_assets.commands.report import count_rows
from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError
from boring_assets.output.findings import Checked, Finding, Kind, Severity
from boring_assets.output.identity import NAMES, differences, identity
from boring_assets.output.measures import CACHES
from boring_assets.output.origin import Origin, origin_of, root_of
from boring_assets.output.totals import COUNTS
from boring_assets.output.verify import check_files
from boring_assets.settings import Settings
from boring_assets.storage.errors import storage_error, storage_errors
from boring_assets.storage.files import version_of
from boring_assets.storage.root import Root, check_readable
from partitions.discovery import Discovery
from partitions.own_files import EMBEDDINGS, FAILURES, OUTPUT_MARKER, PARTS
from partitions.shards import SUFFIX, check_key, uri_of
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource

DAMAGE = frozenset(Kind) - {Kind.CUT_SHORT, Kind.STALE, Kind.MISSING, Kind.TOTALS, Kind.GONE, Kind.STRAY}
"""Kinds of findings that are repaired only by new files."""
_OURS = ("metadata.json", "near_duplicates.parquet", ".measures.parquet", OUTPUT_MARKER, PARTS)
_KEPT = (*NAMES, "settings", "embedded", "failed")
_CLOUD_THREADS = 16
_TRIES = 3

Files = Mapping[str, Mapping[str, Any]]


@dataclass
class Report:
    """The result of checking an output.

    Attributes:
        output: What is wrong with the output outside of its partitions.
        shards: The input's complete shards by key; None where no input is known.
        partitions: What is wrong, by partition key.
        checked: Metadata of each committed partition, by key; empty where it cannot be read.
    """

    output: list[Finding]
    shards: Mapping[str, Shard] | None
    partitions: dict[str, list[Finding]] = field(default_factory=dict)
    checked: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, key: str, *findings: Finding) -> None:
        """Adds findings of one partition."""
        if findings:
            self.partitions.setdefault(key, []).extend(findings)

    def all(self) -> list[tuple[str | None, Finding]]:
        """Returns all findings with their partition keys, those of the whole output last."""
        pairs = [(key, finding) for key, found in sorted(self.partitions.items()) for finding in found]
        return [*pairs, *((None, finding) for finding in self.output)]

    def as_json(self) -> dict[str, Any]:
        """Returns what `verify --json` prints."""
        findings = [{"partition": key, **vars(finding)} for key, finding in self.all()]
        return {"partitions": len(self.checked), "redo": self.bad(), "findings": findings}

    def bad(self, kinds: frozenset[Kind] = frozenset(Kind)) -> list[str]:
        """Keys of the partitions with an error of some kinds, sorted; they are to be embedded again."""
        return sorted(
            key
            for key, findings in self.partitions.items()
            if any(one.severity is Severity.ERROR and one.kind in kinds for one in findings)
        )

    def has_errors(self) -> bool:
        """Whether anything needs a repair."""
        return bool(self.bad()) or any(one.severity is Severity.ERROR for one in self.output)

    def model(self) -> Mapping[str, Any]:
        """Returns the facts of a partition of the most frequent model; empty without partitions."""
        models = Counter(json.dumps(identity(facts)) for facts in self.checked.values() if facts)
        if not models:
            return {}
        most = max(models, key=lambda model: (models[model], model))
        return next(facts for facts in self.checked.values() if facts and json.dumps(identity(facts)) == most)


def check_output(settings: Settings) -> Report:
    """Checks every committed partition and all other files of an output; returns what is wrong.

    Where an input is set, the output is also compared with it.

    Raises:
        SettingsError: No output is set, or a URI is wrong.
        StorageError: The output, or the input, cannot be read.
    """
    root = EmbeddingsIOManager.from_settings(settings).root()
    check_readable(root)
    source = ShardSource.from_settings(settings) if settings.input_dir else None
    found = source.discover() if source else None
    files = _list(root)
    keys, strays = _sort(files, root)
    shards = {shard.key: shard for shard in found.shards} if found else None
    report = Report(output=strays, shards=shards)
    origin = origin_of(root)
    if source is not None:
        report.output.extend(_check_input(root, origin, source.root()))

    def check(key: str) -> Checked:
        checked = _check(root, key, files)
        if checked.facts and not checked.findings:
            checked.findings.extend(_check_source(checked.facts, key, origin))
        if checked.facts and not checked.findings:
            checked.findings.extend(_against_source(checked.facts, (shards or {}).get(key)))
        return checked

    local = isinstance(root.fs, LocalFileSystem)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if local else _CLOUD_THREADS) as pool:
        for key, checked in zip(keys, pool.map(check, keys), strict=True):
            # Not all facts: there may be a hundred thousand partitions.
            report.checked[key] = {name: checked.facts.get(name) for name in _KEPT} if checked.facts else {}
            report.add(key, *checked.findings)
    _compare_models(report)
    if found is not None:
        _compare_input(report, found)
    report.output.extend(_check_totals(root, report))
    return report


def _list(root: Root) -> Files:
    """Every file of the output, by its path below it."""
    with storage_errors(root.uri, "list"):
        root.fs.invalidate_cache()
        found = root.fs.find(root.path, detail=True)
    start = len(root.path.rstrip("/")) + 1
    return {path[start:]: info for path, info in sorted(found.items()) if info["type"] == "file"}


def _sort(files: Files, root: Root) -> tuple[list[str], list[Finding]]:
    """Returns the partitions with an embeddings file, and the files that belong to no partition."""
    keys, strays = [], []
    for path in files:
        kind, _, rest = path.partition("/")
        if kind in (EMBEDDINGS, FAILURES) and rest.endswith(SUFFIX) and _is_key(rest.removesuffix(SUFFIX)):
            if kind == EMBEDDINGS:
                keys.append(rest.removesuffix(SUFFIX))
            elif f"{EMBEDDINGS}/{rest}" not in files:
                why = "has no embeddings file beside it: its run was killed before the commit, or runs now"
                strays.append(_stray(root, path, why))
        elif kind.startswith(".") and kind not in (COUNTS, CACHES) and path not in _OURS:
            why = "is a file that a run was writing when it was killed, or that a run writes now"
            strays.append(_stray(root, path, why))
        elif kind in (EMBEDDINGS, FAILURES) or (not rest and path not in _OURS):
            strays.append(_stray(root, path, "is not a file of this project"))
    return keys, strays


def _is_key(text: str) -> bool:
    try:
        return bool(check_key(text))
    except ShardError:
        return False


def _stray(root: Root, path: str, why: str) -> Finding:
    return Finding(Kind.STRAY, f"{root.uri}/{path} {why}.", Severity.NOTE)


def _check(root: Root, key: str, files: Files) -> Checked:
    """Checks a partition, and again if a run has replaced one of its files in the meantime."""
    paths = [f"{kind}/{uri_of('', key)}" for kind in (EMBEDDINGS, FAILURES)]
    before = [version_of(files.get(path, {})) for path in paths]
    for _ in range(_TRIES):
        checked = check_files(root, *paths)
        after = [version_of(_info(root, path)) for path in paths]
        if not checked.findings or after == before:
            break
        before = after
    left_out = checked.facts.get("rows_left_out")
    if left_out and not checked.findings:
        message = (
            f"only {checked.facts['rows']:,} of its rows were taken, {left_out:,} were left out on request."
        )
        checked.findings.append(Finding(Kind.CUT_SHORT, message))
    return checked


def _info(root: Root, path: str) -> Mapping[str, Any]:
    try:
        root.fs.invalidate_cache(f"{root.path}/{path}")
        info: Mapping[str, Any] = root.fs.info(f"{root.path}/{path}")
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{path}", "read") from error
    return info


def _check_input(root: Root, origin: Origin, source: Root) -> Iterator[Finding]:
    if origin.inputs and not origin.includes(source.uri):
        yield Finding(
            Kind.OTHER_INPUT,
            f"{root.uri} was embedded from {origin.inputs[0]}, not from {source.uri}. If the input was "
            f"moved: boring-assets set-input {root.uri} {source.uri}",
        )


def _check_source(facts: Mapping[str, Any], key: str, origin: Origin) -> Iterator[Finding]:
    """Checks that a partition was embedded from the shard of its key, below the output's input."""
    uri = str(facts.get("source_uri") or "an unknown shard")
    source = root_of(uri, key)
    if source is None:
        yield Finding(Kind.OTHER_SHARD, f"it was embedded from {uri}, not from the shard of its key.")
    elif origin.inputs and not origin.includes(source, earlier=True):
        inputs = " or ".join(origin.inputs)
        yield Finding(Kind.OTHER_INPUT, f"it was embedded from {uri}, which is not below {inputs}.")


def _against_source(facts: Mapping[str, Any], shard: Shard | None) -> Iterator[Finding]:
    if shard is None:
        return
    if facts["source_version"] != shard.version:
        yield Finding(Kind.STALE, f"{shard.uri} has changed since (its version is now {shard.version}).")
        return
    rows, taken = count_rows(shard), facts["rows"] + (facts.get("rows_left_out") or 0)
    if rows and rows != taken:
        yield Finding(Kind.COUNTS, f"{shard.uri} has {rows:,} rows, but {taken:,} were taken in.")


def _compare_models(report: Report) -> None:
    most = report.model()
    for key, facts in report.checked.items():
        if facts and (message := differences(identity(facts), identity(most))):
            report.add(key, Finding(Kind.OTHER_MODEL, f"it has {message}, which most partitions have."))


def _compare_input(report: Report, found: Discovery) -> None:
    there = {shard.key for shard in found.shards}
    for shard in found.shards:
        if shard.key not in report.checked:
            report.add(shard.key, Finding(Kind.MISSING, f"{shard.uri} is not embedded."))
    for key in report.checked.keys() - there - set(found.growing):
        message = "its shard is no longer in the input; what was embedded stays."
        report.add(key, Finding(Kind.GONE, message, Severity.NOTE))


def _check_totals(root: Root, report: Report) -> Iterator[Finding]:
    if report.bad(DAMAGE):  # damaged files cannot be counted; the next run counts again
        return
    ours = list(report.checked.values())
    counted = {
        "num_shards": len(ours),
        "num_samples": sum(facts["embedded"] for facts in ours),
        "num_failed": sum(facts["failed"] for facts in ours),
    }
    if not ours:
        return
    try:
        totals = json.loads(root.fs.cat_file(f"{root.path}/metadata.json"))
        message = {name: totals.get(name) for name in counted}
    except FileNotFoundError:
        message = {}
    except (ValueError, AttributeError):
        message = {"metadata.json": "no JSON object"}
    except Exception as error:
        raise storage_error(error, f"{root.uri}/metadata.json", "read") from error
    if message != counted:
        text = f"{root.uri}/metadata.json says {message or 'nothing'}, but the files hold {counted}."
        yield Finding(Kind.TOTALS, text)
