"""Sets the limit of the pool `gpu`: as many runs at once as there are devices."""

import dagster as dg

from boring_assets.tags import POOL

_CURSOR = "boring_assets/pool"


def set_pool_limit(instance: dg.DagsterInstance, runs: int) -> None:
    """Sets the limit of the pool, unless a user has set it to something else."""
    storage = instance.event_log_storage
    limit = next((one for one in storage.get_pool_limits() if one.name == POOL), None)
    last_set = instance.daemon_cursor_storage.get_cursor_values({_CURSOR}).get(_CURSOR)
    set_by_user = limit is not None and not limit.from_default and str(limit.limit) != last_set
    if not set_by_user and (limit is None or limit.limit != runs):
        storage.set_concurrency_slots(POOL, runs)
        instance.daemon_cursor_storage.set_cursor_values({_CURSOR: str(runs)})
