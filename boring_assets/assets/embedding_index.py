"""A nearest-neighbour index over all of `image_embeddings`: a LanceDB table in `embedding_index/`.

A run reads the shards that are new or changed since the last run, and removes what is superseded or gone.
Turn on the sensor `index_after_embedding` to update it after each run that embeds.
"""

from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from boring_assets.assets.failures import failing_with_reason
from boring_assets.datasets import Dataset
from boring_assets.search.index import update_index
from boring_assets.search.lance import FOLDER
from boring_assets.wording import some
from partitions.own_files import LABELS
from resources.embeddings_io import EmbeddingsIOManager

# The first evaluation also counts what was embedded before the sensor was turned on.
_CHANGED = dg.AutomationCondition.any_deps_updated() | (
    dg.AutomationCondition.initial_evaluation()
    & dg.AutomationCondition.any_deps_match(~dg.AutomationCondition.missing())
)
# Only a request after a change covers the change. With `since_last_handled`, an update of the index would
# count, although its run may have listed the output before the change.
_NOT_YET_REQUESTED = _CHANGED.since(dg.AutomationCondition.newly_requested() & ~_CHANGED)
# Once after a group of runs that embed, not after each shard, and also if some of them failed.
AFTER_EMBEDDING = (
    _NOT_YET_REQUESTED
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)


class IndexConfig(dg.Config):
    """Configuration of a run of `embedding_index`."""

    rebuild: bool = Field(False, description="Build the index again, from the whole output.")


def define_embedding_index(
    dataset: Dataset, parts: Sequence[Dataset], *, labels: bool = False
) -> dg.AssetsDefinition:
    """Defines the asset `embedding_index`; its run needs the extra `search`.

    Args:
        dataset: The dataset to index.
        parts: Its parts, or itself.
        labels: Whether the dataset has the asset `image_labels`, whose columns are indexed too.
    """

    @dg.asset(
        key=dataset.asset(FOLDER),
        description=__doc__,
        deps=[
            *(part.embeddings for part in parts),
            *(part.asset(LABELS) for part in parts if labels),
        ],
        automation_condition=AFTER_EMBEDDING,
        pool=FOLDER,
        kinds={"lancedb"},
        required_resource_keys=dataset.resource_keys("embeddings"),
    )
    def embedding_index(context: dg.AssetExecutionContext, config: IndexConfig) -> dg.MaterializeResult:
        embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        with failing_with_reason(context):
            root = embeddings.root()
            done = update_index(root, rebuild=config.rebuild, say=context.log.info)
        if done.other_model:
            context.log.warning(
                f"{some(len(done.other_model), 'shard')} of another model than the index's left out: "
                f"{', '.join(done.other_model[:20])}."
            )
        if done.columns:
            shown = "\n".join(f"- {name}: {note}" for name, note in sorted(done.columns.items())[:50])
            context.log.info(f"Columns that are renamed or missing in the index:\n{shown}")
        if done.failed:
            shown = "\n".join(f"- {key}: {why}" for key, why in list(done.failed.items())[:20])
            raise dg.Failure(
                description=f"{some(len(done.failed), 'shard')} could not be read; the others are in "
                f"the index.\n{shown}",
            )
        return dg.MaterializeResult(
            metadata={
                "columns": dg.MetadataValue.json(done.columns),
                "dagster/row_count": done.rows,
                "shards_added": done.added,
                "shards_removed": done.removed,
                "shards_of_other_models": len(done.other_model),
                "rebuilt": done.rebuilt,
                "output_uri": dg.MetadataValue.path(f"{root.uri}/{FOLDER}"),
            }
        )

    return embedding_index
