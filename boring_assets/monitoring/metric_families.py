"""Names, texts and labels of the metrics, and their form for Prometheus."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from boring_assets.engine.samples import Reason

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

GONE_SECONDS = 60.0
"""A run without an update for this long was killed."""
_PREFIX = "boring_assets_"

COUNTERS = {
    "samples_embedded": "Samples embedded, in shards that were committed.",
    "samples_failed": "Samples that could not be embedded, in shards that were committed, by reason.",
    "image_bytes": "Encoded bytes of the images of committed shards.",
    "shards_committed": "Shards committed.",
    "shards_failed": "Shards that could not be embedded at all.",
    "runs": "Runs that ended, by outcome; one in which a shard failed is a failure.",
    "run_seconds": "Seconds that runs have taken; parallel runs are added up.",
    "wait_seconds": "Seconds that the model waited in runs: to be loaded, for decoded pixels, for writing.",
}
"""Text of each counter, by its name without prefix and `_total`."""
GAUGES = {
    "runs_in_progress": "Runs that embed now.",
    "last_update_timestamp_seconds": "Time of the last update by a run.",
    "last_success_timestamp_seconds": "When a run last succeeded; 0 is never.",
    "last_run_seconds": "Seconds that the last run took, its model's loading included.",
    "last_run_images_per_second": "Images a second over the whole of the last run.",
    "images_per_second": "Images a second now; 0 without a run.",
    "device_memory_peak_bytes": "Peak memory of the last run on the device; for cpu, of the machine.",
}
LABELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "samples_failed": ("reason", tuple(reason.value for reason in Reason)),
    "runs": ("outcome", ("success", "failure")),
    "wait_seconds": ("stage", ("load", "pixels", "writing")),
}
"""Labels of counters besides `output`, and their values."""


def families(output: str, state: Mapping[str, Any]) -> "CollectorRegistry":
    """Returns a registry with the metrics of an output, by the stored state of its runs on this machine."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

    class Families(Collector):
        def collect(self) -> Iterator[Any]:
            yield from _counters(output, state.get("counters", {}))
            yield from _gauges(output, state)

    registry = CollectorRegistry()
    registry.register(Families())
    return registry


def _counters(output: str, counters: Mapping[str, Mapping[str, float]]) -> Iterator[Any]:
    """Yields every counter with all labels from the start: Prometheus sees no increase in a new one."""
    from prometheus_client.core import CounterMetricFamily

    for name, text in COUNTERS.items():
        label, values = LABELS.get(name, ("", ("",)))
        known = counters.get(name, {})
        numbers = {value: known.get(value, 0.0) for value in values}
        yield _family(CounterMetricFamily, name, text, output, numbers, label)


def _gauges(output: str, state: Mapping[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    runs = [one for one in state.get("runs", {}).values() if time.time() - one["time"] < GONE_SECONDS]
    last = state.get("last", {})
    numbers = {
        "runs_in_progress": len(runs),
        "last_update_timestamp_seconds": state.get("time", 0.0),
        "last_success_timestamp_seconds": state.get("success", 0.0),
        "last_run_seconds": last.get("seconds", 0.0),
        "last_run_images_per_second": last.get("rate", 0.0),
    }
    for name, number in numbers.items():
        yield _family(GaugeMetricFamily, name, GAUGES[name], output, {"": number})
    peaks: dict[str, float] = state.get("devices", {})
    rates = {device: sum(one["rate"] for one in runs if one["device"] == device) for device in peaks}
    for name, by_device in (("images_per_second", rates), ("device_memory_peak_bytes", peaks)):
        yield _family(GaugeMetricFamily, name, GAUGES[name], output, by_device, "device")


def _family(
    kind: Any, name: str, text: str, output: str, numbers: Mapping[str, float], label: str = ""
) -> Any:
    """Returns a metric with a number for each value of its label, or one number where it has no label."""
    family = kind(_PREFIX + name, text, labels=("output", label) if label else ("output",))
    for value, number in numbers.items():
        family.add_metric((output, value) if label else (output,), number)
    return family
