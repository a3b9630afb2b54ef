"""Jobs that begin alike, with two real workers: who has the beginning gets them, if it is idle."""

import base64
import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.support import rabbit
from tests.support.chat_workers import chat_worker, start_chat
from tests.support.media_files import picture
from tests.support.processes import LIMIT_S, START_S, Service, service, until
from worker.children import Child
from worker.contract import keys

pytestmark = pytest.mark.timeout(150)
OWNERS = ("anna", "bert")
SLOTS = 8
ROOM = SLOTS // keys.DIRECT_SHARE
WAIT = {"Prefer": "wait=20"}
SLOW = "[[tokens=40 rate=20]]"
RABBIT = pytest.param(
    "rabbitmq",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(rabbit.find() is None, reason="rabbitmq-server is not installed"),
    ],
)


@pytest.fixture(scope="module", params=["redis", RABBIT])
def running(
    request: pytest.FixtureRequest,
    redis_environ: dict[str, str],
    s3_environ: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """Two workers, an API and the media stage."""
    folder = tmp_path_factory.mktemp("near")
    with ExitStack() as stack:
        more = {"FOREBAY_MODELS": "echo"}
        if request.param == "rabbitmq":
            url = stack.enter_context(rabbit.rabbit_server(tmp_path_factory.mktemp("rabbit")))
            more["CELERY_BROKER_URL"] = url
        made = stack.enter_context(
            service(folder, redis_environ | s3_environ, roles=("api", "media"), **more)
        )
        for owner in OWNERS:
            stack.enter_context(chat_worker(made, folder, slots=SLOTS, owner=owner))
        for owner in OWNERS:
            until(lambda owner=owner: is_ready(made, owner), START_S)
        yield made


@pytest.fixture
def http(running: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def ask(http: httpx.Client, headers: dict[str, str] | None = WAIT, **body: Any) -> dict[str, Any]:
    """Hand a job in, by default until it is over."""
    response = http.post("/v1/jobs", json=body, headers=headers)
    assert response.is_success, response.text
    job: dict[str, Any] = response.json()
    return job


def record(running: Service, kind: str) -> Any:
    """Return what stands under a key of Redis, a hash or a string."""
    with Redis.from_url(running.environ["REDIS_URL"], decode_responses=True) as redis:
        key = running.environ["FOREBAY_KEY_PREFIX"] + kind
        return redis.hgetall(key) if kind.startswith("job:") else redis.get(key)


def owner_of(running: Service, job: dict[str, Any]) -> str:
    return str(record(running, f"job:{job['id']}")["owner"])


def is_ready(running: Service, owner: str) -> bool:
    return json.loads(record(running, f"worker:{owner}") or "{}").get("state") == "ready"


def image(number: int) -> str:
    """Return a picture that no other test has."""
    data = picture(32 + number, 32)
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def shares(running: Service, jobs: list[dict[str, Any]]) -> Counter[str]:
    return Counter(owner_of(running, job) for job in jobs)


def test_what_follows_in_a_conversation_is_answered_by_the_same_worker(
    running: Service, http: httpx.Client
):
    conversations = []
    for number in range(10):
        first = ask(http, query=f"topic {number}")
        second = ask(http, query="and?", history=first["history"])
        turns = [text for pair in second["history"] for text in pair]
        roles = ("user", "assistant") * 2
        messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
        third = ask(http, messages=[*messages, {"role": "user", "content": "why?"}])
        conversations.append([owner_of(running, job) for job in (first, second, third)])

    assert [len(set(owners)) for owners in conversations] == [1] * len(conversations)
    assert {owners[0] for owners in conversations} == set(OWNERS)


def test_questions_about_one_picture_are_answered_by_the_same_worker(
    running: Service, http: httpx.Client
):
    owners = []
    for number in range(6):
        jobs = [ask(http, query=f"<image>{n}", images=[image(number)]) for n in range(3)]
        owners.append([owner_of(running, job) for job in jobs])

    assert [len(set(each)) for each in owners] == [1] * len(owners)
    assert {each[0] for each in owners} == set(OWNERS)


def test_what_the_one_worker_has_no_idle_room_for_the_other_takes(
    running: Service, http: httpx.Client
):
    first = ask(http, query="<image>", images=[image(50)])

    made = [ask(http, None, query=f"<image>{SLOW}", images=[image(50)]) for _ in range(2 * SLOTS)]
    ended = [until_over(http, job) for job in made]

    counted = shares(running, ended)
    assert set(counted) == set(OWNERS)
    assert counted[owner_of(running, first)] >= ROOM
    assert {job["status"] for job in ended} == {"completed"}


def test_jobs_that_begin_otherwise_are_shared_evenly(running: Service, http: httpx.Client):
    made = [
        ask(http, None, query=f"<image>{SLOW}", images=[image(100 + n)]) for n in range(2 * SLOTS)
    ]
    ended = [until_over(http, job) for job in made]

    assert min(shares(running, ended)[owner] for owner in OWNERS) >= SLOTS // 2


def test_what_a_killed_worker_was_sent_another_answers(
    running: Service, http: httpx.Client, tmp_path: Path
):
    with victim(running, tmp_path) as child:
        first = until_taken_by("victim", running, http)
        child.send(signal.SIGSTOP)  # so that it takes nothing more, and nobody knows
        made = ask(http, None, query="and?", history=first["history"])
        sent_to = record(running, f"job:{made['id']}").get("sent_to")

        child.send(signal.SIGKILL)
        ended = until_over(http, made)

    assert sent_to == "victim"
    assert owner_of(running, ended) in OWNERS
    assert (ended["status"], ended["output"]["text"], ended["attempt"]) == ("completed", "and?", 1)


@contextmanager
def victim(running: Service, folder: Path) -> Iterator[Child]:
    """Have a third worker that may be killed."""
    child = start_chat(running, folder, slots=SLOTS, owner="victim")
    try:
        until(lambda: is_ready(running, "victim"), START_S)
        yield child
    finally:
        child.stop(LIMIT_S)


def until_taken_by(owner: str, running: Service, http: httpx.Client) -> dict[str, Any]:
    """Begin conversations until one is answered by this worker."""
    for number in range(100):
        job = ask(http, query=f"another topic {number}")
        if owner_of(running, job) == owner:
            return job
    pytest.fail(f"{owner} answered none of 100")


def until_over(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    def now() -> dict[str, Any]:
        found: dict[str, Any] = http.get(job["links"]["self"]).json()
        return found

    until(lambda: now()["finished_at"] is not None, 2 * LIMIT_S)
    return now()
