"""The component: several datasets and models in one code location, beside a user's own definitions."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import boring_assets
from boring_assets.datasets import Dataset
from boring_assets.errors import SettingsError
from boring_assets.parts import register_shards
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from resources.source import ShardSource
from tests.assets.project import outdated

QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class Clip(dg.ConfigurableResource):
    """A user's own resource, under a key that this project uses too."""

    frames: int = 24


@dg.asset
def film(clip: Clip) -> int:
    return clip.frames


def component(folder: Path, **attributes: Any) -> dg.Definitions:
    fixed = {"input_dir": str(folder / "in"), "output_dir": str(folder / "out"), "model": "boring-tiny"}
    fixed |= {"device": "cpu", "precision": "fp32"}
    built = boring_assets.ImageEmbeddings.resolve_from_dict(fixed | attributes)
    return built.build_defs(dg.ComponentTree.for_test().load_context)


def test_datasets_models_and_the_users_own_definitions_do_not_collide(tmp_path: Path) -> None:
    defs = dg.Definitions.merge(
        component(tmp_path, dataset="laion"),
        component(tmp_path, dataset="laion", variant="large", output_dir=str(tmp_path / "large")),
        component(tmp_path, dataset="photos", output_dir=str(tmp_path / "photos")),
        dg.Definitions(assets=[film], resources={"clip": Clip(), "source": Clip()}),
    )
    repository = defs.get_repository_def()
    repository.load_all_definitions()
    graph = repository.asset_graph
    parents = {
        key: [parent.to_user_string() for parent in graph.get(dg.AssetKey(key.split("/"))).parent_keys]
        for key in ("laion/image_embeddings", "laion/large/image_embeddings", "photos/image_embeddings")
    }
    assert parents == {
        "laion/image_embeddings": ["laion/shards"],
        "laion/large/image_embeddings": ["laion/shards"],
        "photos/image_embeddings": ["photos/shards"],
    }
    assert {sensor.name for sensor in repository.sensor_defs} >= {
        "laion_new_shards",
        "laion_large_new_shards",
        "photos_new_shards",
    }
    checked = {key.asset_key.to_user_string() for key in graph.asset_check_keys}
    assert checked == {"laion/image_embeddings", "laion/large/image_embeddings", "photos/image_embeddings"}
    assert (
        defs.resolve_implicit_global_asset_job_def()
        .execute_in_process(asset_selection=[film.key], run_config=QUIET)
        .output_for_node("film")
        == 24
    )


def test_groups_owners_tags_and_kinds(tmp_path: Path) -> None:
    def node(defs: dg.Definitions) -> Any:
        return defs.resolve_asset_graph().get(dg.AssetKey(["laion", "image_embeddings"]))

    plain = node(component(tmp_path, dataset="laion"))
    assert (plain.group_name, plain.kinds) == ("laion", {"pytorch", "parquet"})
    given = {"group_name": "vision", "owners": ["team:data"], "tags": {"tier": "gold"}, "kinds": ["clip"]}
    dressed = node(component(tmp_path, dataset="laion", **given))
    assert (dressed.group_name, dressed.owners, dressed.kinds) == ("vision", ["team:data"], {"clip"})
    assert dressed.tags["tier"] == "gold"


def test_a_wrong_attribute_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="modle"):
        component(tmp_path, dataset="laion", modle="ViT-L-14")
    with pytest.raises(SettingsError, match="BORING_BATCH_SIZE is 0"):
        component(tmp_path, dataset="laion", batch_size=0)
    with pytest.raises(Exception, match="dataset"):
        component(tmp_path)


class Embedded:
    """A component whose four shards are registered, with a user's own assets downstream."""

    def __init__(self, folder: Path) -> None:
        write_sample_data(folder / "in", 4, 6, "webdataset", image_size=32)
        self.instance = dg.DagsterInstance.ephemeral()
        names = Dataset("laion", shares_location=True)
        settings = Settings(input_dir=str(folder / "in"), dataset="laion")
        register_shards(self.instance, ShardSource.from_settings(settings).discover(), settings)
        self.rows: dict[str, int] = {}

        @dg.asset(
            partitions_def=names.shards,
            ins={"embeddings": dg.AssetIn(names.embeddings)},
            backfill_policy=dg.BackfillPolicy.multi_run(1000),
        )
        def row_counts(context: dg.AssetExecutionContext, embeddings: Any) -> None:
            frames = embeddings if isinstance(embeddings, dict) else {context.partition_key: embeddings}
            self.rows |= {key: frame.collect().height for key, frame in frames.items()}

        @dg.asset(ins={"embeddings": dg.AssetIn(names.embeddings)})
        def total(embeddings: Any) -> int:
            return embeddings.collect().height

        self.defs = dg.Definitions.merge(
            component(folder, dataset="laion", batch_size=32), dg.Definitions(assets=[row_counts, total])
        )

    def outdated(self, partition: str) -> list[str]:
        """Why the UI calls a partition outdated."""
        return outdated(self.instance, self.defs, dg.AssetKey(["laion", "image_embeddings"]), partition)

    def run(
        self, *keys: str, config: dict[str, Any] | None = None, **where: Any
    ) -> dg.ExecuteInProcessResult:
        selection = [dg.AssetKey(key.split("/")) for key in keys]
        job = self.defs.resolve_implicit_job_def_def_for_assets(selection)
        assert job is not None
        return job.execute_in_process(
            instance=self.instance, asset_selection=selection, run_config=QUIET | (config or {}), **where
        )


@pytest.fixture
def embedded(tmp_path: Path) -> Embedded:
    return Embedded(tmp_path)


RANGE = {"dagster/asset_partition_range_start": "00001", "dagster/asset_partition_range_end": "00003"}


def test_downstream_assets_run_in_the_same_run_and_in_their_own(embedded: Embedded) -> None:
    assert embedded.run("laion/image_embeddings", "row_counts", partition_key="00000").success
    assert embedded.rows == {"00000": 6}
    both = embedded.run("laion/image_embeddings", "row_counts", tags=RANGE)
    assert embedded.rows == {"00000": 6, "00001": 6, "00002": 6, "00003": 6}
    events = both.asset_materializations_for_node("laion__image_embeddings")
    assert [event.partition for event in events] == ["00001", "00002", "00003"], "each partition once"
    assert all("contact_sheet" in event.metadata for event in events)

    assert embedded.outdated("00001") == []
    embedded.rows.clear()
    assert embedded.run("row_counts", partition_key="00002").success
    assert embedded.rows == {"00002": 6}
    assert embedded.run("total").output_for_node("total") == 24


@pytest.mark.parametrize(("given", "expected"), [(8, "batches of 8,"), ("auto", "batches of ")])
def test_a_run_configuration_changes_the_field_that_it_names_and_no_other(
    embedded: Embedded, given: object, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {
        "resources": {"boring_laion_clip": {"config": {"batch_size": given}}},
        "loggers": {"console": {}},
    }
    assert embedded.run("laion/image_embeddings", config=config, partition_key="00000").success
    told = capfd.readouterr().err
    assert expected in told
    assert "model boring-tiny" in told
    assert "in fp32" in told
    assert "batches of 32," not in told
