"""The cartoon meadows that the demo model knows: what is in them, and how they are drawn.

A scene is a plain value that says which animals stand where; `draw` turns it into a picture. The
same seed gives the same scene everywhere, so training, tests and load generators can speak of
"scene 17" and know the true answer to every question about it.
"""

# ruff: noqa: PLR2004  # chances and sizes are read where they stand

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from worker.demo.meadow import HORIZON, paint_meadow
from worker.demo.sprites import sprite

MAX_ANIMALS = 6

COLOURS_OF: dict[str, tuple[str, ...]] = {
    "sheep": ("white", "black", "brown"),
    "cat": ("orange", "grey", "black"),
    "dog": ("brown", "white", "black"),
    "cow": ("black-and-white", "brown"),
    "pig": ("pink", "black"),
}
"""Every kind of animal with the colours in which it occurs; the order is that of all answers."""

KINDS = tuple(COLOURS_OF)
SKIES = ("day", "evening", "night")


@dataclass(frozen=True)
class Group:
    """Animals of one kind and colour, as answers count them."""

    kind: str
    colour: str
    count: int  # 1 to MAX_ANIMALS


@dataclass(frozen=True)
class Animal:
    """One animal and its place."""

    kind: str  # a key of COLOURS_OF
    colour: str  # one of COLOURS_OF[kind]
    x: float  # middle, share of the width from the left; outside 0 to 1 it is out of sight
    y: float  # feet, share of the height from above
    size: float  # its width as a share of the square root of the picture's area
    facing: str = "right"  # or "left"
    pose: int = 0  # 0 stands, 1 in mid-stride


@dataclass(frozen=True)
class Scene:
    """One picture's content."""

    width: int  # pixels
    height: int  # pixels
    sky: str  # one of SKIES
    meadow: int  # seed of hills, trees, clouds and flowers
    animals: tuple[Animal, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The animals counted by kind and colour, in the order of `COLOURS_OF`."""
        counts = Counter((animal.kind, animal.colour) for animal in self.animals)
        return tuple(
            Group(kind, colour, counts[kind, colour])
            for kind, colours in COLOURS_OF.items()
            for colour in colours
            if counts[kind, colour]
        )

    def count(self, kind: str | None = None, colour: str | None = None) -> int:
        """Count the animals of a kind and colour; None stands for any."""
        return sum(
            group.count
            for group in self.groups
            if kind in (None, group.kind) and colour in (None, group.colour)
        )


def draw(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB picture of scene.width by scene.height pixels; 3 ms at 336 by 252."""
    picture = paint_meadow(scene.width, scene.height, scene.sky, scene.meadow).copy()
    scale = (scene.width * scene.height) ** 0.5
    for animal in sorted(
        scene.animals, key=lambda one: one.y
    ):  # the near ones stand before the far
        width = max(4, round(animal.size * scale))
        figure = sprite(animal.kind, animal.colour, animal.facing, animal.pose, width)
        left = round(animal.x * scene.width - figure.width / 2)
        top = round(animal.y * scene.height - figure.height)
        picture.paste(figure, (left, top), figure)
    return picture


def make_scene(seed: int | Random, width: int = 448, height: int = 336) -> Scene:
    """Make a meadow with one to six animals in one to three groups.

    Args:
        seed: the same seed, width and height give the same scene; a Random is drawn from.
        width: pixels, at least 56; the aspect ratio may be 1:2 to 2:1.
        height: pixels, at least 56.
    """
    random = seed if isinstance(seed, Random) else Random(seed)
    return populate(random, _random_groups(random), width, height)


def populate(
    random: Random, groups: list[Group], width: int, height: int, sky: str | None = None
) -> Scene:
    """Place the animals of groups on a new meadow so that none hides another."""
    meadow = random.getrandbits(30)
    chosen = sky or random.choices(SKIES, (5, 2, 3))[0]
    species = [(group.kind, group.colour) for group in groups for _ in range(group.count)]
    random.shuffle(species)
    return Scene(width, height, chosen, meadow, place(random, species, width / height))


def _random_groups(random: Random) -> list[Group]:
    total = random.randint(1, MAX_ANIMALS)
    number = min(total, random.choices((1, 2, 3), (50, 37, 13))[0])
    cuts = sorted(random.sample(range(1, total), number - 1))
    counts = [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < number:
        species = random_species(random)
        if species not in chosen:
            chosen.append(species)
    return [Group(*species, count) for species, count in zip(chosen, counts, strict=True)]


def random_species(random: Random) -> tuple[str, str]:
    """Choose a kind and one of its colours."""
    kind = random.choice(KINDS)
    return kind, random.choice(COLOURS_OF[kind])


def place(random: Random, species: list[tuple[str, str]], aspect: float) -> tuple[Animal, ...]:
    """Find a place for each animal so that none hides another; aspect is width over height.

    After many failures all animals become smaller.
    """
    size = random.uniform(0.19, min(0.5, 0.68 / len(species) ** 0.5))
    while True:
        placed: list[Animal] = []
        for kind, colour in species:
            for _ in range(25):
                candidate = _somewhere(random, kind, colour, size, aspect)
                if all(_overlap(candidate, other, aspect) < _MAX_OVERLAP for other in placed):
                    placed.append(candidate)
                    break
        if len(placed) == len(species):
            return tuple(placed)
        size *= 0.93


_MAX_OVERLAP = 0.1  # of the smaller body's box: enough for a lively herd, too little to hide a head


def _somewhere(random: Random, kind: str, colour: str, size: float, aspect: float) -> Animal:
    y = random.uniform(HORIZON + 0.13, 0.97)
    depth = (y - HORIZON) / (1 - HORIZON)
    own = size * random.uniform(0.95, 1.1) * (0.78 + 0.35 * depth)
    half = own * 0.5 / aspect**0.5  # share of the width
    x = random.uniform(half, 1 - half)
    return Animal(kind, colour, x, y, own, random.choice(("left", "right")), random.randint(0, 1))


def _overlap(one: Animal, other: Animal, aspect: float) -> float:
    """Return the common part of two bodies' boxes as a share of the smaller box."""
    wide = aspect**0.5
    across = min(one.x * wide + one.size / 2, other.x * wide + other.size / 2) - max(
        one.x * wide - one.size / 2, other.x * wide - other.size / 2
    )
    tops = (one.y / wide - one.size * 0.72, other.y / wide - other.size * 0.72)
    down = min(one.y / wide, other.y / wide) - max(tops)
    if across <= 0 or down <= 0:
        return 0.0
    share: float = across * down / (0.72 * min(one.size, other.size) ** 2)
    return share


def make_pair(seed: int | Random, width: int = 448, height: int = 336) -> tuple[Scene, Scene]:
    """Make two scenes to compare: equal, changed in one respect, or quite different."""
    random = seed if isinstance(seed, Random) else Random(seed)
    first = make_scene(random, width, height)
    change = random.choices(tuple(_CHANGES), (2, 1, 2, 3, 2, 2, 5))[0]
    return first, _CHANGES[change](random, first)


def _same(_: Random, scene: Scene) -> Scene:
    return scene


def _moved(random: Random, scene: Scene) -> Scene:
    return populate(random, list(scene.groups), scene.width, scene.height, scene.sky)


def _other_sky(random: Random, scene: Scene) -> Scene:
    return replace(scene, sky=random.choice([sky for sky in SKIES if sky != scene.sky]))


def _one_more_or_less(random: Random, scene: Scene) -> Scene:
    if len(scene.animals) > 1 and (len(scene.animals) == MAX_ANIMALS or random.random() < 0.5):
        gone = random.randrange(len(scene.animals))
        return replace(scene, animals=scene.animals[:gone] + scene.animals[gone + 1 :])
    groups = list(scene.groups)
    grown = random.randrange(len(groups))
    groups[grown] = replace(groups[grown], count=groups[grown].count + 1)
    return populate(random, groups, scene.width, scene.height, scene.sky)


def _recoloured(random: Random, scene: Scene) -> Scene:
    chosen = random.choice(scene.groups)
    others = [colour for colour in COLOURS_OF[chosen.kind] if colour != chosen.colour]
    return _regrouped(scene, chosen, chosen.kind, random.choice(others))


def _other_kind(random: Random, scene: Scene) -> Scene:
    chosen = random.choice(scene.groups)
    kind = random.choice([kind for kind in KINDS if kind != chosen.kind])
    return _regrouped(scene, chosen, kind, random.choice(COLOURS_OF[kind]))


def _regrouped(scene: Scene, group: Group, kind: str, colour: str) -> Scene:
    was = (group.kind, group.colour)
    return replace(
        scene,
        animals=tuple(
            replace(one, kind=kind, colour=colour) if (one.kind, one.colour) == was else one
            for one in scene.animals
        ),
    )


def _another(random: Random, scene: Scene) -> Scene:
    return make_scene(random, scene.width, scene.height)


_CHANGES: dict[str, Callable[[Random, Scene], Scene]] = {
    "same": _same,
    "moved": _moved,
    "sky": _other_sky,
    "count": _one_more_or_less,
    "colour": _recoloured,
    "kind": _other_kind,
    "another": _another,
}
