"""What a job is: plain frozen values, their wire form, and the rules that need no I/O.

A job never saves, enqueues or refreshes itself; `store` does, and this module knows nothing of it.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

MediaType = Literal["image", "video"]


class JobStatus(StrEnum):
    """OpenAI's words. The last four are terminal and never overwritten."""

    QUEUED = "queued"  # accepted and durable; waits for media or an engine
    IN_PROGRESS = "in_progress"  # an engine worker holds it under a lease
    COMPLETED = "completed"  # has its whole answer
    FAILED = "failed"  # has an error with a code
    CANCELLED = "cancelled"  # the caller's wish; nothing works on it any more
    EXPIRED = "expired"  # did not start before its start deadline

    @property
    def is_terminal(self) -> bool:
        """True once nothing can change any more."""
        return self in TERMINAL


TERMINAL = frozenset(
    {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED}
)


class Stage(StrEnum):
    """What is being done with a job that is not terminal, finer than its status."""

    WAITING_MEDIA = "waiting_media"  # in the media queue
    FETCHING = "fetching"  # bytes are on their way
    PREPARING = "preparing"  # decoding, shrinking, sampling
    WAITING_ENGINE = "waiting_engine"  # in the model's queue
    LOADING_MODEL = "loading_model"  # claimed by a worker whose engine is restarting
    GENERATING = "generating"  # inside the engine
    FINISHING = "finishing"  # the answer is whole, the record not yet


class Lane(StrEnum):
    """Which kind of worker a job waits for, or is held by."""

    MEDIA = "media"
    CHAT = "chat"


class Door(StrEnum):
    """Through which of the API's doors a job came in: who asks for it, and how it is shown."""

    JOBS = "jobs"
    CHAT = "chat"  # /v1/chat/completions and /v1/completions
    RESPONSES = "responses"
    BATCH = "batch"


class Priority(StrEnum):
    """Three classes per model; first in, first out within a class."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class MediaRef:
    """One picture or video as it was handed in, before anything was read.

    Exactly one of `url` (http or https) and `object_key` (bytes that are already in S3, from a data
    URL or an upload) is set. `param` is the part's place in the request, for error messages.
    """

    type: MediaType
    param: str
    url: str | None = None
    object_key: str | None = None


@dataclass(frozen=True, slots=True)
class VideoPolicy:
    """How frames are sampled. Default: the middle of each of 8 equal segments (the guide's).

    `frames` 1 to the limit; `fps` frames per second of the clip instead, capped by the limit;
    `start_s`, `end_s` cut the clip first; `max_pixels` bounds width × height of a frame.
    """

    frames: int | None = None
    fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class PreparedFrame:
    """One encoded picture in S3: its key and its size in pixels."""

    object_key: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class PreparedMedia:
    """What the media stage made of one MediaRef.

    `sha256` names the original bytes; `frames` has one entry for a picture, the samples in time
    order for a video; `times_s` their moments from the start of the file (None for a picture).
    """

    type: MediaType
    sha256: str
    frames: tuple[PreparedFrame, ...]
    times_s: tuple[float, ...] | None = None

    def as_public(self) -> dict[str, Any]:
        """Return what a client may see of it."""
        first = self.frames[0]
        return {
            "type": self.type,
            "sha256": self.sha256,
            "frames": len(self.frames),
            "times_s": None if self.times_s is None else list(self.times_s),
            "width": first.width,
            "height": first.height,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the wire form, which is `dataclasses.asdict`."""
        times = data.get("times_s")
        return cls(
            type=data["type"],
            sha256=data["sha256"],
            frames=tuple(PreparedFrame(**f) for f in data["frames"]),
            times_s=None if times is None else tuple(times),
        )


@dataclass(frozen=True, slots=True)
class MediaProfile:
    """What a model wants its pictures to be; part of the name under which they are kept.

    `max_pixels`, `frame_max_pixels`: width × height of a picture, of a video frame;
    `multiple`: sides that spare the model a second resize are multiples of it.
    """

    max_pixels: int = 1_003_520  # Qwen2-VL's own default, 1280 patches of 28 × 28
    frame_max_pixels: int = 200_704  # 448 × 448, the guide's InternVL2 tile
    multiple: int = 28


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn: parts in the sender's order, a text or the index of a MediaRef.

    `tool_calls` (assistant) are OpenAI's objects, `tool_call_id` (tool) is the call that the turn
    answers, `name` who speaks, where the sender said it.
    """

    role: str
    parts: tuple[str | int, ...]
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the wire form; a record of an older version has only `role` and `parts`."""
        calls = tuple(data.get("tool_calls", ()))
        return cls(**(data | {"parts": tuple(data["parts"]), "tool_calls": calls}))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A question, whatever form it came in.

    `messages` hold texts and indexes into `media`. `history` is the guide's list of earlier
    (query, answer) pairs and `query` the last user turn as it was written, tags included; the
    result's history is `history` + (`query`, answer). `options` are the generation options by their
    OpenAI names, only those that were given.
    """

    model: str
    messages: tuple[Message, ...]
    media: tuple[MediaRef, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    video: VideoPolicy = VideoPolicy()
    query: str = ""
    history: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the wire form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the wire form."""
        return cls(
            model=data["model"],
            messages=tuple(Message.from_dict(m) for m in data["messages"]),
            media=tuple(MediaRef(**m) for m in data["media"]),
            options=data["options"],
            video=VideoPolicy(**data["video"]),
            query=data["query"],
            history=tuple((q, a) for q, a in data["history"]),
        )


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a caller asked for beside the question; never changes.

    `not_before_ms` is a moment (ms since the epoch, 0: at once); the others are seconds, None where
    the caller did not say: no start deadline, no execution timeout. `start_deadline_s` counts from
    the submission, or `not_before_ms` where that is later; `timeout_s` from the first step in an
    engine, over all attempts and the waits between them. `webhook_url` is told of the
    `webhook_events`, of how the job ended where none are named. `envelope` is what the job's door
    keeps beside it, to show the job in its own words (JSON; the other doors do not read it).
    """

    priority: Priority = Priority.NORMAL
    start_deadline_s: float | None = None
    timeout_s: float | None = None
    retention_s: float | None = None
    not_before_ms: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    webhook_url: str = ""
    webhook_events: tuple[str, ...] = ()
    door: Door = Door.JOBS
    envelope: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the wire form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the wire form; a record of an older version has no `door`."""
        door, priority = Door(data.get("door", "jobs")), Priority(data["priority"])
        events = tuple(data.get("webhook_events", ()))
        return cls(**(data | {"priority": priority, "door": door, "webhook_events": events}))


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, or a piece of one, by what it is.

    `text` is what the model says, `reasoning` what it thinks before; `tool_calls` are OpenAI's
    objects (`id`, `type`, `function`), whole ones only; `logprobs` OpenAI's entries, one per token
    of all that was generated, none where the job did not ask for them.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Hold:
    """The right to write to one job: what a claim handed out.

    `fence` goes with every write. `emitted_…` is what earlier attempts have streamed (empty on the
    first), `ran_s` the seconds since the first of them began to generate. `media` is what the media
    stage made (chat lane only).
    """

    job_id: str
    fence: str
    attempt: int
    lane: Lane
    request: ChatRequest
    spec: JobSpec
    crashes: int = 0
    ran_s: float = 0.0
    media: tuple[PreparedMedia, ...] = ()
    emitted_ids: tuple[int, ...] = ()
    emitted_text: str = ""
    emitted_reasoning: str = ""
    emitted_tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: what `finish` writes into the record.

    `text`, `reasoning` and `tool_calls` are the whole answer over all attempts, partial for a
    cancelled or failed job; token counts as the engine reports them; `runtime_s` the attempt's time
    inside the engine. `has_logprobs`: the job's events have them; they are too many to stand twice.
    """

    status: JobStatus
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    has_logprobs: bool = False
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    runtime_s: float = 0.0
    error: dict[str, str | None] | None = None


def new_job_id() -> str:
    """Return a fresh id: `job_` and 128 random bits, not guessable."""
    return f"job_{secrets.token_hex(16)}"


def line_job_id(batch_id: str, line: int) -> str:
    """Return the id of the job that a batch's line is, always the same: a second one is no job."""
    return f"job_{hashlib.sha256(f'{batch_id}:{line}'.encode()).hexdigest()[:32]}"


def with_history(history: Sequence[tuple[str, str]], query: str, answer: str) -> list[list[str]]:
    """Return the guide's history after this answer: pairs of texts, the query as it was sent."""
    return [[q, a] for q, a in history] + [[query, answer]]
