"""Putting a script together: of the functions that all scripts share, each gets those it calls.

A Lua function is an object that every call of a script makes anew, used or not, and that Redis then
collects. Where Lua shares its memory with the data, as in a Redis built on libc's malloc, these
objects lie scattered among a million jobs, and making them is what a call waits for most.
"""

import re

_DEFINITION = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)
_SILENT = re.compile(r"--[^\n]*|'[^'\n]*'")  # comments and strings: what they name is not called


def link(shared: str, script: str) -> str:
    """Return `script` with those definitions of `shared` before it that it needs, in their order.

    A definition begins with `local` or `local function` at the start of a line, goes on to the next
    one, and is called by its name alone.
    """
    needed, taken = _names(script), []
    for name, text in reversed(_definitions(shared)):
        if name in needed:  # whatever calls it stands below and has been looked at
            needed |= _names(text)
            taken.append(text)
    return "".join(reversed(taken)) + script


def _definitions(shared: str) -> list[tuple[str, str]]:
    """Return name and text of each definition."""
    begins = [*_DEFINITION.finditer(shared)]
    ends = [*(begin.start() for begin in begins[1:]), len(shared)]
    return [
        (begin[1], shared[begin.start() : end]) for begin, end in zip(begins, ends, strict=True)
    ]


def _names(text: str) -> set[str]:
    return set(re.findall(r"\w+", _SILENT.sub("", text)))
