"""Both body forms to one ChatRequest: parts in the sender's order, media by reference.

The ms-swift rules (tags, placeholders, history) are those of the ms-swift 2.x guide and source:
placeholders are filled in the order of the text, history first; missing ones go before the first
user turn; more placeholders than media, or inline tags beside a list, are errors.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from worker.contract.body import ChatMessage, ContentPart, JobBody, MediaLink, TextPart, VideoPart
from worker.contract.errors import (
    InvalidRequest,
    MediaTooLarge,
    MediaUnreadable,
    MediaUnsupported,
    TextTooLarge,
)
from worker.contract.job import ChatRequest, JobSpec, MediaRef, MediaType, Message, VideoPolicy
from worker.contract.options import read_options
from worker.contract.settings import Settings

_TAG = re.compile(
    r"<img>(?P<img>[^<>]+)</img>|<video>(?P<clip>[^<>]+)</video>|<(?P<place>image|video)>"
)
_DATA_URL = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)?(?P<params>(?:;[\w.+=-]+)*),")
_FILE_ID = re.compile(r"file_[0-9a-f]{32}")
MAX_LINK_CHARS = 8192  # a URL is kept in the job's record; signed ones take 2000
_FIELD: dict[MediaType, str] = {"image": "images", "video": "videos"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a medium is, as it was written: exactly one of `url`, `file_id` and `data` is set.

    `data` are the bytes of a data URL or of bare base64; `param` is its place in the body.
    """

    type: MediaType
    param: str
    url: str | None = None
    file_id: str | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A body's content: messages whose integer parts index `sources`."""

    messages: tuple[Message, ...]
    sources: tuple[Source, ...]
    query: str
    history: tuple[tuple[str, str], ...]


def parse(body: JobBody, limits: Settings) -> Parsed:
    """Return what a body asks.

    Raises:
        InvalidRequest: the two forms' rules are broken; `param` names the place.
        MediaUnreadable, MediaUnsupported, MediaTooLarge: of a data URL, or too many parts.
        TextTooLarge: all text together is over `limits.max_text_bytes`.
    """
    parsed = _swift(body, limits) if body.query is not None else _openai(body, limits)
    check_size(parsed.messages, parsed.sources, limits)
    return parsed


def check_size(
    messages: Sequence[Message], media: Sequence[Source | MediaRef], limits: Settings
) -> None:
    """Raise MediaTooLarge, TextTooLarge or InvalidRequest: there is too much, or nothing at all."""
    if len(media) > limits.media_max_parts:
        raise MediaTooLarge(
            f"{len(media)} pictures and videos; the limit is {limits.media_max_parts}",
            param=media[limits.media_max_parts].param,
        )
    _check_text(messages, limits.max_text_bytes)


def to_request(body: JobBody, model: str, parsed: Parsed, media: Iterable[MediaRef]) -> ChatRequest:
    """Return the request; `media` is what the sources became, in order.

    Raises InvalidRequest where the options do not make sense together.
    """
    return ChatRequest(
        model=model,
        messages=parsed.messages,
        media=tuple(media),
        options=read_options(body),
        video=VideoPolicy(**body.video.model_dump()),
        query=parsed.query,
        history=parsed.history,
    )


def to_spec(body: JobBody) -> JobSpec:
    """Return what the caller asked for beside the question."""
    not_before = int(body.not_before.timestamp() * 1000) if body.not_before else 0
    return JobSpec(
        priority=body.priority,
        start_deadline_s=body.start_deadline_s,
        timeout_s=body.timeout_s,
        retention_s=body.retention_s,
        not_before_ms=not_before,
        metadata=dict(body.metadata),
        webhook_url=body.webhook_url or "",
        webhook_events=tuple(map(str, body.webhook_events)),
    )


# --- the ms-swift form ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Supply:
    """The media lists of a body, handed out placeholder by placeholder."""

    limits: Settings
    sources: list[Source] = field(default_factory=list)
    lists: dict[MediaType, list[str]] = field(default_factory=dict)
    used: dict[MediaType, int] = field(default_factory=lambda: {"image": 0, "video": 0})
    tagged: set[MediaType] = field(default_factory=set)

    def add(self, kind: MediaType, text: str, param: str) -> int:
        """Take a reference in; return its index."""
        self.sources.append(_source(kind, text, param, self.limits))
        return len(self.sources) - 1

    def next(self, kind: MediaType) -> int | None:
        """Take the list's next medium for a placeholder; None where there is none left."""
        position = self.used[kind]
        self.used[kind] += 1
        if position >= len(self.lists[kind]):
            return None
        name = _FIELD[kind]
        return self.add(kind, self.lists[kind][position], f"{name}[{position}]")

    def rest(self) -> list[int]:
        """Take what no placeholder has asked for: pictures, then videos."""
        taken: list[int] = []
        for kind in self.lists:
            while self.used[kind] < len(self.lists[kind]):
                index = self.next(kind)
                assert index is not None  # noqa: S101 - there is one left
                taken.append(index)
        return taken

    def check(self) -> None:
        """Raise where tags and lists are mixed or placeholders outnumber the media."""
        for kind, name in _FIELD.items():
            given = len(self.lists[kind])
            if kind in self.tagged and (given or self.used[kind]):
                raise InvalidRequest(
                    f"use either inline tags or <{kind}> placeholders with {name}, not both",
                    param=name,
                )
            if self.used[kind] > given:
                raise InvalidRequest(
                    f"{self.used[kind]} <{kind}> placeholders but {given} {name}", param=name
                )


def _supply(body: JobBody, limits: Settings) -> _Supply:
    lists: dict[MediaType, list[str]] = {
        "image": _listed(body.images),
        "video": _listed(body.videos),
    }
    return _Supply(limits, lists=lists)


def _listed(value: list[str] | str) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _swift(body: JobBody, limits: Settings) -> Parsed:
    supply = _supply(body, limits)
    query = body.query or ""
    texts = [*(q for q, _ in body.history), query]
    turns = _fill([(text, _param(body, n)) for n, text in enumerate(texts)], supply)
    messages = []
    for number, parts in enumerate(turns):
        messages.append(Message("user", parts))
        if number < len(body.history):
            messages.append(Message("assistant", (body.history[number][1],)))
    history = tuple((q, a) for q, a in body.history)
    return Parsed(tuple(messages), tuple(supply.sources), query, history)


def _param(body: JobBody, number: int) -> str:
    return f"history[{number}][0]" if number < len(body.history) else "query"


def _fill(texts: list[tuple[str, str]], supply: _Supply) -> list[tuple[str | int, ...]]:
    """Put media where tags and placeholders stand; what has no place goes before the first text."""
    turns = [list(_split(text, param, supply)) for text, param in texts]
    supply.check()
    turns[0] = [*supply.rest(), *turns[0]]
    return [tuple(parts) for parts in turns]


def _split(text: str, param: str, supply: _Supply) -> Iterator[str | int]:
    """Yield a text's parts: texts between tags, and indexes of media."""
    end = 0
    for match in _TAG.finditer(text):
        index = _tag(match, param, supply)
        if match.start() > end:
            yield text[end : match.start()]
        if index is not None:
            yield index
        end = match.end()
    if end < len(text):
        yield text[end:]


def _tag(match: re.Match[str], param: str, supply: _Supply) -> int | None:
    match match.lastgroup:
        case "img":
            supply.tagged.add("image")
            return supply.add("image", match["img"], param)
        case "clip":
            supply.tagged.add("video")
            return supply.add("video", match["clip"], param)
    return supply.next("image" if match["place"] == "image" else "video")


# --- the OpenAI form ------------------------------------------------------------------------------


def _openai(body: JobBody, limits: Settings) -> Parsed:
    """Read messages. Texts of part lists are verbatim; a plain text may hold ms-swift tags."""
    supply = _supply(body, limits)
    listed = any(supply.lists.values())
    messages = []
    for number, message in enumerate(body.messages or []):
        param = f"messages[{number}].content"
        messages.append(_message(message, tuple(_parts(message, param, supply, listed))))
    supply.check()
    _place_left_overs(messages, supply)
    if messages[-1].role not in {"user", "tool"}:
        raise InvalidRequest("the last message must be the user's", param="messages")
    query, history = as_pairs(messages, supply.sources)
    return Parsed(tuple(messages), tuple(supply.sources), query, history)


def _message(message: ChatMessage, parts: tuple[str | int, ...]) -> Message:
    calls = message.tool_calls or ()
    return Message(
        role="system" if message.role == "developer" else message.role,
        parts=parts,
        tool_calls=tuple(call.model_dump(exclude={"index"}) for call in calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _parts(message: ChatMessage, param: str, supply: _Supply, listed: bool) -> Iterator[str | int]:
    if isinstance(message.content, str):
        # An answer is quoted as it was given; a placeholder without any list is just text.
        has_tags = "<img>" in message.content or "<video>" in message.content
        if message.role == "user" and (listed or has_tags):
            yield from _split(message.content, param, supply)
        else:
            yield message.content
        return
    for number, part in enumerate(message.content or ()):
        yield _part(part, f"{param}[{number}]", supply)


def _part(part: ContentPart, param: str, supply: _Supply) -> str | int:
    if isinstance(part, TextPart):
        return part.text
    kind: MediaType = "video" if isinstance(part, VideoPart) else "image"
    link = part.video_url if isinstance(part, VideoPart) else part.image_url
    if isinstance(link, MediaLink):
        return supply.add(kind, link.file_id or link.url or "", param)
    return supply.add(kind, link, param)


def _place_left_overs(messages: list[Message], supply: _Supply) -> None:
    if left := supply.rest():
        first = next((n for n, m in enumerate(messages) if m.role == "user"), len(messages) - 1)
        messages[first] = replace(messages[first], parts=(*left, *messages[first].parts))


def as_pairs(
    messages: Sequence[Message], media: Sequence[Source | MediaRef]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the last user text and the earlier (user, assistant) pairs, media as placeholders."""
    pairs, query = [], ""
    for message in messages:
        text = "".join(p if isinstance(p, str) else f"<{media[p].type}>" for p in message.parts)
        if message.role == "assistant":
            pairs.append((query, text))
        elif message.role == "user":
            query = text
    return query, tuple(pairs)


# --- references and limits ------------------------------------------------------------------------


def _source(kind: MediaType, text: str, param: str, limits: Settings) -> Source:
    """Read one reference: http(s) URL, data URL, upload id, or bare base64."""
    if text[:8].lower().startswith(("http://", "https://")):
        if len(text) > MAX_LINK_CHARS:
            raise InvalidRequest(f"the URL is longer than {MAX_LINK_CHARS} characters", param=param)
        return Source(kind, param, url=text)
    if _FILE_ID.fullmatch(text):
        return Source(kind, param, file_id=text)
    max_bytes = limits.video_max_bytes if kind == "video" else limits.image_max_bytes
    if text[:5].lower() == "data:":
        return Source(kind, param, data=_from_data_url(text, param, max_bytes))
    return Source(kind, param, data=_from_base64(text, param, max_bytes, _NOT_A_REFERENCE))


_NOT_A_REFERENCE = (
    "not an http(s) URL, a data URL, an upload's id or base64; paths on the server are not opened"
)
_BROKEN = "the data URL's base64 is broken"


def _from_data_url(text: str, param: str, max_bytes: int) -> bytes:
    head = _DATA_URL.match(text[:200])
    if head is None or "base64" not in head["params"].split(";"):
        raise MediaUnsupported("a data URL must be data:<type>;base64,<data>", param=param)
    return _from_base64(text[head.end() :], param, max_bytes, _BROKEN)


def _from_base64(text: str, param: str, max_bytes: int, complaint: str) -> bytes:
    if len(text) // 4 * 3 > max_bytes + 2:  # told before decoding; padding hides up to two bytes
        raise _too_large(len(text) // 4 * 3, max_bytes, param)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaUnreadable(complaint, param=param) from error
    if len(data) > max_bytes:
        raise _too_large(len(data), max_bytes, param)
    if not data:
        raise MediaUnreadable("no bytes at all", param=param)
    return data


def _too_large(size: int, limit: int, param: str) -> MediaTooLarge:
    return MediaTooLarge(f"{size} bytes; the limit is {limit}: upload it first", param=param)


def _check_text(messages: Sequence[Message], limit: int) -> None:
    total = sum(len(text.encode()) for message in messages for text in _texts(message))
    if total > limit:
        raise TextTooLarge(f"{total} bytes of text; the limit is {limit}", param="messages")
    if total == 0 and not any(isinstance(part, int) for m in messages for part in m.parts):
        raise InvalidRequest("there is no question: all texts are empty", param="query")


def _texts(message: Message) -> Iterator[str]:
    yield from (part for part in message.parts if isinstance(part, str))
    yield from (call["function"]["arguments"] for call in message.tool_calls)
