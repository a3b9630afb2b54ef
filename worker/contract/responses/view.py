"""A job as OpenAI's Response object, and what went into it as input items."""

from collections.abc import Iterator
from typing import Any

from worker.contract.job import ChatRequest, JobSpec, JobStatus, Message
from worker.contract.responses import output, response_id, status_of

_ID_PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}

_ERROR_CODES = {
    "invalid_request": "invalid_prompt",
    "option_unsupported": "invalid_prompt",
    "context_length_exceeded": "invalid_prompt",
    "text_too_large": "invalid_prompt",
    "queue_full": "rate_limit_exceeded",
    "media_error": "invalid_image",
    "media_unreadable": "image_parse_error",
    "media_unsupported": "unsupported_image_media_type",
    "media_too_large": "image_too_large",
    "media_fetch_failed": "failed_to_download_image",
    "media_forbidden": "invalid_image_url",
    "media_expired": "image_file_not_found",
    "media_decoder_crashed": "image_parse_error",
    "media_decoder_timeout": "image_parse_error",
}
"""Our codes as the few that a Response may have; all others are `server_error`."""


def response(job: dict[str, Any], spec: JobSpec) -> dict[str, Any]:
    """Return the Response object of a job object: what it is now, with what is streamed so far."""
    status = status_of(JobStatus(job["status"]), job["output"]["finish_reason"])
    is_done, is_cut = status == "completed", status == "incomplete"
    return blank(job["id"], job["model"], job["created_at"], spec) | {
        "status": status,
        "completed_at": int(job["finished_at"]) if is_done else None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "error": None if job["error"] is None else _error(job["error"]),
        "output": output.items(response_id(job["id"]), job["output"], status),
        "usage": None if job["usage"] is None else _usage(job["usage"]),
    }


def blank(job_id: str, model: str, created_at: float, spec: JobSpec) -> dict[str, Any]:
    """Return a Response with all its fields as it was when it was made: queued, nothing said yet.

    `created_at` is in seconds since the epoch; clients get whole ones, as from OpenAI.
    """
    return {
        "id": response_id(job_id),
        "object": "response",
        "created_at": int(created_at),
        "completed_at": None,
        "status": "queued",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "metadata": spec.metadata,
        "truncation": "disabled",
        "service_tier": "default",
        "reasoning": {"effort": None, "summary": None},
        "conversation": None,
        "prompt": None,
        **spec.envelope["response"],
    }


def input_items(job_id: str, request: ChatRequest, spec: JobSpec) -> list[dict[str, Any]]:
    """Return what went into a response but its instructions: earlier turns, then its own."""
    kept, links = spec.envelope["items"], spec.envelope["links"]
    turns = request.messages[1 if spec.envelope["response"]["instructions"] else 0 :]
    shown = [item for turn in turns for item in _items_of(turn, request, links)]
    first_own = next((n for n, item in enumerate(kept) if item["id"] is None), len(kept))
    return [
        _named(item, known, response_id(job_id), number - first_own)
        for number, (item, known) in enumerate(zip(shown, kept, strict=True))
    ]


def page(
    items: list[dict[str, Any]], *, after: str | None, limit: int, newest_first: bool
) -> dict[str, Any] | None:
    """Return a page of items in OpenAI's form; None where no item has the id `after`."""
    ordered = items[::-1] if newest_first else items
    start = 0
    if after is not None:
        start = next((n for n, item in enumerate(ordered, 1) if item["id"] == after), -1)
        if start < 0:
            return None
    shown = ordered[start : start + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": start + limit < len(ordered),
    }


def _error(error: dict[str, Any]) -> dict[str, Any]:
    """Return a job's error as a Response may say it; our own code is its `type`."""
    return {
        "code": _ERROR_CODES.get(error["code"], "server_error"),
        "message": error["message"],
        "param": error["param"],
        "type": error["code"],
    }


def _usage(usage: dict[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def _items_of(
    turn: Message, request: ChatRequest, links: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """Yield what a turn was made of: a message, and the calls that the model made with it."""
    content = [_content(part, turn.role, request, links) for part in turn.parts]
    if turn.role == "tool":
        yield {"type": "function_call_output", "call_id": turn.tool_call_id, "output": content}
    elif content:
        yield {"type": "message", "content": content}
    for call in turn.tool_calls:
        yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def _named(
    item: dict[str, Any], known: dict[str, Any], response_id: str, number: int
) -> dict[str, Any]:
    own_id = f"{_ID_PREFIX[item['type']]}_{response_id.removeprefix('resp_')}_{number}"
    role = {"role": known["role"]} if item["type"] == "message" else {}
    return {"id": known["id"] or own_id, "status": "completed", **item, **role}


def _content(
    part: str | int, role: str, request: ChatRequest, links: list[dict[str, str]]
) -> dict[str, Any]:
    if isinstance(part, str):
        return output.text_part(part) if role == "assistant" else {
            "type": "input_text", "text": part,
        }  # fmt: skip
    kind, link = request.media[part].type, links[part]
    where = {f"{kind}_url": link.get("url"), "file_id": link.get("file_id")}
    detail = {"detail": "auto"} if kind == "image" else {}
    return {"type": f"input_{kind}", **where, **detail}
