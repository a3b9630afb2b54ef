"""Which of the shared definitions a script is given."""

import re

import pytest

from worker.contract.door import _SCRIPTS
from worker.contract.lua import link
from worker.contract.scripts import PRELUDE

SHARED = """
local P = ARGV[1]
local function low(id)
  return redis.call('GET', P..id)
end
-- Low's own words, and those of `high`.
local function unused() return 'low' end
local function high(id) return low(id) end
"""
ALL = re.findall(r"^local (?:function )?(\w+)", PRELUDE, re.MULTILINE)


def _defined(text: str) -> list[str]:
    return re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE)


def test_a_script_gets_what_it_calls_and_what_that_calls_in_order():
    linked = link(SHARED, "return high(1)")

    assert _defined(linked) == ["P", "low", "high"]
    assert linked.endswith("return high(1)")


def test_names_in_comments_and_strings_are_no_calls():
    assert link(SHARED, "return 'high'  -- low") == "return 'high'  -- low"


@pytest.mark.parametrize("name", sorted(_SCRIPTS))
def test_no_script_names_a_shared_definition_that_it_was_not_given(name: str):
    text = re.sub(r"--[^\n]*", "", _SCRIPTS[name].text)
    called = set(re.findall(r"(?<![\w.:'])(\w+)(?=[(\[])", text))

    assert called & set(ALL) <= set(_defined(text))


def test_a_poll_makes_none_of_the_functions_that_end_a_job():
    assert {"finish", "give_back", "owe_to"}.isdisjoint(_defined(_SCRIPTS["read"].text))
