"""The IO manager of the output: a parquet of embeddings and one of failures for each partition.

A shard's failures are written first, and its embeddings file is the commit mark. Each file is written
atomically: a local one is staged and renamed, an object is written in one request (or one multipart upload,
which is aborted if it fails).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from boring_assets.engine.pipeline import EmbeddedShard
from boring_assets.errors import SettingsError, ShardError, StorageError
from boring_assets.output.commit import write_pair
from boring_assets.output.files import committed_facts, file_keys, to_parquet
from boring_assets.output.identity import differences, find_other_models, identity, is_all_of
from boring_assets.output.origin import check_input, claim
from boring_assets.output.schema import (
    FAILURES_DIGEST,
    digest,
    embeddings_table,
    failed_by_reason,
    failures_table,
    repeated_rows,
)
from boring_assets.settings import Settings
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root, check_writable, open_root
from partitions.own_files import EMBEDDINGS, FAILURES
from partitions.shards import SUFFIX, uri_of
from resources.defaults import config_field, resource_from_settings

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Written:
    """A committed partition.

    Attributes:
        uri: URI of the embeddings file.
        table: The embeddings file's rows.
        facts: Its metadata.
    """

    uri: str
    table: pa.Table
    facts: dict[str, Any]


class EmbeddingsIOManager(dg.ConfigurableIOManager):
    """The output: where embeddings are written and read, by the scheme of its URI, and their type."""

    output_dir: str = config_field("output_dir")
    output_dtype: str = config_field("output_dtype")

    @classmethod
    def from_settings(cls, settings: Settings) -> "EmbeddingsIOManager":
        """The output that the settings name."""
        return resource_from_settings(cls, settings)

    def root(self) -> Root:
        """Opens the output.

        Raises:
            SettingsError: No output is set, or its URI is wrong.
        """
        if not self.output_dir:
            raise SettingsError(
                "No output is set. Set BORING_OUTPUT_DIR to the folder or bucket prefix for the "
                "embeddings, e.g. s3://bucket/embeddings."
            )
        if self.output_dtype not in ("float32", "float16"):
            raise SettingsError(
                f"BORING_OUTPUT_DTYPE (output_dtype) is {self.output_dtype!r}; expected float32 or float16."
            )
        return open_root(self.output_dir)

    def uri(self, key: str, kind: str = EMBEDDINGS) -> str:
        """Returns the URI of a partition's file, which need not exist."""
        return f"{self.root().uri}/{_path(kind, key)}"

    def check(self, source: Root | None = None) -> None:
        """Checks before a run that its output can be written, and belongs to its input.

        Args:
            source: The input that the run embeds; a new output belongs to it from now on.

        Raises:
            SettingsError: No output is set, its URI is wrong, or it belongs to another input.
            StorageError: It cannot be written.
        """
        root = self.root()
        if source is not None:
            check_input(root, source)
        check_writable(root)
        if source is not None:
            claim(root, source)

    def check_input(self, source: Root) -> None:
        """Checks that the output belongs to an input, or to none yet; nothing is written.

        Raises:
            SettingsError: It belongs to another input.
            StorageError: It cannot be read.
        """
        check_input(self.root(), source)

    def commit(self, result: EmbeddedShard, facts: Mapping[str, Any]) -> Written:
        """Writes one finished shard: its failures, then its embeddings.

        Args:
            result: The shard.
            facts: How it was embedded; the counts are added here.

        Raises:
            StorageError: The output cannot be written; what was committed before is unchanged.
            ShardError: The shard's columns do not fit the output.
        """
        root, key = self.root(), result.shard.key
        full = {
            **facts,
            "source_uri": result.shard.uri,
            "source_version": result.shard.version,
            "rows": result.rows.num_rows,
            "embedded": len(result.embedded),
            "failed": len(result.failures),
            "failed_by_reason": failed_by_reason(result),
            "rows_left_out": result.cut,
            "dtype": self.output_dtype,
        }
        try:
            failures = failures_table(result)
            failures.validate(full=True)  # e.g. that text is UTF-8, which readers need
            failures_file = to_parquet(failures)
            full |= {"repeated": repeated_rows(result), FAILURES_DIGEST: digest(failures_file)}
            table = embeddings_table(result, self.output_dtype, full)
            table.validate(full=True)
        except pa.ArrowException as error:
            raise ShardError(
                f"{result.shard.uri} has columns that do not fit the output ({error}). Expected: "
                "texts in UTF-8, and url, key and caption that can be read as text."
            ) from error
        embeddings_file = to_parquet(table)
        write_pair(root, (_path(FAILURES, key), failures_file), (_path(EMBEDDINGS, key), embeddings_file))
        return Written(self.uri(key), table, full)

    def committed(self) -> set[str]:
        """Keys of the partitions whose embeddings file is there, by one listing.

        Raises:
            StorageError: The output cannot be listed; one that is not there yet holds none.
        """
        return file_keys(self.root(), EMBEDDINGS)

    def remove(self, key: str, kind: str = EMBEDDINGS) -> None:
        """Removes a partition's file of a kind; without its embeddings file the partition counts as lost.

        Args:
            key: The partition key.
            kind: `image_embeddings`, `image_failures`, `clip_scores` or `image_labels`.

        Raises:
            StorageError: It cannot be removed. A file that is not there is no error.
        """
        root, path = self.root(), _path(kind, key)
        try:
            root.fs.rm_file(f"{root.path}/{path}")
        except FileNotFoundError:
            return
        except Exception as error:
            raise storage_error(error, f"{root.uri}/{path}", "remove") from error

    def facts(self, key: str) -> dict[str, Any]:
        """Returns the metadata of a partition's embeddings file; empty where nothing readable is committed.

        Raises:
            StorageError: The output cannot be read.
        """
        return committed_facts(self.root(), _path(EMBEDDINGS, key))

    def handle_output(self, context: dg.OutputContext, obj: EmbeddedShard | None) -> None:
        """Writes a shard for an asset that returns it; an asset that has committed its shards returns None.

        Raises:
            SettingsError: The asset returned something else, or the shard of another partition.
        """
        if obj is None:
            return
        if not isinstance(obj, EmbeddedShard):
            raise SettingsError(
                f"{context.get_identifier()} returned {type(obj).__name__}, but EmbeddingsIOManager writes "
                "only EmbeddedShard. Give that asset another io_manager_key."
            )
        if context.has_asset_partitions and context.asset_partition_keys != [obj.shard.key]:
            raise SettingsError(
                f"The partition {', '.join(context.asset_partition_keys)} returned the shard {obj.shard.key}."
            )
        written = self.commit(obj, {})
        context.add_output_metadata({"output_uri": dg.MetadataValue.path(written.uri)})

    def load_input(self, context: dg.InputContext) -> "pl.LazyFrame | dict[str, pl.LazyFrame]":
        """Reads lazily what a later asset depends on.

        Returns:
            One partition as a frame, several as frames by partition key. To an asset without partitions that
            depends on all of them, everything that is committed, as one frame.

        Raises:
            StorageError: A partition is not committed, or cannot be read.
        """
        if not context.has_asset_partitions:
            return self.scan()
        keys = sorted(context.asset_partition_keys)
        if len(keys) == 1:
            return self.scan(keys[0])
        if _is_for_all(context, keys):
            return self.scan()
        frames = {key: self.scan(key) for key in keys}
        self._refuse_mixed(keys)
        return frames

    def scan(self, key: str | None = None, kind: str = EMBEDDINGS) -> "pl.LazyFrame":
        """Returns what is committed as a lazy frame, with the columns of the output contract.

        Args:
            key: One partition; None is all of them.
            kind: `image_embeddings` or `image_failures`.

        Raises:
            StorageError: There is nothing there, it cannot be read, or it has vectors of two models.
        """
        import polars as pl
        import pyarrow.dataset as ds

        root = self.root()
        path = f"{root.path}/{_path(kind, key)}" if key else f"{root.path}/{kind}"
        try:
            files = path if key else sorted(p for p in root.fs.find(path) if p.endswith(".parquet"))
            if not files:
                raise FileNotFoundError(path)
            if not key and kind == EMBEDDINGS:
                start = len(path) + 1
                self._refuse_mixed([file[start:].removesuffix(SUFFIX) for file in files])
            return pl.scan_pyarrow_dataset(ds.dataset(files, filesystem=root.fs))
        except Exception as error:
            uri = f"{root.uri}/{_path(kind, key) if key else kind}"
            raise storage_error(error, uri, "read") from error

    def _refuse_mixed(self, keys: list[str]) -> None:
        """Raises an error if partitions are of two models: their vectors cannot be compared."""
        root = self.root()
        first = identity(self.facts(keys[0]))
        if not first["weights_digest"] or is_all_of(root, first):
            return
        for key, facts in find_other_models(root, EMBEDDINGS, keys, lambda facts: identity(facts) == first):
            raise StorageError(
                f"{root.uri}/{EMBEDDINGS} holds vectors of two models: {key} has "
                f"{differences(identity(facts), first)}, which {keys[0]} has. Read partitions of one model, "
                "or embed all of them again: boring-assets embed --redo."
            )


def _is_for_all(context: dg.InputContext, keys: list[str]) -> bool:
    """Returns whether an asset without partitions depends on all partitions of this one.

    Such an asset reads what is committed: some partitions are always new or failed.
    """
    try:
        if context.step_context.entity_partitions_def is not None:
            return False
    except dg.DagsterInvariantViolationError:  # loaded by hand, outside of a run
        return False
    known = context.asset_partitions_def.get_partition_keys(dynamic_partitions_store=context.instance)
    return set(known) == set(keys)


def _path(kind: str, key: str) -> str:
    return f"{kind}/{uri_of('', key)}"
