"""Examples of simple schemas fit them."""

import json
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from worker.engine.example import example

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    {"type": "object", "additionalProperties": False, "properties": {"n": {"type": "null"}}},
    {"type": "array", "minItems": 3, "items": {"enum": ["x", "y"]}},
    {"type": ["number", "null"], "minimum": 2.5},
    {"type": "integer", "maximum": -4},
    {"type": "string", "minLength": 9, "maxLength": 12},
    {"type": "string", "maxLength": 2},
    {"anyOf": [{"type": "boolean"}, {"type": "string"}]},
    {"allOf": [{"type": "object", "properties": {"a": {"const": 7}}}], "required": ["a"]},
    {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": "here"}}},
    {"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_example_fits_its_schema_and_is_always_the_same(schema: dict[str, Any]):
    made = example(schema, "四只 sheep")

    Draft202012Validator(schema).validate(made)
    assert example(schema, "四只 sheep") == made


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": 5},
        {"type": "object", "properties": {f"{n}": {"$ref": "#"} for n in range(50)}},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 100},
        {"type": []},
        {"enum": []},
        {"items": True, "type": "array"},
    ],
)
def test_a_schema_that_leads_nowhere_has_some_example(schema: dict[str, Any]):
    assert len(json.dumps(example(schema, "x"))) < 100_000
