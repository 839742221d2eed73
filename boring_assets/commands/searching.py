"""For the commands that search: opens the index, finds the vector to search by, prints results."""

from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np

from boring_assets.engine.samples import Failure
from boring_assets.errors import SettingsError
from boring_assets.search.index import update_index
from boring_assets.search.query import Hit, Searcher
from boring_assets.settings import Settings
from boring_assets.wording import first_of, plain, some
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


def check_installed(what: str, *packages: str, extra: str) -> None:
    """Raises an error if a package of an extra is missing.

    Raises:
        SettingsError: With the command that installs the extra.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise SettingsError(
            f'{what} needs {" and ".join(missing)}. Install: pip install "boring_assets[{extra}]".'
        )


def open_searcher(settings: Settings, *, update: bool, pictures: bool) -> Searcher:
    """Returns the search index of the output; prints what was left out of it.

    Args:
        settings: The output, and the input if images are shown.
        update: Bring the index up to date first.
        pictures: Images are shown, so the output must belong to the input.

    Raises:
        SettingsError: The output belongs to another input.
        StorageError: There is no index, or it cannot be read.
    """
    embeddings = EmbeddingsIOManager.from_settings(settings)
    if pictures and not settings.input_dir:
        click.secho("Without --input there are no images to show.", fg="yellow", err=True)
    elif pictures:
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


def find_query(
    searcher: Searcher, text: str | None, image: Path | None, key: str | None, partition: str | None
) -> tuple[np.ndarray, Hit | None]:
    """Returns the vector to search by, and the indexed image that it belongs to, if any."""
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
        raise SettingsError(f"--image {image} cannot be decoded: {found.detail}.")
    return found, None


def print_hits(hits: list[Hit]) -> None:
    """Prints a line for each result."""
    if not hits:
        click.echo("No results.")
    for hit in hits:
        caption, url = (" ".join((value or "").split()) for value in (hit.caption, hit.url))
        click.echo(plain(f"{hit.score:.3f}  {hit.key or ''}  {caption}  {url}".rstrip()))
