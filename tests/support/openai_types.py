"""Bodies against the types of the `openai` client, as they came: nothing missing, nothing unknown.

The client itself is lenient: it takes unknown fields in and leaves missing ones out. Here every
field that a type requires must be there, and every field that is there must be the type's or ours.
"""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typing_extensions import TypeAliasType

OURS: dict[str, set[str]] = {
    "Model": {
        "is_chat", "is_multimodal", "status", "aliases", "engine", "context_tokens", "options",
    },
    "ChatCompletionMessage": {"reasoning_content"},
    "ChoiceDelta": {"reasoning_content"},
    "Response": {"store"},  # OpenAI's own, in its examples and answers if not in its types
}  # fmt: skip
"""Class → the fields that we add to it; README.md names them."""

NULLABLE = {("CompletionChoice", "finish_reason")}
"""What OpenAI's streams leave null although the client's type says otherwise."""


def check(body: Any, kind: Any) -> None:
    """Fail with every difference between a JSON body and one of the client's types."""
    found = list(differences(body, kind))
    assert not found, "\n".join(found)


def differences(value: Any, kind: Any, place: str = "$") -> Iterator[str]:
    """Yield what is wrong, one sentence each."""
    kind = _plain(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in {Any, object}:
        return
    if origin in {Union, types.UnionType}:
        yield from _of_the_nearest(value, arguments, place)
    elif origin is Literal:
        if value not in arguments:
            yield f"{place}: {value!r} is none of {arguments}"
    elif origin is list:
        yield from _of_a_list(value, arguments[0], place)
    elif origin is dict:
        yield from _of_a_dict(value, arguments[1], place)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from _of_a_model(value, kind, place)
    else:
        yield from _of_a_scalar(value, kind, place)


def _plain(kind: Any) -> Any:
    while True:
        if isinstance(kind, TypeAliasType):
            kind = kind.__value__
        elif get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        else:
            return kind


def _of_the_nearest(value: Any, kinds: tuple[Any, ...], place: str) -> Iterator[str]:
    """Blame the branch that fits best: of a union one is meant."""
    if value is None and type(None) in kinds:
        return
    tried = [list(differences(value, kind, place)) for kind in kinds if kind is not type(None)]
    yield from min(tried, key=len)


def _of_a_list(value: Any, kind: Any, place: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{place}: {value!r} is no list"
        return
    for number, item in enumerate(value):
        yield from differences(item, kind, f"{place}[{number}]")


def _of_a_dict(value: Any, kind: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no object"
        return
    for name, item in value.items():
        yield from differences(item, kind, f"{place}.{name}")


def _of_a_model(value: Any, kind: type[BaseModel], place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no {kind.__name__}"
        return
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    ours = OURS.get(kind.__name__, set())
    yield from (f"{place}.{name}: unknown" for name in value.keys() - fields.keys() - ours)
    for name, field in fields.items():
        yield from _of_a_field(value, name, field, kind.__name__, place)


def _of_a_field(
    value: dict[str, Any], name: str, field: FieldInfo, owner: str, place: str
) -> Iterator[str]:
    if name not in value:
        if field.is_required():
            yield f"{place}.{name}: missing"
    elif value[name] is not None or (owner, name) not in NULLABLE:
        yield from differences(value[name], field.annotation, f"{place}.{name}")


def _of_a_scalar(value: Any, kind: Any, place: str) -> Iterator[str]:
    numbers = (int, float) if kind is float else kind
    if not isinstance(value, numbers) or (isinstance(value, bool) and kind is not bool):
        yield f"{place}: {value!r} is no {getattr(kind, '__name__', kind)}"
