"""The pool's limit follows the machine, unless somebody has set it."""

from pathlib import Path

import dagster as dg
import pytest

from boring_assets.instance.homes import open_instance
from boring_assets.instance.pool import set_pool_limit
from boring_assets.tags import POOL


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return open_instance("out")


def limit(instance: dg.DagsterInstance) -> int:
    (found,) = [pool.limit for pool in instance.event_log_storage.get_pool_limits() if pool.name == POOL]
    return found


@pytest.mark.parametrize("registered", [False, True])
def test_the_pool_limit_follows_the_machine_until_a_user_sets_it(
    instance: dg.DagsterInstance, registered: bool
) -> None:
    if registered:
        instance.event_log_storage.initialize_concurrency_limit_to_default(POOL)
        assert limit(instance) == 1
    for devices in (3, 2, 1, 2):
        set_pool_limit(instance, devices)
        assert limit(instance) == devices
    instance.event_log_storage.set_concurrency_slots(POOL, 5)
    set_pool_limit(instance, 3)
    assert limit(instance) == 5
