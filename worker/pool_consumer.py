"""Celery's consumer, with task events sent in batches.

Celery publishes buffered events at the next turn of its loop, so under load nearly every event
costs a round trip: a third of the worker's hub thread. Flower does not mind 50 ms.
"""

from celery.worker.consumer import Consumer

EVENTS_EVERY_S = 0.05


class BatchingConsumer(Consumer):  # type: ignore[misc]  # celery ships no types
    """Flushes task events at most every EVENTS_EVERY_S. Named by the setting `worker_consumer`."""

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
