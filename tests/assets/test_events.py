"""What Dagster is told of a committed shard."""

import pyarrow as pa
import pytest

from boring_assets.assets.events import materialization, preview
from boring_assets.output.schema import embeddings_table
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


def test_the_event_of_a_shard() -> None:
    shard = finished_shard("a/0").shard
    event = materialization(
        shard,
        FACTS | {"seconds": 2.0, "image_bytes": 1000, "device": "cuda:3"},
        "file:///out/image_embeddings/a/0.parquet",
        table=table("a cat"),
        failures_uri="file:///out/image_failures/a/0.parquet",
    )
    assert event.partition == "a/0"
    metadata = metadata_of(event)
    assert "`a cat`" in metadata.pop("preview")
    assert metadata == {
        "dagster/partition_row_count": 6,
        "rows": 8,
        "embedded": 6,
        "failed": 2,
        "failed_decode_error": 2,
        "model": "ViT-B-32 laion",
        "weights_digest": "d",
        "precision": "fp32",
        "source_uri": "file:///in/a/0.parquet",
        "source_version": "v1",
        "output_uri": "file:///out/image_embeddings/a/0.parquet",
        "failures_uri": "file:///out/image_failures/a/0.parquet",
        "seconds": 2.0,
        "images_per_second": 4.0,
        "image_bytes": 1000,
        "device": "cuda:3",
    }
    assert event.tags == {"dagster/data_version": "v1@s", "dagster/code_version": "s"}
    adopted = materialization(shard, FACTS, "file:///x", adopted=True)
    assert metadata_of(adopted)["adopted"] is True
    assert "seconds" not in metadata_of(adopted)
    cut = materialization(shard, FACTS | {"rows_left_out": 3}, "file:///x")
    assert cut.tags is not None
    assert cut.tags["dagster/data_version"] == "v1-without-3@s"
