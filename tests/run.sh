#!/usr/bin/env bash
# Everything that must hold: format, lint, types, all tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
.ci/install cpu,dev
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/pytest -n 2 "$@"
