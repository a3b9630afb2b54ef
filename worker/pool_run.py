"""What the pool knows about one Celery task that it runs."""

import asyncio
import contextvars
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

CAN_LOSE_A_CANCEL = sys.version_info < (3, 12)
"""Whether `asyncio.wait_for` swallows a cancel that meets its result (cpython gh-86296). redis-py
waits that way for every command that it sends, and a worker was seen to hang on it."""

CANCEL_AGAIN_S = 2.0

Report = tuple[int, Any, float]
"""What Celery is told at the end: failed (0 or 1), repr or ExceptionInfo, runtime in seconds."""


class CancelReason(StrEnum):
    """Why the pool raised CancelledError in a task."""

    TERMINATED = "terminated"
    """revoke(terminate=True). Its message is acknowledged already."""
    SHUTDOWN = "shutdown"
    """The worker stops. A task that returns or raises `Ignore` has its message acknowledged; one
    that lets CancelledError through, or fails, has it put back, first in its queue."""
    SOFT_LIMIT = "soft_limit"
    """Over the soft time limit. A task that returns succeeds in spite of it."""
    HARD_LIMIT = "hard_limit"
    """Over the hard time limit, and already reported as failed."""


@dataclass(slots=True, eq=False)
class TaskRequest:
    """What a task may know about the message that it runs for.

    `cancel_reason` is set before CancelledError is raised. `delivery_tag` is the broker's.
    """

    id: str
    name: str
    retries: int
    delivery_tag: str
    cancel_reason: CancelReason | None = None


current_request: contextvars.ContextVar[TaskRequest] = contextvars.ContextVar("current_request")
"""The request of the running task. `bind=True` has it wrong: Celery's is thread-local."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Run:
    """One task in the pool. Made on the hub; its fields with a default are the loop's alone."""

    pid: int
    request: TaskRequest
    headers: dict[str, Any]
    body: tuple[Any, str | None, str | None]  # as on the wire; content type and encoding
    target: Callable[[], Report]  # Celery's own tracer, for tasks that are plain functions
    on_end: Callable[[Report], None]
    on_timeout: Callable[[bool, float], None]  # is it the soft limit, limit in seconds
    soft_limit_s: float | None
    hard_limit_s: float | None
    signal: int | None = None  # what revoke(terminate=True) asked for; set on the hub
    task: "asyncio.Task[None] | None" = None
    is_running: bool = False  # the task's own code
    has_ended: bool = False  # the same; recording its end is never cancelled
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def terminate(self, signal: int | None = None) -> None:
        """Do nothing: Celery calls `pool.terminate_job(pid)` as well."""

    def begin(self) -> None:
        """Mark the task's own code as running. Raises CancelledError if it must not start."""
        if self.request.cancel_reason is not None:
            raise asyncio.CancelledError(str(self.request.cancel_reason))
        self.is_running = True

    def end(self) -> None:
        """Mark the task's own code as over: no cancel, no time limit from here on."""
        self.is_running, self.has_ended = False, True
        for timer in self.timers:
            timer.cancel()

    def cancel(self, reason: CancelReason) -> bool:
        """Stop the task's code. The first reason stays, unless it was the soft limit.

        Returns:
            Whether it is stopped for this reason. Later ones would interrupt its cleaning up.
        """
        if self.has_ended or self.request.cancel_reason not in {None, CancelReason.SOFT_LIMIT}:
            return False
        self.request.cancel_reason = reason
        if self.is_running and self.task is not None:
            self._interrupt(self.task)
        return True

    def _interrupt(self, task: "asyncio.Task[None]") -> None:
        reason = self.request.cancel_reason
        task.cancel(str(reason))
        if CAN_LOSE_A_CANCEL and reason is not CancelReason.SOFT_LIMIT:
            loop = task.get_loop()
            self.timers.append(loop.call_later(CANCEL_AGAIN_S, task.cancel, str(reason)))
