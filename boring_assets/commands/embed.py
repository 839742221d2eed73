"""`boring-assets embed`."""

import sys
from typing import Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import Command, apply, columns, config, folder, setting


@click.command(
    cls=Command,
    examples=(
        "boring-assets embed s3://bucket/laion s3://bucket/embeddings",
        "boring-assets embed photos embeddings --model ViT-L-14 --pretrained openai",
        "boring-assets embed photos embeddings --num-workers 8",
    ),
)
@folder("input_dir")
@folder("output_dir")
@setting("model")
@setting("pretrained")
@setting("batch_size", metavar="auto|N")
@setting("num_workers", metavar="N")
@setting("max_samples", metavar="N")
@setting("device")
@setting("precision", metavar="auto|fp32|bf16|fp16|int8")
@setting("quiet_seconds", metavar="SECONDS")
@setting("allowed_url_prefixes", metavar="PREFIX,...")
@columns
@config
@click.option("--redo", is_flag=True, help="Also embed shards again that were embedded with other settings.")
def embed(redo: bool, **options: Any) -> None:
    """Embed the new and changed shards of INPUT into OUTPUT.

    INPUT and OUTPUT are paths or URIs (s3://bucket/prefix, gs://..., az://...). Each shard becomes a
    partition of the Dagster asset `image_embeddings` and is materialized. Shards that are done are
    skipped.

    Every option is also a setting: BORING_BATCH_SIZE in the environment, or batch_size in the TOML file. An
    option wins over the environment, the environment over the file.
    """
    from boring_assets.commands.embedding import embed_all

    summary = embed_all(apply(options), redo=redo)
    sys.exit(exit_codes.FAILED_SHARDS if summary.failed_shards else 0)
