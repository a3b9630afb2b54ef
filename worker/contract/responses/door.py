"""Responses on the stores: take one in, find it again, follow it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from worker.contract import forms
from worker.contract import view as job_view
from worker.contract.door import dump
from worker.contract.errors import (
    JobConflict,
    JobError,
    JobGone,
    JobNotFound,
    ResponseNotFound,
    TextTooLarge,
)
from worker.contract.intake import Intake
from worker.contract.job import Door, JobSpec
from worker.contract.live import LiveEvents
from worker.contract.reader import JobReader
from worker.contract.responses import job_id as job_id_of
from worker.contract.responses import question, view
from worker.contract.responses.body import ResponseBody
from worker.contract.responses.envelope import to_spec
from worker.contract.responses.events import Telling
from worker.contract.responses.question import Earlier
from worker.contract.settings import Settings
from worker.contract.store import Submitted


@dataclass(frozen=True, slots=True)
class Found:
    """A response of this door: the job behind it, its spec, and what a telling begins with.

    `base` is the number of the job's event that it begins after.
    """

    job_id: str
    spec: JobSpec
    blank: dict[str, Any]
    base: int


class Responses:
    """The process's view of all responses. Safe for many tasks."""

    def __init__(
        self, settings: Settings, intake: Intake, reader: JobReader, live: LiveEvents
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._reader = reader
        self._live = live

    async def submit(
        self, body: ResponseBody, *, idempotency: str = "", raw: bytes = b""
    ) -> Submitted:
        """Make a response durable, as a job, and send its ticket.

        `idempotency` and `raw` are as in `Intake.submit`. Raises what that and `Intake.read` do, in
        the words of this body; ResponseNotFound or JobConflict where the earlier response cannot be
        gone on from.
        """
        earlier = await self._earlier(body.previous_response_id)
        try:
            chat = await self._intake.read(question.to_chat(body))
            chat = question.placed(body, chat, earlier)
            forms.check_size(chat.messages, chat.media, self._settings)
        except JobError as error:
            raise question.renamed(error, body) from error
        spec = to_spec(body, earlier)
        self._check_envelope(spec.envelope)
        return await self._intake.submit(chat, spec, idempotency=idempotency, body=raw)

    async def find(self, response_id: str, *, param: str | None = None) -> Found:
        """Return a stored response. Raises ResponseNotFound; `param` is where its id stood."""
        job_id = job_id_of(response_id)
        try:
            found = await self.at(job_id) if job_id else None
        except (JobNotFound, JobGone):
            found = None
        if found is None or not found.blank["store"]:
            raise ResponseNotFound(
                f"there is no response {response_id}: it was never made, not stored or deleted, or "
                "its retention is over",
                param=param,
            )
        return found

    async def at(self, job_id: str) -> Found:
        """Return the response that a job is, stored or not. Raises JobNotFound or JobGone."""
        record = await self._reader.record(job_id)
        spec = job_view.spec_of(record)
        if spec.door is not Door.RESPONSES:
            raise JobNotFound(f"job {job_id} is no response")
        created_at = int(record["created_at"]) / 1000
        blank = view.blank(job_id, record["model"], created_at, spec)
        return Found(job_id, spec, blank, int(record["base"]))

    async def get(self, job_id: str) -> dict[str, Any]:
        """Return the Response object as it is now. Raises JobNotFound or JobGone."""
        job, spec = await self._reader.with_spec(job_id)
        return view.response(job, spec)

    async def input_items(self, found: Found) -> list[dict[str, Any]]:
        """Return what went into a response, the oldest first."""
        request, _ = await self._reader.question(found.job_id)
        return view.input_items(found.job_id, request, found.spec)

    async def follow(self, found: Found, after: int = -1) -> AsyncGenerator[dict[str, Any], None]:
        """Yield a response's events numbered above `after`, in order, until the last one.

        Raises StoreUnavailable when Redis does not answer.
        """
        telling = Telling(found.blank)
        for event in telling.begin():
            if event["sequence_number"] > after:
                yield event
        async with aclosing(self._live.follow(found.job_id, found.base)) as followed:
            async for happened in followed:
                if happened.is_last:
                    told = telling.end(await self.get(found.job_id))
                else:
                    told = telling.tell(happened)
                for event in told:
                    if event["sequence_number"] > after:
                        yield event

    async def _earlier(self, response_id: str | None) -> Earlier | None:
        if response_id is None:
            return None
        found = await self.find(response_id, param="previous_response_id")
        response = await self.get(found.job_id)
        if response["status"] not in {"completed", "incomplete"}:
            raise JobConflict(
                f"{response_id} is {response['status']}; only a response that has its answer can "
                "be gone on from",
                param="previous_response_id",
            )
        request, prepared = await self._reader.question(found.job_id)
        return Earlier(
            request=request,
            prepared=prepared,
            output=response["output"],
            items=[
                {"id": item["id"], "role": item.get("role")}
                for item in view.input_items(found.job_id, request, found.spec)
            ],
            links=found.spec.envelope["links"],
            has_instructions=response["instructions"] is not None,
        )

    def _check_envelope(self, envelope: dict[str, Any]) -> None:
        """Refuse what would make every later look at the response a large one."""
        size, limit = len(dump(envelope).encode()), self._settings.max_text_bytes
        if size > limit:
            raise TextTooLarge(
                f"instructions, tools, text.format and addresses have {size} bytes; "
                f"the limit is {limit}"
            )
