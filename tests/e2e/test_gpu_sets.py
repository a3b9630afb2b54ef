"""One worker per set of GPUs, under one supervisor: one set fails, the other goes on answering."""

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.processes import LIMIT_S, Service, service, until
from worker import commands
from worker.children import Child, Command

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
    listed = "\n".join(f"GPU {n}: None (UUID: GPU-{secrets.token_hex(6)})" for n in range(2))
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
                until(lambda: ready_sets(http) == 2, 2 * LIMIT_S)
                yield made
            finally:
                supervisor.stop(LIMIT_S)


def test_a_set_whose_engine_dies_again_and_again_leaves_the_other_one_answering(sets: Sets):
    [other] = sets.pids(WORKER, "1")

    sets.engine_dies_three_times("0")
    until(lambda: ready_sets(sets.http) == 1)
    job = sets.http.post("/v1/jobs", json={"query": "still there"}, headers={"Prefer": "wait=20"})

    assert job.json()["output"]["text"] == "still there"
    assert sets.pids(WORKER, "1") == [other]
    assert sets.supervisor.is_alive


def test_when_both_sets_have_given_up_the_supervisor_ends_with_69_and_says_why(sets: Sets):
    sets.engine_dies_three_times("0")

    sets.engine_dies_three_times("1")

    assert sets.supervisor.wait(LIMIT_S) == 69
    assert "engine died 3 times" in sets.supervisor.last_words()


def ready_sets(http: httpx.Client) -> int:
    return int(http.get("/health/ready").json()["workers"]["chat"].get("ready", 0))


def _processes() -> Iterator[tuple[int, str, set[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().replace("\0", " ")
            environ = set((folder / "environ").read_text().split("\0"))
        except (OSError, UnicodeDecodeError):
            continue  # it has ended meanwhile, or is somebody else's
        yield int(folder.name), words, environ
