"""Jobs in every state, made by the store itself."""

import secrets
from dataclasses import replace
from typing import Any

from worker.contract.errors import WorkerLost
from worker.contract.events import Event
from worker.contract.job import (
    ChatRequest,
    Hold,
    JobSpec,
    JobStatus,
    Lane,
    MediaRef,
    Message,
    Outcome,
    PreparedFrame,
    PreparedMedia,
)
from worker.contract.store import JobStore, Piece

MODEL = "echo"
PICTURE = PreparedMedia("image", "ab" * 32, (PreparedFrame("prep/v1/x", 448, 252),))

LOST = WorkerLost("the worker's process ended")


def question(text: str = "你好", *, pictures: int = 0, **changed: Any) -> ChatRequest:
    """Return a request with one user turn; `pictures` of it are at an address nobody fetches."""
    media = tuple(
        MediaRef("image", f"images[{n}]", url=f"https://example.com/{n}.png")
        for n in range(pictures)
    )
    turn = Message("user", (*range(pictures), text))
    return replace(ChatRequest(MODEL, (turn,), media, query=text), **changed)


async def submit(store: JobStore, text: str = "你好", *, pictures: int = 0, **spec: Any) -> str:
    """Hand a job in; return its id."""
    made = await store.submit(question(text, pictures=pictures), JobSpec(**spec))
    return made.job_id


async def claim(
    store: JobStore, job_id: str, owner: str = "worker-1", lane: Lane = Lane.CHAT
) -> Hold:
    """Claim a job that must be free."""
    hold = await store.claim(job_id, lane, owner, secrets.token_hex(8))
    assert hold is not None, f"{job_id} could not be claimed"
    return hold


async def running(
    store: JobStore, text: str = "你好", owner: str = "worker-1", **spec: Any
) -> Hold:
    """Hand a job in and claim it."""
    return await claim(store, await submit(store, text, **spec), owner)


def said(hold: Hold, number: int, text: str) -> Piece:
    """Return a hold's piece of that number, one token per character."""
    return Piece(hold.job_id, hold.fence, number, text, tuple(map(ord, text)))


def ended(text: str = "", status: JobStatus = JobStatus.COMPLETED) -> Outcome:
    """Return an outcome with plausible counts."""
    error = {"message": "no", "type": "server_error", "param": None, "code": "engine_error"}
    return Outcome(
        status=status,
        text=text,
        finish_reason="stop" if status is JobStatus.COMPLETED else None,
        prompt_tokens=7,
        completion_tokens=len(text),
        runtime_s=0.5,
        error=error if status is JobStatus.FAILED else None,
    )


async def completed(store: JobStore, text: str = "四只") -> str:
    """Return the id of a job that was streamed and answered."""
    hold = await running(store)
    await store.append([said(hold, 1, text)])
    await store.finish(hold, ended(text))
    return hold.job_id


async def failed(store: JobStore) -> str:
    """Return the id of a job that ended with an error."""
    hold = await running(store)
    await store.finish(hold, ended(status=JobStatus.FAILED))
    return hold.job_id


def kinds(events: list[Event]) -> list[str]:
    """Return what happened, in short."""
    return [event.kind for event in events]
