"""Draw the demo's own pictures: for the README, for tests, for trying things out.

python -m worker.demo.pictures                     # writes worker/demo/sheep.png and cat.png
python -m worker.demo.pictures --clip FOLDER       # eight frames of a sheep that walks, as PNG
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from PIL import Image

from worker.demo import SHEEP_PICTURE
from worker.demo.clips import CLIP_FRAMES
from worker.demo.scenes import Animal, Scene, draw

_COLOURS_IN_FILE = 128  # a palette keeps the files small and cartoons do not notice


def sheep_scene() -> Scene:
    """Four white sheep on a meadow by day, 448 by 299 pixels."""
    flock = (
        Animal("sheep", "white", 0.2, 0.66, 0.24, "right"),
        Animal("sheep", "white", 0.74, 0.6, 0.21, "left", 1),
        Animal("sheep", "white", 0.45, 0.82, 0.28, "left"),
        Animal("sheep", "white", 0.82, 0.94, 0.31, "left", 1),
    )
    return Scene(448, 299, "day", 17, flock)


def cat_scene() -> Scene:
    """One orange cat on a meadow in the evening, 320 by 320 pixels."""
    return Scene(320, 320, "evening", 3, (Animal("cat", "orange", 0.52, 0.86, 0.5, "right"),))


def walking_sheep(frames: int = CLIP_FRAMES) -> list[Scene]:
    """A white sheep that walks from left to right past two black dogs.

    Args:
        frames: 2 or more; more frames make a smoother film of the same walk.
    """
    dogs = (
        Animal("dog", "black", 0.3, 0.62, 0.22, "right"),
        Animal("dog", "black", 0.68, 0.6, 0.22, "left"),
    )
    blank = Scene(336, 224, "day", 8, dogs)
    walker = Animal("sheep", "white", 0.0, 0.92, 0.36)
    scenes = []
    for index in range(frames):
        x = 0.16 + 0.68 * index / (frames - 1)
        pose = int(x * 24) % 2
        scenes.append(replace(blank, animals=(*dogs, replace(walker, x=x, pose=pose))))
    return scenes


def save(scene: Scene, path: Path) -> None:
    """Write a scene as a small PNG."""
    picture = draw(scene)
    picture.quantize(_COLOURS_IN_FILE, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clip", type=Path, help="folder for the frames of a clip")
    options = parser.parse_args()
    if options.clip:
        options.clip.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(walking_sheep(), 1):
            save(scene, options.clip / f"frame{number}.png")
        return
    save(sheep_scene(), SHEEP_PICTURE)
    save(cat_scene(), SHEEP_PICTURE.with_name("cat.png"))


if __name__ == "__main__":
    main()
