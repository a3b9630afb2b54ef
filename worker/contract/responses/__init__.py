"""`/v1/responses` in OpenAI's words: a response is a job, shown differently; no second record.

    items     what an input is made of
    body      what a caller may send beside it
    question  both as a job's question, after the turns of an earlier response
    envelope  what the job keeps to be shown as a response
    output    what the job said, as output items
    view      the job as a Response object, and what went into it
    events    the job's events as the response's own, numbered from 0
    door      all of it on the stores: submit, find, follow

What a Response repeats of its request is in `JobSpec.envelope`, so it lives and goes with the job.
"""

import re

from worker.contract.job import JobStatus

_ID = re.compile(r"resp_([0-9a-f]{32})")


def response_id(job_id: str) -> str:
    """Return the id under which a job is a response: `resp_` and the job's own hex digits."""
    return f"resp_{job_id.removeprefix('job_')}"


def job_id(response_id: str) -> str | None:
    """Return the id of the job behind a response; None where it cannot be one of ours."""
    match = _ID.fullmatch(response_id)
    return f"job_{match[1]}" if match else None


def status_of(status: JobStatus, finish_reason: str | None) -> str:
    """Return the response's status, in OpenAI's words.

    An answer that ran into `max_output_tokens` is `incomplete`. OpenAI knows no `expired`: a job
    that did not start in time `failed`.
    """
    if status is JobStatus.COMPLETED and finish_reason == "length":
        return "incomplete"
    return "failed" if status is JobStatus.EXPIRED else str(status)


def event_type(status: str) -> str:
    """Return the name of the callback for a response that ended, by its own status.

    `response.completed`, `response.incomplete`, `response.failed` or `response.cancelled`.
    """
    return f"response.{status}"
