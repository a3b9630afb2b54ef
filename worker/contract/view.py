"""The job as clients see it: one object for polls, streams and callbacks, from one record."""

import json
from typing import Any

from worker.contract.job import JobSpec, JobStatus, PreparedMedia, Said, Stage

Record = dict[str, str]

_NOTHING = Said()


def public(
    job_id: str,
    record: Record,
    *,
    streamed: Said = _NOTHING,
    position: int | None = None,
    eta_s: float | None = None,
) -> dict[str, Any]:
    """Return the job object.

    Args:
        job_id: its id.
        record: its short fields and those of the long ones that a view needs, see `record`.
        streamed: what its events hold, where the record `is_complete` not.
        position: jobs ahead of it in its queue, from 0, while it waits.
        eta_s: expected seconds until it starts, from measured throughput.
    """
    status, spec = JobStatus(record["status"]), json.loads(record["spec"])
    result = json.loads(record["result"]) if "result" in record else None
    return {
        "id": job_id,
        "object": "job",
        "status": str(status),
        "stage": record["stage"] or None,
        "model": record["model"],
        "priority": record["priority"],
        "created_at": _seconds(record, "created_at"),
        "started_at": _seconds(record, "started_at"),
        "finished_at": _seconds(record, "finished_at"),
        "expires_at": _seconds(record, "expires_at"),
        "attempt": int(record["attempt"]),
        "attempts": _attempts(record),
        "queue_position": position,
        "eta_s": eta_s,
        "cancel_requested": record.get("cancel") == "1",
        "progress": _progress(record),
        "output": _output(result, streamed),
        "history": result["history"] if result else None,
        "usage": _usage(result),
        "generation_info": _generation_info(result) if result else None,
        "timings": _timings(record, result),
        "media": _media(record),
        "error": json.loads(record["error"]) if "error" in record else None,
        "metadata": spec["metadata"],
        "links": links(job_id),
    }


def is_complete(record: Record) -> bool:
    """Return whether the record alone has the whole answer, or what there is of it."""
    return "result" in record and not json.loads(record["result"]).get("has_logprobs")


def spec_of(record: Record) -> JobSpec:
    """Return what a record's caller asked for beside the question."""
    return JobSpec.from_dict(json.loads(record["spec"]))


def eta_s(eta_ms: int) -> float | None:
    """Return the scripts' expected ms until a start as seconds; -1 there is None here."""
    return round(eta_ms / 1000, 1) if eta_ms >= 0 else None


def links(job_id: str) -> dict[str, str]:
    """Return where to go from a job: paths on the same server."""
    self_link = f"/v1/jobs/{job_id}"
    return {"self": self_link, "events": f"{self_link}/events", "cancel": f"{self_link}/cancel"}


def status_event(job_id: str, record: Record, change: dict[str, Any]) -> dict[str, Any]:
    """Return a status event's object: the job without output, the same for every reader.

    Only what never changes is taken from the record; status, stage, attempt and moment are the
    event's own, so that a replay says what was said live.
    """
    return {
        "id": job_id,
        "object": "job",
        "status": change["status"],
        "stage": change["stage"],
        "attempt": change["attempt"],
        "at": change["at"] / 1000,
        "model": record["model"],
        "priority": record["priority"],
        "created_at": _seconds(record, "created_at"),
        "metadata": json.loads(record["spec"])["metadata"],
        "links": links(job_id),
    }


def first_status(record: Record) -> dict[str, Any]:
    """Return the change behind event number `base`: the job was queued, first or by a retry."""
    has_media = int(record.get("media_total", 0)) > 0
    stage = record.get("base_stage") or (Stage.WAITING_MEDIA if has_media else Stage.WAITING_ENGINE)
    at = int(record.get("base_at") or record["created_at"])
    return {"status": "queued", "stage": str(stage), "attempt": 0, "at": at}


def _seconds(record: Record, name: str) -> float | None:
    return int(record[name]) / 1000 if name in record else None


def _between(record: Record, start: str, end: str) -> float | None:
    if start not in record or end not in record:
        return None
    return (int(record[end]) - int(record[start])) / 1000


def _attempts(record: Record) -> list[dict[str, Any]]:
    """Return what became of attempts that did not end the job; lines as `log_attempt` wrote."""
    lines = record["attempts"].split("\n") if "attempts" in record else []
    return [json.loads(line) for line in lines]


def _progress(record: Record) -> dict[str, int]:
    total = int(record.get("media_total", 0))
    done = total if "media_done_at" in record else int(record.get("media_done", 0))
    return {"media_done": done, "media_total": total, "tokens": int(record.get("tokens", 0))}


def _output(result: dict[str, Any] | None, streamed: Said) -> dict[str, Any]:
    """Return the answer; reasoning, calls and logprobs only where there are any."""
    said = result or {
        "text": streamed.text,
        "reasoning": streamed.reasoning,
        "tool_calls": list(streamed.tool_calls),
        "finish_reason": None,
    }
    output = {"text": said["text"], "finish_reason": said["finish_reason"]}
    for name in ("reasoning", "tool_calls"):
        if said.get(name):  # a result of an older version has neither
            output[name] = said[name]
    if streamed.logprobs:
        output["logprobs"] = {"content": list(streamed.logprobs)}
    return output


def _usage(result: dict[str, Any] | None) -> dict[str, int] | None:
    if result is None:
        return None
    prompt, completion = result["prompt_tokens"], result["completion_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _generation_info(result: dict[str, Any]) -> dict[str, float]:
    """Return the guide's six keys; runtime in seconds, the rates are counts over it."""
    runtime, tokens = result["runtime_s"], result["completion_tokens"]
    return {
        "num_prompt_tokens": result["prompt_tokens"],
        "num_generated_tokens": tokens,
        "num_samples": 1,
        "runtime": runtime,
        "samples/s": 1 / runtime if runtime else 0.0,
        "tokens/s": tokens / runtime if runtime else 0.0,
    }


def _timings(record: Record, result: dict[str, Any] | None) -> dict[str, float | None]:
    ready = "media_done_at" if "media_done_at" in record else "created_at"
    first_work = "media_at" if "media_at" in record else "started_at"
    return {
        "queue_s": _between(record, "created_at", first_work),
        "media_s": _between(record, "media_at", "media_done_at"),
        "engine_wait_s": _between(record, ready, "generating_at"),
        "ttft_s": _between(record, "created_at", "first_token_at"),
        "generate_s": result["runtime_s"] if result else None,
        "total_s": _between(record, "created_at", "finished_at"),
    }


def _media(record: Record) -> list[dict[str, Any]]:
    prepared = json.loads(record["media"]) if record.get("media") else []
    return [PreparedMedia.from_dict(item).as_public() for item in prepared]
