"""`boring-assets clip-scores`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, config, folder, setting


@click.command(
    "clip-scores",
    cls=Command,
    examples=(
        "boring-assets clip-scores s3://bucket/embeddings",
        "boring-assets clip-scores embeddings --caption-embeddings",
    ),
)
@folder("output_dir")
@setting("model")
@setting("pretrained")
@setting("device")
@setting("precision", metavar="auto|fp32|bf16|fp16|int8")
@setting("caption_embeddings", is_flag=True, default=None)
@config
def clip_scores(**options: Any) -> None:
    """Score how well each caption in OUTPUT fits its image.

    Shards that already have scores are skipped.
    """
    from boring_assets.commands.per_partition import run_for_all
    from boring_assets.jobs import SCORES_JOB
    from partitions.own_files import SCORES

    run_for_all(apply(options), SCORES_JOB, "scored", SCORES)
