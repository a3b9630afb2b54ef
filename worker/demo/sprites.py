"""The animals of the meadow, each painted once per colour and kept as a small picture with alpha.

A painter draws an animal that faces right on a sheet of 100 by 80 units, feet at unit 78, and knows
neither its size in the scene nor its place. Sheets are painted at `_UNIT` pixels a unit; `sprite`
shrinks them, so outlines are smooth at every size.
"""

# ruff: noqa: PLR0917, PLR2004  # drawings are lists of places

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import cos, pi, sin

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "white": (250, 248, 242),
    "black": (52, 50, 58),
    "brown": (150, 98, 56),
    "orange": (240, 146, 48),
    "grey": (150, 154, 162),
    "pink": (246, 172, 184),
    "black-and-white": (248, 247, 244),
}
"""Fur by colour name, RGB 0 to 255. A black-and-white animal is white with dark patches."""

_UNIT = 6  # pixels a unit on the painted sheet: 600 by 480
_SHEET = (100 * _UNIT, 80 * _UNIT)
_INK = (44, 40, 46)
_PALE = (236, 214, 190)


class _Pen:
    """Draw on a sheet in units instead of pixels; every closed shape gets a dark outline."""

    def __init__(self, sheet: Image.Image, outline: Colour) -> None:
        self._draw = ImageDraw.Draw(sheet)
        self._outline = outline

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, line: float = 1.2
    ) -> None:
        """Fill an ellipse around (x, y) with radii rx and ry, outline `line` units wide."""
        box = [(x - rx) * _UNIT, (y - ry) * _UNIT, (x + rx) * _UNIT, (y + ry) * _UNIT]
        width = round(line * _UNIT)
        self._draw.ellipse(box, fill=fill, outline=self._outline if width else None, width=width)

    def shape(self, points: Sequence[tuple[float, float]], fill: Colour, line: float = 1.2) -> None:
        """Fill a polygon given in units, outline `line` units wide."""
        scaled = [(x * _UNIT, y * _UNIT) for x, y in points]
        self._draw.polygon(scaled, fill=fill)
        if line:
            self._draw.line([*scaled, scaled[0]], self._outline, round(line * _UNIT), joint="curve")

    def stroke(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        """Draw a line with round ends through points, `width` units wide."""
        scaled = [(x * _UNIT, y * _UNIT) for x, y in points]
        self._draw.line(scaled, colour, round(width * _UNIT), joint="curve")
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, width / 2, colour, line=0)

    def legs(self, places: list[float], top: float, width: float, fill: Colour, pose: int) -> None:
        """Draw a leg below each x; pose 1 spreads them as in a stride."""
        for index, x in enumerate(places):
            swing = (4.5 if index % 2 else -4.5) if pose else 0.0
            self.stroke([(x, top), (x + swing, 75.5)], self._outline, width + 2.2)
            self.stroke([(x, top), (x + swing, 75.5)], fill, width)

    def eye(self, x: float, y: float, size: float = 2.6) -> None:
        """Draw a round white eye with a pupil that looks ahead."""
        self.oval(x, y, size, size, (255, 255, 255), line=0.5)
        self.oval(x + size * 0.35, y + size * 0.1, size * 0.55, size * 0.55, _INK, line=0)


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (
        round(a * (1 - share) + b * share) for a, b in zip(colour, other, strict=True)
    )
    return red, green, blue


def _curve(
    x: float, y: float, radius: float, start: float, turn: float
) -> list[tuple[float, float]]:
    """Return points of an arc around (x, y); angles in half turns, clockwise from the right."""
    angles = [start + turn * step / 10 for step in range(11)]
    return [(x + radius * cos(a * pi), y + radius * sin(a * pi)) for a in angles]


def _sheep(pen: _Pen, fur: Colour, pose: int) -> None:
    face = _mixed(fur, _PALE, 0.75) if sum(fur) < 400 else (82, 74, 82)
    pen.legs([32, 42, 58, 68], 60, 5, face, pose)
    places = [(46 + 27 * cos(k * pi / 6), 42 + 17 * sin(k * pi / 6)) for k in range(12)]
    for x, y in places:
        pen.oval(x, y, 10, 10, fur, line=1.5)
    pen.oval(46, 42, 29, 19, fur, line=0)
    for x, y in [(36, 36), (52, 33), (44, 48), (60, 46)]:
        pen.stroke(
            _curve(x, y, 5, 0.1, 0.8),
            _mixed(fur, _INK if sum(fur) > 400 else (255,) * 3, 0.22),
            1.2,
        )
    pen.oval(75, 41, 4, 8, _mixed(face, _INK, 0.25))
    pen.oval(83, 38, 11, 12, face)
    pen.oval(78, 26, 8, 6, fur, line=1.2)
    pen.oval(85, 26, 6, 5, fur, line=1.2)
    pen.oval(81, 28, 6, 4, fur, line=0)
    pen.eye(87, 36)
    pen.oval(91, 43, 1.2, 1, _INK, line=0)


def _cat(pen: _Pen, fur: Colour, pose: int) -> None:
    dark = _mixed(fur, _INK, 0.45) if sum(fur) > 200 else _mixed(fur, (255, 255, 255), 0.35)
    tail = [(24, 54), (14, 46), (10, 34), (13, 22), (20, 17)]
    pen.stroke(tail, _INK, 7.4)
    pen.stroke(tail, fur, 5)
    pen.legs([32, 40, 60, 67], 60, 5, fur, pose)
    pen.oval(48, 54, 27, 12, fur)
    for x in (36, 46, 56):
        pen.stroke([(x, 43.5), (x + 1, 51)], dark, 2.4)
    for left in (66, 80):
        pen.shape([(left, 32), (left + 4, 16), (left + 13, 30)], fur)
        pen.shape([(left + 3, 29), (left + 5, 21), (left + 9, 29)], COLOURS["pink"], line=0)
    pen.oval(79, 40, 15, 13, fur)
    pen.eye(76, 37, 3.2)
    pen.eye(87, 37, 3.2)
    pen.shape([(81, 43), (86, 43), (83.5, 46)], COLOURS["pink"], line=0.5)
    for y in (43, 47):
        pen.stroke([(88, 45), (98, y)], dark, 0.9)
        pen.stroke([(74, 45), (64, y)], dark, 0.9)


def _dog(pen: _Pen, fur: Colour, pose: int) -> None:
    ear = _mixed(fur, _INK, 0.45) if sum(fur) > 200 else _mixed(fur, (255, 255, 255), 0.3)
    pen.stroke([(22, 46), (12, 36), (9, 26)], _INK, 8)
    pen.stroke([(22, 46), (12, 36), (9, 26)], fur, 5.6)
    pen.legs([26, 35, 57, 65], 58, 6.4, fur, pose)
    pen.oval(45, 51, 26, 14, fur)
    pen.shape([(56, 40), (66, 30), (76, 46), (66, 58)], fur, line=0)
    pen.stroke([(62, 55), (76, 47)], (214, 52, 56), 4)
    pen.oval(87, 39, 11, 8, _mixed(fur, _PALE, 0.5))
    pen.oval(74, 32, 14, 14, fur)
    pen.oval(87, 40, 9, 6, _mixed(fur, _PALE, 0.5), line=0)
    pen.oval(96, 35, 3.4, 3, _INK, line=0)
    pen.shape([(86, 46), (92, 46), (91, 54), (87, 54)], (240, 110, 124), line=0.7)
    pen.oval(65, 36, 6, 13, ear)
    pen.eye(79, 29, 3)


def _cow(pen: _Pen, fur: Colour, pose: int) -> None:
    patched = fur == COLOURS["black-and-white"]
    pen.stroke([(14, 34), (9, 46), (9, 58)], _INK, 2.6)
    pen.oval(9, 60, 3, 5, _INK, line=0)
    pen.legs([22, 31, 57, 65], 58, 6.6, _mixed(fur, _INK, 0.1), pose)
    pen.oval(44, 59, 7, 6, COLOURS["pink"])
    pen.shape([(14, 34), (20, 28), (62, 28), (70, 36), (69, 56), (60, 62), (22, 62), (14, 54)], fur)
    if patched:
        pen.oval(28, 40, 9, 8, COLOURS["black"], line=0)
        pen.oval(50, 50, 9, 7, COLOURS["black"], line=0)
        pen.oval(58, 34, 7, 4.5, COLOURS["black"], line=0)
    for x, tip in ((72, 66), (86, 92)):
        pen.shape([(x, 20), (tip, 8), (x + 5, 17)], (236, 220, 180))
    pen.oval(64, 25, 7, 3.6, COLOURS["black"] if patched else _mixed(fur, _INK, 0.3))
    pen.oval(80, 31, 12, 16, fur)
    if patched:
        pen.oval(75, 26, 5, 8, COLOURS["black"], line=0)
    pen.oval(85, 43, 12, 8, COLOURS["pink"])
    pen.oval(82, 43, 1.5, 2, _INK, line=0)
    pen.oval(90, 43, 1.5, 2, _INK, line=0)
    pen.eye(84, 27, 3)


def _pig(pen: _Pen, fur: Colour, pose: int) -> None:
    light = _mixed(fur, (255, 255, 255), 0.3)
    pen.stroke(_curve(12, 44, 5, 0.1, 1.7), _INK, 3.4)
    pen.stroke(_curve(12, 44, 5, 0.1, 1.7), light, 1.8)
    pen.legs([28, 38, 58, 66], 62, 7, _mixed(fur, _INK, 0.15), pose)
    pen.oval(46, 49, 31, 19, fur)
    pen.oval(75, 43, 16, 15, fur)
    pen.shape([(62, 34), (61, 20), (73, 28)], light)
    pen.shape([(76, 28), (84, 19), (87, 33)], light)
    pen.oval(89, 46, 6.5, 8, light)
    pen.oval(88, 43.5, 1.3, 2, _INK, line=0)
    pen.oval(88, 48.5, 1.3, 2, _INK, line=0)
    pen.eye(77, 39, 2.8)
    pen.oval(70, 49, 4, 2.6, _mixed(fur, (230, 60, 90), 0.35), line=0)


_PAINTERS: dict[str, Callable[[_Pen, Colour, int], None]] = {
    "sheep": _sheep,
    "cat": _cat,
    "dog": _dog,
    "cow": _cow,
    "pig": _pig,
}


_REDUCTIONS = (
    8,
    6,
    4,
    3,
    2,
    1,
)  # of the painted sheet; the smallest that is large enough is resized


@lru_cache(maxsize=1024)
def _sheet(kind: str, colour: str, facing: str, pose: int, reduction: int) -> Image.Image:
    """Paint one animal with premultiplied alpha, 600 by 480 pixels over the reduction."""
    if reduction > 1:
        return _sheet(kind, colour, facing, pose, 1).reduce(reduction)
    fur = COLOURS[colour]
    sheet = Image.new("RGBA", _SHEET, (*fur, 0))
    outline = _INK if sum(fur) > 200 else (22, 20, 26)
    _PAINTERS[kind](_Pen(sheet, outline), fur, pose)
    if facing == "left":
        sheet = sheet.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return sheet.convert("RGBa")


@lru_cache(maxsize=4096)
def sprite(kind: str, colour: str, facing: str, pose: int, width: int) -> Image.Image:
    """Return one animal as an RGBA picture, feet near its lower edge.

    Args:
        kind: "sheep", "cat", "dog", "cow" or "pig".
        colour: a key of `COLOURS`.
        facing: "left" or "right".
        pose: 0 standing, 1 in mid-stride.
        width: pixels, at least 4; the height is 0.8 of it.

    Raises:
        KeyError: a kind or colour that is not painted.
    """
    reduction = next((r for r in _REDUCTIONS if _SHEET[0] / r >= 1.2 * width), 1)
    sheet = _sheet(kind, colour, facing, pose, reduction)
    return sheet.resize((width, round(width * 0.8)), Image.Resampling.BICUBIC).convert("RGBA")
