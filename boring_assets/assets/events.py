"""What Dagster is told of each committed shard."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from boring_assets.datasets import ASSET_KEY
from boring_assets.engine.samples import Shard
from boring_assets.secrets import without_secrets
from boring_assets.shard_states import data_version
from boring_assets.tags import DATA_VERSION_TAG

_PREVIEW_ROWS = 5
_PREVIEW_TEXT = 60


def materialization(
    shard: Shard,
    facts: Mapping[str, Any],
    uri: str,
    *,
    table: pa.Table | None = None,
    failures_uri: str | None = None,
    sheets: Mapping[str, str] | None = None,
    adopted: bool = False,
    asset: dg.AssetKey = ASSET_KEY,
) -> dg.AssetMaterialization:
    """The event of one committed shard; numbers are metadata that the UI plots by partition.

    Args:
        shard: The shard.
        facts: What the embeddings file says of itself, and `seconds`, `image_bytes` and `device` where
            it was made just now.
        uri: URI of the embeddings file.
        table: Its rows, for a preview.
        failures_uri: URI of the failures file.
        sheets: Further Markdown to show, by name; empty ones are left out.
        adopted: Whether an earlier run had committed it.
        asset: The asset that it is a partition of.

    Returns:
        The event.
    """
    rows, embedded, failed = (int(facts[name]) for name in ("rows", "embedded", "failed"))
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": embedded,
        "rows": rows,
        "embedded": embedded,
        "failed": failed,
        **{f"failed_{reason}": count for reason, count in facts.get("failed_by_reason", {}).items()},
        "model": f"{facts['model']} {facts['pretrained']}".strip(),
        "weights_digest": facts["weights_digest"],
        "precision": facts["precision"],
        "source_uri": dg.MetadataValue.path(shard.uri),
        "source_version": shard.version,
        "output_uri": dg.MetadataValue.path(uri),
    }
    if adopted:
        metadata["adopted"] = True
    if failures_uri:
        metadata["failures_uri"] = dg.MetadataValue.path(failures_uri)
    if seconds := facts.get("seconds"):
        metadata |= {"seconds": round(seconds, 3), "images_per_second": round(rows / seconds, 2)}
        metadata["image_bytes"] = facts["image_bytes"]
    if device := facts.get("device"):
        metadata["device"] = device
    if table is not None:
        metadata["preview"] = dg.MetadataValue.md(preview(table))
    for name, text in (sheets or {}).items():
        if text:
            metadata[name] = dg.MetadataValue.md(text)
    settings = str(facts["settings"])
    return dg.AssetMaterialization(
        asset,
        partition=shard.key,
        metadata=metadata,
        tags={
            DATA_VERSION_TAG: data_version(source_version(shard, facts), settings),
            "dagster/code_version": settings,
        },
    )


def source_version(shard: Shard, facts: Mapping[str, Any]) -> str:
    """The version that a partition is done for; one cut short by `max_samples` is not done for its source."""
    left_out = facts.get("rows_left_out") or 0
    return f"{shard.version}-without-{left_out}" if left_out else shard.version


def preview(table: pa.Table) -> str:
    """The first rows as a markdown table, long texts and vectors cut short.

    Args:
        table: Rows of an embeddings file.

    Returns:
        Markdown; without rows, a sentence.
    """
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
    """One cell: captions are foreign text, so nothing in it may be read as markup."""
    text = " ".join((value or "").split())
    text = text[:_PREVIEW_TEXT] + "..." if len(text) > _PREVIEW_TEXT else text
    return f"`{text.replace('`', chr(39)).replace('|', '/')}`" if text else ""
