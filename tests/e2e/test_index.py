"""`embedding_index` under the real daemon: it follows the embeddings by itself, and search finds them."""

import json
import tarfile
from pathlib import Path

import pytest
from dagster import DagsterRunStatus

from boring_assets.search.lance import FOLDER, TABLE
from tests.command_line import CommandLine
from tests.e2e.processes import Home
from tests.waiting import wait_for


def updates(home: Home) -> list[tuple[int, int]]:
    """Shards that each update of the index took in, and the rows that it had then."""
    events = [
        event.metadata
        for run in home.runs()
        for event in home.events(run)
        if event.asset_key.path == [FOLDER]
    ]
    return [(metadata["shards_added"].value, metadata["dagster/row_count"].value) for metadata in events]


@pytest.mark.heavy
def test_the_index_follows_the_embeddings(home: Home, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    home.add_shards(2)
    with home.webserver() as server, home.daemon():
        server.turn_on("new_shards")
        home.wait_for_runs(1)
        server.turn_on("index_after_embedding")
        assert wait_for(lambda: updates(home), "there is an index") == [(2, 40)]

        home.add_shards(1, seed=7)  # a changed shard
        home.add_shards(1, first=2)  # and a new one
        wait_for(lambda: sum(added for added, _ in updates(home)) == 4, "both are indexed", home.runs)
        assert updates(home)[-1][1] == 60
        server.turn_off("index_after_embedding")
        wait_for(lambda: all(run.is_finished for run in home.runs()), "no run is left", home.runs)
    assert all(run.status is DagsterRunStatus.SUCCESS for run in home.runs())

    with tarfile.open(home.input / "00000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".jpg"))
        tar.extract(name, tmp_path, filter="data")
    call = CommandLine(tmp_path)
    found = call(
        "search", "--image", tmp_path / name, "--output", home.output, "--json", "--no-update"
    ).stdout
    first = json.loads(found)[0]
    assert (first["partition"], first["key"]) == ("00000", Path(name).stem)
    assert first["score"] == pytest.approx(1, abs=0.01)
    rows = lancedb.connect(home.output / FOLDER).open_table(TABLE)
    assert rows.count_rows("partition = '00000'") == 20, "the changed shard's old pictures are gone"
