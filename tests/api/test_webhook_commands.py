"""`forebay webhooks` against a running server."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support import receiver as answers
from tests.support.processes import Service
from tests.support.receiver import Receiver, receiver
from worker import client_webhooks as commands

pytestmark = pytest.mark.usefixtures("no_endpoints")


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def call(command: object, *arguments: object, **named: object) -> int:
    """Run a command, which blocks, beside the receiver."""
    import asyncio  # noqa: PLC0415 - the only use

    return await asyncio.to_thread(command, *arguments, **named)


async def test_an_endpoint_is_added_tested_rotated_listed_and_removed(
    running: Service, web: Receiver, capsys: pytest.CaptureFixture[str]
):
    url = running.url
    assert await call(commands.add, url, web.url + "/hook", "shop", ["job.failed"]) == 0
    made = json.loads(capsys.readouterr().out)

    assert await call(commands.test, url, made["id"], "job.failed") == 0
    tested = json.loads(capsys.readouterr().out)
    assert await call(commands.rotate, url, made["id"], overlap=True) == 0
    rotated = json.loads(capsys.readouterr().out)
    assert await call(commands.list_endpoints, url) == 0
    listed = capsys.readouterr().out
    assert await call(commands.deliveries, url, made["id"], 9) == 0
    delivered = capsys.readouterr().out
    assert await call(commands.redeliver, url, tested["delivery"]["id"]) == 0
    await web.until(2)
    assert await call(commands.remove, url, made["id"]) == 0
    capsys.readouterr()
    assert await call(commands.enable, url, made["id"]) == 1

    assert tested["success"] is True
    assert rotated["signing_secret"] != made["signing_secret"]
    assert made["id"] in listed
    assert tested["delivery"]["id"] in delivered
    assert capsys.readouterr().err == f"error: there is no webhook endpoint {made['id']}\n"


async def test_a_url_that_does_not_take_a_sample_is_status_1(
    running: Service, web: Receiver, capsys: pytest.CaptureFixture[str]
):
    url = web.at("/hook", answers.status(500))

    status = await call(commands.test, running.url, url, "job.completed")

    assert (status, json.loads(capsys.readouterr().out)["status_code"]) == (1, 500)


async def test_the_deliveries_of_a_job_are_listed(
    running: Service, http: httpx.AsyncClient, web: Receiver, capsys: pytest.CaptureFixture[str]
):
    job = (await http.post("/v1/jobs", json={"query": "x", "webhook_url": web.url})).json()
    await web.until(1)

    status = await call(commands.deliveries, running.url, job["id"], 9)

    assert status == 0
    assert web.got[0].id in capsys.readouterr().out


async def test_the_secret_is_the_one_that_signs(
    running: Service, http: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
):
    assert await call(commands.secret, running.url) == 0

    key = (await http.get("/v1/webhooks/default/secret")).json()["key"]
    assert capsys.readouterr().out == f"{key}\n"
