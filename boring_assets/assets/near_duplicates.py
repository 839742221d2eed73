"""Groups of near-identical images over the whole dataset: `near_duplicates.parquet`.

It reads the index, so materialize `embedding_index` first. Columns: `group`, `partition`, `row`, `key`,
`url`, `caption`, `score` (highest cosine with another of the group) and `kind`: `exact` for equal bytes or
pixels, else `near`.
"""

import dagster as dg
import pyarrow.compute as pc

from boring_assets.assets.failures import failing_with_reason
from boring_assets.datasets import Dataset
from boring_assets.engine.decoding.decode import Limits
from boring_assets.engine.decoding.thumbnail import pixel_digest
from boring_assets.engine.samples import Failure
from boring_assets.errors import StorageError
from boring_assets.output.files import write_table
from boring_assets.search.duplicates import FILE, find_duplicates
from boring_assets.search.lance import FOLDER, index_errors, open_table
from boring_assets.search.pictures import Pictures
from boring_assets.settings import Settings
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


def define_near_duplicates(settings: Settings, dataset: Dataset) -> dg.AssetsDefinition:
    """The asset `near_duplicates`; it needs the extra `search` when it is run."""
    threshold = settings.duplicate_threshold

    @dg.asset(
        key=dataset.asset("near_duplicates"),
        description=__doc__,
        deps=[dataset.asset(FOLDER)],
        kinds={"parquet"},
        required_resource_keys=dataset.resource_keys("clip", "source", "embeddings"),
    )
    def near_duplicates(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        clip: ClipResource = dataset.resource(context, "clip")
        source: ShardSource = dataset.resource(context, "source")
        embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        limits = Limits(clip.max_image_pixels, clip.max_image_bytes)
        pictures = Pictures(source, limits)

        def digest(partition: str, key: str | None, row: int) -> str | None:
            data = pictures.read(partition, key, row)
            return None if isinstance(data, Failure) else pixel_digest(data, limits)

        with failing_with_reason(context):
            if source.input_dir:
                embeddings.check_input(source.root())
            root = embeddings.root()
            table = open_table(root)
            if table is None:
                raise StorageError(f"There is no index below {root.uri}. Materialize embedding_index first.")
            with index_errors(root, "read"):
                found = find_duplicates(table, threshold, digest if source.input_dir else None)
            write_table(root, FILE, found)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": found.num_rows,
                "groups": pc.count_distinct(found["group"]).as_py(),
                "exact": pc.sum(pc.equal(found["kind"], "exact")).as_py() or 0,
                "threshold": threshold,
                "output_uri": dg.MetadataValue.path(f"{root.uri}/{FILE}"),
            }
        )

    return near_duplicates
