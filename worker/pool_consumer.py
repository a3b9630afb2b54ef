"""Celery's consumer: task events in batches, a broken connection survived, a shutdown that ends.

Celery publishes buffered events at the next turn of its loop, so under load nearly every event
costs a round trip: a third of the worker's hub thread. Flower does not mind 50 ms.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

from celery.worker import state
from celery.worker.consumer import Consumer

EVENTS_EVERY_S = 0.05
RECONNECT_S, RECONNECT_MAX_S = 0.5, 2.0  # Celery's own pauses are 2, 4, 6 … 30 s

_log = logging.getLogger(__name__)


class BatchingConsumer(Consumer):  # type: ignore[misc]  # celery ships no types
    """Flushes task events at most every EVENTS_EVERY_S, and outlives every loss of the broker.

    It can be told to leave tickets to others, which Celery knows only for whole queues.

    Named by the setting `worker_consumer`.
    """

    _is_flush_due = False

    def on_send_event_buffered(self) -> None:
        """Note that an event waits; Celery's dispatcher calls this for each."""
        if self.hub and not self._is_flush_due:
            self._is_flush_due = True
            self.hub.call_later(EVENTS_EVERY_S, self._flush_batch)

    def _flush_batch(self) -> None:
        self._is_flush_due = False
        if self.event_dispatcher:
            self.event_dispatcher.flush()

    def take(self, is_taking: bool) -> None:
        """Take tickets, or leave them to other workers for now. On the hub alone.

        A broker connection made anew takes them again.
        """
        if self.task_consumer is None or state.should_stop or state.should_terminate:
            return
        with contextlib.suppress(*self.connection_errors):
            if is_taking:
                self.task_consumer.declare()  # a queue that nobody listened to may have expired
                self.task_consumer.consume()
            else:
                self.task_consumer.cancel()

    def ensure_connected(self, conn: Any) -> Any:
        """Return once the broker is there; look for it often enough to notice its return."""
        conn.ensure_connection = functools.partial(
            conn.ensure_connection,
            interval_start=RECONNECT_S,
            interval_step=RECONNECT_S,
            interval_max=RECONNECT_MAX_S,
        )
        return super().ensure_connected(conn)

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Acknowledge soon; a ticket that came over a lost connection is left to the broker."""
        return super().call_soon_ack(functools.partial(_answer, p), *args, **kwargs)

    def cancel_active_requests(self) -> None:
        """Leave running tasks to the pool, which hands them all back at a cold shutdown.

        Celery calls this in the signal's handler. Its own way sends an event for each task, under
        a lock that what the signal interrupted may hold: a worker that hangs there keeps its jobs
        for ever, as the pool's loop goes on to renew their leases.
        """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Clear a broken connection away; what its remains raise must not end the worker.

        kombu closes it twice. Where the first time stops half way, which on Redis depends on the
        socket that breaks first, the second one meets a channel without its connection while it
        gives unacknowledged tickets back: an AttributeError, with which Celery ends the worker.
        The tickets need no giving back: the jobs are held here, and the sweeper knows the others.
        """
        try:
            super().on_connection_error_after_connected(exc)
        except Exception:  # noqa: BLE001 - of whatever kind: the connection is made anew
            _log.warning("broker.half_closed", exc_info=True)


def _answer(acknowledge: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Acknowledge. kombu's channel has no client any more once its connection was cleared away.

    Its AttributeError would end the worker, and with it every job that outlived the reconnect. The
    broker delivers such a ticket again, to nobody's harm: the job's claim is refused.
    """
    try:
        acknowledge(*args, **kwargs)
    except AttributeError as error:
        _log.warning("ticket.unacknowledged", extra={"reason": repr(error)})
