"""The OpenAPI document keeps its promises: schemathesis with all its checks, on real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Service

HERE = Path(__file__).parent
SCHEMATHESIS = Path(sys.executable).with_name("st")


@pytest.mark.timeout(450)
def test_no_answer_is_a_server_error_or_undocumented(running: Service, tmp_path: Path):
    done = subprocess.run(
        [
            *(SCHEMATHESIS, "--config-file", HERE / "schemathesis.toml", "run"),
            *(f"{running.url}/openapi.json", "--checks", "all", "--continue-on-failure"),
            *("--max-examples", "8", "--seed", "1", "--request-timeout", "20", "--no-color"),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py")},
        cwd=tmp_path,  # it leaves a folder where it ran
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
