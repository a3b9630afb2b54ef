"""`forebay infer` with a server of its own: told to end, it leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_told_to_end_it_takes_its_server_and_its_folder_with_it(tmp_path: Path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    said = tmp_path / "said"
    with said.open("wb") as file:
        chat = subprocess.Popen(
            [sys.executable, "-m", "worker", "infer", "--engine", "echo"],
            env=os.environ | {"TMPDIR": str(temporary), "FOREBAY_URL": "http://127.0.0.1:1"},
            stdin=subprocess.PIPE, stdout=file, stderr=file,
        )  # fmt: skip

    with chat:
        until(lambda: "Ask;" in said.read_text(), 60)
        kept = list(temporary.iterdir())
        chat.send_signal(signal.SIGTERM)
        status = chat.wait(40)

    assert kept
    assert status == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []
