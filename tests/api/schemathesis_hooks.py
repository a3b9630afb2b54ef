"""What schemathesis cannot guess: which model is served, and that a key names one body only."""

from typing import Any

import schemathesis

MAX_MODEL, MAX_KEY = 200, 255


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    body, headers = case.body, case.headers or {}
    model = body.get("model") if isinstance(body, dict) else None
    if isinstance(model, str) and 0 < len(model) <= MAX_MODEL:
        body["model"] = "echo"
    if len(str(headers.get("idempotency-key", ""))) <= MAX_KEY:
        headers.pop("idempotency-key", None)
