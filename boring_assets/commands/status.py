"""`boring-assets status`."""

import json
import sys
from functools import cache
from typing import Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import Command, apply, columns, config, folder, setting
from boring_assets.wording import first_of, plain, some


@click.command(
    cls=Command,
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
    examples=(
        "boring-assets status s3://bucket/laion s3://bucket/embeddings",
        "boring-assets status photos embeddings --json",
    ),
)
@folder("input_dir")
@folder("output_dir")
@setting("model")
@setting("pretrained")
@setting("precision", metavar="auto|fp32|bf16|fp16|int8")
@setting("quiet_seconds", metavar="SECONDS")
@columns
@config
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
