"""A run of `image_embeddings`: which of its shards are embedded, and the event of each."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import dagster as dg

from boring_assets import __version__
from boring_assets.assets.contact_sheet import contact_sheet, failure_sheet
from boring_assets.assets.events import adopted_metadata, embedding_metadata, materialization
from boring_assets.assets.failures import allow_more_retries
from boring_assets.assets.mixing import backfilled, refuse_to_mix
from boring_assets.assets.retry import check_settings, reasons_to_retry, rows_to_retry
from boring_assets.assets.sharing import leave_to_earlier_runs
from boring_assets.datasets import Dataset
from boring_assets.engine.inputs.exclusions import Exclusions
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import EmbeddedShard, FailedShard, Progress, embed_shards
from boring_assets.engine.samples import Reason, Shard
from boring_assets.errors import BoringError, ShardError
from boring_assets.monitoring.metrics import RunMetrics
from boring_assets.output.merging import merge_retried, read_committed
from boring_assets.output.schema import failed_by_reason
from boring_assets.output.totals import refresh_totals
from boring_assets.storage.errors import is_down, storage_error
from boring_assets.storage.root import check_refusal
from boring_assets.tags import ADOPT_TAG, MAX_SAMPLES_TAG, REDO_TAG, RESUME_TAG
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource

_REASONS = 1000
"""Most failed partitions of one run that get an event with their reason."""


@contextmanager
def _add_errors_to(first: BoringError) -> Iterator[None]:
    """Adds the text of an error of the block to the error that is being handled."""
    try:
        yield
    except BoringError as second:
        first.add_note(str(second))


class _Committed(NamedTuple):
    """A committed shard and its event."""

    shard: Shard
    event: dg.AssetMaterialization


class EmbeddingRun:
    """One run of `image_embeddings` over some partitions.

    Attributes:
        failed: The shards that failed in it, and why.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        dataset: Dataset,
        parts: Sequence[Dataset],
        code_version: str,
        metrics: RunMetrics,
        progress: Progress,
    ) -> None:
        """Nothing is read yet.

        Args:
            context: Dagster's context of the step.
            dataset: The dataset, or the part of it, whose partitions are embedded.
            parts: All parts of the dataset, or itself.
            code_version: The settings that decide the embeddings' numbers.
            metrics: The run's counts.
            progress: Counts the samples, for a progress bar.
        """
        self._context, self._dataset, self._parts = context, dataset, parts
        self._source: ShardSource = dataset.resource(context, "source")
        self._clip: ClipResource = dataset.resource(context, "clip")
        self._embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        self._code_version, self._metrics, self._progress = code_version, metrics, progress
        self.failed: dict[str, BoringError] = {}
        self._committed: set[str] = set()
        self._model: dict[str, Any] = {}
        self._noted: set[str] = set()
        self._exclusions = Exclusions()

    def materialize(self) -> Iterator[dg.AssetMaterialization | dg.AssetObservation]:
        """Commits each shard and yields its event at once; `failed` then has the shards that failed."""
        if not self._context.partition_keys:
            raise ShardError(
                "The run was given no partitions: its range ends before it starts, or names none. Partitions "
                "are in the order in which they were registered; give first and last in that order."
            )
        keys = leave_to_earlier_runs(self._context, self._dataset)
        source = self._source.root()
        self._embeddings.check_input(source)
        shards = self._find(keys)
        self._embeddings.check(source)  # only an input that can be read may claim a new output
        tags = self._context.run.tags
        redo = tags.get(REDO_TAG) == "true"
        reasons = reasons_to_retry(tags)
        if reasons is not None:
            todo = yield from self._select_failed(shards, reasons)
        elif (tags.get(RESUME_TAG) == "true" or tags.get(ADOPT_TAG) == "true") and not redo:
            todo = yield from self._adopt(shards)
        else:
            todo = shards
        try:
            if todo:
                yield from self._embed(todo, None if reasons else int(tags.get(MAX_SAMPLES_TAG, 0)) or None)
        except BoringError as error:
            # Committed shards are counted; the run fails with its first error.
            with _add_errors_to(error):
                refresh_totals(self._embeddings.root(), self._committed)
            rest = {key: error for key in keys if key not in self._committed}
            yield from self._name_reasons(rest | self.failed)
            raise
        refresh_totals(self._embeddings.root(), self._committed)
        yield from self._name_reasons(self.failed)
        if self._model:  # another run may have begun in the empty output, with another model
            self._refuse_to_mix(self._model, [shard for shard in todo if shard.key not in self._committed])

    def _name_reasons(self, failed: Mapping[str, BoringError]) -> Iterator[dg.AssetObservation]:
        """Yields the reason for the page of each failed partition: Dagster keeps one only for the run."""
        for key, error in islice(failed.items(), _REASONS):
            text = str(error)
            yield dg.AssetObservation(self._context.asset_key, text, partition=key, metadata={"reason": text})

    def _find(self, keys: list[str]) -> list[Shard]:
        shards = []
        for key, found in self._source.find(keys).items():
            if isinstance(found, ShardError):
                self._fail(key, found)
            else:
                shards.append(found)
        return shards

    def _adopt(self, shards: list[Shard]) -> Generator[dg.AssetMaterialization, None, list[Shard]]:
        """Yields the events of shards that are committed and up to date; returns the other shards.

        Dagster counts every partition of this run as planned, so each one needs an event of this run.
        """
        known = dict(zip(shards, self._facts_of(shards), strict=True))
        current = {shard: facts for shard, facts in known.items() if self._is_current(shard, facts)}
        todo = [shard for shard in shards if shard not in current]
        self._committed.update(shard.key for shard in current)  # a killed run has not counted them
        if current:  # they stay, so their model must be that of all partitions that stay
            self._refuse_to_mix(next(iter(current.values())), todo)
        for shard, facts in current.items():
            self._context.log.info(f"{shard.key} was committed by an earlier run; nothing to do.")
            yield self._adopted(shard, facts)
        return todo

    def _adopted(self, shard: Shard, facts: dict[str, Any]) -> dg.AssetMaterialization:
        more = adopted_metadata(self._context.instance, self._dataset, shard, facts)
        return materialization(self._dataset, self._embeddings, shard, facts, more)

    def _select_failed(
        self, shards: list[Shard], reasons: frozenset[Reason]
    ) -> Generator[dg.AssetMaterialization, None, list[Shard]]:
        """Returns the shards with failed rows to retry, each with only these rows.

        A shard that is not committed, or has changed since, is returned whole.
        """
        known = dict(zip(shards, self._facts_of(shards), strict=True))
        check_settings(known, self._code_version)
        current = [shard for shard, facts in known.items() if self._is_current(shard, facts)]
        failed = rows_to_retry(self._embeddings.root(), current, reasons, self._context.log.warning)
        todo = []
        for shard, facts in known.items():
            rows = failed.get(shard)
            if rows is None:
                self._context.log.info(f"{shard.key} is embedded as a whole: it is new, changed or damaged.")
                todo.append(shard)
            elif rows:
                todo.append(replace(shard, only_rows=rows))
            else:
                self._committed.add(shard.key)
                yield self._adopted(shard, facts)
        return todo

    def _facts_of(self, shards: list[Shard]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(16, "adopt") as pool:
            return list(pool.map(lambda shard: self._embeddings.facts(shard.key), shards))

    def _is_current(self, shard: Shard, facts: dict[str, Any]) -> bool:
        versions = (facts.get("source_version"), facts.get("settings"))
        return versions == (shard.version, self._code_version) and not facts.get("rows_left_out")

    def _embed(self, shards: list[Shard], max_rows: int | None) -> Iterator[dg.AssetMaterialization]:
        self._exclusions = self._source.exclusions()
        options = self._clip.options(max_rows)  # starts processes while the model loads
        before = time.monotonic()
        encoder = self._clip.encoder()
        self._metrics.add("wait_seconds", time.monotonic() - before, "load")
        lease = self._clip.lease()
        device = lease.name if lease.lock else str(encoder.device)
        self._metrics.runs_on(device, encoder.device)
        if lease.shared:
            self._context.log.warning(f"All devices are in use: {device} is shared with another process.")
        self._context.log.info(
            f"{len(shards)} shards on {device} in {encoder.precision}, "
            f"batches of {encoder.batch_size}, model {encoder.model.name} ({encoder.model.digest})."
        )
        facts = self._model = self._facts(encoder)
        self._refuse_to_mix(facts, shards)
        options = replace(options, exclusions=self._exclusions)
        left, has_committed = {shard.key for shard in shards}, False
        commit = partial(self._commit, facts=facts, device=device)
        work = (shards, encoder, options, self._source.fetcher(), self._progress, self._source.check)
        for result in embed_shards(*work, then=commit):
            left.discard(result.shard.key)
            if isinstance(result, FailedShard):
                if is_down(result.error):  # the others would fail too, each after its retries
                    raise storage_error(result.error, result.shard.uri, "read") from result.error
                check_refusal(result.error, self._source.root())
                self._fail(result.shard.key, result.error)
            else:
                yield result.event
                if not has_committed:
                    allow_more_retries(self._context)
                has_committed = True
        if left:
            self._context.log.warning(f"{len(left)} shards were left out: max_samples is {max_rows}.")

    def _refuse_to_mix(self, facts: dict[str, Any], todo: list[Shard]) -> None:
        """Refuses to mix models in the output; `todo` are the shards that are embedded again."""
        run = self._context.run
        if reasons_to_retry(run.tags) is not None:
            refuse_to_mix(self._embeddings, facts, {one.key for one in todo if one.only_rows is None})
        elif run.tags.get(REDO_TAG) != "true":
            replaced = backfilled(self._context.instance, run.tags, self._parts)
            refuse_to_mix(self._embeddings, facts, (replaced - self._committed) | {one.key for one in todo})

    def _commit(
        self, result: EmbeddedShard, facts: dict[str, Any], device: str
    ) -> "_Committed | FailedShard":
        """Writes a shard; called in several threads at once."""
        for note in set(result.notes) - self._noted:
            self._noted.add(note)  # once in a run: most shards of an input are alike
            self._context.log.info(f"Shard {result.shard.key}: {note}")
        counts = {"embedded": len(result.embedded), "failed_by_reason": failed_by_reason(result)}
        retried: dict[str, Any] = {}
        try:
            if result.shard.only_rows is not None:
                retried = {"retried": len(result.shard.only_rows), "recovered": len(result.embedded)}
                committed = read_committed(self._embeddings.root(), result.shard.key)
                result = merge_retried(result, committed, facts, self._exclusions)
            written = self._embeddings.commit(result, facts)
        except ShardError as error:
            return FailedShard(result.shard, error)
        self._committed.add(result.shard.key)
        self._metrics.committed(counts | {"image_bytes": result.image_bytes})
        more = retried | embedding_metadata(
            rows=retried.get("retried", result.rows.num_rows),
            seconds=result.seconds,
            device=device,
            table=written.table,
            contact_sheet=contact_sheet(result),
            failures=failure_sheet(result),
        )
        event = materialization(self._dataset, self._embeddings, result.shard, written.facts, more)
        return _Committed(result.shard, event)

    def _facts(self, encoder: Encoder) -> dict[str, Any]:
        numbers = encoder.model.preprocess
        return {
            "model": encoder.model.name,
            "pretrained": encoder.model.pretrained,
            "weights_digest": encoder.model.digest,
            "precision": encoder.precision,
            "dim": encoder.dim,
            "normalized": True,
            "preprocess": vars(numbers),
            "dtype": self._embeddings.output_dtype,
            "settings": self._code_version,
            "boring_assets_version": __version__,
        }

    def _fail(self, key: str, error: BoringError) -> None:
        self.failed[key] = error
        self._metrics.add("shards_failed")
        self._context.log.error(f"Shard {key} failed: {error}")
