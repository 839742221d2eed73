"""All definitions of one dataset: for a separate code location, or as a component of a `dg` project."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model

from boring_assets.assets.clip_scores import define_clip_scores
from boring_assets.assets.embedding_index import define_embedding_index
from boring_assets.assets.image_embeddings import define_image_embeddings
from boring_assets.assets.image_labels import define_image_labels
from boring_assets.assets.near_duplicates import define_near_duplicates
from boring_assets.checks import define_checks
from boring_assets.datasets import Dataset
from boring_assets.engine.results import Progress
from boring_assets.instance.run_logs import log_runs_as_json
from boring_assets.jobs import define_embed_jobs, define_hourly_check, define_other_jobs
from boring_assets.monitoring.alerts import define_failure_rate_alert
from boring_assets.parts import get_parts_to_define, read_parts
from boring_assets.sensors import define_automation, define_new_shards
from boring_assets.settings import Settings, load_settings
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


def build_definitions(
    settings: Settings,
    progress: Progress | None = None,
    *,
    shares_location: bool = False,
    asset_attributes: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """Assets, checks, jobs, sensors and resources of one dataset.

    Args:
        settings: The dataset's settings.
        progress: Counts the samples of all runs of this process, for a progress bar.
        shares_location: Whether they are merged with others. Names of jobs and sensors then begin with the
            dataset's, resource keys with `boring_` and the dataset's, and the executor is the location's.
        asset_attributes: `group_name`, `owners`, `tags` and `kinds` of all assets. The default group is the
            dataset's name, or `image_embeddings`.
    """
    if settings.log_format == "json":
        log_runs_as_json()
    dataset = Dataset.from_settings(settings, shares_location=shares_location)
    parts = get_parts_to_define(settings, dataset)
    noted = [*(read_parts(settings) if settings.split else []), {}]
    attributes = {"group_name": dataset.name or "image_embeddings", **(asset_attributes or {})}
    shards = [
        dg.AssetSpec(
            part.source,
            description="The input's shards: parquet files, with the images in them, beside them or behind "
            "URLs.",
            partitions_def=part.shards,
            metadata={"dagster/uri": settings.input_dir, **facts},
        )
        for part, facts in zip(parts, noted, strict=True)
    ]
    resources = {
        "clip": ClipResource.from_settings(settings),
        "source": ShardSource.from_settings(settings),
        "embeddings": EmbeddingsIOManager.from_settings(settings),
    }
    progress = progress or Progress()
    embed_jobs = define_embed_jobs(parts)
    assets = [
        *(define_image_embeddings(settings, part, parts, progress) for part in parts),
        define_embedding_index(dataset, parts, labels=bool(settings.heads)),
        define_near_duplicates(settings, dataset),
        *(define_clip_scores(settings, part) for part in parts),
        *(define_image_labels(settings, part) for part in parts if settings.heads),
    ]
    return dg.Definitions(
        assets=dg.map_asset_specs(lambda spec: spec.replace_attributes(**attributes), [*shards, *assets]),
        asset_checks=[define_checks(settings, part) for part in parts],
        jobs=[*embed_jobs, *define_other_jobs(dataset, parts, labels=bool(settings.heads))],
        schedules=[define_hourly_check(dataset, parts)],
        sensors=[
            define_new_shards(settings, dataset, parts, embed_jobs),
            define_failure_rate_alert(settings, dataset, parts),
            define_automation(settings, dataset),
        ],
        resources={dataset.resource_key(name): resource for name, resource in resources.items()},
        executor=None if shares_location else dg.in_process_executor,
    )


# Settings of the command line or the whole process, and secrets, which belong in the environment.
_NO_ATTRIBUTES = {"num_workers", "max_samples", "log_format", "metrics_pushgateway", "alert_webhook"}


def _attribute(name: str) -> tuple[Any, Any]:
    """A setting as an attribute in YAML; `Settings` checks its value."""
    setting = Settings.model_fields[name]
    kind: Any = setting.annotation
    if name == "batch_size":
        kind = int | Literal["auto"]
    elif get_origin(kind) is tuple:
        kind = list[str]
    elif name == "heads":
        kind = dict[str, dict[str, Any]]
    elif kind not in (bool, int, float) and get_origin(kind) is not Literal:
        kind = str
    return (kind | None, Field(None, description=setting.description))


_optional: dict[str, Any] = {
    name: _attribute(name)
    for name in Settings.model_fields
    if name not in {*_NO_ATTRIBUTES, "dataset", "input_dir", "output_dir", "model"}
}
_Attributes: Any = create_model("_Attributes", __base__=dg.Model, **_optional)


class _ScaffoldParams(BaseModel):
    """Options of `dg scaffold defs boring_assets.ImageEmbeddings`."""

    input_dir: str = Field("path/to/shards", description=Settings.model_fields["input_dir"].description)
    output_dir: str = Field("path/to/output", description=Settings.model_fields["output_dir"].description)
    model: str = Field("ViT-B-32", description=Settings.model_fields["model"].description)


class _Scaffolder(dg.Scaffolder[_ScaffoldParams]):
    @classmethod
    def get_scaffold_params(cls) -> type[_ScaffoldParams]:
        return _ScaffoldParams

    def scaffold(self, request: dg.ScaffoldRequest[_ScaffoldParams]) -> None:
        """Writes `defs.yaml`, with the folder's name as the dataset's."""
        name = "".join(letter if letter.isalnum() else "_" for letter in request.target_path.name)
        dg.scaffold_component(request, {"dataset": name, **request.params.model_dump()})


@dg.scaffold_with(_Scaffolder)
class ImageEmbeddings(dg.Component, dg.Resolvable, _Attributes):
    """CLIP embeddings of a folder or bucket of image shards (parquet, tar, TFRecord), a partition each.

    The attributes are the settings of docs/settings.md. One that is not given has the value of its
    environment variable `BORING_...`, or else its default.
    """

    dataset: str = Field(
        ...,
        pattern=r"^[A-Za-z0-9_]+$",
        description="Name of the dataset: the first part of its asset keys, and of the names of its "
        "partitions, jobs, sensors and resources.",
    )
    input_dir: str = Field(..., description=Settings.model_fields["input_dir"].description)
    output_dir: str = Field(..., description=Settings.model_fields["output_dir"].description)
    # `model` is a method of every Resolvable.
    model_name: Annotated[
        str | None,
        dg.Resolver(
            lambda context, value: value,
            model_field_name="model",
            description=Settings.model_fields["model"].description,
        ),
    ] = None
    group_name: str | None = Field(None, description="Group of the assets; the dataset's name by default.")
    owners: Sequence[str] | None = Field(None, description="Owners of the assets, as Dagster has them.")
    tags: Mapping[str, str] | None = Field(None, description="Tags of the assets.")
    kinds: Sequence[str] | None = Field(None, description="Kinds of the assets, instead of the default ones.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Returns definitions whose names do not collide with other definitions of the project."""
        given = {name: value for name, value in dict(self).items() if value is not None}
        given |= {"model": given.pop("model_name")} if "model_name" in given else {}
        names = {"group_name", "owners", "tags", "kinds"} & given.keys()
        attributes = {name: given.pop(name) for name in names}
        return build_definitions(load_settings(**given), shares_location=True, asset_attributes=attributes)
