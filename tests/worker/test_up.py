"""`forebay up`: what starts, what is refused, what is left. Real servers, scripts as parts."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.support.processes import is_running, until
from tests.support.up_lab import scripts
from worker.bench.load import picture_url
from worker.commands import forebay, importable
from worker.contract.settings import Settings
from worker.datadir import DataDir, choose_port
from worker.embedded import s3_server
from worker.machine import Part, UpError
from worker.up import UpOptions, running

GIVEN = {"REDIS_URL": "redis://127.0.0.1:1/0", "S3_ENDPOINT_URL": "http://127.0.0.1:1"}
"""Servers that are somebody else's matter, so that most tests start none."""


@dataclass
class Up:
    """A running `up` and the diary of its parts."""

    process: "subprocess.Popen[str]"
    folder: Path
    url: str = ""

    def diary(self) -> list[tuple[str, str, int]]:
        path = self.folder / "diary"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(name, word, int(pid)) for name, word, pid in lines]

    def words(self, word: str) -> list[str]:
        """Return the parts that said a word, in order."""
        return [name for name, spoken, _pid in self.diary() if spoken == word]

    def pid(self, name: str) -> int:
        """Return the process id of the latest of a part."""
        return [pid for who, word, pid in self.diary() if (who, word) == (name, "began")][-1]

    def environ(self, name: str) -> dict[str, str]:
        found = json.loads((self.folder / f"{name}.env").read_text())
        return dict(found)

    def until_ready(self, scripts: int = 4) -> "Up":
        """Wait for the ready line, and until so many scripts listen to signals."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), self.said()
        self.url = line.split()[1]
        until(lambda: len(self.words("began")) >= scripts)
        return self

    def end(self, limit_s: float = 20) -> int:
        return self.process.wait(limit_s)

    def said(self) -> str:
        """Return what it wrote on stderr; call it after the end."""
        assert self.process.stderr is not None
        return self.process.stderr.read()


Start = Callable[..., Up]


def end(up: Up, data_dir: Path) -> None:
    """Kill what a test left running, and remove the sockets that a killed server leaves."""
    up.process.kill()
    up.process.communicate()
    if (data_dir / "s3" / "keys.json").exists():
        s3_server(DataDir(data_dir)).clean()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Up] = []

    def run(environ: dict[str, str] = GIVEN, **asked: Any) -> Up:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.up_lab", str(tmp_path), json.dumps(asked)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )
        started.append(Up(process, tmp_path))
        return started[-1]

    yield run
    for up in started:
        end(up, tmp_path / "data")


def test_it_says_ready_once_and_ends_with_status_zero(start: Start):
    up = start().until_ready()

    up.process.terminate()

    assert up.end() == 0
    assert up.process.stdout is not None
    assert up.process.stdout.read() == ""
    assert {"chat", "flower", "media"} <= set(up.words("stopped"))
    assert not any(is_running(pid) for _name, _word, pid in up.diary())


def test_the_api_is_told_first_and_the_chat_workers_drain_before_the_rest_stops(start: Start):
    up = start(drain_s=0.5).until_ready()

    up.process.send_signal(signal.SIGINT)
    up.end()

    told = [(name, word) for name, word, _pid in up.diary() if word in {"told", "stopped"}]
    assert told.index(("api", "told")) < told.index(("chat", "stopped"))
    assert told.index(("chat", "stopped")) < told.index(("media", "told"))
    assert told.index(("chat", "stopped")) < told.index(("flower", "told"))


def test_asked_twice_it_hands_running_jobs_back(start: Start):
    up = start(drain_s=30).until_ready()
    up.process.terminate()
    until(lambda: "chat" in up.words("told"))

    up.process.terminate()

    assert up.end() == 0
    assert "chat" in up.words("hurried")
    assert "chat" not in up.words("stopped")


def test_asked_to_stop_while_it_starts_it_stops(start: Start):
    up = start(code={"api": "time.sleep(60)"})
    until(lambda: len(up.words("began")) == 4)

    up.process.terminate()

    assert up.end() == 0
    assert all(not is_running(pid) for _name, _word, pid in up.diary())


def test_a_part_that_dies_is_started_again(start: Start):
    up = start().until_ready()
    first = up.pid("media")

    os.kill(first, signal.SIGKILL)

    until(lambda: up.words("began").count("media") == 2)
    assert up.process.poll() is None


def test_a_part_that_cannot_start_is_quoted_and_all_of_it_stops(start: Start):
    up = start(code={"chat": "print('error: no such model'); sys.exit(78)"})

    assert up.end() == 1

    last = up.said().splitlines()[-1]
    assert last.startswith("error: chat stopped: no such model (see ")
    assert all(not is_running(pid) for _name, _word, pid in up.diary())


def test_jobs_are_answered_without_flower(start: Start):
    up = start(code={"flower": "print('no'); sys.exit(78)"}).until_ready()

    assert up.process.stderr is not None
    assert any(line.startswith("error: flower stopped: no") for line in up.process.stderr)

    up.process.terminate()
    assert up.end() == 0


def test_a_worker_that_fails_while_others_answer_is_told_of_once(start: Start, tmp_path: Path):
    trouble = {"role": "chat", "state": "failed", "reason": "no such model", "gpus": "1"}
    (tmp_path / "ready.json").write_text(json.dumps({"reasons": [trouble]}))
    up = start(look_s=0.05).until_ready()
    time.sleep(0.5)

    up.process.terminate()

    assert up.end() == 0
    lines = [line for line in up.said().splitlines() if line.startswith("error:")]
    assert lines == ["error: chat worker on GPU 1, failed: no such model"]


def test_a_taken_port_is_named_with_its_flag_before_anything_starts(start: Start, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag, asked in (("--port", {"port": port}), ("--flower-port", {"flower_port": port})):
            up = start(**asked)

            assert up.end() == 1
            assert up.said() == f"error: port {port} is taken; choose another with {flag}\n"

    assert not (tmp_path / "data" / "logs").exists()


def test_a_second_one_on_the_same_data_folder_is_told_who_has_it(start: Start):
    first = start().until_ready()

    second = start()

    assert second.end() == 1
    [line] = second.said().splitlines()
    assert f"in use by process {first.process.pid};" in line


def test_its_servers_keep_their_data_over_a_restart(start: Start):
    up = start(environ={}).until_ready()
    with redis.Redis.from_url(up.environ("chat")["REDIS_URL"]) as client:
        client.set("kept", "yes")
    up.process.terminate()
    assert up.end() == 0

    again = start(environ={}).until_ready()

    with redis.Redis.from_url(again.environ("chat")["REDIS_URL"]) as client:
        assert client.get("kept") == b"yes"
    assert {"S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(
        again.environ("api")
    )
    assert again.environ("api")["FOREBAY_MODELS"] == "demo"


def test_nothing_is_left_when_it_is_killed(start: Start, tmp_path: Path):
    up = start(environ={}).until_ready()
    children = descendants(up.process.pid)
    assert len(children) == 6  # two servers and four parts

    up.process.kill()
    up.end()

    until(lambda: not any(is_running(pid) for pid in children))
    assert (tmp_path / "data" / "redis").is_dir()


def descendants(pid: int) -> list[int]:
    """Return the process ids of everything that a process started, and what those started."""
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = [int(word) for words in listed for word in words.split()]
    return [found for child in children for found in (child, *descendants(child))]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def block_options(data_dir: Path | None = None) -> UpOptions:
    given = {name.lower(): value for name, value in GIVEN.items()}
    return UpOptions(Settings(**given), dict(os.environ), port=0, flower_port=0, data_dir=data_dir)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("example.com", "http://example.com:8000"),
    ],
)
def test_the_url_is_one_that_can_be_asked(host: str, url: str):
    assert UpOptions(Settings(), {}, host=host).url == url


def test_for_the_length_of_a_block_it_runs_beside_its_caller(tmp_path: Path):
    data_dirs: list[Path] = []

    def parts(options: UpOptions, data: DataDir, environ: Mapping[str, str]) -> tuple[Part, ...]:
        data_dirs.append(data.path)
        return scripts(tmp_path, {}, options.port, data, environ)

    with running(block_options(), lambda _line: None, parts=parts) as url:
        assert url.startswith("http://127.0.0.1:")
        assert data_dirs[0].is_dir()

    pids = [int(line.split()[2]) for line in (tmp_path / "diary").read_text().splitlines()]
    assert not any(is_running(pid) for pid in pids)
    assert not data_dirs[0].exists()
    assert not any(thread.name == "up" for thread in threading.enumerate())


def test_a_block_whose_parts_cannot_start_is_never_entered(tmp_path: Path):
    asked = {"code": {"chat": "print('no such model'); sys.exit(78)", "api": "time.sleep(60)"}}

    def parts(options: UpOptions, data: DataDir, environ: Mapping[str, str]) -> tuple[Part, ...]:
        return scripts(tmp_path, asked, options.port, data, environ)

    with (
        pytest.raises(UpError, match="no such model"),
        running(block_options(), lambda _line: None, parts=parts),
    ):
        pytest.fail("entered")


def test_a_block_is_told_of_any_fault_at_its_start():
    def parts(*_: object) -> tuple[Part, ...]:
        raise RuntimeError("of whatever kind")

    with (
        pytest.raises(ExceptionGroup) as group,
        running(block_options(), lambda _line: None, parts=parts),
    ):
        pytest.fail("entered")

    assert [str(error) for error in group.value.exceptions] == ["of whatever kind"]


def test_a_data_folder_that_cannot_be_locked_is_told_so(tmp_path: Path):
    (tmp_path / "lock").mkdir()  # where the lock file would lie

    with (
        pytest.raises(UpError, match="as data folder: Is a directory"),
        running(block_options(tmp_path), lambda _line: None),
    ):
        pytest.fail("entered")


@pytest.fixture
def forebay_up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start the real `forebay up` with the echo engine, on one folder."""
    started: list[Up] = []

    def run(*more: str) -> Up:
        ports = ("--port", "0", "--flower-port", str(choose_port()))
        arguments = ("--engine", "echo", *ports, *more)
        process = subprocess.Popen(
            (*forebay("up"), *arguments, "--data-dir", str(tmp_path / "data")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=importable(os.environ),
        )
        started.append(Up(process, tmp_path))
        return started[-1].until_ready(scripts=0)

    yield run
    for up in started:
        end(up, tmp_path / "data")


@pytest.mark.timeout(180)
def test_the_real_parts_answer_a_job_that_outlives_a_restart_and_nothing_outlives_a_kill(
    forebay_up: Callable[..., Up],
):
    up = forebay_up()
    body = {"model": "demo", "messages": [{"role": "user", "content": "[[tokens=40 rate=20]]"}]}
    job_id = httpx.post(f"{up.url}/v1/jobs", json=body).raise_for_status().json()["id"]
    until(lambda: httpx.get(f"{up.url}/v1/jobs/{job_id}").json()["status"] == "in_progress")

    up.process.terminate()

    assert up.end(60) == 0, up.said()
    again = forebay_up()
    job = httpx.get(f"{again.url}/v1/jobs/{job_id}").json()
    assert (job["status"], job["attempt"]) == ("completed", 1)  # it was finished in the drain
    children = descendants(again.process.pid)

    again.process.kill()
    again.end()

    assert len(children) >= 9  # two servers, four parts, a worker under two of them, an engine
    until(lambda: not any(is_running(pid) for pid in children))


@pytest.mark.timeout(120)
def test_several_processes_share_the_port_and_one_that_dies_is_not_missed(
    forebay_up: Callable[..., Up],
):
    up = forebay_up("--processes", "2")
    serving = [pid for pid in descendants(up.process.pid) if "--share-port" in command_of(pid)]
    picture = {"type": "image_url", "image_url": {"url": picture_url(112, 1)}}
    message = {"role": "user", "content": [picture, {"type": "text", "text": "[[media]]"}]}

    os.kill(serving[0], signal.SIGKILL)

    asked = {"model": "demo", "messages": [message]}
    for _ in range(8):  # a caller's address chooses the process
        answer = httpx.post(f"{up.url}/v1/chat/completions", json=asked, timeout=60)
        assert answer.raise_for_status().json()["choices"][0]["finish_reason"] == "stop"
    assert len(serving) == 2
    assert len([pid for pid in descendants(up.process.pid) if "media" in command_of(pid)]) == 3


@pytest.mark.timeout(120)
def test_the_real_chat_worker_says_why_it_cannot_start(tmp_path: Path):
    ended = subprocess.run(
        (
            *forebay("up", "--engine", "lmdeploy", "--model", "/no/such/model", "--port", "0"),
            *("--flower-port", "0", "--data-dir", str(tmp_path / "data")),
        ),
        capture_output=True,
        text=True,
        env=importable(os.environ),
        timeout=100,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1].startswith("error: chat stopped: ")
