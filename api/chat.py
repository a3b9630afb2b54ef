"""`/v1/chat/completions`."""

from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response

from api import choices
from api.deps import Uses
from api.schemas import COMPLETION, ERRORS
from worker.contract import chat, forms
from worker.contract.chat import ChatBody
from worker.contract.choices import variants
from worker.contract.job import Door

router = APIRouter(prefix="/v1", tags=["openai"], responses=ERRORS)

IdempotencyKey = Annotated[str | None, Header(max_length=255)]


@router.post("/chat/completions", responses=COMPLETION)
async def create(
    body: ChatBody, request: Request, uses: Uses, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answer a chat through the queue: whole, or as a stream of chunks with `stream=true`."""
    job = chat.to_job(body)
    question = await uses.intake.read(job)
    call = choices.Call(
        body,
        variants(question, body.n),
        replace(forms.to_spec(job), door=Door.CHAT),
        whole=chat.completion,
        chunks=partial(chat.Chunks, includes_usage=body.includes_usage),
        idempotency=(idempotency_key or "", await request.body()),
    )
    return await choices.answer(call, request, uses)
