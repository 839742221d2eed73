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

    for first, last, message in (
        ("00002", "00000", "its range ends before it starts"),
        ("00000", "no-such-shard", "no-such-shard"),
    ):
        done = execute_range(home, first, last)
        assert done.returncode != 0
        assert message in done.stderr + done.stdout
        home.check_committed(["00003"])

    done = execute_range(home, "00000", "00002")
    assert done.returncode == 0, done.stderr
    home.check_committed(["00000", "00001", "00002", "00003"])
    assert home.materialized(home.runs()[-1]) == {"00000": 1, "00001": 1, "00002": 1}


@pytest.mark.slow
def test_a_range_in_a_single_run_and_a_configuration_that_names_one_field(home: Home) -> None:
    home.add_shards(4)
    home.register()
    dagster = ("dagster", "asset", "materialize", *MODULE, "--select", "image_embeddings")
    launch = ("dg", "launch", *MODULE, "--assets", "image_embeddings")

    several = home.run(*launch, "--partition-range", "00000...00001")
    assert several.returncode != 0, "several runs would be needed, as the documents say"
    assert not home.committed()

    eight = json.dumps({"resources": {"clip": {"config": {"batch_size": 8}}}})
    for command, first, last in ((dagster, "00000", "00001"), (launch, "00002", "00003")):
        done = home.run(
            *command,
            "--partition-range",
            f"{first}...{last}",
            "--config-json",
            eight,
            backfill_policy="single_run",
            device="cpu",
            precision="fp32",
        )
        assert done.returncode == 0, done.stderr
        run = home.runs()[-1]
        assert home.materialized(run) == {first: 1, last: 1}
        assert "2 shards on cpu in fp32, batches of 8, model boring-tiny" in home.messages(run)
    home.check_committed(["00000", "00001", "00002", "00003"])
