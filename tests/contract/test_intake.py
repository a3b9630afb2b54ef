"""What a model's engine cannot honour is refused before anything is durable."""

from typing import Any

import pytest

from tests.conftest import MakeSettings
from worker.contract.body import JobBody
from worker.contract.door import RedisDoor
from worker.contract.errors import OptionUnsupported
from worker.contract.files import Files
from worker.contract.intake import Intake
from worker.contract.models import Models
from worker.contract.registry import Registry
from worker.contract.s3 import ObjectStore
from worker.contract.store import JobStore

TOOL = {"type": "function", "function": {"name": "add"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
USER = {"role": "user", "content": "q"}


async def read(
    door: RedisDoor, make_settings: MakeSettings, body: dict[str, Any]
) -> dict[str, Any]:
    """Read a body for a model whose engine takes a seed and nothing else."""
    settings, registry = make_settings(), Registry(door)
    card = {"model": "plain", "engine": "simple", "options": ["seed"]}
    await registry.announce("me", {}, card)
    objects, models = ObjectStore(settings), Models(registry, ())
    files = Files(door, objects)
    intake = Intake(settings, JobStore(door), models, objects, lambda *_: None, files)
    try:
        return (await intake.read(JobBody.model_validate(body))).options
    finally:
        await objects.close()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": "q", "top_k": 3}, "top_k"),
        ({"query": "q", "logprobs": True}, "logprobs"),
        ({"query": "q", "response_format": {"type": "json_object"}}, "response_format"),
        ({"query": "q", "tools": [TOOL]}, "tools"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, USER]}, "tools"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "1", "content": "4"}]}, "tools"),
    ],
)
async def test_an_option_that_the_engine_lacks_is_refused_with_its_name(
    door: RedisDoor, make_settings: MakeSettings, body: dict[str, Any], param: str
):
    with pytest.raises(OptionUnsupported) as caught:
        await read(door, make_settings, body)

    assert caught.value.param == param
    assert f"the simple engine of plain cannot honour {param}" in caught.value.message


async def test_what_asks_for_nothing_is_taken_by_any_engine(
    door: RedisDoor, make_settings: MakeSettings
):
    body = {"query": "q", "seed": 1, "max_tokens": 2, "logprobs": False, "tools": [TOOL]}

    options = await read(door, make_settings, body | {"tool_choice": "none"})

    assert options == {"seed": 1, "max_tokens": 2}
