"""The totals as Prometheus reads them."""

from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import Service

WAIT = {"Prefer": "wait=20"}


async def scrape(http: httpx.AsyncClient) -> dict[tuple[str, frozenset[str]], float]:
    """Return every sample by its name and label values."""
    response = await http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def key(name: str, *labels: str) -> tuple[str, frozenset[str]]:
    return f"forebay_{name}", frozenset(labels)


async def test_an_answered_job_shows_in_the_metrics(http: httpx.AsyncClient):
    before = await scrape(http)
    done = key("jobs_finished_total", "completed", "echo")

    await http.post("/v1/jobs", json={"query": "hi"}, headers=WAIT)

    after = await scrape(http)
    assert after[done] == before.get(done, 0) + 1
    assert after[key("workers", "chat", "ready")] == after[key("workers", "media", "ready")] == 1
    assert after[key("queue_depth", "chat.echo.normal")] == 0
    assert key("sweeps_total") in after
    assert after[key("jobs_dead")] >= 0


async def test_buckets_sum_up_to_the_count(http: httpx.AsyncClient):
    await http.post("/v1/jobs", json={"query": "hi"}, headers=WAIT)

    samples = await scrape(http)

    for name in ("queue", "ttft", "job"):
        count = samples[key(f"{name}_seconds_count", "echo")]
        buckets = [
            value for (sample, _), value in samples.items()
            if sample == f"forebay_{name}_seconds_bucket"
        ]  # fmt: skip
        assert count == samples[key(f"{name}_seconds_bucket", "echo", "+Inf")] >= 1
        assert buckets == sorted(buckets)


async def test_where_keys_are_set_a_scrape_needs_one(start_api: Callable[..., Service]):
    api = start_api(FOREBAY_API_KEYS="secret")

    async with httpx.AsyncClient(base_url=api.url) as stranger:
        refused = await stranger.get("/metrics")
        answered = await stranger.get("/metrics", headers={"Authorization": "Bearer secret"})

    assert (refused.status_code, answered.status_code) == (401, 200)
