"""Chat workers with the echo engine that a test starts and stops by itself."""

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support.processes import LIMIT_S, Service
from worker import commands
from worker.children import Child
from worker.commands import ChatOptions


def start_chat(
    running: Service, folder: Path, *, slots: int | None = None, owner: str = ""
) -> Child:
    """Start one on a service's stores; it takes jobs once its engine is there."""
    options = ChatOptions(model="echo", engine="echo", slots=slots)
    owner = owner or secrets.token_hex(8)
    command = commands.chat(options, None, running.environ, owner)
    return Child(replace(command, log=folder / f"chat-{owner}.log", cwd=folder))


@contextmanager
def chat_worker(
    running: Service, folder: Path, *, slots: int | None = None, owner: str = ""
) -> Iterator[Child]:
    """Have one for a while."""
    child = start_chat(running, folder, slots=slots, owner=owner)
    try:
        yield child
    finally:
        child.send(signal.SIGTERM)
        child.stop(LIMIT_S)
