"""`/v1/completions`."""

from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import choices
from api.chat import IdempotencyKey
from api.deps import Uses
from api.schemas import COMPLETION, ERRORS
from worker.contract import completions, forms
from worker.contract.choices import variants
from worker.contract.completions import CompletionBody
from worker.contract.job import Door

router = APIRouter(prefix="/v1", tags=["openai"], responses=ERRORS)


@router.post("/completions", responses=COMPLETION)
async def create(
    body: CompletionBody, request: Request, uses: Uses, idempotency_key: IdempotencyKey = None
) -> Response:
    """Complete texts through the queue: each prompt is one user turn."""
    jobs = completions.to_jobs(body)
    read = [await uses.intake.read(job) for job in jobs]
    call = choices.Call(
        body,
        [one for question in read for one in variants(question, body.n)],
        replace(forms.to_spec(jobs[0]), door=Door.CHAT),
        whole=partial(completions.completion, n=body.n),
        chunks=partial(completions.Chunks, includes_usage=body.includes_usage, n=body.n),
        idempotency=(idempotency_key or "", await request.body()),
    )
    return await choices.answer(call, request, uses)
