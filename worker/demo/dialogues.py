"""Dialogues about scenes, pairs and clips, as the service would send them to the model."""

# ruff: noqa: PLR2004  # chances and sizes are read where they stand

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from worker.demo import questions
from worker.demo.clips import Clip
from worker.demo.language import EN, LANGUAGES, ZH
from worker.demo.layout import Message, frame_parts, picture_part, text_part
from worker.demo.questions import Question
from worker.demo.scenes import Scene


@dataclass(frozen=True)
class Dialogue:
    """Messages that begin with a system or user turn and end with the assistant's answer."""

    task: str  # of the last question
    pictures: tuple[int, ...]  # which of the given scenes each picture part shows, in their order
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages without the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return str(self.messages[-1]["content"])


def _language(random: Random) -> str:
    return ZH if random.random() < 0.55 else EN


def _weighted(random: Random, tasks: dict[str, float]) -> str:
    return random.choices(tuple(tasks), tuple(tasks.values()))[0]


def _user(random: Random, media: list[dict[str, str]], text: str) -> Message:
    """Put text after the media, or now and then before, with or without a line break between."""
    if not media:
        return {"role": "user", "content": text}
    gap = "\n" if random.random() < 0.3 else ""
    if random.random() < 0.8:
        return {"role": "user", "content": [*media, text_part(gap + text)]}
    return {"role": "user", "content": [text_part(text + gap), *media]}


def _dialogue(
    random: Random, turns: list[tuple[list[dict[str, str]], Question]], pictures: tuple[int, ...]
) -> Dialogue:
    system = questions.system_prompt(random)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for media, question in turns:
        messages.append(_user(random, media, question.text))
        messages.append({"role": "assistant", "content": question.answer})
    return Dialogue(turns[-1][1].task, pictures, tuple(messages))


def about_picture(random: Random, scene: Scene, task: str, *, before: int = 0) -> Dialogue:
    """Ask about one picture.

    Args:
        random: chooses words, language and the questions before.
        scene: what picture 0 shows; it stands in the first user turn.
        task: a key of `questions.PICTURE_TASKS`, asked last.
        before: number of earlier turns about the same picture.
    """
    tasks = [_weighted(random, questions.PICTURE_TASKS) for _ in range(before)] + [task]
    language = _language(random)
    turns: list[tuple[list[dict[str, str]], Question]] = []
    for number, one in enumerate(tasks):
        media = [picture_part()] if number == 0 else []
        spoken = language if random.random() < 0.85 else random.choice(LANGUAGES)
        turns.append((media, questions.about_picture(random, scene, one, spoken)))
    return _dialogue(random, turns, (0,))


def about_pair(random: Random, pair: tuple[Scene, Scene], task: str) -> Dialogue:
    """Show pictures 0 and 1 in one user turn and ask; task is a key of `questions.PAIR_TASKS`."""
    asked = questions.about_pair(random, pair, task, _language(random))
    return _dialogue(random, [([picture_part(), picture_part()], asked)], (0, 1))


def one_after_the_other(random: Random, pair: tuple[Scene, Scene]) -> Dialogue:
    """Show picture 0 and ask, then picture 1 and ask about that one or the difference."""
    language = _language(random)
    first = questions.about_picture(
        random, pair[0], _weighted(random, questions.PICTURE_TASKS), language
    )
    if random.random() < 0.3:
        second = questions.about_pair(random, pair, "difference", language)
    else:
        task = _weighted(random, questions.PICTURE_TASKS)
        second = questions.about_picture(random, pair[1], task, language)
    return _dialogue(random, [([picture_part()], first), ([picture_part()], second)], (0, 1))


def about_clip(random: Random, clip: Clip, task: str, *, before: int = 0) -> Dialogue:
    """Show the frames of a clip and ask; task is a key of `questions.CLIP_TASKS`, asked last."""
    language = _language(random)
    tasks = [_weighted(random, questions.CLIP_TASKS) for _ in range(before)] + [task]
    asked = [questions.about_clip(random, clip, one, language) for one in tasks]
    media = [frame_parts(len(clip.frames))] + [[]] * before
    return _dialogue(random, list(zip(media, asked, strict=True)), tuple(range(len(clip.frames))))


def text_only(random: Random) -> Dialogue:
    """Talk without pictures, one or two turns."""
    language = _language(random)
    tasks = [_weighted(random, questions.TEXT_TASKS) for _ in range(random.choice((1, 1, 2)))]
    asked = [questions.without_picture(random, task, language) for task in tasks]
    return _dialogue(random, [([], question) for question in asked], ())


def training_dialogues(
    random: Random, seen: Scene | tuple[Scene, Scene] | Clip, number: int
) -> list[Dialogue]:
    """Make several dialogues about the same pictures, which training encodes only once."""
    return [_training_dialogue(random, seen) for _ in range(number)]


def _training_dialogue(random: Random, seen: Any) -> Dialogue:
    before = random.choice((0, 0, 0, 1, 2))
    if isinstance(seen, Scene):
        if random.random() < 0.12:
            return text_only(random)
        task = _weighted(random, questions.PICTURE_TASKS)
        return about_picture(random, seen, task, before=before)
    if isinstance(seen, Clip):
        task = _weighted(random, questions.CLIP_TASKS)
        return about_clip(random, seen, task, before=min(before, 1))
    if random.random() < 0.25:
        return one_after_the_other(random, seen)
    return about_pair(random, seen, _weighted(random, questions.PAIR_TASKS))
