"""Responses without a server: the spec of one, and the job objects that they are views of."""

from typing import Any

from worker.contract.door import dump
from worker.contract.job import JobSpec, Said
from worker.contract.responses.body import ResponseBody
from worker.contract.responses.envelope import to_spec
from worker.contract.view import public


def body(**given: Any) -> ResponseBody:
    """Return a body as the door would have read it."""
    return ResponseBody.model_validate({"input": "你好"} | given)


def spec(**given: Any) -> JobSpec:
    """Return the spec of a response that was asked so."""
    return to_spec(body(**given), None)


SPEC = spec()


def job(
    job_id: str,
    status: str,
    said: Said | str = "",
    *,
    finish_reason: str | None = "stop",
    code: str = "engine_error",
) -> dict[str, Any]:
    """Return a job object in a status, with a result where such a job has one."""
    said = Said(said) if isinstance(said, str) else said
    is_over = status not in {"queued", "in_progress"}
    record = {
        "status": status, "stage": "", "model": "echo", "priority": "normal",
        "spec": dump(SPEC.as_dict()), "attempt": "1", "created_at": "1500", "seq": "9",
    }  # fmt: skip
    if is_over:
        record["finished_at"] = "9900"
    if status in {"completed", "cancelled"}:
        record["result"] = dump({
            "text": said.text, "reasoning": said.reasoning, "tool_calls": said.tool_calls,
            "finish_reason": finish_reason, "prompt_tokens": 7, "completion_tokens": 2,
            "runtime_s": 0.5, "history": [],
        })  # fmt: skip
    if status in {"failed", "expired"}:
        error = {"message": "no", "type": "server_error", "param": None, "code": code}
        record["error"] = dump(error)
    return public(job_id, record, streamed=said)
