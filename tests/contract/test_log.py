"""Log lines: one JSON object per event."""

import json
import logging
import subprocess
import sys

import pytest

from worker.contract.door import RedisDoor
from worker.contract.errors import StoreUnavailable
from worker.contract.log import JsonFormatter, event
from worker.contract.settings import Settings


class Lines(logging.Handler):
    """Keeps what would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> logging.Logger:
    logger = logging.Logger("test")  # noqa: LOG001 - this test's alone, in no tree
    logger.addHandler(lines)
    return logger


def test_an_event_is_one_line_of_json_with_its_fields(log: logging.Logger, lines: Lines):
    event(log, "job.claimed", job_id="job_1", attempt=2, place="四\n只")

    (line,) = lines.lines
    written = json.loads(line)
    assert "\n" not in line
    assert (written["event"], written["level"], written["logger"]) == (
        "job.claimed", "info", "test",
    )  # fmt: skip
    assert (written["job_id"], written["attempt"], written["place"]) == ("job_1", 2, "四\n只")
    assert "四" in line


def test_a_fault_carries_its_traceback_in_the_same_line(log: logging.Logger, lines: Lines):
    try:
        int("no")
    except ValueError:
        log.exception("job.internal_error", extra={"job_id": "job_1"})

    (line,) = lines.lines
    assert "ValueError: invalid literal" in json.loads(line)["traceback"]


def test_what_json_cannot_hold_is_written_as_text(log: logging.Logger, lines: Lines):
    event(log, "x", value=object)

    assert "class" in json.loads(lines.lines[0])["value"]


def test_a_process_logs_everything_in_this_form_to_standard_error():
    code = (
        "import logging; from worker.contract.log import set_up; set_up('WARNING');"
        "logging.getLogger('foreign').warning('hello'); logging.info('not shown')"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    assert json.loads(done.stderr)["event"] == "hello"


async def test_an_unreachable_redis_is_named_without_its_password():
    door = RedisDoor(Settings(_env_file=None, REDIS_URL="redis://:s3cret@127.0.0.1:1/0"))

    with pytest.raises(StoreUnavailable) as caught:
        await door.ping()

    assert "127.0.0.1:1" in caught.value.message
    assert "s3cret" not in caught.value.message
    await door.close()
