"""Short clips: an animal walks across the meadow, or animals join or leave."""

# ruff: noqa: PLR2004  # chances and sizes are read where they stand

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from worker.demo.scenes import SKIES, Animal, Group, Scene, place, random_species

CLIP_FRAMES = 8


class ClipEvent(StrEnum):
    """What happens in a clip."""

    WALKS_RIGHT = "walks_right"
    WALKS_LEFT = "walks_left"
    JOIN = "join"
    LEAVE = "leave"


@dataclass(frozen=True)
class Clip:
    """A short video: what happens, to whom, and the frames in order."""

    event: ClipEvent
    kind: str  # of the animals that move
    colour: str
    frames: tuple[Scene, ...]

    @property
    def bystanders(self) -> tuple[Group, ...]:
        """The animals of another kind or colour, which stand still."""
        moving = (self.kind, self.colour)
        return tuple(
            group for group in self.frames[0].groups if (group.kind, group.colour) != moving
        )

    @property
    def counts(self) -> tuple[int, int]:
        """How many animals of the moving kind are in sight at the start and at the end."""
        return _in_sight(self, self.frames[0]), _in_sight(self, self.frames[-1])


def _in_sight(clip: Clip, scene: Scene) -> int:
    return sum(
        animal.kind == clip.kind and animal.colour == clip.colour and 0 < animal.x < 1
        for animal in scene.animals
    )


def make_clip(
    seed: int | Random, width: int = 336, height: int = 224, frames: int = CLIP_FRAMES
) -> Clip:
    """Make a short clip: one animal walks across the meadow, or animals join or leave.

    Args:
        seed: the same arguments give the same clip; a Random is drawn from.
        width: pixels of a frame, at least 56.
        height: pixels of a frame, at least 56.
        frames: 2 to 64; the event always begins and ends within them.
    """
    random = seed if isinstance(seed, Random) else Random(seed)
    event = random.choice(tuple(ClipEvent))
    moving = random_species(random)
    blank = Scene(width, height, random.choices(SKIES, (5, 2, 3))[0], random.getrandbits(30), ())
    if event in (ClipEvent.WALKS_LEFT, ClipEvent.WALKS_RIGHT):
        scenes = _walk(random, blank, moving, frames)
    else:
        scenes = _gather(random, blank, moving, frames)
    if event in (ClipEvent.WALKS_LEFT, ClipEvent.LEAVE):
        scenes = [_turned(scene, moving) for scene in reversed(scenes)]
    return Clip(event, *moving, tuple(scenes))


def _walk(random: Random, blank: Scene, moving: tuple[str, str], frames: int) -> list[Scene]:
    """One animal walks from left to right in front of up to three that stand."""
    aspect = blank.width / blank.height
    size = random.uniform(0.26, 0.42)
    y = random.uniform(0.82, 0.96)
    start, end = random.uniform(0.08, 0.25), random.uniform(0.75, 0.92)
    species = random_species(random)
    count = 0 if species == moving else random.choice((0, 0, 1, 2, 3))
    standing = _stand(random, [species] * count, aspect)
    path = [start + (end - start) * index / (frames - 1) for index in range(frames)]
    walker = Animal(*moving, start, y, size)
    return [
        replace(blank, animals=(*standing, replace(walker, x=x, pose=index % 2)))
        for index, x in enumerate(path)
    ]


def _stand(random: Random, species: list[tuple[str, str]], aspect: float) -> tuple[Animal, ...]:
    """Place animals side by side in the background."""
    size = min(0.3, 0.8 * aspect**0.5 / max(3, len(species)))
    slots = random.sample(range(3), len(species))
    return tuple(
        Animal(
            kind,
            colour,
            (slot + 0.5) / 3 + random.uniform(-0.03, 0.03),
            random.uniform(0.58, 0.64),
            size,
            random.choice(("left", "right")),
        )
        for (kind, colour), slot in zip(species, slots, strict=True)
    )


def _gather(random: Random, blank: Scene, moving: tuple[str, str], frames: int) -> list[Scene]:
    """Some animals stand, one to three of the same kind come in from the side and stay."""
    total = random.randint(2, 5)
    comers = random.randint(1, min(3, total - 1))
    spots = place(random, [moving] * total, blank.width / blank.height)
    from_left = random.random() < 0.5
    coming, staying = spots[:comers], [replace(spot, pose=0) for spot in spots[comers:]]
    scenes = []
    for index in range(frames):
        arriving = [_arriving(spot, index / (frames - 1), from_left) for spot in coming]
        scenes.append(replace(blank, animals=(*arriving, *staying)))
    return scenes


def _arriving(spot: Animal, time: float, from_left: bool) -> Animal:
    """Return an animal on its way from outside the picture (time 0) to its spot (0.85 on)."""
    outside = -0.3 if from_left else 1.3
    done = min(1.0, time / 0.85)
    facing = "right" if from_left else "left"
    walking = done < 1 and round(time * 7) % 2
    return replace(spot, x=outside + (spot.x - outside) * done, facing=facing, pose=int(walking))


def _turned(scene: Scene, moving: tuple[str, str]) -> Scene:
    """Let the moving animals look the other way: time runs backwards, they do not."""
    turned = {"left": "right", "right": "left"}
    animals = tuple(
        replace(one, facing=turned[one.facing]) if (one.kind, one.colour) == moving else one
        for one in scene.animals
    )
    return replace(scene, animals=animals)
