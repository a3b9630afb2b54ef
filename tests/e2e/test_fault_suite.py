"""The fault-injection suite in small, so that it goes on working: `python -m tests.faults`."""

from pathlib import Path

import pytest

from tests.faults.run import run_fault
from tests.faults.strikes import FAULTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
JOBS, RATE = 150, 20.0


async def test_killed_chat_workers_lose_and_repeat_nothing(tmp_path: Path):
    verdict = await run_fault(FAULTS["kill-chat"], tmp_path, jobs=JOBS, rate=RATE, seed=3)

    assert verdict.troubles == []
    assert (verdict.completed, verdict.failed) == (JOBS, 0)
    assert verdict.strikes > 0


async def test_a_cut_broker_loses_nothing_and_ends_no_worker(tmp_path: Path):
    verdict = await run_fault(FAULTS["broker-cut"], tmp_path, jobs=JOBS, rate=RATE, seed=3)

    assert verdict.troubles == []
    assert (verdict.completed, verdict.failed) == (JOBS, 0)
    assert verdict.strikes > 0
    for log in ("chat-1", "chat-2", "media"):
        assert "Unrecoverable" not in (tmp_path / "logs" / f"{log}.log").read_text()
