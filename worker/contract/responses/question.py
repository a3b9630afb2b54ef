"""A response's body as a job's question: the same chat in other words, after earlier turns."""

import mimetypes
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from worker.contract.body import JobBody
from worker.contract.errors import InvalidRequest, JobError, MediaUnsupported
from worker.contract.forms import as_pairs
from worker.contract.job import ChatRequest, MediaRef, Message, PreparedMedia
from worker.contract.responses.body import FunctionChoice, ResponseBody, SchemaFormat, TextBody
from worker.contract.responses.items import (
    CallItem,
    CallOutputItem,
    InputFile,
    InputImage,
    InputText,
    InputVideo,
    MessageItem,
    OutputText,
    Part,
    ReasoningItem,
)
from worker.contract.s3 import media_key

_SAME = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "repetition_penalty", "ignore_eos",
    "parallel_tool_calls",
)  # fmt: skip
_OURS = {
    "messages": "input",
    "query": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "include",
}
_PLACE = re.compile(r"(\w*)(?:\[(\d+)\])?(.*)", re.DOTALL)
_DATA_TYPE = re.compile(r"data:([\w.+-]+/[\w.+-]+)")

Turn = MessageItem | CallItem | CallOutputItem


@dataclass(frozen=True, slots=True)
class Earlier:
    """A response that another goes on from.

    `request` is its whole question with what came before it, `prepared` its media as they were
    read, `output` the items of its answer; `items` and `links` are of its envelope, every id filled
    in; `has_instructions` tells that `request` begins with them.
    """

    request: ChatRequest
    prepared: tuple[PreparedMedia, ...]
    output: list[dict[str, Any]]
    items: list[dict[str, Any]]
    links: list[dict[str, str]]
    has_instructions: bool = False


def to_chat(body: ResponseBody) -> JobBody:
    """Return the body as the jobs door would have it: one message per turn.

    Raises MediaUnsupported for a file that is neither a picture nor a video, InvalidRequest for
    what only the jobs door refuses.
    """
    try:
        return JobBody.model_validate({
            "model": body.model,
            "messages": [_message(turn, f"input[{place}]") for place, turn in turns(body)],
            "video": body.video.model_dump(),
            **_options(body),
        })  # fmt: skip
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidRequest(problem["msg"].removeprefix("Value error, ")) from error


def placed(body: ResponseBody, chat: ChatRequest, earlier: Earlier | None) -> ChatRequest:
    """Return the whole question: instructions, then the earlier turns, then the body's own.

    `chat` is what became of `to_chat`. The earlier response's instructions stay behind, as OpenAI
    has it. Its media are referred to by their content, so a URL that is gone since does no harm.
    """
    messages = list(chat.messages)
    media = tuple(replace(ref, param=as_written(ref.param, body)) for ref in chat.media)
    if earlier is not None:
        moved = (_moved(message, len(earlier.request.media)) for message in messages)
        messages = [*_earlier_turns(earlier), *moved]
        media = (*_kept_media(earlier), *media)
    messages = _with_calls_joined(messages)
    if body.instructions:
        messages.insert(0, Message("system", (body.instructions,)))
    query, history = as_pairs(messages, media)
    return replace(chat, messages=tuple(messages), media=media, query=query, history=history)


def renamed(error: JobError, body: ResponseBody) -> JobError:
    """Return a complaint about `to_chat`'s result with the place where the caller wrote it."""
    if error.param is None:
        return error
    return type(error)(error.message, param=as_written(error.param, body))


def as_written(param: str, body: ResponseBody) -> str:
    """Return a place in the chat body as a place in the response's: `input[0].content[1]`."""
    name, number, rest = _PLACE.fullmatch(param).groups()  # type: ignore[union-attr]  # matches all
    if name == "messages" and number is not None:
        return _in_turn(body, int(number), rest)
    rest = rest.replace(".json_schema", "").replace(".function", "")
    return f"{_OURS.get(name, name)}{'' if number is None else f'[{number}]'}{rest}"


def _in_turn(body: ResponseBody, number: int, rest: str) -> str:
    if isinstance(body.input, str):
        return "input"
    place, turn = turns(body)[number]
    field = "output" if isinstance(turn, CallOutputItem) else "content"
    part = "" if isinstance(getattr(turn, field, None), str) else rest.removeprefix(".content")
    return f"input[{place}].{field}{part}"


def turns(body: ResponseBody) -> list[tuple[int, Turn]]:
    """Return the items that are asked, with their places: all but what the model once thought."""
    if isinstance(body.input, str):
        # A part, not a plain text: tags in it are the caller's words.
        text = InputText(type="input_text", text=body.input)
        return [(0, MessageItem(role="user", content=[text]))]
    return [(n, item) for n, item in enumerate(body.input) if not isinstance(item, ReasoningItem)]


def _message(turn: Turn, place: str) -> dict[str, Any]:
    match turn:
        case MessageItem():
            return {"role": turn.role, "content": _parts(turn.content, f"{place}.content")}
        case CallItem():
            function = {"name": turn.name, "arguments": turn.arguments}
            call = {"id": turn.call_id, "type": "function", "function": function}
            return {"role": "assistant", "tool_calls": [call]}
        case CallOutputItem():
            content = _parts(turn.output, f"{place}.output")
            return {"role": "tool", "tool_call_id": turn.call_id, "content": content}


def _parts(content: str | list[Part], place: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_part(part, f"{place}[{number}]") for number, part in enumerate(content)]


def _part(part: Part, place: str) -> dict[str, Any]:
    match part:
        case InputText() | OutputText():
            return {"type": "text", "text": part.text}
        case InputImage():
            return _medium("image", part.image_url or part.file_id)
        case InputVideo():
            return _medium("video", part.video_url or part.file_id)
        case InputFile():
            kind = _kind_of(part, place)
            return _medium(kind, part.file_data or part.file_url or part.file_id)


def _medium(kind: str, link: str | None) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": link or ""}


def _kind_of(part: InputFile, place: str) -> str:
    """Return image or video, by the data URL's type, else by the file's name."""
    data = _DATA_TYPE.match(part.file_data or "")
    name = part.filename or urlsplit(part.file_url or "").path
    mime = data[1] if data else mimetypes.guess_type(name)[0] or ""
    kind = mime.partition("/")[0]
    if kind not in {"image", "video"}:
        raise MediaUnsupported(
            f"only pictures and videos can be read, and this is {mime or 'not known to be one'}: "
            "send it as input_image or input_video, or with a filename such as a.png",
            param=place,
        )
    return kind


def _options(body: ResponseBody) -> dict[str, Any]:
    options = {name: getattr(body, name) for name in _SAME}
    options["max_tokens"] = body.max_output_tokens
    options["response_format"] = _response_format(body.text)
    if body.top_logprobs or "message.output_text.logprobs" in (body.include or ()):
        options |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    options["tools"] = [
        {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
        for tool in body.tools or ()
    ]
    options["tool_choice"] = _tool_choice(body)
    return {name: value for name, value in options.items() if value is not None}


def _response_format(text: TextBody | None) -> dict[str, Any] | None:
    if text is None:
        return None
    if isinstance(text.format, SchemaFormat):
        schema = text.format.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "json_schema", "json_schema": schema}
    return {"type": text.format.type}


def _tool_choice(body: ResponseBody) -> str | dict[str, Any] | None:
    if isinstance(body.tool_choice, FunctionChoice):
        return {"type": "function", "function": {"name": body.tool_choice.name}}
    return body.tool_choice


# --- earlier turns --------------------------------------------------------------------------------


def _moved(message: Message, by: int) -> Message:
    parts = tuple(part + by if isinstance(part, int) else part for part in message.parts)
    return replace(message, parts=parts)


def _earlier_turns(earlier: Earlier) -> Iterator[Message]:
    yield from earlier.request.messages[int(earlier.has_instructions) :]
    for item in earlier.output:
        if item["type"] == "message":
            yield Message("assistant", tuple(part["text"] for part in item["content"]))
        elif item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            yield Message("assistant", (), (call,))


def _kept_media(earlier: Earlier) -> Iterator[MediaRef]:
    for ref, made in zip(earlier.request.media, earlier.prepared, strict=True):
        yield MediaRef(ref.type, "previous_response_id", object_key=media_key(made.sha256))


def _with_calls_joined(messages: Iterable[Message]) -> list[Message]:
    """Make one turn of what the model said and called in one go: chat templates know no other."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if message.tool_calls and not message.parts and last and last.role == "assistant":
            joined[-1] = replace(last, tool_calls=(*last.tool_calls, *message.tool_calls))
        else:
            joined.append(message)
    return joined
