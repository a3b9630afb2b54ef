"""The empty meadow behind the animals: sky, hills, trees, clouds, flowers."""

# ruff: noqa: PLR0917  # drawings are lists of places

from __future__ import annotations

from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw

HORIZON = 0.42
"""Where the grass begins, as a share of the picture's height from above."""

Colour = tuple[int, int, int]


# Per sky: colour at the top, at the horizon, far hill, near hill, grass far, grass near.
_PALETTES: dict[str, tuple[Colour, ...]] = {
    "day": (
        (98, 178, 240),
        (206, 234, 250),
        (130, 190, 120),
        (108, 178, 88),
        (140, 205, 92),
        (96, 172, 64),
    ),
    "evening": (
        (226, 104, 92),
        (253, 208, 128),
        (150, 120, 110),
        (134, 134, 78),
        (176, 172, 84),
        (122, 136, 62),
    ),
    "night": ((14, 20, 58), (58, 72, 124), (38, 62, 78), (34, 74, 66), (52, 96, 72), (32, 72, 54)),
}
_OVERSAMPLING = 2  # painted this much larger, then reduced: smooth outlines


@lru_cache(maxsize=64)
def paint_meadow(width: int, height: int, sky: str, seed: int) -> Image.Image:
    """Paint a meadow without animals.

    Args:
        width: pixels, 16 to 4096.
        height: pixels, 16 to 4096.
        sky: "day", "evening" or "night".
        seed: chooses hills, trees, clouds and flowers; the same seed paints the same meadow.

    Returns:
        An RGB picture of width by height pixels, shared with later callers: copy it to draw on it.
    """
    random = Random(seed)
    size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    top, low, far, near, grass, ground = _PALETTES[sky]
    picture = Image.new("RGB", size)
    horizon = round(size[1] * HORIZON)
    picture.paste(_gradient(size[0], horizon, top, low), (0, 0))
    picture.paste(_gradient(size[0], size[1] - horizon, grass, ground), (0, horizon))
    draw = ImageDraw.Draw(picture)
    _sky_lights(draw, size, sky, random)
    _hills(draw, size, far, near, grass, random)
    _trees(draw, size, near, random)
    _flowers(draw, size, ground, random)
    return picture.reduce(_OVERSAMPLING)


def _gradient(width: int, height: int, top: Colour, low: Colour) -> Image.Image:
    column = Image.new("RGB", (1, 2))
    column.putdata([top, low])
    return column.resize((1, height), Image.Resampling.BILINEAR).resize(
        (width, height), Image.Resampling.NEAREST
    )


def _disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, fill: Colour
) -> None:
    draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=fill)


def _sky_lights(draw: ImageDraw.ImageDraw, size: tuple[int, int], sky: str, random: Random) -> None:
    """Put up the sun or the moon, then stars at night and clouds otherwise."""
    width, height = size
    unit = min(size)
    x, y = random.uniform(0.1, 0.9) * width, random.uniform(0.08, 0.2) * height
    _disc(
        draw, x, y, unit * 0.06, unit * 0.06, (245, 240, 214) if sky == "night" else (255, 222, 92)
    )
    if sky == "night":
        _disc(draw, x + unit * 0.025, y - unit * 0.01, unit * 0.05, unit * 0.05, (20, 27, 66))
        for _ in range(14):
            star = (random.random() * width, random.random() * HORIZON * 0.75 * height)
            _disc(draw, *star, unit * 0.004, unit * 0.004, (240, 240, 220))
        return
    cloud = (255, 255, 255) if sky == "day" else (252, 186, 150)
    for _ in range(random.randint(0, 3)):
        x, y, radius = random.random() * width, random.uniform(0.05, 0.24) * height, unit * 0.04
        for step in (-1.3, 0.0, 1.3):
            tall = radius * (1.0 if step == 0.0 else 0.7)
            _disc(draw, x + step * radius, y + (radius - tall), radius * 1.1, tall, cloud)


def _hills(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    far: Colour,
    near: Colour,
    grass: Colour,
    random: Random,
) -> None:
    width, height = size
    for colour, rise in ((far, 0.16), (near, 0.09)):
        for _ in range(2):
            x, radius = random.random() * width, random.uniform(0.35, 0.7) * width
            draw.pieslice(
                [x - radius, height * (HORIZON - rise), x + radius, height * (HORIZON + rise)],
                180, 360, fill=colour,
            )  # fmt: skip
    draw.ellipse(
        [-0.3 * width, height * (HORIZON - 0.02), 1.3 * width, height * (HORIZON + 0.3)], fill=grass
    )


def _trees(draw: ImageDraw.ImageDraw, size: tuple[int, int], near: Colour, random: Random) -> None:
    width, height = size
    unit = min(size) * 0.05
    leaves = tuple(round(part * 0.72) for part in near)
    for _ in range(random.randint(0, 4)):
        x, y = random.random() * width, (HORIZON + 0.02) * height
        draw.rectangle([x - unit * 0.18, y - unit, x + unit * 0.18, y], fill=(96, 70, 50))
        for dx, dy in ((-0.6, -1.3), (0.6, -1.3), (0.0, -2.0)):
            _disc(draw, x + dx * unit, y + dy * unit, unit * 0.85, unit * 0.8, leaves)  # type: ignore[arg-type]  # three parts stay three


def _flowers(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], ground: Colour, random: Random
) -> None:
    width, height = size
    unit = min(size) * 0.008
    blade = tuple(round(part * 0.82) for part in ground)
    for _ in range(random.randint(6, 16)):
        x, y = random.random() * width, random.uniform(HORIZON + 0.08, 0.99) * height
        for lean in (-1.5, 0.0, 1.5):
            draw.line(
                [x, y, x + lean * unit, y - 3 * unit], fill=blade, width=max(1, round(unit * 0.7))
            )
    petals = ((255, 255, 255), (255, 214, 92), (238, 120, 160))
    for _ in range(random.randint(0, 12)):
        x, y = random.random() * width, random.uniform(HORIZON + 0.08, 0.99) * height
        _disc(draw, x, y, unit * 1.1, unit * 1.1, random.choice(petals))
        _disc(draw, x, y, unit * 0.45, unit * 0.45, (250, 180, 40))
