"""Batches while their runner, and everything else, is killed: `python -m tests.bench_batch`."""

from pathlib import Path

import pytest

from tests import bench_batch
from tests.bench_batch import STRIKES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
LINES = 300


async def test_a_batch_whose_runner_is_killed_again_and_again_is_answered_once(tmp_path: Path):
    strikes = {f"media worker {n}": STRIKES["media worker"] for n in range(3)}

    outcome = await bench_batch.run(tmp_path, lines=LINES, strikes=strikes, seed=5, pictures=False)

    assert outcome.troubles == []
    assert (outcome.batch["status"], len(outcome.struck)) == ("completed", 3)


async def test_a_batch_outlives_every_role(tmp_path: Path):
    outcome = await bench_batch.run(tmp_path, lines=LINES, strikes=STRIKES, seed=7)

    assert outcome.troubles == []
    assert (outcome.batch["status"], len(outcome.struck)) == ("completed", len(STRIKES))
