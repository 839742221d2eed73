"""Two daemons over one Dagster home, as after a restart that left the old one alive."""

import json
import subprocess

import pyarrow.parquet as pq
import pytest

from boring_assets.settings import Settings
from boring_assets.shard_states import State, get_shard_states
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource
from tests.e2e.processes import Home
from tests.waiting import wait_for

SHARDS = 6


@pytest.mark.heavy
def test_two_daemons_at_once_damage_nothing(home: Home) -> None:
    keys = home.add_shards(SHARDS, images=4)

    def sensor(action: str) -> subprocess.CompletedProcess[str]:
        return home.run("dagster", "sensor", action, "new_shards", "-w", "workspace.yaml")

    started = sensor("start")
    assert started.returncode == 0, started.stderr
    with home.daemon(), home.daemon():
        wait_for(lambda: len(home.committed()) == SHARDS, "every shard is committed", home.runs)
        stopped = sensor("stop")
        assert stopped.returncode == 0, stopped.stderr
        wait_for(lambda: all(run.is_finished for run in home.runs()), "no run is left", home.runs)
    home.check_committed(keys, images=4)
    totals = json.loads((home.output / "metadata.json").read_text())
    assert (totals["num_shards"], totals["num_samples"]) == (SHARDS, SHARDS * 4)
    assert sorted(path.name for path in (home.output / ".staging").iterdir()) == []
    for path in home.output.rglob("*.parquet"):
        pq.read_table(path)
    settings = Settings(
        input_dir=str(home.input), output_dir=str(home.output), model="boring-tiny", device="cpu"
    )
    stock = get_shard_states(
        home.instance,
        ShardSource.from_settings(settings).discover(),
        settings.embedding_version(),
        EmbeddingsIOManager.from_settings(settings).committed,
    )
    assert stock.states == dict.fromkeys(keys, State.DONE)
