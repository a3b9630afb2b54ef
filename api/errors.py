"""Every error as OpenAI's envelope with its status: one table, used by every door."""

import logging
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from worker.contract.errors import InvalidRequest, JobError, kind_of

_log = logging.getLogger(__name__)
_RETRY_AFTER_S = 2  # where nothing measured says better
_MAX_RETRY_AFTER_S = 60
_COME_BACK = frozenset({429, 503})

STATUS = {
    "invalid_request": 400,
    "option_unsupported": 400,
    "webhook_url_invalid": 400,
    "context_length_exceeded": 400,
    "media_error": 400,
    "media_unreadable": 400,
    "media_fetch_failed": 400,
    "media_forbidden": 400,
    "media_expired": 400,
    "media_decoder_crashed": 400,
    "media_decoder_timeout": 400,
    "unauthorized": 401,
    "model_not_found": 404,
    "job_not_found": 404,
    "response_not_found": 404,
    "upload_not_found": 404,
    "file_not_found": 404,
    "batch_not_found": 404,
    "webhook_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "deadline_exceeded": 408,  # the caller's own limits, so no fault of the server's
    "timeout": 408,
    "job_conflict": 409,
    "idempotency_conflict": 409,
    "batch_conflict": 409,
    "webhook_conflict": 409,
    "job_gone": 410,
    "file_gone": 410,
    "batch_gone": 410,
    "body_too_large": 413,
    "text_too_large": 413,
    "media_too_large": 413,
    "media_unsupported": 415,
    "range_not_satisfiable": 416,
    "queue_full": 429,
    "batch_limit_reached": 429,
    "internal": 500,
    "engine_error": 500,
    "engine_died": 500,
    "out_of_memory": 500,
    "worker_lost": 500,
    "store_unavailable": 503,
}
"""Code to HTTP status: of a refused call, or of a call that waited for a job that failed."""


class Unauthorized(JobError):
    """No bearer key, or one that is not known."""

    code = "unauthorized"


class ErrorBody(BaseModel):
    """What went wrong: a sentence, who has to act, the part to blame, the stable code."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorView(BaseModel):
    """The envelope of every error."""

    error: ErrorBody


def install(app: FastAPI) -> None:
    """Answer every error in the one envelope."""
    app.add_exception_handler(JobError, _job_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)


def respond(error: JobError) -> JSONResponse:
    """Return the response for one of our errors."""
    status = STATUS.get(error.code, 500)
    return JSONResponse({"error": error.as_dict()}, status, _when_to_come_back(status, error))


def _when_to_come_back(status: int, error: JobError) -> dict[str, str] | None:
    if status not in _COME_BACK:
        return None
    wait_s = math.ceil(error.retry_after_s or _RETRY_AFTER_S)
    return {"Retry-After": str(min(max(wait_s, 1), _MAX_RETRY_AFTER_S))}


def respond_failed(job: Mapping[str, Any]) -> JSONResponse:
    """Return the response for a job that ended without an answer, for a call that waited.

    The job has had its attempts: OpenAI's clients, which repeat what failed with a 5xx, shall not.
    """
    status = STATUS.get(job["error"]["code"], 500)
    may_go_better = status in _COME_BACK
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if may_go_better else {"x-should-retry": "false"}
    return JSONResponse({"error": job["error"]}, status, headers)


async def _job_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, JobError)  # noqa: S101 - installed for this class
    return respond(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - installed for this class
    # Of a union's branches the one that got furthest is what the caller meant.
    first = max(error.errors(), key=lambda problem: len(problem["loc"]))
    if first["type"] == "json_invalid":  # its location is a character's, no field's
        return respond(InvalidRequest(f"the body is not JSON: {first['ctx']['error']}"))
    return respond(InvalidRequest(_sentence(first), param=_place(first["loc"])))


def _sentence(problem: dict[str, Any]) -> str:
    place = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown field {place!r}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def _place(location: tuple[Any, ...]) -> str | None:
    """Return a path as callers write it: `messages[0].content`. Union branches are left out."""
    path = ""
    for before, step in pairwise(location):
        if isinstance(step, int):
            path += f"[{step}]"
            continue
        name = step.removesuffix("[]")  # how OpenAI's clients write a query's lists
        if name.isidentifier() and name not in _BRANCHES and not _is_tag(before, name):
            path += f".{name}" if path else name
    return path or None


def _is_tag(before: str | int, step: str) -> bool:
    """Tell a part's type, by which its branch was chosen, from a field of the same name."""
    return (isinstance(before, int) or before == "format") and step in _TAGS


_BRANCHES = frozenset({"str", "MediaLink", "constrained", "NamedTool", "FunctionChoice"})
_TAGS = frozenset({
    "text", "image_url", "video_url", "input_text", "output_text", "input_image", "input_video",
    "input_file", "message", "function_call", "function_call_output", "reasoning", "json_object",
    "json_schema",
})  # fmt: skip


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - installed for this class
    if isinstance(error.__cause__, JobError):  # BodyLimit's, while FastAPI read the body
        return respond(error.__cause__)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    body = {"message": str(error.detail), "type": kind_of(code), "param": None, "code": code}
    headers = dict(error.headers or {})
    if code == "method_not_allowed":
        headers["Allow"] = _methods_here(request)
    return JSONResponse({"error": body}, error.status_code, headers)


def _methods_here(request: Request) -> str:
    """Return what a path takes; Starlette names the methods of its first route only."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    here = (r for r in routes if r.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in here for method in route.methods or ()}))


async def _fault(request: Request, error: Exception) -> JSONResponse:
    _log.error("http.fault", extra={"path": request.url.path}, exc_info=error)
    body = {
        "message": "something went wrong on our side; the server's log has the details",
        "type": "server_error",
        "param": None,
        "code": "internal",
    }
    # This answer does not pass the middleware that puts the id on all others.
    headers = {"x-request-id": getattr(request.state, "request_id", "")}
    return JSONResponse({"error": body}, 500, headers)
