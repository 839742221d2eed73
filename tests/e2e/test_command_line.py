"""Dagster's own command line: one partition, a range, and what is none."""

import json
import subprocess

import pytest

from boring_assets.tags import RANGE_END_TAG, RANGE_START_TAG
from tests.e2e.processes import Home

MODULE = ("-m", "boring_assets.definitions")


def execute_range(home: Home, first: str, last: str) -> subprocess.CompletedProcess[str]:
    tags = json.dumps({RANGE_START_TAG: first, RANGE_END_TAG: last})
    return home.run("dagster", "job", "execute", *MODULE, "-j", "embed_shards", "--tags", tags)


def materialize(home: Home, key: str) -> subprocess.CompletedProcess[str]:
    one = ("asset", "materialize", *MODULE, "--select", "image_embeddings", "--partition", key)
    return home.run("dagster", *one)


@pytest.mark.slow
def test_one_partition_then_a_range(home: Home) -> None:
    home.add_shards(5)
    done = materialize(home, "00003")
    assert done.returncode != 0, "nobody has registered it"
    assert "00003" in done.stderr + done.stdout
    home.register()

    done = materialize(home, "00003")
    assert done.returncode == 0, done.stderr
    home.check_committed(["00003"])
    assert home.materialized(home.runs()[-1]) == {"00003": 1}

    for first, last, said in (
        ("00002", "00000", "its range ends before it starts"),
        ("00000", "no-such-shard", "no-such-shard"),
    ):
        done = execute_range(home, first, last)
        assert done.returncode != 0
        assert said in done.stderr + done.stdout
        home.check_committed(["00003"])

    done = execute_range(home, "00000", "00002")
    assert done.returncode == 0, done.stderr
    home.check_committed(["00000", "00001", "00002", "00003"])
    assert home.materialized(home.runs()[-1]) == {"00000": 1, "00001": 1, "00002": 1}
