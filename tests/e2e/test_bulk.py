"""`forebay batch` with a server of its own: killed, run again, done."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.batches import jsonl
from tests.support.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
LINES = 60


def start(folder: Path) -> "subprocess.Popen[bytes]":
    ours = ("FOREBAY_", "REDIS_", "S3_", "AWS_", "CELERY_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ["FOREBAY_URL"] = "http://127.0.0.1:1"  # nobody answers there
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "worker", "batch", "in.jsonl", "-o", "out.jsonl",
             "--engine", "echo", "--model", "echo"],
            cwd=folder, env=environ, stdout=said, stderr=said,
        )  # fmt: skip


def test_a_run_that_was_killed_with_its_server_goes_on(tmp_path: Path):
    bodies = [{"query": f"[[tokens={1 + n % 20} rate=20]]"} for n in range(LINES)]
    (tmp_path / "in.jsonl").write_bytes(jsonl(bodies))
    state = tmp_path / "out.jsonl.forebay"

    first = start(tmp_path)
    until((state / "under-way.json").exists, 90)
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    known = json.loads((state / "under-way.json").read_text())
    second = start(tmp_path)
    status = second.wait(120)

    said = (tmp_path / "said").read_text()
    assert status == 0, said
    assert [len(piece["numbers"]) for piece in known] == [LINES]
    rows = [json.loads(row) for row in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = {row["custom_id"]: row["response"]["body"]["output"]["text"] for row in rows}
    assert len(rows) == len(texts) == LINES
    assert texts["20"].split()[-1] == "tok20"
    assert not state.exists()
