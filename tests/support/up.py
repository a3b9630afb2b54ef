"""`forebay up` as a user runs it: a process, a data folder, a URL."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

START_S, STOP_S = 90.0, 60.0
FOREBAY = [str(Path(sys.executable).with_name("forebay"))]


@dataclass(slots=True)
class Up:
    """A running `forebay up`: `api` asks it; `pids(word)` finds processes of its family."""

    url: str
    flower_url: str
    process: "subprocess.Popen[str]"
    log: Path
    api: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.api = httpx.Client(base_url=self.url, timeout=60)

    def pids(self, word: str) -> list[int]:
        """Return the ids of processes below it whose command line holds a word."""
        found, family = [], {self.process.pid}
        for _ in range(4):  # up, role, worker, engine
            family |= {pid for pid, parent in _parents().items() if parent in family}
        for pid in family:
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and word in command.read_text().replace("\0", " "):
                found.append(pid)
        return sorted(found)

    def stop(self) -> int:
        """Ask it to end; return its exit status."""
        self.api.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


@contextmanager
def up(data_dir: Path, *arguments: str, flower: bool = False, **environ: str) -> Iterator[Up]:
    """Run `forebay up` on a data folder until the block ends."""
    flower_port = _free_port() if flower else 0
    log = data_dir.parent / f"{data_dir.name}-up.log"
    command = [*FOREBAY, "up", "--port", "0", "--flower-port", str(flower_port)]
    with log.open("a") as err:
        process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir), *arguments],
            env=_clean_environ() | environ,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    running = None
    try:
        running = Up(_ready_url(process, log), f"http://127.0.0.1:{flower_port}", process, log)
        yield running
    finally:
        if process.poll() is None:
            (running.stop if running else process.kill)()
        if process.stdout:
            process.stdout.close()


def _clean_environ() -> dict[str, str]:
    ours = ("FOREBAY_", "REDIS_", "S3_", "AWS_", "CELERY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _ready_url(process: "subprocess.Popen[str]", log: Path) -> str:
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if line.startswith("ready "):
            return line.split()[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"not ready within {START_S:.0f} s: {log.read_text()}")


def _parents() -> dict[int, int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    return parents


def _free_port() -> int:
    import socket  # noqa: PLC0415 - the only use

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
