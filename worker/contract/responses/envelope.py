"""What a job keeps to be shown as a response: no second record beside it."""

from collections.abc import Iterator
from typing import Any

from worker.contract.job import Door, JobSpec
from worker.contract.responses.body import ResponseBody, TextBody
from worker.contract.responses.items import (
    CallOutputItem,
    InputFile,
    InputImage,
    InputText,
    InputVideo,
    MessageItem,
    OutputText,
)
from worker.contract.responses.question import Earlier, Turn, turns

UNSTORED_S = 600.0
"""How long an unstored response outlives its end where its reader did not see to that."""


def to_spec(body: ResponseBody, earlier: Earlier | None) -> JobSpec:
    """Return what the caller asked for beside the question."""
    return JobSpec(
        priority=body.priority,
        start_deadline_s=body.start_deadline_s,
        timeout_s=body.timeout_s,
        retention_s=body.retention_s if body.is_stored else UNSTORED_S,
        metadata=dict(body.metadata or {}),
        webhook_url=body.webhook_url or "",
        webhook_events=tuple(map(str, body.webhook_events)),
        door=Door.RESPONSES,
        envelope=envelope(body, earlier),
    )


def envelope(body: ResponseBody, earlier: Earlier | None) -> dict[str, Any]:
    """Return what the job keeps to be shown as a response.

    `response` are the fields that a Response repeats of its request; `items` id and role of every
    input item (id None: an own one, named after the response); `links` where each medium is, as it
    was written, nothing for bytes that came in the body.
    """
    own = [turn for _, turn in turns(body)]
    items = [{"id": None, "role": getattr(turn, "role", None)} for turn in own]
    links = [_link(part) for turn in own for part in _media_of(turn)]
    if earlier is not None:
        said = [item for item in earlier.output if item["type"] != "reasoning"]
        answer = [{"id": item["id"], "role": item.get("role")} for item in said]
        items = [*earlier.items, *answer, *items]
        links = [*earlier.links, *links]
    return {"response": _repeated(body), "items": items, "links": links}


def _media_of(turn: Turn) -> Iterator[InputImage | InputVideo | InputFile]:
    match turn:
        case MessageItem(content=list() as parts) | CallOutputItem(output=list() as parts):
            yield from (part for part in parts if not isinstance(part, InputText | OutputText))


def _link(part: InputImage | InputVideo | InputFile) -> dict[str, str]:
    if part.file_id is not None:
        return {"file_id": part.file_id}
    match part:
        case InputImage():
            url = part.image_url
        case InputVideo():
            url = part.video_url
        case InputFile():
            url = part.file_url
    is_address = url is not None and url[:8].lower().startswith(("http://", "https://"))
    return {"url": url} if url is not None and is_address else {}


def _repeated(body: ResponseBody) -> dict[str, Any]:
    text = body.text or TextBody()
    choice = body.tool_choice or "auto"
    return {
        "background": bool(body.background),
        "store": body.is_stored,
        "instructions": body.instructions or None,
        "previous_response_id": body.previous_response_id,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": text.format.model_dump(exclude_none=True), "verbosity": "medium"},
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }
