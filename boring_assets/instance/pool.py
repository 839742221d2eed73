"""How many runs go at once: as many as the machine that executes them has devices."""

import dagster as dg

from boring_assets.engine.model.devices import devices
from boring_assets.tags import POOL

_CURSOR = "boring_assets/pool"


def fit_pool(instance: dg.DagsterInstance, setting: str) -> None:
    """Gives the pool as many slots as there are devices here, unless somebody has set its limit.

    Args:
        instance: Dagster's instance.
        setting: See `devices`.

    Raises:
        ModelError: See `devices`.
    """
    set_pool(instance, len(devices(setting)))


def set_pool(instance: dg.DagsterInstance, found: int) -> None:
    """Gives the pool so many slots, unless somebody has set its limit.

    Args:
        instance: Dagster's instance.
        found: How many runs there is room for.
    """
    storage = instance.event_log_storage
    limits = {limit.name: limit for limit in storage.get_pool_limits()}
    was = instance.daemon_cursor_storage.get_cursor_values({_CURSOR}).get(_CURSOR)
    limit = limits.get(POOL)
    ours = limit is None or limit.from_default or str(limit.limit) == was
    if ours and found != (limit.limit if limit else None):
        storage.set_concurrency_slots(POOL, found)
        instance.daemon_cursor_storage.set_cursor_values({_CURSOR: str(found)})
