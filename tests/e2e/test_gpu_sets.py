"""One worker per set of GPUs, under one supervisor: one set fails, the other goes on answering."""

import contextlib
import os
import re
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import LIMIT_S, Service, service, until
from worker import commands, gpus
from worker.children import Child, Command
from worker.commands import ChatOptions

pytestmark = pytest.mark.timeout(120)
ENGINE, WORKER = "worker.engine.host", "worker.tasks"


@dataclass(frozen=True)
class Sets:
    """A supervisor with chat workers on GPUs 0 and 1 of a driver that only says they are there."""

    running: Service
    supervisor: Child
    http: httpx.Client

    def pids(self, module: str, gpu: str) -> list[int]:
        """Return the processes of one set that run a module."""
        prefix = self.running.environ["FOREBAY_KEY_PREFIX"]
        wanted = {f"CUDA_VISIBLE_DEVICES={gpu}", f"FOREBAY_KEY_PREFIX={prefix}"}
        return [
            pid for pid, words, environ in _processes() if module in words and wanted <= environ
        ]

    def engine_dies_three_times(self, gpu: str) -> None:
        """Kill a set's engine, with no job inside that could be to blame."""
        killed: set[int] = set()

        def is_given_up() -> bool:
            for pid in set(self.pids(ENGINE, gpu)) - killed:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):  # it was just ending
                    os.kill(pid, signal.SIGKILL)
            return not self.pids(WORKER, gpu)

        log = self.supervisor.command.log
        assert log is not None
        given_up = log.read_text().count("worker.given_up")
        until(is_given_up, 2 * LIMIT_S)
        until(lambda: log.read_text().count("worker.given_up") > given_up)
        assert len(killed) == 3


@pytest.fixture
def sets(
    redis_environ: dict[str, str], s3_environ: dict[str, str], tmp_path: Path
) -> Iterator[Sets]:
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    uuids = [f"GPU-{secrets.token_hex(6)}" for _ in range(2)]
    listed = "\n".join(f"GPU {n}: None (UUID: {uuid})" for n, uuid in enumerate(uuids))
    driver.write_text(f"#!/bin/sh\ncat <<END\n{listed}\nEND\n")
    driver.chmod(0o755)
    path = f"{driver.parent}:{os.environ['PATH']}"
    stores = redis_environ | s3_environ | {"PATH": path}
    with service(tmp_path, stores, roles=("api", "media"), FOREBAY_MODELS="echo") as running:
        words = ("worker", "chat", "--engine", "echo", "--model", "echo", "--gpus", "0", "--gpus")
        supervisor = Child(
            Command(
                "sets",
                commands.forebay(*words, "1"),
                commands.importable(running.environ),
                log=tmp_path / "sets.log",
                cwd=tmp_path,
            )
        )
        with httpx.Client(base_url=running.url, timeout=40) as http:
            made = Sets(running, supervisor, http)
            try:
                until(lambda: health(http)["workers"]["chat"] == {"ready": 2}, 2 * LIMIT_S)
                yield made
            finally:
                supervisor.stop(LIMIT_S)
                for uuid in uuids:
                    (gpus.LOCKS / f"forebay-{uuid}.lock").unlink(missing_ok=True)


def test_a_set_whose_engine_dies_again_and_again_leaves_the_other_one_answering(sets: Sets):
    [other] = sets.pids(WORKER, "1")

    sets.engine_dies_three_times("0")
    until(lambda: health(sets.http)["workers"]["chat"] == {"ready": 1, "failed": 1})
    job = sets.http.post("/v1/jobs", json={"query": "still there"}, headers={"Prefer": "wait=20"})

    assert job.json()["output"]["text"] == "still there"
    assert sets.pids(WORKER, "1") == [other]
    assert sets.supervisor.is_alive


def test_a_set_that_failed_can_be_read_with_its_reason_until_its_supervisor_is_stopped(sets: Sets):
    sets.engine_dies_three_times("0")
    until(lambda: health(sets.http)["workers"]["chat"] == {"ready": 1, "failed": 1})

    said, metrics = health(sets.http), sets.http.get("/metrics").text
    sets.supervisor.stop(LIMIT_S)

    [trouble] = said["reasons"]
    assert (said["status"], said["reason"]) == ("ready", None)
    assert trouble["reason"].startswith("the engine died 3 times: ")
    assert trouble | {"reason": ""} == {
        "role": "chat", "state": "failed", "reason": "", "model": "echo", "gpus": "0",
    }  # fmt: skip
    assert 'forebay_workers{role="chat",state="failed"} 1.0' in metrics
    assert re.search(
        r'^forebay_worker_troubles{.*gpus="0".*died 3 times.*} 1\.0$', metrics, re.MULTILINE
    )
    assert (health(sets.http)["reasons"], health(sets.http)["workers"]["chat"]) == ([], {})


def test_when_both_sets_have_given_up_the_supervisor_ends_with_69_and_says_why(sets: Sets):
    sets.engine_dies_three_times("0")

    sets.engine_dies_three_times("1")

    assert sets.supervisor.wait(LIMIT_S) == 69
    assert "engine died 3 times" in sets.supervisor.last_words()
    assert health(sets.http)["workers"]["chat"] == {"failed": 2}


@pytest.mark.parametrize("has_supervisor", [True, False])
def test_a_first_start_that_failed_can_be_read_after_the_end(
    redis_environ: dict[str, str], tmp_path: Path, has_supervisor: bool
):
    options = ChatOptions(model="none", engine="lmdeploy")
    with service(tmp_path, redis_environ, roles=("api",)) as running:
        command = commands.chat(options, None, running.environ, "alone")
        if has_supervisor:
            words = commands.forebay("worker", "chat", *options.arguments())
            command = replace(command, argv=words)
        worker = Child(replace(command, log=tmp_path / "chat.log", cwd=tmp_path))
        try:
            status = worker.wait(2 * LIMIT_S)
        finally:
            worker.stop(LIMIT_S)
        said = httpx.get(f"{running.url}/health/ready").json()

    assert status == 78
    assert [trouble["state"] for trouble in said["reasons"]] == ["failed"]
    assert said["reasons"][0]["reason"] in worker.last_words()
    assert said["reason"] == f"a chat worker failed: {said['reasons'][0]['reason']}"


def health(http: httpx.Client) -> dict[str, Any]:
    said: dict[str, Any] = http.get("/health/ready").json()
    return said


def _processes() -> Iterator[tuple[int, str, set[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().replace("\0", " ")
            environ = set((folder / "environ").read_text().split("\0"))
        except (OSError, UnicodeDecodeError):
            continue  # it has ended meanwhile, or is somebody else's
        yield int(folder.name), words, environ
