"""What a user sees when something dies in the middle of an answer: nothing."""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.up import Up, up

pytestmark = pytest.mark.timeout(180)
ANSWER = " ".join(f"tok{n}" for n in range(1, 61))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    data = tmp_path_factory.mktemp("faults") / "data"
    with up(data, "--engine", "echo", FOREBAY_DRAIN_S="2") as running:
        yield running


def events(server: Up, job_id: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield (kind, data) of a job's stream, read by one reader without a break."""
    with server.api.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))


def streamed_through(server: Up, strike: object) -> dict[str, object]:
    """Stream a slow answer, strike once ten pieces have come, and check what was read."""
    job = server.api.post("/v1/jobs", json={"query": "[[tokens=60 rate=20]]"}).json()
    text, pieces, numbers, last = "", 0, [], {}
    for kind, data in events(server, job["id"]):
        numbers.append(data["sequence_number"])
        if kind == "delta":
            text, pieces = text + data["text"], pieces + 1
            if pieces == 10:
                strike()
        last = data
    assert numbers == list(range(1, len(numbers) + 1))
    assert text == last["output"]["text"] == ANSWER
    assert last["usage"]["completion_tokens"] == 60
    assert (last["status"], last["error"]) == ("completed", None)
    return last


def kill(server: Up, word: str, number: int = signal.SIGKILL) -> None:
    pids = server.pids(word)
    assert pids, f"no process with {word!r}"
    for pid in pids:
        os.kill(pid, number)


def test_a_stream_goes_on_after_kill_9_of_its_worker(server: Up) -> None:
    job = streamed_through(server, lambda: kill(server, "worker.tasks chat"))

    assert job["attempt"] == 2


def test_a_stream_goes_on_after_kill_9_of_its_engine(server: Up) -> None:
    job = streamed_through(server, lambda: kill(server, "worker.engine.host"))

    assert job["attempt"] == 2


def test_a_stream_goes_on_after_a_worker_was_told_to_stop_at_once(server: Up) -> None:
    job = streamed_through(server, lambda: kill(server, "worker.tasks chat", signal.SIGQUIT))

    assert job["attempt"] == 2


def test_a_job_that_kills_every_worker_fails_alone(server: Up) -> None:
    wait = {"Prefer": "wait=60"}

    poison = server.api.post("/v1/jobs", json={"query": "[[die]]"}, headers=wait).json()
    after = server.api.post("/v1/jobs", json={"query": "still there"}, headers=wait).json()

    assert (poison["status"], poison["error"]["code"]) == ("failed", "worker_lost")
    assert after["output"]["text"] == "still there"


def test_a_job_that_takes_the_engines_memory_is_told_so_and_fails_alone(server: Up) -> None:
    workers, wait = server.pids("worker.tasks chat"), {"Prefer": "wait=60"}

    for _ in range(3):
        greedy = server.api.post("/v1/jobs", json={"query": "[[starve]]"}, headers=wait).json()
        assert (greedy["status"], greedy["error"]["code"]) == ("failed", "out_of_memory")
    after = server.api.post("/v1/jobs", json={"query": "still there"}, headers=wait).json()

    assert after["output"]["text"] == "still there"
    assert server.pids("worker.tasks chat") == workers


def test_jobs_that_kill_engines_one_after_the_other_do_not_end_the_worker(server: Up) -> None:
    workers = server.pids("worker.tasks chat")

    for _ in range(2):
        other = server.api.post("/v1/jobs", json={"query": "[[tokens=60 rate=30]]"}).json()
        stream = events(server, other["id"])
        next(data for kind, data in stream if kind == "delta")
        wait = {"Prefer": "wait=60"}
        poison = server.api.post("/v1/jobs", json={"query": "[[die]]"}, headers=wait).json()
        *_, (_, ended) = stream
        assert poison["error"]["code"] == "worker_lost"
        assert ended["output"]["text"] == ANSWER

    assert server.pids("worker.tasks chat") == workers


def test_cancel_ends_a_running_job_and_keeps_what_it_said(server: Up) -> None:
    job = server.api.post("/v1/jobs", json={"query": "[[tokens=600 rate=20]]"}).json()
    stream = events(server, job["id"])
    next(data for kind, data in stream if kind == "delta")

    cancelled = server.api.post(job["links"]["cancel"]).json()

    assert cancelled["status"] == "cancelled"
    assert cancelled["output"]["text"].startswith("tok1")
    assert cancelled["usage"]["completion_tokens"] < 600
