"""`boring-assets index | search | serve | near-duplicates | clip-scores`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import apply, config, setting
from boring_assets.errors import RunError, SettingsError, StorageError
from boring_assets.settings import Settings
from boring_assets.wording import first_of, plain, some

if TYPE_CHECKING:
    from boring_assets.search.query import Hit, Searcher

_output = setting("output_dir", "--output")
_input = setting("input_dir", "--input")
_model = setting("model")
_pretrained = setting("pretrained")
_device = setting("device")


@click.command()
@_output
@config
@click.option("--rebuild", is_flag=True, help="Read everything anew.")
def index(rebuild: bool, **options: Any) -> None:
    """Brings the index that search uses up to date."""
    from boring_assets.datasets import Dataset
    from boring_assets.jobs import INDEX_JOB

    settings = apply(options)
    op = Dataset.from_settings(settings).asset("embedding_index").to_python_identifier()
    _run(settings, INDEX_JOB, config={"ops": {op: {"config": {"rebuild": rebuild}}}})
    from boring_assets.search.query import Searcher

    for name, note in _column_notes(settings).items():
        click.echo(plain(f"Column {name}: {note}"), err=True)
    count = Searcher(settings, _root(settings)).count()
    click.echo(f"The index holds {some(count, 'image')} and is up to date.")


@click.command()
@click.argument("text", required=False)
@_output
@_input
@_model
@_pretrained
@_device
@config
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Search by this picture instead of a text.  [default: none]",
)
@click.option("--key", metavar="KEY", help="Search by the picture of this key.  [default: none]")
@click.option(
    "--partition", metavar="SHARD", help="The shard of --key, where several have it.  [default: any]"
)
@click.option("--where", metavar="SQL", default="", help="Only where this holds, e.g. 'meta_width >= 512'.")
@click.option("--min-score", default=-1.0, type=float, help="Least cosine of a result.")
@click.option("--limit", default=10, type=click.IntRange(1, 10_000), help="Most results.")
@click.option(
    "--offset", default=0, type=click.IntRange(0, 1_000_000), help="Results passed over before them."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with the pictures in it to this file; needs --input.  [default: none]",
)
@click.option("--no-update", is_flag=True, help="Use the index as it is, even if shards were added since.")
def search(
    text: str | None,
    image: Path | None,
    key: str | None,
    partition: str | None,
    where: str,
    min_score: float,
    limit: int,
    offset: int,
    as_json: bool,
    html: Path | None,
    no_update: bool,
    **options: Any,
) -> None:
    """Finds images by TEXT, by a picture or by a key.

    The index is brought up to date first. The model is the one that made the embeddings.
    """
    if sum(one is not None for one in (text, image, key)) != 1:
        raise click.UsageError("Give one of TEXT, --image and --key.")
    from boring_assets.search.query import to_json

    settings = apply(options)
    if html and not settings.input_dir:
        raise SettingsError("BORING_INPUT_DIR is not set: --html takes the pictures from the input. Set it.")
    searcher = _searcher(settings, update=not no_update)
    vector, itself = _question(searcher, text, image, key, partition)
    more = 1 if itself else 0  # a picture is the nearest to itself
    hits = searcher.nearest(vector, limit=limit + more, offset=offset, where=where, least_score=min_score)
    if itself:
        hits = [hit for hit in hits if (hit.partition, hit.row) != (itself.partition, itself.row)][:limit]
    if html:
        from boring_assets.search.page import results_page

        asked = text if text is not None else (f"key {key}" if key is not None else str(image and image.name))
        html.write_text(results_page(settings, str(asked), hits), encoding="utf-8")
        click.echo(f"{some(len(hits), 'result')} in {html}", err=True)
    if as_json:
        click.echo(to_json(hits))
    elif not html:
        _print(hits)


def _question(
    searcher: "Searcher", text: str | None, image: Path | None, key: str | None, partition: str | None
) -> "tuple[Any, Hit | None]":
    """The vector to search by, and the picture that it is of, where that is in the index."""
    from boring_assets.engine.samples import Failure

    if key is not None:
        return searcher.of_key(key, partition)
    if text is not None:
        return searcher.of_text(text), None
    assert image is not None
    found = searcher.of_picture(image.read_bytes())
    if isinstance(found, Failure):
        raise SettingsError(f"--image {image} is no picture that can be searched by: {found.detail}.")
    return found, None


def _print(hits: "list[Hit]") -> None:
    if not hits:
        click.echo("No results.")
    for hit in hits:
        click.echo(
            plain(f"{hit.score:.3f}  {hit.key or ''}  {_line(hit.caption)}  {_line(hit.url)}".rstrip())
        )


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


@click.command()
@_output
@_input
@_model
@_pretrained
@_device
@config
@click.option(
    "--host", default="127.0.0.1", help="Address to listen on; others can reach any but a loopback one."
)
@click.option(
    "--port", default=8100, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one."
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    help="Further name by which the page may be asked for; * allows all.  [default: loopback names, --host]",
)
@click.option("--no-update", is_flag=True, help="Use the index as it is, even if shards were added since.")
def serve(host: str, port: int, allowed_hosts: tuple[str, ...], no_update: bool, **options: Any) -> None:
    """Opens a web page to search in.

    Only this machine can reach it, unless --host says otherwise; it asks for no password.
    """
    from boring_assets.search.web import listen

    settings = apply(options)
    if not settings.input_dir:
        click.secho("Without --input there are no pictures to show.", fg="yellow", err=True)
    listen(settings, _searcher(settings, update=not no_update), host, port, allowed_hosts)


@click.command("near-duplicates")
@_output
@_input
@setting("duplicate_threshold", "--threshold", metavar="COSINE")
@config
def near_duplicates(**options: Any) -> None:
    """Finds groups of near-identical images.

    The index is brought up to date first. With --input, images of all but equal embeddings are compared pixel
    by pixel to tell exact duplicates.
    """
    import polars as pl

    from boring_assets.assets.near_duplicates import FILE
    from boring_assets.jobs import DUPLICATES_JOB, INDEX_JOB

    settings = apply(options)
    _run(settings, INDEX_JOB)
    _run(settings, DUPLICATES_JOB)
    root = _root(settings)
    with root.fs.open(f"{root.path}/{FILE}", "rb") as file:
        found = pl.read_parquet(file)
    exact = (found["kind"] == "exact").sum()
    click.echo(f"{some(found['group'].n_unique(), 'group')} of {some(len(found), 'image')}, {exact:,} exact.")
    click.echo(plain(f"{root.uri}/{FILE}"))


@click.command("clip-scores")
@_output
@_model
@_pretrained
@_device
@setting("precision", metavar="auto|fp32|bf16|fp16")
@setting("caption_embeddings", is_flag=True, default=None)
@config
def clip_scores(**options: Any) -> None:
    """Scores how well each caption fits its image.

    What is scored already is left alone.
    """
    from boring_assets.datasets import Dataset
    from boring_assets.instance.homes import open_instance
    from boring_assets.jobs import SCORES_JOB
    from boring_assets.shard_states import ranges
    from boring_assets.tags import range_tags
    from resources.embeddings_io import EmbeddingsIOManager

    settings = apply(options)
    instance = open_instance(settings.output_dir)
    committed = EmbeddingsIOManager.from_settings(settings).committed()
    if not committed:
        raise StorageError(
            f"Nothing is embedded below {settings.output_dir} yet. Run `boring-assets embed` first."
        )
    dataset = Dataset.from_settings(settings)
    known = set(dataset.keys(instance))
    # They may have been embedded with another DAGSTER_HOME.
    instance.add_dynamic_partitions(str(dataset.shards.name), sorted(set(committed) - known))
    order = dataset.keys(instance)
    parts = ranges(order, committed, settings.partitions_per_run)
    failed: dict[str, str] = {}
    for first, last, _ in parts:
        failed |= _run(settings, SCORES_JOB, range_tags(first, last))
    count = sum(number for _, _, number in parts) - len(failed)
    click.echo(f"{some(count, 'shard')} scored: {settings.output_dir.rstrip('/')}/clip_scores/*.parquet")
    for key, why in failed.items():
        click.secho(plain(f"Failed    {key}: {why}"), fg="red", err=True)
    sys.exit(exit_codes.FAILED_SHARDS if failed else 0)


def _run(
    settings: Settings, name: str, tags: dict[str, str] | None = None, config: dict[str, Any] | None = None
) -> dict[str, str]:
    """Runs a job here; gives the shards that failed, where the rest of it went on."""
    from boring_assets.commands.runs import run_job
    from boring_assets.instance.homes import open_instance

    outcome = run_job(settings, open_instance(settings.output_dir), name, tags, config)
    if outcome.stops:
        raise RunError(outcome.error)
    return outcome.failed_shards


def _column_notes(settings: Settings) -> dict[str, str]:
    """The columns that the last update of the index renamed or left out, and why."""
    import dagster as dg

    from boring_assets.datasets import Dataset
    from boring_assets.instance.homes import open_instance
    from boring_assets.search.lance import FOLDER

    asset = Dataset.from_settings(settings).asset(FOLDER)
    event = open_instance(settings.output_dir).get_latest_materialization_event(asset)
    if event is None or event.asset_materialization is None:
        return {}
    columns = event.asset_materialization.metadata.get("columns")
    notes = columns.data if isinstance(columns, dg.JsonMetadataValue) else None
    return dict(notes) if isinstance(notes, dict) else {}


def _searcher(settings: Settings, *, update: bool) -> "Searcher":
    """An opened index, up to date."""
    from boring_assets.search.index import update_index
    from boring_assets.search.query import Searcher

    root = _root(settings)
    if update:
        done = update_index(root, say=lambda text: click.echo(f"Updating the index: {text}", err=True))
        for key, why in done.failed.items():
            click.secho(plain(f"Left out  {key}: {why}"), fg="yellow", err=True)
        for name, note in done.columns.items():
            click.echo(plain(f"Column {name}: {note}"), err=True)
        if done.other_model:
            left = (
                f"{some(len(done.other_model), 'shard')} made by another model: {first_of(done.other_model)}"
            )
            click.secho(plain(f"Left out  {left}"), fg="yellow", err=True)
    return Searcher(settings, root)


def _root(settings: Settings) -> Any:
    from resources.embeddings_io import EmbeddingsIOManager

    return EmbeddingsIOManager.from_settings(settings).root()
