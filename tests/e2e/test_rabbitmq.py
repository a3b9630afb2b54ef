"""The same queue with RabbitMQ as broker: answers, cancels, take-overs, lost tickets."""

import base64
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import rabbit
from tests.support.chat_workers import chat_worker, start_chat
from tests.support.media_files import picture
from tests.support.processes import LIMIT_S, Service, service, until
from worker.contract import broker, keys
from worker.contract.job import Priority
from worker.contract.settings import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(150),
    pytest.mark.skipif(rabbit.find() is None, reason="rabbitmq-server and epmd are not installed"),
]
WAIT = {"Prefer": "wait=20"}
TOKENS = 60
SLOW = f"[[tokens={TOKENS} rate=20]]"
PICTURE = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
IN_FLIGHT = 2  # tickets that a worker with one slot holds: starts may swap within
ANSWER = " ".join(f"tok{n}" for n in range(1, TOKENS + 1))


@pytest.fixture(scope="module")
def running(
    redis_environ: dict[str, str], s3_environ: dict[str, str], tmp_path_factory: Any
) -> Iterator[Service]:
    """An API and a media worker; each test brings its own chat workers."""
    with (
        rabbit.rabbit_server(tmp_path_factory.mktemp("rabbit")) as url,
        service(
            tmp_path_factory.mktemp("service"),
            redis_environ | s3_environ,
            roles=("api", "media"),
            CELERY_BROKER_URL=url,
            FOREBAY_MODELS="echo",
            FOREBAY_LEASE_S="1.5",
        ) as made,
    ):
        yield made


@pytest.fixture
def http(running: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def ask(http: httpx.Client, query: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    response = http.post("/v1/jobs", json={"query": query} | more, headers=headers)
    assert response.is_success, response.text
    return response.json()


def job(http: httpx.Client, job_id: str) -> dict[str, Any]:
    return http.get(f"/v1/jobs/{job_id}").json()


def until_over(http: httpx.Client, job_id: str) -> dict[str, Any]:
    until(lambda: job(http, job_id)["finished_at"] is not None, 2 * LIMIT_S)
    return job(http, job_id)


def test_jobs_with_and_without_pictures_are_answered_also_by_a_worker_that_came_later(
    running: Service, http: httpx.Client, tmp_path: Path
):
    early = ask(http, "before")

    with chat_worker(running, tmp_path):
        late = ask(http, "<image>[[media]]", headers=WAIT, images=[PICTURE])
        first = until_over(http, early["id"])

    assert (first["status"], first["output"]["text"]) == ("completed", "before")
    assert (late["status"], late["error"], len(late["media"])) == ("completed", None, 1)


def test_waiting_and_running_jobs_can_be_cancelled(
    running: Service, http: httpx.Client, tmp_path: Path
):
    waiting = ask(http, "never")
    http.post(waiting["links"]["cancel"])

    with chat_worker(running, tmp_path):
        inside = ask(http, SLOW)
        until(lambda: job(http, inside["id"])["progress"]["tokens"] > 0)
        http.post(inside["links"]["cancel"])
        ended = until_over(http, inside["id"])

    assert (ended["status"], job(http, waiting["id"])["attempt"]) == ("cancelled", 0)
    assert 0 < ended["usage"]["completion_tokens"] < TOKENS


def test_jobs_go_on_with_another_worker_after_kill_9(
    running: Service, http: httpx.Client, tmp_path: Path
):
    victim = start_chat(running, tmp_path)
    ids = [ask(http, SLOW)["id"] for _ in range(20)]
    until(lambda: all(job(http, job_id)["progress"]["tokens"] > 5 for job_id in ids))

    victim.send(signal.SIGKILL)
    with chat_worker(running, tmp_path):
        ended = [until_over(http, job_id) for job_id in ids]

    assert {(e["status"], e["output"]["text"], e["attempt"]) for e in ended} == {
        ("completed", ANSWER, 2)
    }
    assert {a["status"] for e in ended for a in e["attempts"]} == {"lost"}


def test_classes_are_served_in_turn_so_that_none_waits_behind_anothers_backlog(
    running: Service, http: httpx.Client, tmp_path: Path
):
    low = [ask(http, "[[tokens=1 rate=50]]", priority="low")["id"] for _ in range(40)]
    high = [ask(http, "[[tokens=1 rate=50]]", priority="high")["id"] for _ in range(15)]

    with chat_worker(running, tmp_path, slots=1):
        jobs = {job_id: until_over(http, job_id) for job_id in low + high}

    starts = sorted(jobs, key=lambda job_id: jobs[job_id]["started_at"])
    early = [jobs[job_id]["priority"] for job_id in starts[:20]]
    assert early.count("high") >= 7
    own = [job_id for job_id in starts if job_id in high]
    assert max(abs(own.index(job_id) - n) for n, job_id in enumerate(high)) <= IN_FLIGHT


def test_a_ticket_that_the_broker_lost_is_sent_again(
    running: Service, http: httpx.Client, tmp_path: Path
):
    app = broker.make_app(Settings(_env_file=None, **broker_settings(running)))
    queue = keys.chat_queue("echo", Priority.NORMAL)
    lost = ask(http, "found again")
    until(lambda: broker.depth(app, queue) > 0)
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge(queue)

    with chat_worker(running, tmp_path):
        ended = until_over(http, lost["id"])

    assert (ended["status"], ended["output"]["text"]) == ("completed", "found again")


def test_a_worker_whose_own_queue_expired_while_its_engine_was_away_listens_to_a_new_one(
    running: Service, http: httpx.Client, tmp_path: Path
):
    app = broker.make_app(Settings(_env_file=None, **broker_settings(running)))
    with (
        chat_worker(running, tmp_path, owner="anna"),
        app.connection_for_write() as connection,
    ):
        own = keys.own_queue("echo", "anna")
        until(lambda: listeners(connection, own) == 1)
        made = ask(http, "[[die]]")
        until(lambda: listeners(connection, own) == 0)
        connection.default_channel.queue_delete(own)  # as RabbitMQ does after a minute
        until_over(http, made["id"])
        until(lambda: listeners(connection, own) == 1)

        first = ask(http, "still there", headers=WAIT)
        then = ask(http, "and?", headers=WAIT, history=first["history"])

    assert (then["status"], then["attempt"], then["output"]["text"]) == ("completed", 1, "and?")


def listeners(connection: Any, queue: str) -> int:
    """Return how many consumers a queue has, -1 where it does not exist."""
    try:
        return int(connection.default_channel.queue_declare(queue, passive=True).consumer_count)
    except connection.channel_errors:
        return -1


def broker_settings(running: Service) -> dict[str, str]:
    return {"CELERY_BROKER_URL": running.environ["CELERY_BROKER_URL"]}
