"""The input as a resource: lists shards, finds the shards of partitions, and fetches images by URL."""

import dagster as dg

from boring_assets.engine.inputs.exclusions import Exclusions, parse_exclusions
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.samples import ColumnNames, Shard
from boring_assets.errors import ChangedShardError, SettingsError, ShardError
from boring_assets.settings import Settings
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root, check_readable, filesystem, open_root
from partitions.discovery import Discovery, discover, find_shard
from resources.defaults import config_field, resource_from_settings

# For more shards than this, one listing of the whole input is cheaper than a look-up of each.
_ONE_BY_ONE = 20


class ShardSource(dg.ConfigurableResource):
    """The input: where the shards are, when one counts as complete, and which image URLs are fetched."""

    input_dir: str = config_field("input_dir")
    quiet_seconds: float = config_field("quiet_seconds")
    allowed_url_prefixes: list[str] = config_field("allowed_url_prefixes", default=[])
    max_image_bytes: int = config_field("max_image_bytes")
    fetch_timeout_seconds: float = config_field("fetch_timeout_seconds")
    image_column: str = config_field("image_column")
    key_column: str = config_field("key_column")
    caption_column: str = config_field("caption_column")
    url_column: str = config_field("url_column")
    keep_image_columns: bool = config_field("keep_image_columns")
    exclude: str = config_field("exclude")

    @classmethod
    def from_settings(cls, settings: Settings) -> "ShardSource":
        """The input that the settings name."""
        return resource_from_settings(cls, settings)

    def root(self) -> Root:
        """Opens the input.

        Raises:
            SettingsError: No input is set, or its URI is wrong.
        """
        if not self.input_dir:
            raise SettingsError(
                "No input is set. Set BORING_INPUT_DIR to the folder or bucket prefix that holds the shards, "
                "e.g. s3://bucket/laion."
            )
        return open_root(self.input_dir)

    def discover(self) -> Discovery:
        """Lists the input's shards.

        Raises:
            SettingsError: No input is set.
            StorageError: It is missing or cannot be listed.
        """
        return discover(self.root(), quiet_seconds=self.quiet_seconds, columns=self.columns())

    def find(self, keys: list[str]) -> dict[str, Shard | ShardError]:
        """Returns the shard of each partition, or why there is none, in the same order.

        Raises:
            SettingsError: No input is set.
            StorageError: The input as a whole cannot be read.
        """
        root = self.root()
        check_readable(root)
        if len(keys) > _ONE_BY_ONE:
            # A partition that is named is read even if its shard may not be complete.
            found = discover(root, quiet_seconds=0, columns=self.columns())
            there = {shard.key: shard for shard in found.shards}
            return {key: there.get(key) or self._find(root, key) for key in keys}
        return {key: self._find(root, key) for key in keys}

    def check(self, shard: Shard) -> None:
        """Checks that a shard has not changed since it was found; two requests on object storage.

        Raises:
            ShardError: It has changed or is gone, so that the data read may be a mixture of both versions.
            StorageError: The input as a whole cannot be read.
        """
        if find_shard(self.root(), shard.key).version != shard.version:
            raise ChangedShardError(
                f"{shard.uri}, or the tar beside it, has changed since this run began, so what was read may "
                "be a mixture. It is discarded; the run's retry, or the next run, embeds the new version."
            )

    def exclusions(self) -> Exclusions:
        """Reads the list of images that must not be embedded; empty where none is set.

        Raises:
            SettingsError: It is no such list.
            StorageError: It cannot be read.
        """
        if not self.exclude:
            return Exclusions()
        root = open_root(self.exclude)
        try:
            data = root.fs.cat_file(root.path)
        except Exception as error:
            doing = "read the list of excluded images (BORING_EXCLUDE) at"
            raise storage_error(error, root.uri, doing) from error
        return parse_exclusions(data, root.uri)

    def fetcher(self) -> Fetcher:
        """The fetcher of images that only have a URL."""
        return Fetcher(
            tuple(self.allowed_url_prefixes),
            self.max_image_bytes,
            self.fetch_timeout_seconds,
            open_filesystem=filesystem,
        )

    def columns(self) -> ColumnNames:
        """The columns that the settings name."""
        return ColumnNames(
            self.image_column, self.key_column, self.caption_column, self.url_column, self.keep_image_columns
        )

    def _find(self, root: Root, key: str) -> Shard | ShardError:
        try:
            return find_shard(root, key, self.columns())
        except ShardError as error:
            return error
