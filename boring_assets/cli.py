"""The command line: `boring-assets embed | register | status | verify | failures | export | ...`.

Exit codes: 0 all is done; 1 an error, what was committed before it stays; 2 wrong usage; 3 some shards
failed, the others are committed; 4 (`status`, `verify`) there is work to do; 130 interrupted, what was
committed stays.
"""

import json
import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.cost import cost
from boring_assets.commands.exporting import export_command
from boring_assets.commands.moving import set_input_command
from boring_assets.commands.options import apply as _apply
from boring_assets.commands.options import config as _config
from boring_assets.commands.options import setting as _setting
from boring_assets.commands.picture_lists import list_pictures_command
from boring_assets.commands.search import clip_scores, index, near_duplicates, search, serve
from boring_assets.commands.verifying import verify
from boring_assets.engine.samples import Reason
from boring_assets.errors import BoringError, SettingsError, StorageError
from boring_assets.monitoring.logs import say_error
from boring_assets.sample_data import EncodeFormat, Layout, write_sample_data
from boring_assets.settings import PREFIX, Settings
from boring_assets.wording import first_of, plain, some


class _Commands(click.Group):
    """Says our own errors and Ctrl-C in a line; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BoringError as error:
            said = plain(_with_options(str(error), self.commands.get(ctx.invoked_subcommand or "")))
            say_error(said)
            sys.exit(exit_codes.ERROR)
        except KeyboardInterrupt:
            click.echo("Interrupted. What is committed stays; the same command does the rest.", err=True)
            sys.stdout.flush()
            for child in multiprocessing.active_children():
                child.kill()
            # The engine's threads are still at work; an orderly end under them aborts in native code.
            os._exit(exit_codes.INTERRUPTED)


def _with_options(text: str, command: click.Command | None) -> str:
    """Adds to each variable that an error names the option of the command that stands for it."""
    options = {
        str(one.name): one.opts[0] if isinstance(one, click.Option) else one.human_readable_name
        for one in (command.params if command else [])
    }

    def both(match: re.Match[str]) -> str:
        option = options.get(match[1].lower())
        return f"{match[0]} ({option})" if option else match[0]

    return re.sub(rf"\b{PREFIX}([A-Z_]+)\b(?! \()", both, text)


_CODES = (
    "Exit codes: 0 done, 1 error, 2 wrong usage, 3 some shards failed, 4 there is work to do (status, "
    "verify), 130 interrupted."
)


@click.group(cls=_Commands, context_settings={"show_default": True}, epilog=_CODES)
@click.version_option(package_name="boring_assets")
def main() -> None:
    """CLIP embeddings of img2dataset image shards, kept up to date by Dagster."""


@main.command()
@click.argument("input_dir", metavar="INPUT")
@click.argument("output_dir", metavar="OUTPUT")
@_setting("model")
@_setting("pretrained")
@_setting("batch_size", metavar="auto|N")
@_setting("num_workers", metavar="N")
@_setting("max_samples", metavar="N")
@_setting("device")
@_setting("precision", metavar="auto|fp32|bf16|fp16")
@_setting("quiet_seconds", metavar="SECONDS")
@_setting("allowed_url_prefixes", metavar="PREFIX,...")
@_config
@click.option("--redo", is_flag=True, help="Also embed again what was made by other settings.")
def embed(redo: bool, **options: Any) -> None:
    """Embeds the new and changed shards of INPUT into OUTPUT.

    INPUT and OUTPUT are paths or URIs (s3://bucket/prefix, gs://..., az://...). Each shard is registered as
    a partition and materialized through Dagster; what is done already is left alone.

    Every option is a setting too: BORING_BATCH_SIZE in the environment, or batch_size in the TOML file. The
    option wins over the variable, the variable over the file.
    """
    from boring_assets.commands.embedding import embed_all

    settings = _apply(options)
    summary = embed_all(settings, redo=redo)
    sys.exit(exit_codes.FAILED_SHARDS if summary.failed_shards else 0)


@main.command()
@_setting("input_dir", "--input")
@_setting("output_dir", "--output")
@_setting("quiet_seconds", metavar="SECONDS")
@_config
def register(**options: Any) -> None:
    """Registers new shards as partitions, embedding none."""
    from boring_assets.datasets import Dataset
    from boring_assets.instance.homes import open_instance
    from boring_assets.shard_states import register as register_shards
    from resources.embeddings_io import EmbeddingsIOManager

    settings = _apply(options)
    source = _source(settings)
    EmbeddingsIOManager.from_settings(settings).check(source.root())
    found = source.discover()
    added = register_shards(
        open_instance(settings.output_dir), found, Dataset.from_settings(settings), settings.device
    )
    known = len(found.shards) - len(added)
    click.echo(f"{some(len(added), 'shard')} registered" + (f", {known:,} known before." if known else "."))
    if found.growing:
        click.echo(f"{some(len(found.growing), 'shard')} still being written: {first_of(found.growing)}")
    _say_refused(found.refused)


@main.command()
@_setting("input_dir", "--input")
@_setting("output_dir", "--output")
@_setting("model")
@_setting("pretrained")
@_setting("precision", metavar="auto|fp32|bf16|fp16")
@_setting("quiet_seconds", metavar="SECONDS")
@_config
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool, **options: Any) -> None:
    r"""Says which shards are done, new, changed, failed, ...

    The exit code is 0 where all is done, and 4 where there is work to do.

    \b
    new             never embedded
    changed         embedded, but the shard has changed since
    other settings  embedded with another model, precision or output type
    failed          its last run failed; `embed` tries again
    lost            embedded, but its file is no longer below the output
    running         in a run now
    done            embedded, and up to date
    gone            no longer in the input; what was embedded stays
    growing         still being written
    """
    from boring_assets.datasets import Dataset
    from boring_assets.instance.homes import open_instance
    from boring_assets.shard_states import PENDING, State, get_shard_states
    from resources.embeddings_io import EmbeddingsIOManager

    settings = _apply(options)
    source = _source(settings)
    EmbeddingsIOManager.from_settings(settings).check_input(source.root())
    instance = open_instance(settings.output_dir)
    found = source.discover()
    stock = get_shard_states(
        instance,
        found,
        settings.embedding_version(),
        EmbeddingsIOManager.from_settings(settings).committed,
        Dataset.from_settings(settings),
    )
    count = stock.count()
    if as_json:
        click.echo(
            json.dumps({"counts": {state.value: count[state] for state in State}, "shards": stock.states})
        )
    else:
        for state in State:
            if count[state]:
                keys = sorted(key for key, its in stock.states.items() if its is state)
                click.echo(f"{state.value:<15}  {count[state]:>8,}  {first_of(keys)}")
        if not stock.states:
            click.echo("There are no shards.")
        _say_refused(found.refused)
    work = sum(count[state] for state in (*PENDING, State.OTHER_SETTINGS, State.GROWING, State.RUNNING))
    sys.exit(exit_codes.WORK_TO_DO if work else 0)


def _say_refused(refused: dict[str, str]) -> None:
    for path, why in refused.items():
        click.echo(plain(f"Refused: {path}: {why}"))


@main.command()
@_setting("output_dir", "--output")
@_config
@click.option("--shard", metavar="KEY", help="Only this shard, e.g. 00000.  [default: all]")
@click.option(
    "--reason",
    type=click.Choice([reason.value for reason in Reason]),
    help="Only this reason.  [default: all]",
)
@click.option("--limit", default=20, type=click.IntRange(0), help="Most rows shown; 0 is all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a row.")
def failures(shard: str | None, reason: str | None, limit: int, as_json: bool, **options: Any) -> None:
    """Shows which samples could not be embedded, and why."""
    import polars as pl

    from boring_assets.output.files import FAILURES
    from resources.embeddings_io import EmbeddingsIOManager

    settings = _apply(options)
    rows = EmbeddingsIOManager.from_settings(settings).scan(shard, FAILURES)
    if reason:
        rows = rows.filter(pl.col("reason") == reason)
    table = rows.collect()
    shown = table if limit == 0 else table.head(limit)
    if as_json:
        for row in shown.iter_rows(named=True):
            click.echo(json.dumps(row))
        return
    for name, count in table["reason"].value_counts(sort=True).iter_rows():
        click.echo(f"{count:>8,}  {name}")
    width = max((len(row["reason"]) for row in shown.iter_rows(named=True)), default=0)
    for row in shown.iter_rows(named=True):
        reason = f"{row['reason']:<{width}}"
        click.echo(plain(f"{row['key']}  {reason}  {row['detail']}  {row['url'] or ''}".rstrip()))
    if len(table) > len(shown):
        click.echo(f"... and {len(table) - len(shown):,} more; --limit 0 shows all.")
    if not len(table):
        click.echo("No failures.")


@main.command("sample-data")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--num-shards", default=3, type=click.IntRange(1, 100_000), help="How many shards.")
@click.option(
    "--samples-per-shard", default=100, type=click.IntRange(1, 1_000_000), help="Samples in each shard."
)
@click.option(
    "--format", "layout", default="webdataset", type=click.Choice(get_args(Layout)),
    help="Where the images go: a tar or a folder beside each parquet, or a column of it.",
)  # fmt: skip
@click.option(
    "--encode-format", default="jpg", type=click.Choice(get_args(EncodeFormat)), help="Format of the images."
)
@click.option("--broken", default=0, type=click.IntRange(0), help="How many of a shard's samples are broken.")
@click.option("--image-size", default=256, type=click.IntRange(16, 4096), help="Pixels of a side.")
@click.option("--seed", default=0, type=click.IntRange(0, 2**32), help="Equal seeds give equal bytes.")
@click.option("--first-shard", default=0, type=click.IntRange(0, 99_999), help="Number of the first shard.")
def sample_data(
    folder: Path, num_shards: int, samples_per_shard: int, broken: int, **options: Any
) -> None:  # fmt: skip
    """Writes shards of drawn, captioned pictures to DIR.

    They are laid out as img2dataset lays them out. Shards that are there already are replaced.
    """
    if broken > samples_per_shard:
        raise SettingsError(f"--broken is {broken}, more than --samples-per-shard {samples_per_shard}.")
    try:
        paths = write_sample_data(folder, num_shards, samples_per_shard, broken=broken, **options)
    except OSError as error:
        raise StorageError(f"Cannot write {folder}: {error}. Give a folder that you may write.") from error
    each = f", {broken:,} broken in each" if broken else ""
    click.echo(f"{some(len(paths), 'shard')} of {some(samples_per_shard, 'sample')} in {folder}{each}.")


for _command in (index, search, serve, near_duplicates, clip_scores):
    main.add_command(_command)


def _source(settings: Settings) -> Any:
    from resources.source import ShardSource

    return ShardSource.from_settings(settings)


main.add_command(verify)
main.add_command(set_input_command)
main.add_command(cost)
main.add_command(export_command)
main.add_command(list_pictures_command)

if __name__ == "__main__":
    main()
