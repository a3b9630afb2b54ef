"""An instance of a simple JSON schema: what an engine without a model can answer."""

from typing import Any

_MAX_DEPTH = 16  # a schema may refer to itself
_MAX_VALUES = 2_000  # and may do so in many places


def example(schema: Any, text: str) -> Any:
    """Return an instance, always the same; strings are `text`, cut to what the schema allows.

    It fits schemas of types, properties, items, enums, constants, alternatives and lengths. What
    only a solver could fit (patterns, `not`, several `allOf` in conflict) is left out of account.
    """
    return _Maker(schema, text).value(schema, 0)


class _Maker:
    def __init__(self, root: Any, text: str) -> None:
        self._root = root
        self._text = text
        self._left = _MAX_VALUES

    def value(self, schema: Any, depth: int) -> Any:
        self._left -= 1
        if not isinstance(schema, dict) or depth > _MAX_DEPTH or self._left < 0:
            return None
        for name, value in schema.items():
            match name:
                case "const":
                    return value
                case "enum" if value:
                    return value[0]
                case "$ref":
                    return self.value(self._at(value), depth + 1)
                case "anyOf" | "oneOf" | "allOf" if value and isinstance(value[0], dict):
                    rest = {key: other for key, other in schema.items() if key != name}
                    return self.value(rest | value[0], depth + 1)
        return self._of_type(schema, depth)

    def _of_type(self, schema: dict[str, Any], depth: int) -> Any:
        match _type(schema):
            case "object":
                members = schema.get("properties", {}) or {"text": {"type": "string"}}
                return {name: self.value(member, depth + 1) for name, member in members.items()}
            case "array":
                count = min(int(schema.get("minItems", 1)), 100)
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "integer" | "number":
                return max(schema.get("minimum", 0), 0) or min(schema.get("maximum", 0), 0)
            case "boolean":
                return False
            case "string":
                padded = self._text.ljust(min(int(schema.get("minLength", 0)), 10_000), ".")
                return padded[: int(schema.get("maxLength", len(padded)))]
        return None

    def _at(self, reference: Any) -> Any:
        """Return what a reference like `#/$defs/name` points to, None where it is nothing."""
        place = self._root
        for step in str(reference).removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            place = place.get(name) if isinstance(place, dict) else None
        return place


def _type(schema: dict[str, Any]) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return kind[0] if isinstance(kind, list) and kind else kind
