"""Run one Celery task on an asyncio loop and record how it ended.

What `celery.app.trace` does for functions, for coroutines: results, retries, links, chords, hooks
and signals. It cannot be reused for them: it ends in `frame.clear()` on every frame of the
exception, which kills the coroutines that are suspended in one, such as all others that an
engine-wide exception has passed through. Hooks and signal receivers run on the loop: they must not
block.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Protocol

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app.task import Context, get_actual_ignore_result
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, Terminated
from celery.utils.saferepr import saferepr
from celery.utils.time import get_exponential_backoff_interval
from kombu import serialization

from worker.pool_run import CancelReason, Report, Run

log = logging.getLogger(__name__)

_loads: Any = serialization.loads  # kombu has types, but not for these
_prepare_accept_content: Any = serialization.prepare_accept_content


class Tracer(Protocol):
    """Runs a task to its end. Never raises an Exception."""

    async def trace(self, run: Run) -> Report | None:
        """Return what Celery shall be told; None leaves the message as it is."""
        ...


class CoroutineTracer:
    """Runs one `async def` task again and again, many at once."""

    def __init__(self, app: Any, task: Any, blocking: Executor) -> None:
        """`blocking` takes the calls to broker and result backend."""
        self._app = app
        self._task = task
        self._function = getattr(task, "_orig_run", task.run)  # without the sync autoretry wrapper
        self._blocking = blocking
        self._accept = _prepare_accept_content(app.conf.accept_content)

    async def trace(self, run: Run) -> Report | None:
        """Call the task, then record its end."""
        started = time.monotonic()
        value, error = await self._attempt(run)
        return await self._conclude(run, value, error, started)

    async def _attempt(self, run: Run) -> tuple[Any, BaseException | None]:
        args, kwargs = run.headers["args"], run.headers["kwargs"]
        task, task_id = self._task, run.request.id
        try:
            run.begin()
            if signals.task_prerun.receivers:
                signals.task_prerun.send(
                    sender=task, task_id=task_id, task=task, args=args, kwargs=kwargs
                )
            task.before_start(task_id, args, kwargs)
            return await self._function(*args, **kwargs), None
        except BaseException as error:  # noqa: BLE001 - SystemExit would take the loop's thread down
            return None, error
        finally:
            run.end()

    async def _conclude(
        self, run: Run, value: Any, error: BaseException | None, started: float
    ) -> Report | None:
        report = None
        try:
            report = await self._record(run, value, error, started)
        except Exception as failure:  # the result backend or the broker is down
            log.exception("task.not_recorded", extra=_fields(run))
            report = _failure(failure, started)
        finally:
            self._send_postrun(run, value if error is None else error, report)
        return report

    def _send_postrun(self, run: Run, value: Any, report: Report | None) -> None:
        if signals.task_postrun.receivers:
            signals.task_postrun.send(
                sender=self._task,
                task_id=run.request.id,
                task=self._task,
                args=run.headers["args"],
                kwargs=run.headers["kwargs"],
                retval=value,
                state=_state(report),
            )

    async def _record(
        self, run: Run, value: Any, error: BaseException | None, started: float
    ) -> Report | None:
        """Tell apart how a task can end.

        1. Over the hard limit: Celery has reported it when the limit struck.
        2. Ignore and Reject say themselves what becomes of the message.
        3. Stopped by revoke or shutdown: it gave up, or it came to a decent end.
        4. A value. 5. An error, which may mean another attempt.
        """
        reason = run.request.cancel_reason
        if reason is CancelReason.HARD_LIMIT:
            return None
        if isinstance(error, (Ignore, Reject)):
            return _failure(error, started)
        if reason in {CancelReason.TERMINATED, CancelReason.SHUTDOWN}:
            return self._stopped(run, error, started)
        if error is None:
            return await self._succeed(run, value, started)
        return await self._fail(run, _as_exception(run, error), started)

    def _stopped(self, run: Run, error: BaseException | None, started: float) -> Report | None:
        if error is None:
            return _failure(Ignore("stopped"), started)
        if not isinstance(error, asyncio.CancelledError):
            log.error("task.failed_while_stopping", exc_info=error, extra=_fields(run))
        if run.request.cancel_reason is CancelReason.TERMINATED:
            return _failure(Terminated(run.signal), started)
        return None  # unacknowledged: closing the channel puts the message first in its queue

    async def _succeed(self, run: Run, value: Any, started: float) -> Report:
        task = self._task
        if self._is_awaited(run):
            await self._hand_on(self._context(run), value)
        runtime = time.monotonic() - started
        task.on_success(value, run.request.id, run.headers["args"], run.headers["kwargs"])
        if signals.task_success.receivers:
            signals.task_success.send(sender=task, result=value, runtime=runtime)
        self._after(run, states.SUCCESS, value)
        return 0, saferepr(value, task.resultrepr_maxsize), runtime

    def _is_awaited(self, run: Run) -> bool:
        """Tell whether anything follows from the value; spares most tasks a costly context."""
        ignored = run.headers.get("ignore_result")
        ignored = self._task.ignore_result if ignored is None else ignored
        return not ignored or any(self._links(run).values())

    async def _hand_on(self, request: Any, value: Any) -> None:
        """Send links and the next step of the chain first, as Celery does; then store the value."""
        stores = not get_actual_ignore_result(self._task, request)
        if request.callbacks or request.chain:
            await self._in_thread(self._send_next, request, value)
        if stores or request.chord:
            backend = self._task.backend
            await self._in_thread(backend.mark_as_done, request.id, value, request, stores)

    async def _fail(self, run: Run, error: Exception, started: float) -> Report:
        request = self._context(run)
        error = await self._autoretry(request, error)
        report = _failure(error, started)
        if isinstance(error, Retry):
            await self._record_retry(request, error, report[1])
        else:
            await self._record_failure(run, request, error, report[1])
        return report

    async def _autoretry(self, request: Any, error: Exception) -> Exception:
        """Send the task again where its options say so: Retry, or the error that stands."""
        task = self._task
        if isinstance(error, (Retry, *getattr(task, "dont_autoretry_for", ()))):
            return error
        if not isinstance(error, tuple(getattr(task, "autoretry_for", ()))):
            return error
        result: Exception = await self._in_thread(self._send_again, request, error)
        return result

    def _send_again(self, request: Any, error: Exception) -> Exception:
        task = self._task
        options = dict(getattr(task, "retry_kwargs", {}))
        if backoff := float(getattr(task, "retry_backoff", 0)):
            options["countdown"] = get_exponential_backoff_interval(
                factor=int(max(1.0, backoff)),
                retries=request.retries,
                maximum=int(getattr(task, "retry_backoff_max", 600)),
                full_jitter=getattr(task, "retry_jitter", True),
            )
        task.request_stack.push(request)  # thread-local, and this thread runs one call at a time
        try:
            task.retry(exc=error, **options)
        except Exception as outcome:  # noqa: BLE001 - Retry, or the error once retries are used up
            return outcome
        finally:
            task.request_stack.pop()
        return error

    async def _record_retry(self, request: Any, retry: Retry, einfo: Any) -> None:
        task = self._task
        if self._stores_errors(request):
            await self._in_thread(
                lambda: task.backend.mark_as_retry(
                    request.id, retry.exc, einfo.traceback, request=request
                )
            )
        task.on_retry(retry.exc, request.id, request.args, request.kwargs, einfo)
        signals.task_retry.send(sender=task, request=request, reason=retry, einfo=einfo)

    async def _record_failure(self, run: Run, request: Any, error: Exception, einfo: Any) -> None:
        task, stores = self._task, self._stores_errors(request)
        expected = bool(task.throws) and isinstance(error, task.throws)
        log.log(
            logging.INFO if expected else logging.ERROR,
            "task.failed",
            exc_info=None if expected else error,
            extra={**_fields(run), "error": repr(error)},
        )
        if stores or request.errbacks or request.chord:
            await self._in_thread(
                lambda: task.backend.mark_as_failure(
                    request.id, error, einfo.traceback, request=request, store_result=stores
                )
            )
        task.on_failure(error, request.id, request.args, request.kwargs, einfo)
        signals.task_failure.send(
            sender=task,
            task_id=request.id,
            exception=error,
            args=request.args,
            kwargs=request.kwargs,
            traceback=error.__traceback__,
            einfo=einfo,
        )
        self._after(run, states.FAILURE, error)

    def _after(self, run: Run, state: str, value: Any) -> None:
        args, kwargs = run.headers["args"], run.headers["kwargs"]
        self._task.after_return(state, value, run.request.id, args, kwargs, None)

    def _send_next(self, request: Any, value: Any) -> None:
        """Send what is linked to the task, and the next step of its chain."""
        ancestry = {"parent_id": request.id, "root_id": request.root_id or request.id}
        for callback in request.callbacks or ():
            self._app.signature(callback).apply_async((value,), **ancestry)
        if chain := request.chain:
            step = self._app.signature(chain[-1])
            step.apply_async((value,), chain=chain[:-1], **ancestry)

    def _context(self, run: Run) -> Any:
        """Build Celery's own view of the request."""
        return Context({**run.headers, **self._links(run)}, called_directly=False, is_eager=False)

    def _links(self, run: Run) -> dict[str, Any]:
        """Return callbacks, errbacks, chain and chord; the headers have only args and kwargs."""
        body, content_type, encoding = run.body
        if content_type:
            body = _loads(body, content_type, encoding, accept=self._accept)
        return body[2] or {}

    def _stores_errors(self, request: Any) -> bool:
        task = self._task
        return bool(
            task.store_errors_even_if_ignored or not get_actual_ignore_result(task, request)
        )

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._blocking, function, *args)


class FunctionTracer(CoroutineTracer):
    """Runs one plain task in threads, by Celery's own tracer.

    A thread cannot be stopped: limits, revoke and shutdown report at once and leave it running.
    """

    def __init__(self, app: Any, task: Any, blocking: Executor, threads: Executor) -> None:
        super().__init__(app, task, blocking)
        self._threads = threads

    async def trace(self, run: Run) -> Report | None:
        """Run the task in a thread; Celery's tracer records its end there."""
        started = time.monotonic()
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        try:
            run.begin()
            return await loop.run_in_executor(self._threads, context.run, run.target)
        except BaseException as error:  # noqa: BLE001 - SystemExit, or a cancel of ours
            run.end()
            return await self._conclude(run, None, error, started)
        finally:
            run.end()


def _as_exception(run: Run, error: BaseException) -> Exception:
    """Turn what Celery would let kill its worker into a failure of this task alone."""
    is_cancelled = isinstance(error, asyncio.CancelledError)
    if is_cancelled and run.request.cancel_reason is CancelReason.SOFT_LIMIT:
        return SoftTimeLimitExceeded(run.soft_limit_s)  # type: ignore[no-any-return]  # untyped
    if isinstance(error, Exception) and not isinstance(error, MemoryError):
        return error
    wrapped = RuntimeError(f"the task ended with {error!r}")
    wrapped.__cause__ = error
    return wrapped


def _failure(error: BaseException, started: float) -> Report:
    return 1, _einfo(error), time.monotonic() - started


def _einfo(error: BaseException) -> Any:
    if error.__traceback__ is None:  # ours, never raised; ExceptionInfo cannot do without a frame
        try:
            raise error  # noqa: TRY301 - here is the only frame that it can have
        except BaseException as raised:  # noqa: BLE001 - it was raised in the line above
            error = raised
    einfo = ExceptionInfo((type(error), error, error.__traceback__), internal=True)
    einfo.exception = error  # without the wrapper for pickling, of which events show the name only
    return einfo


def _state(report: Report | None) -> Any:
    if report is None:
        return states.REJECTED
    failed, outcome, _ = report
    if not failed:
        return states.SUCCESS
    return states.RETRY if isinstance(outcome.exception, Retry) else states.FAILURE


def _fields(run: Run) -> dict[str, str]:
    return {"task": run.request.name, "task_id": run.request.id}
