"""Totals in Prometheus's text form.

They are the whole installation's, not this process's: scrape one API process, or take `max` over
several. The cost of a scrape does not grow with the number of jobs.
"""

import math
from collections.abc import Iterator
from itertools import accumulate

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from api.deps import Uses
from worker.contract.metrics import Histogram, Totals

router = APIRouter(tags=["health"])

_HISTOGRAMS = {
    "queue": ("forebay_queue_seconds", "From being due to the first start, of completed jobs"),
    "media": ("forebay_media_seconds", "Fetching and preparing media, of completed jobs"),
    "ttft": ("forebay_ttft_seconds", "From being due to the first token, of completed jobs"),
    "total": ("forebay_job_seconds", "From being due to the end, of completed jobs"),
    "eta_error": ("forebay_eta_error_seconds", "Real start against eta_s as told at submission"),
}


@router.get("/metrics", response_class=Response)
async def metrics(uses: Uses) -> Response:
    """Return queue depths, workers, ends, waits and recoveries, for Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Reading(await uses.totals()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Reading(Collector):
    """One reading as the client library wants it."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """Yield every family, also an empty one: its name is then known to dashboards."""
        yield from self._gauges()
        yield from self._counters()
        for name, (metric, text) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(metric, text, labels=["model"])
            for (kind, model), histogram in self._totals.histograms.items():
                if kind == name:
                    family.add_metric([model], _cumulated(histogram), histogram.sum_s)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        now = self._totals
        depth = GaugeMetricFamily("forebay_queue_depth", "Jobs that wait", labels=["queue"])
        for queue, number in now.depths.items():
            depth.add_metric([queue], number)
        workers = GaugeMetricFamily(
            "forebay_workers", "Worker processes that live", labels=["role", "state"]
        )
        for labels, number in now.workers.items():
            workers.add_metric(labels, number)
        troubles = GaugeMetricFamily(
            "forebay_worker_troubles",
            "Workers that failed or load their model again, and why",
            labels=["role", "state", "host", "gpus", "reason"],
        )
        for why, number in now.troubles.items():
            troubles.add_metric(why, number)
        held = GaugeMetricFamily("forebay_jobs_held", "Jobs that workers hold", labels=["role"])
        for role, number in now.held.items():
            held.add_metric([role], number)
        dead = GaugeMetricFamily("forebay_jobs_dead", "Jobs in the dead list", value=now.dead)
        yield from (depth, workers, troubles, held, dead)
        yield GaugeMetricFamily("forebay_webhooks_owed", "Events to be delivered", value=now.owed)
        yield GaugeMetricFamily(
            "forebay_webhooks_owed_seconds", "Age of the oldest of them", value=now.owed_s
        )
        yield GaugeMetricFamily(
            "forebay_webhook_endpoints_disabled",
            "Receivers that get nothing any more",
            value=now.endpoints_disabled,
        )

    def _counters(self) -> Iterator[Metric]:
        now = self._totals
        finished = CounterMetricFamily(
            "forebay_jobs_finished", "Ends of jobs", labels=["status", "model"]
        )
        for labels, number in now.finished.items():
            finished.add_metric(labels, number)
        takeovers = CounterMetricFamily(
            "forebay_takeovers", "Attempts lost with their worker or engine", labels=["lane"]
        )
        for lane, number in now.takeovers.items():
            takeovers.add_metric([lane], number)
        sweeps = CounterMetricFamily("forebay_sweeps", "Sweeps", value=now.sweeps)
        swept = CounterMetricFamily("forebay_swept", "What sweeps did", labels=["what"])
        for what, number in now.swept.items():
            swept.add_metric([what], number)
        callbacks = CounterMetricFamily(
            "forebay_webhooks", "Tries to deliver an event, by result", labels=["result"]
        )
        for result, number in now.callbacks.items():
            callbacks.add_metric([result], number)
        yield from (finished, takeovers, sweeps, swept, callbacks)


def _cumulated(histogram: Histogram) -> list[tuple[str, int]]:
    """Return buckets as Prometheus counts them: each with all that are smaller."""
    names = ("+Inf" if bound == math.inf else f"{bound:g}" for bound in histogram.counts)
    return list(zip(names, accumulate(histogram.counts.values()), strict=True))
