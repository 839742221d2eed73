"""The commands that search and compare: `search`, `serve`, `map`, `index`, `near-duplicates` and scores."""

import sys
from pathlib import Path
from typing import Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import (
    FILE,
    INDEX,
    INPUT,
    OUTPUT_MODEL,
    apply,
    command,
    folder,
    number,
    server,
    setting,
    with_settings,
)
from boring_assets.errors import SettingsError
from boring_assets.wording import plain, some


@command(
    'boring-assets search "a red car" s3://bucket/embeddings',
    "boring-assets search --image photo.jpg embeddings --json",
    "boring-assets search --key 0000119 embeddings --where 'meta_width >= 512'",
    'boring-assets search "a dog" embeddings --input photos --html dogs.html',
)
@click.argument("text", required=False, help="What to search for; left out with --image and --key.")
@INDEX
@click.option("--image", metavar="FILE", type=FILE, help="Search by this image file.")
@click.option("--key", metavar="KEY", help="Search by the image with this key.")
@click.option("--partition", metavar="SHARD", help="The shard of --key, where several shards have that key.")
@click.option("--where", metavar="SQL", default="", help="Filter, e.g. 'meta_width >= 512'.")
@click.option(
    "--min-score", metavar="COSINE", type=float, default=-1.0, help="Lowest cosine similarity of a result."
)
@number("--limit", default=10, least=1, most=10_000, help="Most results.")
@number("--offset", default=0, most=1_000_000, help="Number of results to skip.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@click.option(
    "--html", metavar="FILE", type=FILE, help="Write a page with the images to this file; needs --input."
)
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
    """Find images in OUTPUT by TEXT, by an image or by a key.

    The index is updated first.
    """
    if text is not None and (image or key is not None) and options["output_dir"] is None:
        text, options["output_dir"] = None, text  # without TEXT, the first argument is OUTPUT
    if sum(given is not None for given in (text, image, key)) != 1:
        raise click.UsageError("Give one of TEXT, --image and --key.")
    from boring_assets.commands.searching import find_query, open_searcher, print_hits
    from boring_assets.search.query import to_json

    settings = apply(options)
    if html and not settings.input_dir:
        raise SettingsError(
            "BORING_INPUT_DIR is not set: --html takes the images from the input. Give --input."
        )
    searcher = open_searcher(settings, update=not no_update, pictures=html is not None)
    vector, query_image = find_query(searcher, text, image, key, partition)
    # The image that is searched by is its own nearest neighbour: ask for one more, and leave it out.
    extra = 1 if query_image else 0
    hits = searcher.nearest(vector, limit=limit + extra, offset=offset, where=where, least_score=min_score)
    if query_image:
        own = (query_image.partition, query_image.row)
        hits = [hit for hit in hits if (hit.partition, hit.row) != own][:limit]
    if html:
        from boring_assets.search.page import results_page

        title = text if text is not None else (f"key {key}" if key is not None else str(image and image.name))
        html.write_text(results_page(settings, str(title), hits), encoding="utf-8")
        click.echo(f"{some(len(hits), 'result')} in {html}", err=True)
    if as_json:
        click.echo(to_json(hits))
    elif not html:
        print_hits(hits)


@command(
    "boring-assets serve embeddings --input photos",
    "boring-assets serve s3://bucket/embeddings --input s3://bucket/laion --port 8200",
)
@INDEX
@server(8100)
def serve(host: str, port: int, more_hosts: tuple[str, ...], no_update: bool, **options: Any) -> None:
    """Open a web page to search OUTPUT in.

    Only this machine can reach the page, unless --host says otherwise. It asks for no password.
    """
    from boring_assets.commands.searching import check_installed, open_searcher

    settings = apply(options)
    check_installed("The search page", "starlette", "uvicorn", extra="search")
    from boring_assets.search.web import listen

    searcher = open_searcher(settings, update=not no_update, pictures=True)
    listen(settings, searcher, host, port, more_hosts)


@command(
    "boring-assets map embeddings --input photos",
    "boring-assets map s3://bucket/embeddings --sample 100000 --where 'meta_width >= 512'",
)
@INDEX
@number(
    *("--sample", "limit"),
    default=20_000,
    least=2,
    most=5_000_000,
    help="Most images on the map, taken from all over the dataset.",
)
@click.option("--where", metavar="SQL", default="", help="Filter, e.g. 'meta_width >= 512'.")
@server(8200)
def map(
    limit: int,
    where: str,
    host: str,
    port: int,
    more_hosts: tuple[str, ...],
    no_update: bool,
    **options: Any,
) -> None:
    """Open a map of the embeddings of OUTPUT, in Apple's Embedding Atlas.

    Similar images are near each other. The index is updated first. Needs the extra `map`.
    """
    from boring_assets.commands.searching import check_installed, open_searcher

    settings = apply(options)
    check_installed("The map", "embedding_atlas", extra="map")
    from boring_assets.search.map import open_map

    searcher = open_searcher(settings, update=not no_update, pictures=True)
    open_map(settings, searcher, limit, where, host=host, port=port, more_hosts=more_hosts)


@command("boring-assets index s3://bucket/embeddings", "boring-assets index embeddings --rebuild")
@folder("output_dir")
@with_settings()
@click.option("--rebuild", is_flag=True, help="Read all embeddings again.")
def index(rebuild: bool, **options: Any) -> None:
    """Update the search index of OUTPUT."""
    from boring_assets.commands.runs import run_to_the_end
    from boring_assets.datasets import Dataset
    from boring_assets.instance.homes import open_instance
    from boring_assets.jobs import INDEX_JOB
    from boring_assets.search.lance import FOLDER
    from boring_assets.search.query import Searcher
    from resources.embeddings_io import EmbeddingsIOManager

    settings = apply(options)
    asset = Dataset.from_settings(settings).asset(FOLDER)
    run_config = {"ops": {asset.to_python_identifier(): {"config": {"rebuild": rebuild}}}}
    run_to_the_end(settings, INDEX_JOB, config=run_config)
    event = open_instance(settings.output_dir).get_latest_materialization_event(asset)
    columns: Any = (
        event and event.asset_materialization and event.asset_materialization.metadata.get("columns")
    )
    for name, note in (columns.data if columns else {}).items():
        click.echo(plain(f"Column {name}: {note}"), err=True)
    count = Searcher(settings, EmbeddingsIOManager.from_settings(settings).root()).count()
    click.echo(f"The index holds {some(count, 'image')} and is up to date.")


@command(
    "boring-assets near-duplicates s3://bucket/embeddings",
    "boring-assets near-duplicates embeddings --input photos --threshold 0.98",
)
@folder("output_dir")
@INPUT
@setting("duplicate_threshold", "--threshold")
@with_settings()
def near_duplicates(**options: Any) -> None:
    """Find groups of near-identical images in OUTPUT.

    The index is updated first. With --input, images with almost equal embeddings are compared pixel by pixel
    to find exact duplicates.
    """
    import polars as pl

    from boring_assets.commands.runs import run_to_the_end
    from boring_assets.jobs import DUPLICATES_JOB, INDEX_JOB
    from boring_assets.search.duplicates import FILE as NAME
    from resources.embeddings_io import EmbeddingsIOManager

    settings = apply(options)
    run_to_the_end(settings, INDEX_JOB)
    run_to_the_end(settings, DUPLICATES_JOB)
    root = EmbeddingsIOManager.from_settings(settings).root()
    with root.open(NAME) as file:
        found = pl.read_parquet(file)
    exact = (found["kind"] == "exact").sum()
    click.echo(f"{some(found['group'].n_unique(), 'group')} of {some(len(found), 'image')}, {exact:,} exact.")
    click.echo(plain(f"{root.uri}/{NAME}"))


@command(
    "boring-assets clip-scores s3://bucket/embeddings",
    "boring-assets clip-scores embeddings --caption-embeddings",
)
@folder("output_dir")
@OUTPUT_MODEL
@with_settings("pretrained", "device", "precision", "caption_embeddings")
def clip_scores(**options: Any) -> None:
    """Score how well each caption in OUTPUT fits its image.

    Shards that already have scores are skipped.
    """
    from boring_assets.commands.runs import run_for_all
    from boring_assets.jobs import SCORES_JOB
    from partitions.own_files import SCORES

    failed = run_for_all(apply(options), SCORES_JOB, "scored", SCORES)
    sys.exit(exit_codes.FAILED_SHARDS if failed else 0)


@command(
    "boring-assets label s3://bucket/embeddings --config settings.toml",
    "BORING_CONFIG=settings.toml boring-assets label embeddings",
)
@folder("output_dir")
@OUTPUT_MODEL
@with_settings("pretrained", "device", "precision")
def label(**options: Any) -> None:
    """Compute the heads of the settings for each image in OUTPUT.

    A head is a list of labels to choose from, or a small model over embeddings. No image is decoded.
    Only what is new or has changed is computed.
    """
    from boring_assets.commands.runs import run_for_all
    from boring_assets.jobs import LABELS_JOB
    from partitions.own_files import LABELS

    settings = apply(options)
    if not settings.heads:
        raise SettingsError(
            "BORING_HEADS is empty: there is nothing to compute. Name a head in the settings file, e.g. "
            '[heads.animal] with labels = ["cat", "dog"], and give the file with --config.'
        )
    failed = run_for_all(settings, LABELS_JOB, "labelled", LABELS)
    sys.exit(exit_codes.FAILED_SHARDS if failed else 0)
