"""Real Celery workers with our pool on a real Redis, and everything that can be seen of them."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from tests.support.pool_app import make_app

PATIENCE_S = 20
EXIT_S = 10


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait, bounded, for something that nobody announces."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


class Lab:
    """One broker namespace with its app, its workers and its events."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.prefix = f"lab-{uuid.uuid4().hex[:8]}:"
        self.app: Celery = make_app(url, self.prefix)
        self.redis = redis.Redis.from_url(url, decode_responses=True, socket_timeout=60)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._seen: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._watching = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        assert self._watching.wait(PATIENCE_S)

    def start_worker(self, *, concurrency: int = 4, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker as a process of its own; its log is kept in the test's folder."""
        options = {f"POOL_APP_{name.upper()}": value for name, value in env.items()}
        with self.log.open("ab") as log:
            worker = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tests.support.pool_app", "worker"),
                    *("-c", str(concurrency), "-n", f"w{len(self.workers)}@lab", "-E"),
                    *("-l", "INFO", "--without-mingle", "--without-gossip"),
                ],
                env={
                    **os.environ,
                    "POOL_APP_URL": self.url,
                    "POOL_APP_PREFIX": self.prefix,
                    **options,
                },
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def exit_status(self, worker: "subprocess.Popen[bytes]") -> int:
        """Wait until a worker has ended; one that has not shows what its threads are at."""
        try:
            return worker.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            size = self.log.stat().st_size
            worker.send_signal(signal.SIGUSR1)  # Celery writes all stacks into its log
            until(lambda: self.log.stat().st_size > size, "stacks")
            raise AssertionError(f"it does not end\n{self.log.read_text()[-8000:]}") from None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.prefix[:-1]}.log"

    def send(self, task: str, *args: Any, **options: Any) -> str:
        task_id = uuid.uuid4().hex
        self.app.send_task(task, args, task_id=task_id, **options)
        return task_id

    def start_holding(self, *args: Any, **options: Any) -> str:
        """Send a task that waits, and wait until it does."""
        task_id = self.send("hold", *args, **options)
        self.told(f"{task_id} started")
        return task_id

    def go(self, task_id: str) -> None:
        self.redis.rpush(f"{self.prefix}go:{task_id}", "1")

    def told(self, what: str) -> None:
        """Wait until a task or hook has told this; each telling is good for one wait."""
        answer = self.redis.blpop([f"{self.prefix}told:{what}"], timeout=PATIENCE_S)
        assert answer, f"nobody told {what!r}\n{self.log.read_text()[-4000:]}"

    def was_told(self, what: str) -> bool:
        return bool(self.redis.exists(f"{self.prefix}told:{what}"))

    def event(self, kind: str, task_id: str | None) -> dict[str, Any]:
        """Wait for an event of a task, or of a worker."""
        with self._news:
            assert self._news.wait_for(lambda: self._find(kind, task_id), PATIENCE_S), (
                f"no {kind} among {self.events(task_id)}\n{self.log.read_text()[-4000:]}"
            )
            return self._find(kind, task_id)[0]

    def events(self, task_id: str | None) -> list[str]:
        return [event["type"] for event in self._seen if event.get("uuid") == task_id]

    def _find(self, kind: str, task_id: str | None) -> list[dict[str, Any]]:
        return [e for e in self._seen if e["type"] == kind and e.get("uuid") == task_id]

    def queued(self) -> int:
        return int(self.redis.llen(f"{self.prefix}q"))

    def unacked(self) -> int:
        return int(self.redis.hlen(f"{self.prefix}unacked"))

    def until_all_acked(self) -> None:
        until(lambda: self.queued() == self.unacked() == 0, "every message acknowledged")

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
            worker.wait()
        self._receiver.should_stop = True
        with self.app.events.default_dispatcher() as dispatcher:
            dispatcher.send("lab-closes")  # wakes the receiver
        self._watcher.join()
        keys = self.redis.keys(f"{self.prefix}*")
        if keys:
            self.redis.delete(*keys)
        self.redis.close()
        self.app.close()

    def _watch(self) -> None:
        with self.app.connection_for_read() as connection:
            self._receiver = self.app.events.Receiver(connection, handlers={"*": self._note})
            self._receiver.on_consume_ready = lambda *_, **__: self._watching.set()
            self._receiver.capture(limit=None, timeout=None, wakeup=False)

    def _note(self, event: dict[str, Any]) -> None:
        with self._news:
            self._seen.append(event)
            self._news.notify_all()
