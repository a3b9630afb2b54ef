"""Where texts and pictures stand in a prompt, seen by what LMDeploy makes of a message. Pure.

Half of its models' code keeps only a message's first text and puts it behind all pictures; that of
InternVL sets a newline after each. Which does what is not listed here but tried when it is opened.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from worker.contract.errors import EngineFailed
from worker.engine.base import Clip, Part, Picture, Turn, frames_as_pictures

BEFORE, AFTER = "one word", "another word"
"""The texts before and after the picture of the message that is tried."""
_READ_WHOLE = frozenset({"system", "user"})
"""Roles whose texts must reach the model. Templates leave old reasoning of an assistant's out."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model's messages are laid out.

    `takes_video`: clips go in whole. `keeps_texts`: all texts stay, where they stand. `breaks`: a
    newline follows each picture without our doing.
    """

    takes_video: bool
    keeps_texts: bool = True
    breaks: bool = False

    @classmethod
    def seen(cls, prompt: str, *, takes_video: bool) -> Self:
        """Return the layout of a model that made `prompt` of BEFORE, a picture and AFTER."""
        before, after = prompt.find(BEFORE), prompt.rfind(AFTER)
        return cls(takes_video, 0 <= before < after, f"\n{AFTER}" in prompt)

    def of(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the turns as LMDeploy must be given them, for all of their texts to stay."""
        if not self.keeps_texts:
            return tuple(map(_pictures_first, turns))
        return turns if self.takes_video else frames_as_pictures(turns, "" if self.breaks else "\n")


def check_whole(turns: tuple[Turn, ...], prompt: str, written: Callable[[str], str]) -> None:
    """Refuse a prompt in which a text is missing; `written` is how a text is sent.

    Raises:
        EngineFailed: the model's template has no place for it.
    """
    for turn in turns:
        if turn.role not in _READ_WHOLE:
            continue
        for part in turn.parts:
            if isinstance(part, str) and written(part).strip() not in prompt:
                raise EngineFailed(
                    f"the model cannot be given this chat: its template leaves out a text of the "
                    f"{turn.role}"
                )


def _pictures_first(turn: Turn) -> Turn:
    """Put all pictures before one text. Frames have no labels, which would stand far from them."""
    if turn.role != "user":
        return turn
    texts = [part for part in turn.parts if isinstance(part, str) and part]
    pictures = [picture for part in turn.parts for picture in _pictures(part)]
    return replace(turn, parts=(*pictures, "\n".join(texts)))


def _pictures(part: Part) -> tuple[Picture, ...]:
    match part:
        case Picture():
            return (part,)
        case Clip(frames):
            return frames
    return ()
