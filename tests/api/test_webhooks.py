"""Callbacks over HTTP, as callers, OpenAI's client and receivers see them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
from standardwebhooks import Webhook

from tests.support import receiver as answers
from tests.support.processes import Service
from tests.support.receiver import Receiver, receiver

pytestmark = pytest.mark.usefixtures("no_endpoints")

LIMIT_S = 20
BAD_URL = "http://169.254.169.254/latest/meta-data"


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def client(running: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="none", base_url=f"{running.url}/v1") as made:
        yield made


@pytest.fixture
async def endpoint(http: httpx.AsyncClient, web: Receiver) -> AsyncIterator[dict[str, Any]]:
    """Register a receiver for as long as a test lasts."""
    made = (await http.post("/v1/webhook_endpoints", json={"url": web.url + "/hook"})).json()
    yield made
    await http.delete(f"/v1/webhook_endpoints/{made['id']}")


async def job(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/v1/jobs", json={"query": "四只羊"} | body)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def until(read: Callable[[], Any], is_so: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(LIMIT_S):
        while not is_so(seen := (await read()).json()):  # noqa: ASYNC110 - in other processes
            await asyncio.sleep(0.02)
    return seen


async def test_a_job_calls_back_and_anybody_can_verify_it(http: httpx.AsyncClient, web: Receiver):
    made = await job(http, webhook_url=web.url + "/hook", metadata={"k": "v"})

    await web.until(1)

    secret = (await http.get("/v1/webhooks/default/secret")).json()["key"]
    event = Webhook(secret).verify(web.got[0].body, web.got[0].headers)
    log = await until(
        lambda: http.get(f"/v1/jobs/{made['id']}/webhooks"),
        lambda seen: seen["data"][0]["status"] == "delivered",
    )
    assert event["type"] == "job.completed"
    assert event["data"] == (await http.get(f"/v1/jobs/{made['id']}")).json()
    assert [one["id"] for one in log["data"]] == [web.got[0].id]
    assert log["data"][0]["attempts"][0]["status_code"] == 200


async def test_a_response_calls_back_in_openais_words(
    http: httpx.AsyncClient, client: openai.AsyncOpenAI, web: Receiver
):
    made = await client.responses.create(
        input="四只羊", background=True, extra_body={"webhook_url": web.url + "/hook"}
    )

    await web.until(1)

    secret = (await http.get("/v1/webhooks/default/secret")).json()["key"]
    event = client.webhooks.unwrap(web.got[0].body, web.got[0].headers, secret=secret)
    assert (event.type, event.data.id) == ("response.completed", made.id)


async def test_a_job_tells_of_its_start_when_asked_to(http: httpx.AsyncClient, web: Receiver):
    await job(http, webhook_url=web.url, webhook_events=["job.started", "job.completed"])

    await web.until(2)

    assert {got.json["type"] for got in web.got} == {"job.started", "job.completed"}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"webhook_url": BAD_URL}, "webhook_url_invalid", "webhook_url"),
        ({"webhook_url": "ftp://example.com"}, "webhook_url_invalid", "webhook_url"),
        ({"webhook_url": "http://u:p@example.com/"}, "webhook_url_invalid", "webhook_url"),
        ({"webhook_url": "http://example.com/" + "x" * 3000}, "invalid_request", "webhook_url"),
        ({"webhook_url": ""}, "invalid_request", "webhook_url"),
        ({"webhook_url": 7}, "invalid_request", "webhook_url"),
        ({"webhook_events": ["job.completed"]}, "invalid_request", None),
        (
            {"webhook_url": "http://example.com", "webhook_events": ["job.exploded"]},
            "invalid_request",
            "webhook_events[0]",
        ),
        (
            {"webhook_url": "http://example.com", "webhook_events": ["job.failed"] * 99},
            "invalid_request",
            "webhook_events",
        ),
    ],
    ids=["inside", "scheme", "password", "long", "empty", "number", "no url", "type", "many"],
)
async def test_a_receiver_that_cannot_be_is_refused_with_the_place(
    http: httpx.AsyncClient, body: dict[str, Any], code: str, param: str | None
):
    answer = await http.post("/v1/jobs", json={"query": "x"} | body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


async def test_openais_client_keeps_endpoints(client: openai.AsyncOpenAI, web: Receiver):
    made = await client.webhooks.create(
        url=web.url, name="shop", event_types=["response.completed", "batch.completed"]
    )
    changed = await client.webhooks.update(made.id, name="store")
    listed = [one.id async for one in client.webhooks.list(limit=1)]
    rotated = await client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    tested = await client.webhooks.test(made.id, event_type="response.completed")
    types = await client.webhooks.event_types.list()
    gone = await client.webhooks.delete(made.id)

    assert (changed.name, changed.event_types) == (
        "store", ["response.completed", "batch.completed"],
    )  # fmt: skip
    assert made.id in listed
    assert (tested.status_code, tested.success) == (200, True)
    assert "job.completed" in types.data
    assert gone.deleted
    for secret in (made.signing_secret, rotated.signing_secret):
        event = client.webhooks.unwrap(web.got[0].body, web.got[0].headers, secret=secret)
        assert event.type == "response.completed"
    with pytest.raises(openai.NotFoundError):
        await client.webhooks.retrieve(made.id)


async def test_an_endpoint_is_told_of_every_job_and_keeps_a_log(
    http: httpx.AsyncClient, web: Receiver, endpoint: dict[str, Any]
):
    made = [(await job(http))["id"] for _ in range(3)]

    await web.until(3)

    log = await until(
        lambda: http.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries"),
        lambda seen: {one["status"] for one in seen["data"]} == {"delivered"},
    )
    assert {one["object_id"] for one in log["data"]} >= set(made)
    assert {one["webhook_endpoint_id"] for one in log["data"]} == {endpoint["id"]}
    for got in web.got:
        Webhook(endpoint["signing_secret"]).verify(got.body, got.headers)


async def test_callbacks_show_in_the_metrics(http: httpx.AsyncClient, web: Receiver):
    await job(http, webhook_url=web.url)
    await web.until(1)

    text = (await http.get("/metrics")).text

    for name in ("webhooks_owed ", "webhooks_owed_seconds ", "webhook_endpoints_disabled "):
        assert f"forebay_{name}" in text
    assert "# TYPE forebay_webhooks_total counter" in text


async def test_a_delivery_can_be_asked_for_again(http: httpx.AsyncClient, web: Receiver):
    await job(http, webhook_url=web.url)
    await web.until(1)
    path = f"/v1/webhook_deliveries/{web.got[0].id}"
    await until(lambda: http.get(path), lambda seen: seen["status"] == "delivered")

    answer = await http.post(f"{path}/redeliver")

    await web.until(2)
    assert (answer.status_code, answer.json()["status"]) == (202, "owed")
    assert list(web.ids().values()) == [2]


async def test_a_sample_tells_what_the_receiver_answered(
    http: httpx.AsyncClient, web: Receiver, endpoint: dict[str, Any]
):
    web.at("/hook", answers.status(500, body=b"broken"))

    tested = (await http.post(f"/v1/webhook_endpoints/{endpoint['id']}/test")).json()

    assert (tested["success"], tested["status_code"]) == (False, 500)
    assert tested["delivery"]["attempts"][0]["answer"] == "broken"
    assert web.got[0].json["data"]["test"] is True


async def test_a_url_can_be_tried_before_it_is_used(http: httpx.AsyncClient, web: Receiver):
    good = (await http.post("/v1/webhook_tests", json={"url": web.url})).json()
    bad = (await http.post("/v1/webhook_tests", json={"url": "http://127.0.0.1:1/"})).json()
    refused = await http.post("/v1/webhook_tests", json={"url": BAD_URL})

    assert (good["success"], good["status_code"]) == (True, 200)
    assert (bad["success"], bad["status_code"]) == (False, None)
    assert "cannot be reached" in bad["delivery"]["attempts"][0]["answer"]
    assert refused.json()["error"]["code"] == "webhook_url_invalid"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/webhook_endpoints/we_none"),
        ("POST", "/v1/webhook_endpoints/we_none"),
        ("DELETE", "/v1/webhook_endpoints/we_none"),
        ("POST", "/v1/webhook_endpoints/we_none/rotate_secret"),
        ("POST", "/v1/webhook_endpoints/we_none/enable"),
        ("POST", "/v1/webhook_endpoints/we_none/test"),
        ("GET", "/v1/webhook_endpoints/we_none/deliveries"),
        ("GET", "/v1/webhook_endpoints?after=we_none"),
        ("GET", "/v1/webhook_deliveries/msg_none"),
        ("POST", "/v1/webhook_deliveries/msg_none/redeliver"),
    ],
)
async def test_what_is_not_there_is_404(http: httpx.AsyncClient, method: str, path: str):
    body = {"name": "x"} if path.endswith("we_none") else None

    answer = await http.request(method, path, json=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "webhook_not_found")


async def test_the_log_of_a_job_that_is_not_there_is_404(http: httpx.AsyncClient):
    answer = await http.get("/v1/jobs/job_none/webhooks")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": BAD_URL},
        {"url": "http://example.com/", "event_types": ["nothing"]},
        {"url": "http://example.com/", "name": "x" * 200},
        {"url": "http://example.com/", "secret": "mine"},
    ],
    ids=["no url", "inside", "type", "name", "unknown field"],
)
async def test_a_bad_endpoint_is_not_registered(http: httpx.AsyncClient, body: dict[str, Any]):
    before = (await http.get("/v1/webhook_endpoints")).json()["data"]

    answer = await http.post("/v1/webhook_endpoints", json=body)

    assert answer.status_code == 400
    assert (await http.get("/v1/webhook_endpoints")).json()["data"] == before


async def test_a_disabled_endpoint_is_enabled_by_hand(
    http: httpx.AsyncClient, web: Receiver, endpoint: dict[str, Any]
):
    path = f"/v1/webhook_endpoints/{endpoint['id']}"
    web.at("/hook", answers.status(410), answers.status(200))
    await job(http)
    await until(lambda: http.get(path), lambda seen: seen["status"] == "disabled")
    refused = await http.post(f"{path}/test")

    enabled = (await http.post(f"{path}/enable")).json()

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "webhook_conflict")
    assert (enabled["status"], enabled["disabled_reason"]) == ("enabled", None)
    await job(http)
    await web.until(2)
