"""Everything that can go wrong with a job, as one tree with stable public codes.

A code is what clients program against: it never changes once released. The message says what was
expected, what came, and what to do. README.md lists every code with its HTTP status.
"""

from typing import ClassVar


class JobError(Exception):
    """A failure with a public code.

    Attributes:
        code: stable and public, snake_case.
        retryable: True where the same job may well succeed on another attempt.
        param: the part of the request that is to blame, such as `messages[0].content[1]`, or None.
        retry_after_s: when it may go better, None where nobody can tell.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def as_dict(self) -> dict[str, str | None]:
        """Return the error as it stands in a job: message, type, param, code."""
        return {
            "message": self.message,
            "type": kind_of(self.code),
            "param": self.param,
            "code": self.code,
        }


# --- what is wrong with the request ---------------------------------------------------------------


class InvalidRequest(JobError):
    """The body or a parameter is not what the API takes."""

    code = "invalid_request"


class UnknownModel(JobError):
    """No worker serves a model of that name and none is configured."""

    code = "model_not_found"


class OptionUnsupported(JobError):
    """The engine of this model cannot honour an option; it is refused, never dropped."""

    code = "option_unsupported"


class ContextTooLong(JobError):
    """Prompt, pictures and max_tokens do not fit into the model's context."""

    code = "context_length_exceeded"


class BodyTooLarge(JobError):
    """The request body is over the limit."""

    code = "body_too_large"


class TextTooLarge(JobError):
    """All text of the job together is over the limit."""

    code = "text_too_large"


# --- the state of things --------------------------------------------------------------------------


class JobNotFound(JobError):
    """There was never a job of that id."""

    code = "job_not_found"


class JobGone(JobError):
    """The job existed; its retention is over or it was deleted."""

    code = "job_gone"


class JobConflict(JobError):
    """The call does not fit the job's state, such as a retry of a job that still runs."""

    code = "job_conflict"


class ResponseNotFound(JobError):
    """No response of that id: never made, not stored, deleted, or its retention is over."""

    code = "response_not_found"


class UploadNotFound(JobError):
    """No upload of that id, or it has expired."""

    code = "upload_not_found"


class UnknownFile(JobError):
    """There was never a file of that id."""

    code = "file_not_found"


class FileGone(JobError):
    """The file existed; it has expired or was deleted."""

    code = "file_gone"


class RangeUnsatisfiable(JobError):
    """The Range header asks for bytes that the file does not have."""

    code = "range_not_satisfiable"


class BatchNotFound(JobError):
    """There was never a batch of that id."""

    code = "batch_not_found"


class BatchGone(JobError):
    """The batch existed; its record is no longer kept."""

    code = "batch_gone"


class BatchConflict(JobError):
    """The call does not fit the batch's state, such as a cancel of a completed one."""

    code = "batch_conflict"


class TooManyBatches(JobError):
    """As many batches as the server takes are active; try again when one has ended."""

    code = "batch_limit_reached"
    retryable = True


class IdempotencyConflict(JobError):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_conflict"


class WebhookUrlInvalid(JobError):
    """A receiver's URL is not http(s), or leads where this server must not go."""

    code = "webhook_url_invalid"


class WebhookNotFound(JobError):
    """There is no webhook endpoint or delivery of that id, or it is forgotten."""

    code = "webhook_not_found"


class WebhookConflict(JobError):
    """Too many endpoints, or the endpoint is disabled or deleted."""

    code = "webhook_conflict"


class QueueFull(JobError):
    """The model's queue is at its limit; try again after Retry-After."""

    code = "queue_full"
    retryable = True


class StoreUnavailable(JobError):
    """Redis, the broker or the object store does not answer; nothing was accepted.

    `was_asked` is False where the call was not even sent, so that it cannot have been executed.
    """

    code = "store_unavailable"
    retryable = True

    def __init__(self, message: str, *, was_asked: bool = True) -> None:
        super().__init__(message)
        self.was_asked = was_asked


# --- media ----------------------------------------------------------------------------------------


class MediaError(JobError):
    """A picture or video that cannot be used. Always names the part in `param`."""

    code = "media_error"


class MediaUnreadable(MediaError):
    """The bytes are of a known kind but damaged, truncated or empty."""

    code = "media_unreadable"


class MediaUnsupported(MediaError):
    """The bytes are of a kind that is not taken."""

    code = "media_unsupported"


class MediaTooLarge(MediaError):
    """Too many bytes, pixels, frames, seconds or parts."""

    code = "media_too_large"


class MediaFetchFailed(MediaError):
    """The URL did not give the bytes: status, timeout, too many redirects, broken transfer."""

    code = "media_fetch_failed"


class MediaForbidden(MediaError):
    """The URL leads where this server must not go."""

    code = "media_forbidden"


class MediaExpired(MediaError):
    """The stored bytes are no longer there."""

    code = "media_expired"


class MediaDecoderCrashed(MediaError):
    """The decoder process died on these bytes."""

    code = "media_decoder_crashed"


class MediaDecoderTimeout(MediaError):
    """The decoder process did not finish in time."""

    code = "media_decoder_timeout"


# --- the engine and the worker --------------------------------------------------------------------


class EngineFailed(JobError):
    """The engine could not answer this one job, or could not start.

    `is_everywhere` is of a start alone: True where it fails alike in every worker with the same
    options, False where it is this one's device, None where nobody can tell.
    """

    code = "engine_error"

    def __init__(self, message: str, *, is_everywhere: bool | None = None) -> None:
        super().__init__(message)
        self.is_everywhere = is_everywhere


class OutOfMemory(JobError):
    """This one job did not fit into the engine's memory."""

    code = "out_of_memory"


class EngineDied(JobError):
    """The engine process is gone; its jobs go back to the queue.

    `was_inside` is False for a job that came to it only afterwards and cannot be to blame.
    """

    code = "engine_died"
    retryable = True

    def __init__(self, message: str, *, was_inside: bool = True) -> None:
        super().__init__(message)
        self.was_inside = was_inside


class WorkerLost(JobError):
    """The job took several workers down and is not tried again."""

    code = "worker_lost"


class DeadlineOver(JobError):
    """The job did not start before `start_deadline_s`."""

    code = "deadline_exceeded"


class ExecutionTimeout(JobError):
    """The job ran longer than `timeout_s`."""

    code = "timeout"


class Internal(JobError):
    """A fault of ours. The log has the traceback under the job's id; clients never see it."""

    code = "internal"


_SERVER_SIDE = frozenset(
    {
        "internal",
        "engine_error",
        "engine_died",
        "worker_lost",
        "out_of_memory",
        "store_unavailable",
    }
)


def kind_of(code: str) -> str:
    """Return OpenAI's `type` for a code: who has to act."""
    if code in _SERVER_SIDE:
        return "server_error"
    if code in {"queue_full", "batch_limit_reached"}:
        return "rate_limit_error"
    return "invalid_request_error"
