"""Names of models: as served, by alias, by default."""

import pytest

from worker.contract.door import RedisDoor
from worker.contract.errors import UnknownModel
from worker.contract.models import Models, aliases
from worker.contract.registry import Registry

CARD = {"model": "InternVL2-2B", "slots": 4}


async def test_dashes_underscores_dots_and_case_are_alike(door: RedisDoor):
    registry = Registry(door)
    await registry.announce("a", {}, CARD)
    models = Models(registry, ())

    for name in (*aliases("InternVL2-2B"), "INTERNVL2.2B", None):
        found, card = await models.resolve(name)
        assert (found, card["slots"]) == ("InternVL2-2B", 4)


async def test_a_name_that_is_served_exactly_comes_first(door: RedisDoor):
    models = Models(Registry(door), ("a-b", "a_b"))

    assert [(await models.resolve(name))[0] for name in ("a-b", "a_b", "A.B")] == [
        "a-b", "a_b", "a-b",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["InternVL22B", "InternVL2", "", " InternVL2-2B"])
async def test_what_is_not_alike_is_unknown(door: RedisDoor, name: str):
    models = Models(Registry(door), ("InternVL2-2B",))

    with pytest.raises(UnknownModel, match="InternVL2-2B"):
        await models.resolve(name)


def test_aliases_are_the_usual_spellings_without_the_name_itself():
    assert aliases("internvl2-2b") == ["internvl2_2b"]
    assert aliases("echo") == []
    assert aliases("Qwen2.5-VL") == ["qwen2-5-vl", "qwen2_5_vl"]
