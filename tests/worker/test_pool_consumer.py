"""What a worker does with tickets whose connection is gone: it leaves them and lives on.

How kombu comes to that is shown with real connections in tests/e2e/test_fault_suite.py.
"""

import pytest

from worker.pool_consumer import _answer


def test_an_acknowledgement_over_a_connection_that_was_cleared_away_harms_nobody(
    caplog: pytest.LogCaptureFixture,
):
    connection = None

    _answer(lambda: connection.hostname)  # type: ignore[attr-defined]  # as kombu's channel asks

    assert [record.message for record in caplog.records] == ["ticket.unacknowledged"]


def test_an_acknowledgement_is_passed_on_with_what_it_raises():
    said: list[str] = []

    def fail(word: str) -> None:
        said.append(word)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        _answer(fail, "now")

    assert said == ["now"]
