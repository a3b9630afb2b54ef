"""The body's limits: what a field takes, and that nothing else is taken."""

from typing import Any

import pytest
from pydantic import ValidationError

from worker.contract.body import JobBody

BAD = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", float("nan")),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -1),
    ("min_p", 1.1),
    ("seed", -1),
    ("seed", 2**63),
    ("stop", ""),
    ("stop", ["x"] * 17),
    ("stop", ["x" * 257]),
    ("repetition_penalty", 0),
    ("top_logprobs", 21),
    ("priority", "urgent"),
    ("start_deadline_s", 0),
    ("timeout_s", 0),
    ("timeout_s", float("inf")),
    ("retention_s", 59),
    ("retention_s", 31 * 86_400),
    ("timeout_s", 31 * 86_400),
    ("start_deadline_s", 1e308),
    ("not_before", "tomorrow"),
    ("not_before", "2030-01-01T00:00:00"),
    ("metadata", {"k" * 65: "v"}),
    ("metadata", {"k": "v" * 513}),
    ("metadata", {str(n): "v" for n in range(17)}),
    ("video", {"frames": 0}),
    ("video", {"frames": 8, "fps": 1}),
    ("video", {"start_s": 3, "end_s": 3}),
    ("video", {"frame": 8}),
    ("history", [["only one"]]),
    ("history", [["one", "two", "three"]]),
    ("images", [1]),
    ("model", ""),
    ("messages", []),
    ("unknown", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_field_out_of_its_range_is_refused(name: str, value: Any):
    question = {} if name == "messages" else {"query": "q"}

    with pytest.raises(ValidationError):
        JobBody.model_validate(question | {name: value})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": "q", "messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "q"}], "history": [["a", "b"]]},
        {"messages": [{"role": "nobody", "content": "q"}]},
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "u", "file_id": "f"}}],
                }
            ]
        },
        {"messages": [{"role": "user", "content": "q", "tool_calls": []}]},
    ],
)
def test_a_body_that_is_neither_form_is_refused(body: dict[str, Any]):
    with pytest.raises(ValidationError):
        JobBody.model_validate(body)


def test_the_greatest_values_are_taken():
    body = JobBody(
        query="q", max_tokens=1_000_000, temperature=2, top_p=1, top_k=0, seed=2**63 - 1,
        stop=["x" * 256] * 16, retention_s=30 * 86_400, metadata={"k" * 64: "v" * 512},
    )  # fmt: skip

    assert body.seed == 2**63 - 1
