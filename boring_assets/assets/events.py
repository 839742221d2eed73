"""The materialization of a committed shard, which Dagster stores and shows for its partition."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from boring_assets.datasets import Dataset
from boring_assets.engine.samples import Shard
from boring_assets.secrets import without_secrets
from boring_assets.shard_states import data_version
from boring_assets.tags import DATA_VERSION_TAG
from partitions.own_files import FAILURES
from resources.embeddings_io import EmbeddingsIOManager

_PREVIEW_ROWS = 5
_PREVIEW_TEXT = 60
# Known only to the run that embeds a shard. Everything else is in the output's files.
_OF_EMBEDDING_RUN = ("contact_sheet", "failures", "preview", "images_per_second", "seconds", "device")
# In the order of the UI, which plots every number by partition: only what is worth a plot is a number.
_ORDER = (
    "contact_sheet", "embedded", "failed", "failure_share", "images_per_second", "failures",
    "failed_by_reason", "retried", "recovered", "preview", "rows", "seconds", "device", "model", "adopted",
    "embedded_by", "source_uri", "source_version", "output_uri", "failures_uri",
)  # fmt: skip


def materialization(
    dataset: Dataset,
    embeddings: EmbeddingsIOManager,
    shard: Shard,
    facts: Mapping[str, Any],
    more: Mapping[str, Any],
) -> dg.AssetMaterialization:
    """Returns the event of one committed shard.

    Args:
        dataset: The dataset, or the part of one, that has the shard as a partition.
        embeddings: The output.
        shard: The shard.
        facts: The metadata of its embeddings file.
        more: Metadata from `embedding_metadata` or `adopted_metadata`.
    """
    rows, embedded, failed = (int(facts[name]) for name in ("rows", "embedded", "failed"))
    metadata: dict[str, Any] = {
        "embedded": embedded,
        "failed": failed,
        "failure_share": round(failed / rows, 4) if rows else 0.0,
        "rows": rows,
        "model": f"{facts['model']} {facts['pretrained']}".strip() + f", {facts['precision']}",
        "source_uri": dg.MetadataValue.path(shard.uri),
        "source_version": shard.version,
        "output_uri": dg.MetadataValue.path(embeddings.uri(shard.key)),
        "failures_uri": dg.MetadataValue.path(embeddings.uri(shard.key, FAILURES)),
        **more,
    }
    if failed:
        metadata["failed_by_reason"] = dg.MetadataValue.json(dict(facts["failed_by_reason"]))
    settings, source = str(facts["settings"]), dataset.source.to_user_string()
    return dg.AssetMaterialization(
        dataset.embeddings,
        partition=shard.key,
        metadata={name: metadata[name] for name in _ORDER if name in metadata},
        tags={
            DATA_VERSION_TAG: data_version(source_version(shard, facts), settings),
            "dagster/code_version": settings,
            # Without these two, the UI calls the partition outdated: "has a new dependency on shards".
            f"dagster/input_data_version/{source}": shard.version,
            f"dagster/input_event_pointer/{source}": "NULL",
        },
    )


def embedding_metadata(
    rows: int, seconds: float, device: str, table: pa.Table, contact_sheet: str, failures: str
) -> dict[str, Any]:
    """Returns the metadata that only the run that embeds a shard knows.

    Args:
        rows: Rows of the shard.
        seconds: How long it took.
        device: Where it was embedded.
        table: Rows of its embeddings file, for a preview.
        contact_sheet: Markdown; empty without images.
        failures: Markdown; empty without failures.
    """
    texts = {"contact_sheet": contact_sheet, "failures": failures, "preview": preview(table)}
    return {
        **{name: dg.MetadataValue.md(text) for name, text in texts.items() if text},
        "images_per_second": round(rows / max(seconds, 1e-3), 2),
        "seconds": round(seconds, 3),
        "device": device,
    }


def adopted_metadata(
    instance: dg.DagsterInstance, dataset: Dataset, shard: Shard, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the metadata of the run that embedded a shard, and the run's id.

    Args:
        instance: Dagster's instance.
        dataset: The dataset, or the part of one, that has the shard as a partition.
        shard: A shard that an earlier run has committed.
        facts: The metadata of its embeddings file.
    """
    metadata: dict[str, Any] = {"adopted": "Embedded by an earlier run; this run found it up to date."}
    of_partition = dg.AssetRecordsFilter(dataset.embeddings, asset_partitions=[shard.key])
    records = instance.fetch_materializations(of_partition, limit=1).records
    event = records[0].asset_materialization if records else None
    version = data_version(source_version(shard, facts), str(facts["settings"]))
    # A run that was killed may have committed the file and not reported it.
    if event is None or (event.tags or {}).get(DATA_VERSION_TAG) != version:
        return metadata
    metadata |= {name: event.metadata[name] for name in _OF_EMBEDDING_RUN if name in event.metadata}
    metadata["embedded_by"] = event.metadata.get("embedded_by") or dg.MetadataValue.dagster_run(
        records[0].run_id
    )
    return metadata


def source_version(shard: Shard, facts: Mapping[str, Any]) -> str:
    """Returns the source version of a committed shard; one cut short by `max_samples` has another."""
    left_out = facts.get("rows_left_out") or 0
    return f"{shard.version}-without-{left_out}" if left_out else shard.version


def preview(table: pa.Table) -> str:
    """Returns the first rows as a Markdown table, with long texts and vectors cut short."""
    if not table.num_rows:
        return "No image of this shard could be embedded."
    names = ["key", "caption", "url", "embedding"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in table.select(names).slice(0, _PREVIEW_ROWS).to_pylist():
        vector = ", ".join(f"{value:.3f}" for value in row["embedding"][:4])
        cells = [cell(without_secrets(row[name] or "")) for name in names[:-1]] + [
            f"[{vector}, ...] ({len(row['embedding'])})"
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(value: str | None) -> str:
    """Returns one cell of a Markdown table; nothing in a caption is read as markup."""
    text = " ".join((value or "").split())
    text = text[:_PREVIEW_TEXT] + "..." if len(text) > _PREVIEW_TEXT else text
    return f"`{text.replace('`', chr(39)).replace('|', '/')}`" if text else ""
