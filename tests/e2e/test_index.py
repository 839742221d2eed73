"""`embedding_index` under the real daemon: it follows the embeddings by itself, and search finds them."""

import json
import tarfile
from pathlib import Path

import pytest
from dagster import DagsterRunStatus

from boring_assets.search.lance import FOLDER, TABLE
from tests.e2e.processes import Home
from tests.e2e.webserver import wait_for

AUTOMATION = "default_automation_condition_sensor"


def indexed(home: Home) -> list[tuple[str, int]]:
    """Shards that each update of the index took in, and the rows that it had then."""
    runs = [run for run in home.runs() if run.status is DagsterRunStatus.SUCCESS]
    events = [
        event for run in runs for event in home.events(run) if event.asset_key.to_user_string() == FOLDER
    ]
    return [
        (event.metadata["shards_added"].value, event.metadata["dagster/row_count"].value) for event in events
    ]


def wait_for_updates(home: Home, count: int) -> tuple[int, int]:
    found = wait_for(lambda: len(found := indexed(home)) >= count and found, f"{count} updates of the index")
    assert len(found) == count, found
    return found[-1]


@pytest.mark.slow
def test_the_index_follows_the_embeddings(home: Home, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    home.add_shards(2)
    embedded = home.run("boring-assets", "embed", str(home.input), str(home.output))
    assert embedded.returncode == 0, embedded.stderr
    with home.webserver() as server, home.daemon():
        server.turn_on(AUTOMATION)
        assert wait_for_updates(home, 1) == (2, 40), "what was there before is indexed"

        server.turn_on("new_shards")
        home.add_shards(2, first=2)
        assert wait_for_updates(home, 2) == (2, 80)

        home.add_shards(1, seed=7)
        assert wait_for_updates(home, 3) == (1, 80)
        server.check_idle(AUTOMATION)
        assert len(indexed(home)) == 3, "without news there is nothing to do"
    assert all(run.status is DagsterRunStatus.SUCCESS for run in home.runs())

    with tarfile.open(home.input / "00000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".jpg"))
        tar.extract(name, tmp_path, filter="data")
    picture = tmp_path / name
    asked = home.run("boring-assets", "search", "--image", str(picture), "--json", "--no-update")
    assert asked.returncode == 0, asked.stderr
    first = json.loads(asked.stdout)[0]
    assert (first["partition"], first["key"]) == ("00000", picture.stem)
    assert first["score"] == pytest.approx(1, abs=0.01)
    rows = lancedb.connect(home.output / FOLDER).open_table(TABLE)
    assert rows.count_rows("partition = '00000'") == 20, "the changed shard's old pictures are gone"
