import asyncio

import pytest

from worker.pool_run import CancelReason, Run, TaskRequest


def a_run() -> Run:
    return Run(
        pid=1,
        request=TaskRequest(id="a", name="echo", retries=0, delivery_tag="t"),
        headers={},
        body=(None, None, None),
        target=lambda: (0, None, 0.0),
        on_end=lambda _: None,
        on_timeout=lambda *_: None,
        soft_limit_s=None,
        hard_limit_s=None,
    )


def test_a_task_that_is_cancelled_before_its_start_never_starts():
    run = a_run()

    assert run.cancel(CancelReason.TERMINATED)

    with pytest.raises(asyncio.CancelledError):
        run.begin()
    assert not run.is_running


def test_the_first_reason_to_cancel_stays():
    run = a_run()
    run.cancel(CancelReason.SHUTDOWN)

    assert not run.cancel(CancelReason.TERMINATED)

    assert run.request.cancel_reason is CancelReason.SHUTDOWN


@pytest.mark.parametrize("later", [CancelReason.HARD_LIMIT, CancelReason.SHUTDOWN])
def test_the_soft_limit_gives_way_to_a_later_reason(later: CancelReason):
    run = a_run()
    run.cancel(CancelReason.SOFT_LIMIT)

    assert run.cancel(later)

    assert run.request.cancel_reason is later


def test_recording_the_end_of_a_task_is_never_cancelled():
    run = a_run()
    run.begin()
    run.end()

    assert not run.cancel(CancelReason.HARD_LIMIT)

    assert run.request.cancel_reason is None
