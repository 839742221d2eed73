"""What Dagster calls a dataset's assets and partitions.

Asset keys and the names of dynamic partitions belong to a Dagster instance, not to a code location: where one
instance has several datasets, each needs names of its own, or the shards of all would be one heap.
"""

from dataclasses import dataclass

import dagster as dg

from partitions.shards import SHARDS


@dataclass(frozen=True)
class Dataset:
    """A dataset, by its setting `dataset`.

    Attributes:
        name: Its name; empty where the instance has only one.
    """

    name: str = ""

    def asset(self, name: str) -> dg.AssetKey:
        """The key of one of its assets: `part_1/image_embeddings`, or `image_embeddings` without a name."""
        return dg.AssetKey([self.name, name] if self.name else [name])

    @property
    def embeddings(self) -> dg.AssetKey:
        """The key of `image_embeddings`."""
        return self.asset("image_embeddings")

    @property
    def shards(self) -> dg.DynamicPartitionsDefinition:
        """Its partitions: `part_1_shards`, or `shards` without a name."""
        return dg.DynamicPartitionsDefinition(name=f"{self.name}_{SHARDS.name}") if self.name else SHARDS

    def keys(self, instance: dg.DagsterInstance) -> list[str]:
        """The keys of its partitions, in the order in which they were registered."""
        return list(instance.get_dynamic_partitions(str(self.shards.name)))


UNNAMED = Dataset()
ASSET_KEY = UNNAMED.embeddings
"""The key of `image_embeddings` where the instance has one dataset without a name."""
