"""The sensor that alerts people when too many images fail: in Dagster, and by a webhook."""

import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import dagster as dg
from pydantic import BaseModel

from boring_assets.datasets import Dataset, materializations
from boring_assets.engine.samples import NOT_COUNTED
from boring_assets.output.judgement import Committed, failure_rate
from boring_assets.output.measures import Measures
from boring_assets.settings import Settings

_EVERY_SECONDS = 30
# A tick may take a minute; the next tick continues after this many events.
_MOST_EVENTS = 10_000
_NAMED = 3
_TRIES = 3
_SECONDS = 10.0
_TOO_MANY_REQUESTS = 429


def define_failure_rate_alert(
    settings: Settings, dataset: Dataset, parts: Sequence[Dataset]
) -> dg.SensorDefinition:
    """The sensor `failure_rate_alert`, on from the start where there is a webhook."""
    limit, minutes = settings.max_failure_rate, settings.alert_minutes
    webhook = settings.alert_webhook.get_secret_value()

    @dg.sensor(
        name=dataset.local_name("failure_rate_alert"),
        minimum_interval_seconds=_EVERY_SECONDS,
        description=f"Optional: alerts once when more than {limit:.0%} of the images of the last {minutes} "
        "minutes failed, without those never downloaded. Set BORING_ALERT_WEBHOOK to get a message.",
        default_status=dg.DefaultSensorStatus.RUNNING if webhook else dg.DefaultSensorStatus.STOPPED,
    )
    def failure_rate_alert(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        assets = {part.embeddings.to_user_string(): part.embeddings for part in parts}
        state = _State.read(context.cursor, assets)
        new = list(state.count(context.instance, assets, minutes))
        whole = failure_rate(Committed([state.total()], max_failure_rate=limit))
        summary = f"{state.summary(minutes)}; the limit is {limit:.0%}."
        events = []
        if whole.problems and not state.alerting:
            worst = failure_rate(Committed(new, max_failure_rate=limit)).problems
            named = "; ".join(f"{key}: {why}" for key, why in list(worst.items())[:_NAMED])
            text = f"Too many images fail: {summary}{f' E.g. {named}.' if named else ''}"
            rate = whole.numbers["failure_rate"]
            facts = {"failure_rate": rate, "limit": limit, "minutes": minutes, **state.reasons()}
            events.append(dg.AssetObservation(parts[0].embeddings, description=text, metadata=facts))
            context.log.warning(text)
            state.unsent = {"text": text, **facts} if webhook else None
        state.alerting = bool(whole.problems)
        if state.unsent:
            problem = _post(webhook, state.unsent) if webhook else ""
            if problem:
                summary += f" The alert was not delivered, and will be sent again: {problem}."
                context.log.warning(summary)
            else:
                state.unsent = None
        result = "Alerted before, and still too many" if state.alerting and not events else "No alert"
        return dg.SensorResult(
            skip_reason=dg.SkipReason(f"{'Alerted' if events else result}: {summary}"),
            cursor=state.model_dump_json(),
            asset_events=events,
        )

    return failure_rate_alert


class _State(BaseModel):
    """The state that the sensor keeps in its cursor."""

    after: dict[str, int] = {}  # number of the last event that was counted, by asset
    # For each sixtieth of the window: since when, how many rows, and how many failed by reason.
    ticks: list[tuple[float, int, dict[str, int]]] = []
    alerting: bool = False  # whether too many failed at the last tick
    unsent: dict[str, Any] | None = None  # the alert that is not delivered yet

    @classmethod
    def read(cls, cursor: str | None, assets: Iterable[str]) -> "_State":
        """Reads the cursor; earlier versions had one asset, and wrote a number."""
        state = json.loads(cursor or "{}")
        after = state.pop("after", None) or {}
        return cls(after=after if isinstance(after, dict) else dict.fromkeys(assets, after), **state)

    def count(
        self, instance: dg.DagsterInstance, assets: Mapping[str, dg.AssetKey], minutes: int
    ) -> Iterator[Measures]:
        """Counts what was embedded since the last tick, and yields each partition's counts."""
        rows, reasons, now = 0, Counter[str](), time.time()
        start = now - minutes * 60
        for name, asset in assets.items():
            after = self.after.get(name)
            # Without a cursor it begins with what the window holds already.
            records = materializations(instance, asset, after=after, since=start if after is None else None)
            for record, metadata in islice(records, _MOST_EVENTS):
                self.after[name] = record.storage_id
                if "rows" not in metadata or "adopted" in metadata:
                    continue  # reported by another program, or counted before
                failed = Counter(metadata.get("failed_by_reason", {}))
                rows += metadata["rows"]
                reasons += failed
                yield _measures(str(record.partition_key), metadata["rows"], failed)
        if rows:
            if self.ticks and now - self.ticks[-1][0] < minutes:
                since, more, others = self.ticks.pop()
                now, rows, reasons = since, rows + more, reasons + Counter(others)
            self.ticks.append((now, rows, dict(reasons)))
        self.ticks = [one for one in self.ticks if one[0] > start]

    def reasons(self) -> dict[str, int]:
        """Returns how many images failed in the window, by reason."""
        return dict(sum((Counter(failed) for _, _, failed in self.ticks), Counter[str]()).most_common())

    def total(self) -> Measures:
        """Returns the counts of the whole window."""
        return _measures("all", sum(rows for _, rows, _ in self.ticks), self.reasons())

    def summary(self, minutes: int) -> str:
        """Returns the counts of the whole window in words."""
        total = self.total()
        there, failed = total.rows - total.not_downloaded, total.failed - total.not_downloaded
        reasons = {name: count for name, count in self.reasons().items() if name not in NOT_COUNTED}
        named = ", ".join(f"{count:,} {name}" for name, count in reasons.items())
        share = f" ({failed / there:.1%})" if there else ""
        return (
            f"{failed:,} of {there:,} images{share} failed in the last {minutes} minutes"
            f"{f': {named}' if named else ''}"
        )


def _measures(key: str, rows: int, failed: dict[str, int]) -> Measures:
    lost = sum(failed.get(reason, 0) for reason in NOT_COUNTED)
    return Measures(key, rows=rows, failed=sum(failed.values()), not_downloaded=lost)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the server must not choose another receiver."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follows none; the answer then counts as an error."""


def _post(url: str, body: Mapping[str, Any]) -> str:
    """Posts a JSON object; if the server does not answer or has an error, tries three times.

    The URL is a secret, so it is in no error and no log. urllib3 is not used, since it logs the paths of
    URLs. Most webhooks show the body's `text`.

    Returns:
        Why it could not be delivered, without the address; empty if it was delivered.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    problem = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            request = urllib.request.Request(url, data, headers, method="POST")
            with opener.open(request, timeout=_SECONDS):
                return ""
        except urllib.error.HTTPError as error:
            problem = f"the webhook answered {error.code}"
            error.close()
            if error.code < 500 and error.code != _TOO_MANY_REQUESTS:
                break
        except Exception as error:  # its text may hold the address
            problem = f"the webhook cannot be reached ({type(getattr(error, 'reason', error)).__name__})"
    return problem
