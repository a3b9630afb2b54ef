"""One JSON line per event on standard error, with the job id where there is one.

Events are names such as `job.claimed`; values stand in fields. Prompts, media and secrets are never
logged.
"""

import json
import logging
import sys
import time
from typing import Any

_NOISY = (
    "botocore",
    "urllib3",
    "aiohttp.access",
    "kombu",
    "amqp",
    "python_multipart",
    "celery.worker.strategy",  # two lines a task
    "celery.app.trace",
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Write a record as one JSON object: time (s), level, event, logger, and the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line |= {k: v for k, v in vars(record).items() if k not in _STANDARD and k[0] != "_"}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up(level: str = "INFO") -> None:
    """Send every logger of this process to standard error in the one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.Formatter.converter = time.gmtime
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields: `event(log, "job.claimed", job_id=…, attempt=1)`."""
    logger.log(level, name, extra=fields)
