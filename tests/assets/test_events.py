"""What Dagster is told of a committed shard."""

import dagster as dg
import pyarrow as pa
import pytest

from boring_assets.assets.events import adopted_metadata, embedding_metadata, materialization, preview
from boring_assets.datasets import UNNAMED
from boring_assets.output.schema import embeddings_table
from resources.embeddings_io import EmbeddingsIOManager
from tests.assets.project import finished_shard, metadata_of

FACTS = {
    "rows": 8, "embedded": 6, "failed": 2, "failed_by_reason": {"decode_error": 2}, "model": "ViT-B-32",
    "pretrained": "laion", "weights_digest": "d", "precision": "fp32", "settings": "s",
}  # fmt: skip


def table(caption: str) -> pa.Table:
    return embeddings_table(finished_shard("0", caption=caption), "float32", {})


@pytest.mark.parametrize(
    "caption",
    [
        "a | b || c",
        "`code` ``` # title\n\n- list\r\n| x | y |",
        "[click](javascript:alert(1)) <img src=x onerror=alert(1)>",
        "\x00\x1b[31m\u202eright to left\u2028next",
        "\\` \\| `",
        "   ",
        "",
    ],
)
def test_a_caption_cannot_leave_its_cell(caption: str) -> None:
    text = preview(table(caption))
    lines = text.split("\n")
    assert len(lines) == 2 + 5
    assert text.splitlines() == lines, "no other line break is left"
    assert {line.count("|") for line in lines} == {5}
    for line in lines[2:]:
        assert line.count("`") in (4, 6), "each text stands in one code span, and in one only"
        cell = line.split("|")[2].strip()
        assert cell == "" or (cell[0] == cell[-1] == "`")


def test_a_preview_stays_small() -> None:
    for caption in ("word " * 2_000_000, "x" * 10_000_000):
        one = finished_shard("0", embedded=1, failed=0, caption=caption)
        assert len(preview(embeddings_table(one, "float32", {}))) < 500


def test_a_preview_of_nothing() -> None:
    empty = finished_shard("0", embedded=0)
    assert preview(embeddings_table(empty, "float32", {})) == "No image of this shard could be embedded."


def event_of(facts: dict, more: dict) -> dg.AssetMaterialization:
    output = EmbeddingsIOManager(output_dir="/out")
    return materialization(UNNAMED, output, finished_shard("a/0").shard, facts, more)


def test_the_event_of_a_shard() -> None:
    event = event_of(FACTS, embedding_metadata(8, 2.0, "cuda:3", table("a cat"), "| sheet |", ""))
    assert event.partition == "a/0"
    metadata = metadata_of(event)
    assert list(metadata)[:5] == ["contact_sheet", "embedded", "failed", "failure_share", "images_per_second"]
    assert "`a cat`" in metadata.pop("preview")
    assert metadata == {
        "contact_sheet": "| sheet |",
        "embedded": 6,
        "failed": 2,
        "failure_share": 0.25,
        "images_per_second": 4.0,
        "failed_by_reason": {"decode_error": 2},
        "rows": 8,
        "seconds": 2.0,
        "device": "cuda:3",
        "model": "ViT-B-32 laion, fp32",
        "source_uri": "file:///in/a/0.parquet",
        "source_version": "v1",
        "output_uri": "file:///out/image_embeddings/a/0.parquet",
        "failures_uri": "file:///out/image_failures/a/0.parquet",
    }
    assert event.tags == {
        "dagster/data_version": "v1@s",
        "dagster/code_version": "s",
        "dagster/input_data_version/shards": "v1",
        "dagster/input_event_pointer/shards": "NULL",
    }
    cut = event_of(FACTS | {"rows_left_out": 3}, {})
    assert cut.tags is not None
    assert cut.tags["dagster/data_version"] == "v1-without-3@s"


def test_plots_show_counts_rate_and_failures_only() -> None:
    event = event_of(FACTS, embedding_metadata(8, 2.0, "cuda:3", table("a cat"), "", ""))
    numbers = {name for name, value in metadata_of(event).items() if isinstance(value, int | float)}
    assert numbers == {"embedded", "failed", "failure_share", "images_per_second", "rows", "seconds"}


def test_an_adopted_shard_keeps_what_its_first_event_said() -> None:
    instance = dg.DagsterInstance.ephemeral()
    shard = finished_shard("a/0").shard
    assert adopted_metadata(instance, UNNAMED, shard, FACTS).keys() == {"adopted"}, "no event is known"
    first = event_of(FACTS, embedding_metadata(8, 2.0, "cuda:3", table("a cat"), "| sheet |", "| bad |"))
    instance.report_runless_asset_event(first)
    kept = adopted_metadata(instance, UNNAMED, shard, FACTS)
    again = event_of(FACTS, kept)
    said = metadata_of(again)
    assert said.pop("adopted")
    assert said.pop("embedded_by") == ""  # the run of an event without one
    assert said == metadata_of(first)
    other = adopted_metadata(instance, UNNAMED, shard, FACTS | {"settings": "other"})
    assert other.keys() == {"adopted"}, "that event was of other embeddings"
