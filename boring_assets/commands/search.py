"""`boring-assets search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boring_assets.commands.options import Command, apply, index_of
from boring_assets.errors import SettingsError
from boring_assets.settings import Settings
from boring_assets.wording import first_of, plain, some

if TYPE_CHECKING:
    from boring_assets.search.query import Hit, Searcher

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    cls=Command,
    examples=(
        'boring-assets search "a red car" s3://bucket/embeddings',
        "boring-assets search --image photo.jpg embeddings --json",
        "boring-assets search --key 0000119 embeddings --where 'meta_width >= 512'",
        'boring-assets search "a dog" embeddings --input photos --html dogs.html',
    ),
)
@click.argument("text", required=False, help="What to search for; left out with --image and --key.")
@index_of
@click.option("--image", metavar="FILE", type=_FILE, help="Search by this image file.")
@click.option("--key", metavar="KEY", help="Search by the image with this key.")
@click.option("--partition", metavar="SHARD", help="The shard of --key, where several shards have that key.")
@click.option("--where", metavar="SQL", default="", help="Filter, e.g. 'meta_width >= 512'.")
@click.option(
    "--min-score", metavar="COSINE", type=float, default=-1.0, help="Lowest cosine similarity of a result."
)
@click.option(
    "--limit",
    default=10,
    show_default=True,
    metavar="N",
    type=click.IntRange(1, 10_000),
    help="Most results.",
)
@click.option(
    "--offset", default=0, metavar="N", type=click.IntRange(0, 1_000_000), help="Number of results to skip."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@click.option(
    "--html", metavar="FILE", type=_FILE, help="Write a page with the images to this file; needs --input."
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
    from boring_assets.search.query import to_json

    settings = apply(options)
    if html and not settings.input_dir:
        raise SettingsError(
            "BORING_INPUT_DIR is not set: --html takes the images from the input. Give --input."
        )
    searcher = open_searcher(settings, update=not no_update, pictures=html is not None)
    vector, query_image = _query(searcher, text, image, key, partition)
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
        _print(hits)


def _query(
    searcher: "Searcher", text: str | None, image: Path | None, key: str | None, partition: str | None
) -> "tuple[Any, Hit | None]":
    """The vector to search by, and the indexed image that it belongs to, if any."""
    from boring_assets.engine.samples import Failure

    if key is not None:
        return searcher.of_key(key, partition)
    if text is not None:
        return searcher.of_text(text), None
    assert image is not None
    try:
        data = image.read_bytes()
    except OSError as error:
        raise SettingsError(f"--image {image} cannot be read: {error.strerror}.") from error
    found = searcher.of_picture(data)
    if isinstance(found, Failure):
        raise SettingsError(f"--image {image} is no image that can be searched by: {found.detail}.")
    return found, None


def _print(hits: "list[Hit]") -> None:
    if not hits:
        click.echo("No results.")
    for hit in hits:
        caption, url = (" ".join((value or "").split()) for value in (hit.caption, hit.url))
        click.echo(plain(f"{hit.score:.3f}  {hit.key or ''}  {caption}  {url}".rstrip()))


def open_searcher(settings: Settings, *, update: bool, pictures: bool) -> "Searcher":
    """Returns the search index of the output; prints what was left out of it.

    Raises:
        SettingsError: Pictures are shown, and the output belongs to another input than that of the settings.
        StorageError: There is no index, or it cannot be read.
    """
    from boring_assets.search.index import update_index
    from boring_assets.search.query import Searcher
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    embeddings = EmbeddingsIOManager.from_settings(settings)
    if pictures and settings.input_dir:
        embeddings.check_input(ShardSource.from_settings(settings).root())
    root = embeddings.root()
    if update:
        done = update_index(root, say=lambda text: click.echo(f"Updating the index: {text}", err=True))
        left_out = [f"{key}: {why}" for key, why in done.failed.items()]
        if done.other_model:
            shards = some(len(done.other_model), "shard")
            left_out.append(f"{shards} embedded by another model: {first_of(done.other_model)}")
        for text in left_out:
            click.secho(plain(f"Left out  {text}"), fg="yellow", err=True)
        for name, note in done.columns.items():
            click.echo(plain(f"Column {name}: {note}"), err=True)
    return Searcher(settings, root)
