"""The names of one dataset: asset keys, partitions, jobs, sensors and resource keys.

Asset keys and partitions belong to a Dagster instance: datasets that share an instance need different ones.
Jobs, sensors and resources belong to a code location: datasets that share a location need different ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from boring_assets.settings import Settings
from partitions.shards import SHARDS


@dataclass(frozen=True)
class Dataset:
    """One dataset's names.

    Attributes:
        name: The setting `dataset`; empty where the instance has only one.
        variant: The setting `variant`; empty where the dataset is embedded once.
        shares_location: Whether other definitions are in the same code location. Names of jobs, sensors and
            resources then begin with `name` and `variant`.
        part: The part's name, where this is a part of a split dataset; see `boring_assets/parts.py`.
    """

    name: str = ""
    variant: str = ""
    shares_location: bool = False
    part: str = ""

    @classmethod
    def from_settings(cls, settings: Settings, *, shares_location: bool = False) -> "Dataset":
        """The dataset that the settings name."""
        return cls(settings.dataset, settings.variant, shares_location)

    def of_part(self, number: int) -> "Dataset":
        """Returns one of its parts; the first has the number 1."""
        return replace(self, part=f"part_{number:03d}")

    def asset(self, name: str) -> dg.AssetKey:
        """The key of one of its assets: `laion/image_embeddings`, or `image_embeddings` without a name."""
        return dg.AssetKey([*filter(None, (self.name, self.variant, self.part, name))])

    @property
    def embeddings(self) -> dg.AssetKey:
        """The key of `image_embeddings`."""
        return self.asset("image_embeddings")

    @property
    def source(self) -> dg.AssetKey:
        """The key of the external asset of the shards; the same for all variants."""
        return dg.AssetKey([*filter(None, (self.name, self.part, str(SHARDS.name)))])

    @property
    def shards(self) -> dg.DynamicPartitionsDefinition:
        """Its partitions: `laion_shards`, or `shards` without a name; all variants have the same."""
        names = [*filter(None, (self.name, self.part, str(SHARDS.name)))]
        return dg.DynamicPartitionsDefinition(name="_".join(names)) if len(names) > 1 else SHARDS

    def keys(self, instance: dg.DagsterInstance) -> list[str]:
        """The keys of its partitions, in the order in which they were registered."""
        return list(instance.get_dynamic_partitions(str(self.shards.name)))

    def local_name(self, name: str) -> str:
        """The name of a job, sensor or op: `embed_shards`, or `laion_embed_shards` in a shared location."""
        prefix = (self.name, self.variant) if self.shares_location else ()
        return "_".join([*filter(None, (*prefix, self.part)), name])

    def resource_key(self, name: str) -> str:
        """The key of a resource, the same for all parts: `clip`; `boring_laion_clip` in a shared location."""
        whole = replace(self, part="")
        return f"boring_{whole.local_name(name)}" if self.shares_location else name

    def resource_keys(self, *names: str) -> set[str]:
        """The keys of several resources."""
        return {self.resource_key(name) for name in names}

    def resource(self, context: Any, name: str) -> Any:
        """The resource `clip`, `source` or `embeddings` of a run or of a tick, by its context."""
        return getattr(context.resources, self.resource_key(name))


def materializations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, *, after: int | None = None, since: float | None = None
) -> Iterator[tuple[dg.EventLogRecord, dict[str, Any]]]:
    """Yields the records of an asset's materializations with their metadata, the oldest first.

    Args:
        instance: Dagster's instance.
        asset: The asset.
        after: Only records with a higher number.
        since: Only records that are newer, in seconds since the epoch.
    """
    wanted = dg.AssetRecordsFilter(asset, after_storage_id=after, after_timestamp=since)
    cursor, more = None, True
    while more:
        page = instance.fetch_materializations(wanted, limit=1000, cursor=cursor, ascending=True)
        for record in page.records:
            event = record.asset_materialization
            yield record, {name: value.value for name, value in event.metadata.items()} if event else {}
        cursor, more = page.cursor, page.has_more


def backfill_policy(settings: Settings) -> dg.BackfillPolicy:
    """How a backfill of the partitions is split into runs."""
    if settings.backfill_policy == "single_run":
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(settings.partitions_per_run)


def all_committed() -> dg.Output[None]:
    """The last value of an asset that has yielded an event for each of its partitions.

    Dagster skips downstream assets in the same run unless the step yields an output, and for an output it
    would report all partitions again, without metadata. With this metadata, which Dagster itself adds to the
    outputs of observable sources, it does not.
    """
    return dg.Output(None, metadata={"__source_asset_observation__": True})


UNNAMED = Dataset()
ASSET_KEY = UNNAMED.embeddings
"""The key of `image_embeddings` where the instance has one dataset without a name."""
