"""What the processes that engines start have in common."""

import subprocess
import sys

import pytest


def run(body: str) -> "subprocess.CompletedProcess[str]":
    """Run a body with our limit on what it does."""
    code = f"import time\nfrom worker.engine.child_process import ends_after\n{body}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize(
    "hang", ["time.sleep(60)", "import re; re.match('(a+)+$', 'a' * 40 + 'b')"]
)
def test_a_process_that_hangs_ends_and_says_where(hang: str):
    ended = run(f"with ends_after(0.3):\n    {hang}")

    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "File" in ended.stderr


def test_what_is_over_in_time_ends_nothing():
    ended = run("with ends_after(0.3):\n    pass\ntime.sleep(0.6)\nprint('alive')")

    assert (ended.returncode, ended.stdout) == (0, "alive\n")
