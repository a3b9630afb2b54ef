"""What a chat and a text completion do over HTTP: jobs handed in, awaited, shown as one answer."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from api.deps import Contract
from api.errors import respond_failed
from api.joined import joined
from api.presence import CLIENT_GONE, unless_hung_up
from api.sse import EventStream
from worker.contract.choices import ChoicesBody, JobView
from worker.contract.errors import JobError
from worker.contract.events import DELTA, Event
from worker.contract.job import ChatRequest, JobSpec, JobStatus
from worker.contract.store import Submitted

_DONE = b"data: [DONE]\n\n"
_UNANSWERED = frozenset({JobStatus.FAILED, JobStatus.EXPIRED})


class Chunks(Protocol):
    """How a door shows the pieces of a stream: `contract.chat`'s or `contract.completions`'."""

    def begin(self, number: int) -> dict[str, Any]:
        """Return a choice's first chunk."""
        ...

    def delta(self, number: int, event: Event) -> dict[str, Any] | None:
        """Return the chunk of a delta."""
        ...

    def end(self, number: int, job: JobView) -> dict[str, Any]:
        """Return a choice's last chunk."""
        ...

    def usage(self, jobs: list[JobView]) -> dict[str, Any]:
        """Return the chunk with the counts."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request: a question per choice, and how the answer is shown, whole and in pieces.

    `idempotency` is the caller's key with the body that must be the same under it.
    """

    body: ChoicesBody
    questions: Sequence[ChatRequest]
    spec: JobSpec
    whole: Callable[..., dict[str, Any]]
    chunks: Callable[[JobView], Chunks]
    idempotency: tuple[str, bytes]

    @property
    def ends_with_its_client(self) -> bool:
        """True where nobody will ask for the jobs once the client has hung up.

        A client that sent an Idempotency-Key may come back with it.
        """
        default = "continue" if self.idempotency[0] else "cancel"
        return (self.body.on_disconnect or default) == "cancel"


@dataclass(slots=True)
class _Entered:
    """The jobs of a call: the first as it was submitted; id and first event's number of each."""

    first: JobView
    cursors: list[tuple[str, int]]

    @property
    def ids(self) -> list[str]:
        """The jobs' ids, in the order of the choices."""
        return [job_id for job_id, _ in self.cursors]


async def answer(call: Call, request: Request, uses: Contract) -> Response:
    """Hand the jobs in and answer with all of them, whole or as a stream."""
    entered = await _enter(call, uses)
    headers = {"x-forebay-job-id": ",".join(entered.ids)}
    if call.body.stream:
        return _stream(call, entered, uses, headers)
    jobs = await unless_hung_up(request, _all_ended(entered, uses))
    if jobs is None:
        await _leave(call, entered.ids, uses)
        return Response(status_code=CLIENT_GONE)
    unanswered = next((job for job in jobs if job["status"] in _UNANSWERED), None)
    response = respond_failed(unanswered) if unanswered else JSONResponse(call.whole(*jobs))
    response.headers.update(headers)
    return response


# --- in -------------------------------------------------------------------------------------------


async def _enter(call: Call, uses: Contract) -> _Entered:
    """Submit every choice, or none: what is in already goes again when one is refused."""
    submitted: list[Submitted] = []
    try:
        for number, question in enumerate(call.questions):
            submitted.append(await _submit(call, number, question, uses))
    except JobError:
        if not call.idempotency[0]:  # with a key the repeat finds them
            await _cancel([one.job_id for one in submitted], uses)
        raise
    first = submitted[0]
    return _Entered(
        first.job or await uses.reader.get(first.job_id),
        [(one.job_id, await _base(one, uses)) for one in submitted],
    )


async def _submit(call: Call, number: int, question: ChatRequest, uses: Contract) -> Submitted:
    key, body = call.idempotency
    one_key = f"{key}\n{number}" if key and number else key  # no header holds a newline
    return await uses.intake.submit(question, call.spec, idempotency=one_key, body=body)


async def _base(submitted: Submitted, uses: Contract) -> int:
    """Return the number of a job's first event; a replayed one may have been retried since."""
    if submitted.job is not None:
        return 1
    return int((await uses.reader.record(submitted.job_id))["base"])


# --- out, whole -----------------------------------------------------------------------------------


async def _all_ended(entered: _Entered, uses: Contract) -> list[JobView]:
    ended = (_ended(job_id, after, uses) for job_id, after in entered.cursors)
    return list(await asyncio.gather(*ended))


async def _ended(job_id: str, after: int, uses: Contract) -> JobView:
    async with contextlib.aclosing(uses.live.follow(job_id, after)) as events:
        async for _ in events:
            pass  # the last event ends it
    return await uses.reader.get(job_id)


async def _leave(call: Call, ids: Sequence[str], uses: Contract) -> None:
    if call.ends_with_its_client:
        await _cancel(ids, uses)


async def _cancel(ids: Sequence[str], uses: Contract) -> None:
    for job_id in ids:
        with contextlib.suppress(JobError):  # it is erased, or Redis away; nobody is there to hear
            await uses.store.cancel(job_id)


# --- out, in pieces -------------------------------------------------------------------------------


def _stream(call: Call, entered: _Entered, uses: Contract, headers: dict[str, str]) -> EventStream:
    over = asyncio.Event()

    async def leave() -> None:
        if not over.is_set():
            await _leave(call, entered.ids, uses)

    frames = _frames(call, entered, uses, over)
    return EventStream(frames, headers, background=BackgroundTask(leave))


async def _frames(
    call: Call, entered: _Entered, uses: Contract, over: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    try:
        async with contextlib.aclosing(_told(call, entered, uses)) as told:
            async for chunk in told:
                yield _frame(chunk)
        over.set()
    except _Unanswered as end:
        yield _frame({"error": end.job["error"]})
    except JobError as error:  # the stream has begun: too late for a status
        yield _frame({"error": error.as_dict()})
    yield _DONE


class _Unanswered(Exception):
    """A job of the call ended without an answer."""

    def __init__(self, job: JobView) -> None:
        super().__init__(job["id"])
        self.job = job


async def _told(
    call: Call, entered: _Entered, uses: Contract
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of all choices as they come. Raises _Unanswered."""
    chunks, ended = call.chunks(entered.first), dict[int, JobView]()
    for number in range(len(entered.cursors)):
        yield chunks.begin(number)
    async with contextlib.aclosing(joined(uses.live, entered.cursors)) as events:
        async for number, event in events:
            if event.kind == DELTA:
                if chunk := chunks.delta(number, event):
                    yield chunk
            elif event.is_last:
                job = ended[number] = await uses.reader.get(entered.cursors[number][0])
                if job["status"] in _UNANSWERED:
                    raise _Unanswered(job)
                yield chunks.end(number, job)
    if call.body.includes_usage:
        yield chunks.usage([ended[number] for number in sorted(ended)])


def _frame(chunk: Mapping[str, Any]) -> bytes:
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
