"""The lines of a batch: requests as they are read, results as they are written. Pure."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from worker.contract import chat, completions, forms
from worker.contract.body import JobBody
from worker.contract.chat import ChatBody
from worker.contract.completions import CompletionBody
from worker.contract.door import dump
from worker.contract.errors import InvalidRequest, JobError, kind_of
from worker.contract.job import ChatRequest, Door, JobSpec, Priority
from worker.contract.responses import envelope, question, view
from worker.contract.responses.body import ResponseBody

JOB_LIFE_S = 31 * 86_400  # of an unwritten line's job, after its end: longer than any batch
_MAX_TOLD = 500
_OK, _BAD_REQUEST, _SERVER_ERROR = 200, 400, 500


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A call that a batch may make: how its body is read, as one job, and its answer shown.

    `to_spec` takes the body and the job; `placed` puts what became of the job where the body wants
    it; `render` takes an ended job and its spec.
    """

    body: type[BaseModel]
    to_job: Callable[[Any], JobBody]
    render: Callable[[dict[str, Any], JobSpec], dict[str, Any]]
    to_spec: Callable[[Any, JobBody], JobSpec] = lambda _body, job: forms.to_spec(job)
    placed: Callable[[Any, ChatRequest], ChatRequest] = lambda _body, chat: chat


def _one_choice(body: ChatBody) -> JobBody:
    _refuse_several(body.n)
    return chat.to_job(body)


def _one_prompt(body: CompletionBody) -> JobBody:
    jobs = completions.to_jobs(body)
    _refuse_several(body.n * len(jobs))
    return jobs[0]


def _fresh(body: ResponseBody) -> JobBody:
    for name in ("background", "previous_response_id"):
        if getattr(body, name):
            raise InvalidRequest("a line of a batch stands alone", param=name)
    return question.to_chat(body)


def _response_spec(body: ResponseBody, _job: JobBody) -> JobSpec:
    return envelope.to_spec(body, None)


def _refuse_several(count: int) -> None:
    if count > 1:
        raise InvalidRequest("a line of a batch has one choice: send it as several lines")


ENDPOINTS = {
    "/v1/jobs": Endpoint(JobBody, lambda body: body, lambda job, _: job),
    "/v1/chat/completions": Endpoint(ChatBody, _one_choice, lambda job, _: chat.completion(job)),
    "/v1/completions": Endpoint(
        CompletionBody, _one_prompt, lambda job, _: completions.completion(job)
    ),
    "/v1/responses": Endpoint(
        ResponseBody,
        _fresh,
        view.response,
        _response_spec,
        lambda body, chat: question.placed(body, chat, None),
    ),
}
"""Every `url` that lines may have."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class LineError(Exception):
    """Why a line is no good, as it stands in a batch's `errors`."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    def as_dict(self, line: int | None) -> dict[str, Any]:
        """Return OpenAI's batch error; `line` counts from 1."""
        return {
            "code": self.code,
            "line": line,
            "message": _told(self.message),
            "param": None if self.param is None else _told(self.param),
        }


def _told(text: str) -> str:
    """Return what may be kept of a text that a stranger had a part in: some, and as Unicode."""
    return text[:_MAX_TOLD].encode(errors="backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One good line: the caller's name for it, and the job that it is.

    `placed` is to be called with what became of `job`.
    """

    custom_id: str
    job: JobBody
    spec: JobSpec
    placed: Callable[[ChatRequest], ChatRequest]


def read(raw: bytes, endpoint: str) -> RequestLine:
    """Read one line of a batch's input. Raises LineError."""
    line = _envelope(raw)
    if line.url != endpoint:
        raise LineError(
            "mismatched_url", f"the url is {line.url!r}, the batch's endpoint {endpoint}", "url"
        )
    kind = ENDPOINTS[endpoint]
    try:
        body = kind.body.model_validate(line.body)
        job = kind.to_job(body)
    except ValidationError as error:
        raise _refusal("invalid_request", error, ("body",)) from error
    except JobError as error:
        raise LineError(error.code, error.message, error.param) from error
    if getattr(body, "stream", False):
        raise LineError("invalid_request", "the lines of a batch are not streamed", "body.stream")
    spec = replace(kind.to_spec(body, job), priority=_priority(line.body))
    if spec.webhook_url:
        raise LineError(
            "invalid_request",
            "a line of a batch calls nobody back: a webhook endpoint is told of the batch",
            "body.webhook_url",
        )
    return RequestLine(line.custom_id, job, spec, partial(kind.placed, body))


def custom_id_of(raw: bytes) -> str:
    """Return the name of a line that was read before."""
    return str(json.loads(raw)["custom_id"])


def _envelope(raw: bytes) -> _Line:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LineError("invalid_json_line", f"this line is not JSON: {error}") from error
    try:
        line = _Line.model_validate(value)
        line.custom_id.encode()
    except ValidationError as error:
        raise _refusal("invalid_line", error) from error
    except UnicodeEncodeError as error:
        raise LineError("invalid_line", "half a surrogate pair", "custom_id") from error
    return line


def _refusal(code: str, error: ValidationError, place: tuple[str, ...] = ()) -> LineError:
    # Of a union's branches the one that got furthest is what the caller meant.
    first = max(error.errors(include_url=False), key=lambda problem: len(problem["loc"]))
    param = ".".join(str(step) for step in (*place, *first["loc"])) or None
    return LineError(code, first["msg"].removeprefix("Value error, "), param)


def _priority(body: Mapping[str, Any]) -> Priority:
    """Return a line's class: low, so that batches yield, unless it asks for more than that."""
    asked = body.get("priority", Priority.LOW)
    return Priority.LOW if asked == Priority.LOW else Priority.NORMAL


def to_spec(line: RequestLine, batch_id: str, number: int) -> JobSpec:
    """Return what the job of a batch's line is beside its question."""
    place = {"batch": batch_id, "line": number, "custom_id": line.custom_id}
    return replace(
        line.spec,
        retention_s=JOB_LIFE_S,
        door=Door.BATCH,
        envelope=line.spec.envelope | place,
    )


# --- results --------------------------------------------------------------------------------------


def result(endpoint: str, spec: JobSpec, job: dict[str, Any]) -> dict[str, Any]:
    """Return the result line of an ended job."""
    place = spec.envelope
    made = _result(place["batch"], place["line"], place["custom_id"])
    if job["status"] == "completed":
        made["response"] = _response(job, _OK, ENDPOINTS[endpoint].render(job, spec))
    elif job["error"] is not None:
        is_callers = kind_of(job["error"]["code"]) == "invalid_request_error"
        status = _BAD_REQUEST if is_callers else _SERVER_ERROR
        made["response"] = _response(job, status, {"error": job["error"]})
    return made


def failed(
    batch_id: str, number: int, custom_id: str, error: JobError | LineError | None = None
) -> dict[str, Any]:
    """Return the result line of a request that never became a job: refused, or not begun."""
    made = _result(batch_id, number, custom_id)
    if error is not None:
        made["error"] = {"code": error.code, "message": error.message}
    return made


def written(made: dict[str, Any], ending: str) -> bytes:
    """Return a result line as it stands in the file; one that was not executed says why."""
    if made["response"] is None and made["error"] is None:
        made = made | {"error": _NOT_EXECUTED.get(ending, _CANCELLED_ALONE)}
    return dump(made).encode() + b"\n"


_CANCELLED_ALONE = {"code": "job_cancelled", "message": "The job of this line was cancelled."}
_NOT_EXECUTED = {
    "expired": {
        "code": "batch_expired",
        "message": "This request was not executed before the completion window was over.",
    },
    "cancelled": {
        "code": "batch_cancelled",
        "message": "This request was not executed before the batch was cancelled.",
    },
    "failed": {
        "code": "batch_failed",
        "message": "This request was not executed before the batch failed.",
    },
}


def _result(batch_id: str, number: int, custom_id: str) -> dict[str, Any]:
    name = hashlib.sha256(f"{batch_id}:{number}:result".encode()).hexdigest()[:32]
    return {"id": f"batch_req_{name}", "custom_id": custom_id, "response": None, "error": None}


def _response(job: Mapping[str, Any], status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": job["id"], "body": body}
