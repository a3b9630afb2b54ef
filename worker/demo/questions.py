"""Questions to the demo model with their one right answer.

The words are in `wording.toml`, the answers come from `language.py`. Every function draws from the
`Random` it is given, so the same seed asks the same question.
"""

# ruff: noqa: PLR0911, PLR0917, PLR2004  # one return per task; chances and sizes are read where they stand

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from worker.demo import language as say
from worker.demo.clips import Clip, ClipEvent
from worker.demo.language import EN, LANGUAGES, ZH
from worker.demo.scenes import COLOURS_OF, KINDS, Scene

_WORDING: dict[str, Any] = tomllib.loads(
    (Path(__file__).parent / "wording.toml").read_text(encoding="utf-8")
)
_TEMPLATES: dict[str, dict[str, list[str]]] = _WORDING["templates"]

PICTURE_TASKS = {
    "describe": 4, "count": 10, "kinds": 2, "colours": 3, "present": 3, "absent": 3, "time": 1,
    "identity": 1, "hello": 0.3, "thanks": 0.5, "ability": 0.3, "unknown": 0.7,
}  # fmt: skip
"""What is asked about one picture, and how often in training."""

PAIR_TASKS = {"difference": 8, "both": 1, "count_nth": 1.5}
CLIP_TASKS = {"video": 6, "direction": 1, "video_kinds": 1, "video_count": 1.2}
TEXT_TASKS = {
    "identity": 4, "hello": 2, "thanks": 1, "bye": 1, "ability": 1.5, "unknown": 4, "no_picture": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One user turn and the answer that is right for it."""

    task: str
    text: str
    answer: str


def system_prompt(random: Random) -> str | None:
    """Return a usual system prompt, or None as often as not."""
    chosen: str | None = random.choice(_WORDING["system_prompts"])
    return None if random.random() < 0.5 else chosen


def _asked(random: Random, task: str, language: str, **names: str) -> str:
    """Choose a template and fill it, with the politeness and punctuation of real users."""
    template = random.choice(_TEMPLATES[task][language])
    text = template.format(
        p=random.choice(_WORDING["picture_words"][language]),
        v=random.choice(_WORDING["video_words"][language]),
        **names,
    )
    if random.random() < 0.08:
        text = random.choice(_WORDING["prefixes"][language]) + text
    if random.random() < 0.55:
        text += random.choice(_WORDING["endings"][language])
    if language == EN and random.random() < 0.2:
        text = text.lower()
    return text


def about_picture(random: Random, scene: Scene, task: str, language: str) -> Question:
    """Ask about one picture.

    Args:
        random: chooses what is asked about and the words.
        scene: what the picture shows.
        task: a key of `PICTURE_TASKS`.
        language: "zh" or "en".
    """
    match task:
        case "count":
            kind, colour = _subject(random, scene)
            return _about(
                random, task, language, kind, colour, say.count(scene, kind, colour, language)
            )
        case "present":
            kind, colour = _subject(random, scene)
            kind = kind or scene.groups[0].kind
            answer = say.present(scene, kind, colour, language)
            return _about(random, task, language, kind, colour, answer)
        case "colours":
            kind = random.choice(scene.groups).kind
            return _about(random, task, language, kind, None, say.colours(scene, kind, language))
        case "absent":
            return _about_absent(random, scene, language)
        case "unknown":  # anything may be said about a picture: the description is the best answer
            return Question(task, _asked(random, task, language), say.describe(scene, language))
    answers = {
        "describe": say.describe,
        "kinds": say.kinds,
        "time": say.time_of_day,
    }
    if task in answers:
        return Question(task, _asked(random, task, language), answers[task](scene, language))
    return without_picture(random, task, language)


def _subject(random: Random, scene: Scene) -> tuple[str | None, str | None]:
    """Choose what is asked about: a kind that is there, also with its colour, or all animals."""
    group = random.choice(scene.groups)
    chance = random.random()
    if chance < 0.15:
        return None, None
    return (group.kind, group.colour) if chance < 0.35 else (group.kind, None)


def _about(
    random: Random, task: str, language: str, kind: str | None, colour: str | None, answer: str
) -> Question:
    number = 1 if task in ("present", "colours") and random.random() < 0.6 else 2
    name = say.coloured(kind, colour, language, count=number)
    measure = say.measure_word(kind)
    if random.random() < 0.25:
        measure = "只"  # what people say for cows and pigs as well
    return Question(task, _asked(random, task, language, k=name, m=measure), answer)


def _about_absent(random: Random, scene: Scene, language: str) -> Question:
    """Ask for an animal, a colour or a thing that is not in the picture."""
    form = random.choice(("count", "count", "present", "present", "colours"))
    missing = [kind for kind in KINDS if not scene.count(kind)]
    if form != "colours" and random.random() < 0.25:
        group = random.choice(scene.groups)
        colours = [c for c in COLOURS_OF[group.kind] if not scene.count(group.kind, c)]
        if colours:
            kind, colour = group.kind, random.choice(colours)
            answer = say.absent(say.coloured(kind, colour, language), language)
            asked = _about(random, form, language, kind, colour, answer)
            return Question("absent", asked.text, answer)
    if random.random() < 0.2:
        return _about_stranger(random, form, language)
    kind = random.choice(missing)
    answer = say.absent(say.kind_name(kind, language), language)
    return Question("absent", _about(random, form, language, kind, None, answer).text, answer)


def _about_stranger(random: Random, form: str, language: str) -> Question:
    name = random.choice(say.STRANGERS[language])
    plural = {"person": "people", "fish": "fish"}.get(name, f"{name}s")
    asked = plural if language == EN and form == "count" else name
    text = _asked(random, form, language, k=asked, m=random.choice(("只", "个", "匹")))
    return Question("absent", text, say.absent(name, language))


def about_pair(random: Random, pair: tuple[Scene, Scene], task: str, language: str) -> Question:
    """Ask about two pictures; task is a key of `PAIR_TASKS`."""
    if task == "difference":
        return Question(task, _asked(random, task, language), say.difference(*pair, language))
    if task == "both":
        return Question(task, _asked(random, task, language), say.both(*pair, language))
    number = random.randrange(2)
    scene = pair[number]
    kind, _ = _subject(random, scene)
    nth = (("一", "二") if language == ZH else ("first", "second"))[number]
    name = say.kind_name(kind, language, count=2)
    text = _asked(random, task, language, k=name, m=say.measure_word(kind), n=nth)
    return Question(task, text, say.count(scene, kind, None, language))


def about_clip(random: Random, clip: Clip, task: str, language: str) -> Question:
    """Ask about a video; task is a key of `CLIP_TASKS`, "direction" only of one who walks."""
    name = say.kind_name(clip.kind, language)
    match task:
        case "direction" if clip.event in (ClipEvent.WALKS_LEFT, ClipEvent.WALKS_RIGHT):
            end = "。" if language == ZH else "."
            answer = say.direction(clip, language) + end
            text = _asked(random, task, language, k=name)
            return Question(task, text, answer[0].upper() + answer[1:])
        case "video_kinds":
            fullest = max(clip.frames, key=lambda scene: len(scene.animals))
            answer = say.kinds(fullest, language, video=True)
            return Question(task, _asked(random, task, language), answer)
        case "video_count":
            plural = say.kind_name(clip.kind, language, count=2)
            text = _asked(random, task, language, k=plural, m=say.measure_word(clip.kind))
            return Question(task, text, say.count_in_clip(clip, language))
        case _:
            text = _asked(random, "video", language)
            return Question("video", text, say.describe_clip(clip, language))


def without_picture(random: Random, task: str, language: str) -> Question:
    """Ask something that needs no picture, or for a picture's content where none was given."""
    if task == "no_picture":
        form = random.choice(("describe", "count", "kinds", "colours", "difference", "video"))
        kind = random.choice(KINDS)
        name = say.kind_name(kind, language, count=2)
        text = _asked(random, form, language, k=name, m=say.measure_word(kind))
        return Question(task, text, say.PICTURE_MISSING[language])
    if task == "unknown" and random.random() < 0.4:
        return Question(task, _babble(random, language), say.NOT_KNOWN[language])
    answers = {"identity": say.IDENTITY, "unknown": say.NOT_KNOWN} | say.SMALL_TALK
    return Question(task, _asked(random, task, language), answers[task][language])


def _babble(random: Random, language: str) -> str:
    """Shuffle what other questions are made of into something that means nothing."""
    phrases = random.sample(_TEMPLATES["unknown"][language], 4)
    pieces = list("".join(phrases)) if language == ZH else " ".join(phrases).split()
    random.shuffle(pieces)
    return ("" if language == ZH else " ").join(pieces[: random.randint(2, 10)])


def all_texts() -> list[str]:
    """Return every phrase of questions and answers that needs no scene, to train a tokenizer on."""
    texts = [
        phrase
        for by_language in _TEMPLATES.values()
        for phrases in by_language.values()
        for phrase in phrases
    ]
    texts += _WORDING["system_prompts"]
    fixed = [say.IDENTITY, say.NOT_KNOWN, say.PICTURE_MISSING, *say.SMALL_TALK.values()]
    return texts + [answers[language] for answers in fixed for language in LANGUAGES]
