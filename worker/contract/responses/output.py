"""What a job said as the items of a response's `output`: thoughts, the answer, calls of functions.

In that order. The items of a response are the same in a poll, in its stream and as later input.
"""

from typing import Any

Item = dict[str, Any]


def items(response_id: str, said: dict[str, Any], status: str) -> list[Item]:
    """Return the items of a job's `output`; `status` is the response's."""
    shown = []
    text, thoughts, calls = said["text"], said.get("reasoning"), said.get("tool_calls", [])
    if thoughts:
        shown.append(reasoning(response_id, thoughts, "completed" if text else item_status(status)))
    if text or (status in {"completed", "incomplete"} and not calls):
        logprobs = said.get("logprobs", {"content": []})["content"]
        shown.append(message(response_id, text_part(text, logprobs), item_status(status)))
    return shown + [call(response_id, number, one) for number, one in enumerate(calls)]


def item_status(status: str) -> str:
    """Return the status of an item that lasts as long as its response, which is in `status`."""
    if status == "completed":
        return "completed"
    return "in_progress" if status in {"queued", "in_progress"} else "incomplete"


def message_id(response_id: str) -> str:
    """Return the id of a response's answer."""
    return f"msg_{response_id.removeprefix('resp_')}"


def reasoning_id(response_id: str) -> str:
    """Return the id of what was thought before it."""
    return f"rs_{response_id.removeprefix('resp_')}"


def message(response_id: str, part: Item | None, status: str) -> Item:
    """Return the answer; without a part, as it is before its first word."""
    return {
        "id": message_id(response_id),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [] if part is None else [part],
    }


def reasoning(response_id: str, thoughts: str | None, status: str) -> Item:
    """Return what was thought; None as it is before its first word."""
    return {
        "id": reasoning_id(response_id),
        "type": "reasoning",
        "summary": [],
        "content": [] if thoughts is None else [reasoning_part(thoughts)],
        "status": status,
    }


def call(response_id: str, number: int, called: Item) -> Item:
    """Return a call, the `number`-th of its response from 0; `called` is one of `tool_calls`."""
    return {
        "id": f"fc_{response_id.removeprefix('resp_')}_{number}",
        "type": "function_call",
        "status": "completed",
        "call_id": called["id"],
        **called["function"],
    }


def text_part(text: str, logprobs: list[Item] | None = None) -> Item:
    """Return a text as the content of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def reasoning_part(text: str) -> Item:
    """Return a text as the content of what was thought."""
    return {"type": "reasoning_text", "text": text}
