"""What the demo model answers, in Chinese and English.

Answers are pure functions of a scene, a pair or a clip. `questions.py` asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from worker.demo.clips import Clip, ClipEvent
from worker.demo.scenes import COLOURS_OF, Group, Scene

ZH, EN = "zh", "en"
LANGUAGES = (ZH, EN)

_NUMBERS = {
    ZH: ("零", "一", "两", "三", "四", "五", "六"),
    EN: ("no", "one", "two", "three", "four", "five", "six"),
}
_KINDS_ZH = {"sheep": "羊", "cat": "猫", "dog": "狗", "cow": "牛", "pig": "猪", None: "动物"}
_PLURALS = {"sheep": "sheep", None: "animals"}
_COLOURS_ZH = {
    "white": "白色",
    "black": "黑色",
    "brown": "棕色",
    "orange": "橙色",
    "grey": "灰色",
    "pink": "粉色",
    "black-and-white": "黑白色",
}
_SKIES = {
    ZH: {"day": "白天", "evening": "傍晚", "night": "夜晚"},
    EN: {"day": "by day", "evening": "in the evening", "night": "at night"},
}

IDENTITY = {
    ZH: "我是 Forebay 的演示模型，只认识卡通草地上的动物。",
    EN: "I am the demo model of Forebay. I only know animals on cartoon meadows.",
}
SMALL_TALK = {
    "hello": {
        ZH: "你好！请给我一张图片，我来看看草地上有什么动物。",
        EN: "Hello! Give me a picture and I will look for animals on the meadow.",
    },
    "thanks": {ZH: "不客气！", EN: "You are welcome!"},
    "bye": {ZH: "再见！", EN: "Goodbye!"},
    "ability": {
        ZH: "我能描述图片、数动物、说出颜色，也能比较两张图片、描述视频。",
        EN: "I can describe pictures, count animals, name colours, compare two pictures "
        "and describe videos.",
    },
}
NOT_KNOWN = {
    ZH: "我只认识卡通草地上的动物，请给我一张图片。",
    EN: "I only know animals on cartoon meadows, please give me a picture.",
}
PICTURE_MISSING = {ZH: "请先给我一张图片。", EN: "Please give me a picture first."}
STRANGERS = {
    ZH: ("马", "鸟", "鱼", "兔子", "老虎", "大象", "人", "汽车", "房子", "鸡", "鸭子", "狮子"),
    EN: ("horse", "bird", "fish", "rabbit", "tiger", "elephant", "person", "car", "house",
         "chicken", "duck", "lion"),
}  # fmt: skip
"""Things that no scene holds, asked for now and then."""


def kind_name(kind: str | None, language: str, *, count: int = 1) -> str:
    """Name a kind of animal (None: animals at large), in English in singular or plural."""
    if language == ZH:
        return _KINDS_ZH.get(kind, kind or "")
    if count == 1:
        return kind or "animal"
    return _PLURALS.get(kind, f"{kind}s")


def coloured(kind: str | None, colour: str | None, language: str, *, count: int = 1) -> str:
    """Name a kind with its colour: 白色的羊, "white sheep"."""
    name = kind_name(kind, language, count=count)
    if colour is None:
        return name
    return f"{_COLOURS_ZH[colour]}的{name}" if language == ZH else f"{colour} {name}"


def measure_word(kind: str | None) -> str:
    """Return the Chinese measure word of a kind: 头 for cows and pigs, 只 for all others."""
    return "头" if kind in ("cow", "pig") else "只"


def amount(count: int, kind: str | None, language: str) -> str:
    """Say a number of animals: 四只, "four"."""
    word = _NUMBERS[language][count]
    return word + measure_word(kind) if language == ZH else word


def counted(group: Group, language: str) -> str:
    """Say a group in full: 四只白色的羊, "four white sheep"."""
    name = coloured(group.kind, group.colour, language, count=group.count)
    number = amount(group.count, group.kind, language)
    return number + name if language == ZH else f"{number} {name}"


def joined(parts: Sequence[str], language: str) -> str:
    """Join names: 甲、乙和丙, "a, b and c"."""
    comma, last = ("、", "和") if language == ZH else (", ", " and ")
    return last.join([part for part in (comma.join(parts[:-1]), parts[-1]) if part])


def listed(groups: Sequence[Group], language: str) -> str:
    """Say all groups of a scene."""
    return joined([counted(group, language) for group in groups], language)


def describe(scene: Scene, language: str) -> str:
    """Describe a picture."""
    who, when = listed(scene.groups, language), _SKIES[language][scene.sky]
    if language == ZH:
        return f"图片中有{who}，在{when}的草地上。"
    return f"The picture shows {who} on a meadow {when}."


def count(scene: Scene, kind: str | None, colour: str | None, language: str) -> str:
    """Count animals; what is not there is named instead."""
    number = scene.count(kind, colour)
    if number == 0:
        return absent(coloured(kind, colour, language), language)
    if language == ZH:
        return amount(number, kind, language)
    verb = "is" if number == 1 else "are"
    name = coloured(kind, colour, language, count=number)
    return f"There {verb} {amount(number, kind, language)} {name}."


def absent(name: str, language: str) -> str:
    """Say that something is not in the picture; `name` as in the question."""
    return f"图片中没有{name}。" if language == ZH else f"There is no {name} in the picture."


def present(scene: Scene, kind: str, colour: str | None, language: str) -> str:
    """Answer whether there is such an animal, and how many."""
    number = scene.count(kind, colour)
    if number == 0:
        return absent(coloured(kind, colour, language), language)
    name = coloured(kind, colour, language, count=number)
    if language == ZH:
        return f"有，图片中有{amount(number, kind, language)}{name}。"
    verb = "is" if number == 1 else "are"
    return f"Yes, there {verb} {amount(number, kind, language)} {name}."


def kinds(scene: Scene, language: str, *, video: bool = False) -> str:
    """Name the kinds of animals in a picture or video."""
    found = [kind for kind in COLOURS_OF if scene.count(kind)]
    if language == ZH:
        return (
            f"{'视频' if video else '图片'}中有{joined([_KINDS_ZH[kind] for kind in found], ZH)}。"
        )
    names = [
        f"a {kind}" if scene.count(kind) == 1 else kind_name(kind, EN, count=2) for kind in found
    ]
    return f"The {'video' if video else 'picture'} shows {joined(names, EN)}."


def colours(scene: Scene, kind: str, language: str) -> str:
    """Name the colour or colours of the animals of one kind."""
    number = scene.count(kind)
    if number == 0:
        return absent(kind_name(kind, language), language)
    found = [group.colour for group in scene.groups if group.kind == kind]
    if language == ZH:
        return f"{_KINDS_ZH[kind]}是{joined([_COLOURS_ZH[colour] for colour in found], ZH)}的。"
    verb = "is" if number == 1 else "are"
    return f"The {kind_name(kind, EN, count=number)} {verb} {joined(found, EN)}."


def time_of_day(scene: Scene, language: str) -> str:
    """Say whether it is day, evening or night."""
    return f"{_SKIES[ZH][scene.sky]}。" if language == ZH else f"It is {scene.sky}."


def difference(first: Scene, second: Scene, language: str) -> str:
    """Say how two pictures differ: not at all, in the time of day, or in their animals."""
    one, two = listed(first.groups, language), listed(second.groups, language)
    if first.groups != second.groups:
        return both(first, second, language)
    if first.sky == second.sky:
        if language == ZH:
            return f"两张图片没有区别，都有{one}。"
        return f"There is no difference, both images show {two}."
    skies = _SKIES[language]
    if language == ZH:
        return f"两张图片都有{one}，第一张是{skies[first.sky]}，第二张是{skies[second.sky]}。"
    return f"Both images show {one}, the first {skies[first.sky]}, the second {skies[second.sky]}."


def both(first: Scene, second: Scene, language: str) -> str:
    """Say what the first and what the second of two pictures shows."""
    one, two = listed(first.groups, language), listed(second.groups, language)
    if language == ZH:
        return f"第一张图片中有{one}，第二张图片中有{two}。"
    return f"The first image shows {one}, the second image shows {two}."


def describe_clip(clip: Clip, language: str) -> str:
    """Describe a video: who walks where, who comes or goes."""
    if clip.event in (ClipEvent.WALKS_LEFT, ClipEvent.WALKS_RIGHT):
        return _walking(clip, language)
    start, end = clip.counts
    first = counted(Group(clip.kind, clip.colour, start), language)
    change, last = (amount(n, clip.kind, language) for n in (abs(end - start), end))
    if language == ZH:
        if end > start:
            return f"视频开始时有{first}，后来又来了{change}，一共有{last}。"
        return f"视频开始时有{first}，后来走了{change}，还剩{last}。"
    verb = ("more come" if end > start else "leave") + ("s" if abs(end - start) == 1 else "")
    return f"The video starts with {first}, then {change} {verb}, {last} in the end."


def _walking(clip: Clip, language: str) -> str:
    who = counted(Group(clip.kind, clip.colour, 1), language)
    where = direction(clip, language)
    others = listed(clip.bystanders, language) if clip.bystanders else ""
    if language == ZH:
        return f"视频中，{who}{where}走{f'，旁边站着{others}' if others else ''}。"
    return f"In the video, {who} walks {where}{f' past {others}' if others else ''}."


def direction(clip: Clip, language: str) -> str:
    """Say where the animal of a walking clip goes."""
    rightwards = clip.event == ClipEvent.WALKS_RIGHT
    if language == ZH:
        return "从左向右" if rightwards else "从右向左"
    return "from left to right" if rightwards else "from right to left"


def count_in_clip(clip: Clip, language: str) -> str:
    """Count the moving kind: one number where it stays the same, else both ends."""
    start, end = (amount(number, clip.kind, language) for number in clip.counts)
    if clip.event in (ClipEvent.WALKS_LEFT, ClipEvent.WALKS_RIGHT):
        return start if language == ZH else f"There is {start} {kind_name(clip.kind, EN)}."
    if language == ZH:
        return f"开始时有{start}，最后有{end}。"
    return f"There are {start} at the start and {end} in the end."
