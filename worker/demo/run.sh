#!/usr/bin/env bash
# Answers a question about the picture of four sheep with the demo model, from nothing but Python 3.11.
set -euo pipefail
cd "$(dirname "$0")/../.."
echo "installing into .venv (a few minutes the first time) ..." >&2
.ci/install cpu
exec .venv/bin/forebay infer --image worker/demo/sheep.png 图片中有几只羊
