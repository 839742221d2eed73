"""Finds and removes what `boring-assets prune` removes from an output."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import click
import dagster as dg
from fsspec.implementations.local import LocalFileSystem

from boring_assets.assets.events import materialization
from boring_assets.commands.runs import run_job
from boring_assets.datasets import Dataset
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.exclusions import Exclusions
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.samples import Failure, Shard
from boring_assets.errors import RunError, SettingsError, ShardError, StorageError
from boring_assets.instance.homes import open_instance
from boring_assets.jobs import DUPLICATES_JOB, INDEX_JOB
from boring_assets.output.derived import DERIVED
from boring_assets.output.files import file_keys
from boring_assets.output.merging import (
    IDENTIFYING,
    CommittedRows,
    find_excluded,
    read_committed,
    remove_rows,
)
from boring_assets.output.totals import refresh_totals
from boring_assets.parts import get_parts
from boring_assets.search.duplicates import FILE as NEAR_DUPLICATES
from boring_assets.search.lance import FOLDER as INDEX
from boring_assets.settings import Settings
from boring_assets.storage.root import Root
from boring_assets.wording import plain, printable, some
from partitions.discovery import Discovery
from partitions.own_files import EMBEDDINGS, FAILURES
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource

_CLOUD_THREADS, _LOCAL_THREADS = 16, 4
_SHOWN = 20


@dataclass
class Plan:
    """What to remove."""

    gone: list[str] = field(default_factory=list)  # keys of the partitions whose shards left the input
    # The embedded rows that are excluded, by partition key, with the failure to record for each.
    excluded: dict[str, dict[int, Failure]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # messages about the search

    def __bool__(self) -> bool:
        return bool(self.gone or self.excluded)


def make_plan(settings: Settings, *, read_images: bool = False, everything: bool = False) -> Plan:
    """Finds what to remove from the output; nothing is changed.

    Args:
        settings: Input, output and list of excluded images.
        read_images: Also compare the SHA-256 of each image in the input.
        everything: Accept an input that holds no shard of the output, or none at all.

    Raises:
        SettingsError: Neither an input nor a list is set, or the output belongs to another input.
        StorageError: The input, the output or the list cannot be read; or the input holds no shard of the
            output.
    """
    source, embeddings = ShardSource.from_settings(settings), EmbeddingsIOManager.from_settings(settings)
    exclusions = source.exclusions()
    if not (settings.input_dir or exclusions):
        raise SettingsError(
            "Neither an input nor a list of excluded images is set, so there is nothing to compare with. Set "
            "BORING_INPUT_DIR, BORING_EXCLUDE or both."
        )
    plan, shards = Plan(), {}
    if settings.input_dir:
        embeddings.check_input(source.root())
        found = source.discover()
        shards = {shard.key: shard for shard in found.shards}
        plan.gone = _find_gone(settings, embeddings, source.root(), found, everything=everything)
    else:
        plan.notes.append("No input is set (--input), so prune did not look for shards that left the input.")
    if exclusions:
        keys = sorted(embeddings.committed() - set(plan.gone))
        _find_excluded(plan, keys, embeddings.root(), exclusions, source, shards if read_images else {})
        if exclusions.digests and not read_images:
            plan.notes.append(
                "SHA-256 digests were compared with the column sha256 only; --read-images reads the images."
            )
    return plan


def _find_gone(
    settings: Settings, embeddings: EmbeddingsIOManager, source: Root, found: Discovery, *, everything: bool
) -> list[str]:
    root = embeddings.root()
    registered = _parts_by_key(settings, open_instance(settings.output_dir))
    held = {*file_keys(root, EMBEDDINGS), *file_keys(root, FAILURES), *registered}
    there = {*(shard.key for shard in found.shards), *found.growing}
    if held and not held & there and not everything:
        raise StorageError(
            f"None of the {some(len(held), 'shard')} of {root.uri} is in {source.uri}: it is empty, or the "
            "wrong input. Nothing is removed. To remove all of them, add --all."
        )
    return sorted(key for key in held - there if not _is_refused(f"{source.path}/{key}", found))


def _is_refused(stem: str, found: Discovery) -> bool:
    """Returns whether a shard may still exist, because it or one of its folders cannot be read."""
    name = printable(stem)
    return any(path.startswith(f"{name}.") or f"{name}/".startswith(f"{path}/") for path in found.refused)


def _find_excluded(
    plan: Plan,
    keys: list[str],
    root: Root,
    exclusions: Exclusions,
    source: ShardSource,
    shards: dict[str, Shard],
) -> None:
    """Adds the excluded rows of some partitions to the plan; the images of `shards` are read too."""

    def find(key: str) -> dict[int, Failure]:
        try:
            committed = read_committed(root, key, list(IDENTIFYING.values()))
            rows = find_excluded(committed, exclusions)
            if exclusions.digests and key in shards:
                rows |= _find_by_images(shards[key], committed, exclusions, source)
        except ShardError as error:
            plan.notes.append(f"{key} was left out: {error}")
            return {}
        return rows

    threads = _LOCAL_THREADS if isinstance(root.fs, LocalFileSystem) else _CLOUD_THREADS
    with ThreadPoolExecutor(threads) as pool:
        plan.excluded = {key: rows for key, rows in zip(keys, pool.map(find, keys), strict=True) if rows}


def _find_by_images(
    shard: Shard, committed: CommittedRows, exclusions: Exclusions, source: ShardSource
) -> dict[int, Failure]:
    if committed.facts["source_version"] != shard.version:
        raise ShardError(f"{shard.uri} has changed since. Embed it first.")
    opened = open_shard(shard, Limits(), source.fetcher())
    opened.only_rows = frozenset(committed.rows.tolist())
    try:
        images = ((row, image) for row, image in opened.images() if isinstance(image, bytes))
        return {row: failure for row, image in images if (failure := exclusions.find_image(image))}
    finally:
        opened.close()


def print_plan(plan: Plan) -> None:
    """Prints what would be removed."""
    for note in plan.notes:
        click.echo(plain(note))
    if plan.gone:
        click.echo(f"{some(len(plan.gone), 'shard')} left the input:")
        _print_some([f"  {key}" for key in plan.gone])
    if plan.excluded:
        rows = [(key, *one) for key, some_rows in plan.excluded.items() for one in sorted(some_rows.items())]
        click.echo(f"{some(len(rows), 'image')} of {some(len(plan.excluded), 'shard')} excluded:")
        _print_some([f"  {key}  row {row}  {failure.detail}" for key, row, failure in rows])


def _print_some(lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        click.echo(plain(line))
    if len(lines) > _SHOWN:
        click.echo(f"  ... and {len(lines) - _SHOWN:,} more")


def carry_out(settings: Settings, plan: Plan) -> Iterator[str]:
    """Removes what is in the plan, and yields a line for each step.

    A call that is killed is finished by the next one.

    Raises:
        StorageError: The output cannot be written.
        RunError: The index or the near duplicates could not be updated.
    """
    embeddings = EmbeddingsIOManager.from_settings(settings)
    root, instance = embeddings.root(), open_instance(settings.output_dir)
    registered = _parts_by_key(settings, instance)
    for key, rows in plan.excluded.items():
        facts = remove_rows(root, key, rows)
        for kind in DERIVED:  # they have a row for each embedding
            embeddings.remove(key, kind)
        if key in registered:
            instance.report_runless_asset_event(_event(embeddings, registered[key], key, facts))
    if plan.excluded:
        yield f"{some(sum(map(len, plan.excluded.values())), 'image')} removed."
    for key in plan.gone:
        for kind in (EMBEDDINGS, FAILURES, *DERIVED):  # the embeddings file first: it is the commit mark
            embeddings.remove(key, kind)
        if key in registered:
            instance.delete_dynamic_partition(str(registered[key].shards.name), key)
    if plan.gone:
        yield f"{some(len(plan.gone), 'shard')} removed."
    refresh_totals(root, [*plan.excluded, *plan.gone])
    yield from _update_derived(settings, instance, root)


def _parts_by_key(settings: Settings, instance: dg.DagsterInstance) -> dict[str, Dataset]:
    """Returns the part of each partition."""
    return {key: part for part in get_parts(settings) for key in part.keys(instance)}


def _event(
    embeddings: EmbeddingsIOManager, dataset: Dataset, key: str, facts: dict[str, object]
) -> dg.AssetMaterialization:
    shard = Shard(key, str(facts["source_uri"]), embeddings.root().fs, "", "", str(facts["source_version"]))
    return materialization(dataset, embeddings, shard, facts, {})


def _update_derived(settings: Settings, instance: dg.DagsterInstance, root: Root) -> Iterator[str]:
    """Updates the index and the near duplicates, if they exist."""
    for path, job, command in (
        (INDEX, INDEX_JOB, "index"),
        (NEAR_DUPLICATES, DUPLICATES_JOB, "near-duplicates"),
    ):
        if not root.fs.exists(f"{root.path}/{path}"):
            continue
        outcome = run_job(settings, instance, job)
        if outcome.error:
            raise RunError(
                f"What was removed is still in {root.uri}/{path}, which was not updated: {outcome.error} "
                f"Update it: boring-assets {command}."
            )
        yield f"{path} is up to date."
