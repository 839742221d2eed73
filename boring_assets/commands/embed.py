"""The commands that embed: `embed`, `status`, `register`."""

import json
import sys
from functools import cache
from typing import Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import apply, command, folder, with_settings
from boring_assets.settings import COLUMN_SETTINGS
from boring_assets.wording import first_of, plain, some


@command(
    "boring-assets embed s3://bucket/laion s3://bucket/embeddings",
    "boring-assets embed photos embeddings --model ViT-L-14 --pretrained openai",
    "boring-assets embed photos embeddings --num-workers 8",
)
@folder("input_dir")
@folder("output_dir")
@with_settings(
    *("model", "pretrained", "batch_size", "num_workers", "max_samples", "device", "precision"),
    *("quiet_seconds", "allowed_url_prefixes", *COLUMN_SETTINGS),
)
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


@command(
    "boring-assets status s3://bucket/laion s3://bucket/embeddings",
    "boring-assets status photos embeddings --json",
    terms=(
        ("new", "never embedded"),
        ("changed", "embedded, but the shard has changed since"),
        ("other settings", "embedded with another model, precision or output type"),
        ("failed", "its last run failed; `embed` tries again"),
        ("lost", "embedded, but its file is no longer in the output"),
        ("running", "in a run now"),
        ("done", "embedded and up to date"),
        ("gone", "no longer in the input; its embeddings stay"),
        ("growing", "still being written"),
    ),
)
@folder("input_dir")
@folder("output_dir")
@with_settings("model", "pretrained", "precision", "quiet_seconds", *COLUMN_SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool, **options: Any) -> None:
    """Show the state of each shard of INPUT.

    The exit code is 0 when everything is done, and 4 when there is work to do.
    """
    from boring_assets.commands.report import describe_model
    from boring_assets.instance.homes import open_instance
    from boring_assets.parts import get_parts
    from boring_assets.shard_states import PENDING, State, get_shard_states
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    settings = apply(options)
    source, embeddings = ShardSource.from_settings(settings), EmbeddingsIOManager.from_settings(settings)
    embeddings.check_input(source.root())
    instance = open_instance(settings.output_dir)
    found = source.discover()
    version, parts = settings.embedding_version(), get_parts(settings)
    committed = cache(embeddings.committed)
    shards = get_shard_states(instance, found, version, committed, parts)
    count = shards.count()
    if as_json:
        counts = {state.value: count[state] for state in State}
        click.echo(json.dumps({"counts": counts, "shards": shards.states}))
    else:
        for state in filter(count.get, State):
            keys = sorted(key for key, value in shards.states.items() if value is state)
            click.echo(f"{state.value:<15}  {count[state]:>8,}  {first_of(keys)}")
        if not shards.states:
            click.echo("There are no shards.")
        for path, why in found.refused.items():
            click.echo(plain(f"Refused: {path}: {why}"))
        if count[State.OTHER_SETTINGS]:
            hint = f"Other settings than {describe_model(settings)}. Give the settings of the shards."
            click.echo(plain(hint), err=True)
        unknown = sum(state is State.NEW and key in committed() for key, state in shards.states.items())
        if unknown:
            click.echo(
                f"{some(unknown, 'new shard')} of this DAGSTER_HOME: embedded already from another one. "
                "`embed` reports them, and embeds only those that have changed since.",
                err=True,
            )
    work = sum(count[state] for state in (*PENDING, State.OTHER_SETTINGS, State.GROWING, State.RUNNING))
    sys.exit(exit_codes.WORK_TO_DO if work else 0)


@command("boring-assets register s3://bucket/laion s3://bucket/embeddings")
@folder("input_dir")
@folder("output_dir")
@with_settings("quiet_seconds")
def register(**options: Any) -> None:
    """Register new shards of INPUT as partitions, without embedding them.

    After that they can be selected in Dagster: in the UI, for a backfill, or by `dagster asset materialize`.
    """
    from boring_assets.commands.embedding import warn_of_other_input
    from boring_assets.instance.homes import open_instance
    from boring_assets.parts import get_parts, register_shards
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    settings = apply(options)
    source = ShardSource.from_settings(settings)
    EmbeddingsIOManager.from_settings(settings).check(source.root())
    found = source.discover()
    instance = open_instance(settings.output_dir)
    warn_of_other_input(instance, settings)
    added = register_shards(instance, found, settings)
    known = len(found.shards) - len(added)
    click.echo(f"{some(len(added), 'shard')} registered" + (f", {known:,} known before." if known else "."))
    if settings.split:
        click.echo(f"They are in {some(len(get_parts(settings)), 'part')}.")
    if found.growing:
        click.echo(f"{some(len(found.growing), 'shard')} still being written: {first_of(found.growing)}")
    for path, why in found.refused.items():
        click.echo(plain(f"Refused: {path}: {why}"))
    if not found.shards and not found.growing:
        click.echo(plain(found.explain_empty(source.root().uri)))
