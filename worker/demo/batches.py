"""Training batches: pictures of one size, drawn and spoiled as in real life, with dialogues.

Everything here is NumPy and Pillow and runs in loader processes; `network.py` takes the batches.
"""

# ruff: noqa: PLR2004  # chances and sizes are read where they stand

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from worker.demo.clips import make_clip
from worker.demo.dialogues import Dialogue, training_dialogues
from worker.demo.layout import ANSWER_END, ANSWER_START, PICTURE_TOKEN, render
from worker.demo.scenes import COLOURS_OF, Scene, draw, make_pair, make_scene

Ids = npt.NDArray[np.int64]

IGNORED = -100  # label of a token that is not learned
_CELL = 28
SPECIES = tuple((kind, colour) for kind, colours in COLOURS_OF.items() for colour in colours)
_MEADOWS = 12  # different ones in a batch: painting them takes most of the time
_RESAMPLING = (Image.Resampling.BICUBIC, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Batch:
    """Pictures of one size and dialogues about them, padded on the right."""

    pixels: npt.NDArray[np.uint8]  # (pictures, height, width, 3) RGB; sides are multiples of 28
    tokens: Ids  # (dialogues, length)
    labels: Ids  # (dialogues, length), the next token where it belongs to an answer, else IGNORED
    positions: Ids  # (3, dialogues, length): time, height, width as Qwen2-VL counts them
    features: Ids  # (picture tokens,): row among all pictures' cells, in reading order
    marks: Ids  # (pictures, cells): 1 + index in SPECIES of the animal whose middle is here, else 0


def spoil(random: Random, picture: Image.Image) -> Image.Image:
    """Return the picture as tools leave it: mostly a JPEG of quality 75 to 95, seldom a palette."""
    chance = random.random()
    if chance < 0.02:
        return picture.quantize(random.choice((64, 128, 256))).convert("RGB")
    if chance < 0.4:
        return picture
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=random.randint(75, 95), subsampling=random.choice((0, 2)))
    return Image.open(buffer)


def random_size(random: Random, low: int, high: int) -> tuple[int, int]:
    """Choose width and height in cells of 28 pixels, low to high cells in all, at most 2:1."""
    sizes = [
        (wide, tall)
        for wide in range(2, 18)
        for tall in range(2, 18)
        if low <= wide * tall <= high and 0.48 < wide / tall < 2.1
    ]
    return random.choice(sizes)


def _drawn_for(random: Random, cells: tuple[int, int]) -> tuple[int, int]:
    """Choose a drawing size that a preprocessor would shrink or stretch to these cells."""
    scale = random.choice((1.0, 1.0, random.uniform(0.9, 1.7)))
    return (
        round(cells[0] * _CELL * scale * random.uniform(0.95, 1.05)),
        round(cells[1] * _CELL * scale * random.uniform(0.95, 1.05)),
    )


def _pixels(random: Random, scene: Scene, cells: tuple[int, int]) -> npt.NDArray[np.uint8]:
    size = (cells[0] * _CELL, cells[1] * _CELL)
    picture = spoil(random, draw(scene))
    return np.asarray(picture.resize(size, random.choice(_RESAMPLING)))


def marks(scene: Scene, cells: tuple[int, int]) -> Ids:
    """Mark the cells that hold the middle of an animal, (cells,) as in `Batch.marks`."""
    wide, tall = cells
    marked = np.zeros(wide * tall, np.int64)
    aspect = scene.width / scene.height
    for animal in scene.animals:
        column = int(animal.x * wide // 1)
        row = int((animal.y - 0.4 * animal.size * aspect**0.5) * tall // 1)
        if 0 <= column < wide and 0 <= row < tall:
            marked[row * wide + column] = 1 + SPECIES.index((animal.kind, animal.colour))
    return marked


class BatchMaker:
    """Makes batches with one tokenizer; `encode` turns text into token ids."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = lru_cache(maxsize=50_000)(encode)
        self._picture_token = encode(PICTURE_TOKEN)[0]

    def steps(self, seed: int, scale: float) -> Iterator[tuple[Batch, ...]]:
        """Yield without end what one training step learns: single pictures, pairs and clips.

        Args:
            seed: of scenes and words.
            scale: 1 for about 130 pictures, 64 pairs and 26 clips; proportionally less below.
        """
        random = Random(seed)
        while True:
            yield (
                self._pictures(random, scale),
                self._pairs(random, scale),
                self._clips(random, scale),
            )

    def _pictures(self, random: Random, scale: float) -> Batch:
        low, high = random.choice(((100, 144), (100, 144), (36, 144)))
        cells = random_size(random, low, high)
        number = max(1, round(130 * scale))
        size = _drawn_for(random, cells)
        meadows = [random.getrandbits(30) for _ in range(_MEADOWS)]
        scenes = [
            replace(make_scene(random, *size), meadow=random.choice(meadows)) for _ in range(number)
        ]
        seen = [((scene,), training_dialogues(random, scene, 3)) for scene in scenes]
        return self._batch(random, seen, cells)

    def _pairs(self, random: Random, scale: float) -> Batch:
        cells = random_size(random, *random.choice(((90, 144), (36, 144))))
        number = max(1, round(64 * scale))
        pairs = [make_pair(random, *_drawn_for(random, cells)) for _ in range(number)]
        seen = [(pair, training_dialogues(random, pair, 3)) for pair in pairs]
        return self._batch(random, seen, cells)

    def _clips(self, random: Random, scale: float) -> Batch:
        low, high = random.choice(((16, 36), (16, 36), (16, 48), (48, 144)))
        cells = random_size(random, low, high)
        number = max(1, round(scale * (26 if high < 100 else 8)))
        frames = random.choice((8, 8, 8, 8, 6, 4))
        clips = [make_clip(random, *_drawn_for(random, cells), frames) for _ in range(number)]
        seen = [(clip.frames, training_dialogues(random, clip, 3)) for clip in clips]
        return self._batch(random, seen, cells)

    def _batch(
        self,
        random: Random,
        seen: Sequence[tuple[Sequence[Scene], list[Dialogue]]],
        cells: tuple[int, int],
    ) -> Batch:
        """Draw all scenes and write out all dialogues about them."""
        pixels: list[npt.NDArray[np.uint8]] = []
        rows: list[tuple[list[int], list[int]]] = []
        features: list[Ids] = []
        marked: list[Ids] = []
        area = cells[0] * cells[1]
        for scenes, dialogues in seen:
            first = len(pixels)
            pixels += [_pixels(random, scene, cells) for scene in scenes]
            marked += [marks(scene, cells) for scene in scenes]
            for dialogue in dialogues:
                rows.append(self.sequence(dialogue, area))
                for picture in dialogue.pictures:
                    start = (first + picture) * area
                    features.append(np.arange(start, start + area))
        length = max(len(tokens) for tokens, _ in rows)
        padded = [_padded(tokens, labels, length) for tokens, labels in rows]
        tokens = np.stack([tokens for tokens, _ in padded])
        positions = [mrope_positions(row, self._picture_token, cells) for row in tokens]
        return Batch(
            pixels=np.stack(pixels),
            tokens=tokens,
            labels=np.stack([labels for _, labels in padded]),
            positions=np.stack(positions, axis=1),
            features=np.concatenate(features) if features else np.zeros(0, np.int64),
            marks=np.stack(marked),
        )

    def sequence(self, dialogue: Dialogue, area: int) -> tuple[list[int], list[int]]:
        """Return token ids and labels of one dialogue; each picture takes `area` tokens.

        A label is the token that follows, where that token is part of an answer or ends one.
        """
        tokens: list[int] = []
        learned: list[bool] = []
        text = render(dialogue.messages, answer_next=False)
        for number, piece in enumerate(text.split(ANSWER_START)):
            answer, end, rest = piece.partition(ANSWER_END) if number else ("", "", piece)
            opening = ANSWER_START if number else ""
            for part, counts in ((opening, False), (answer + end, True), (rest, False)):
                ids = [
                    token
                    for one in self._encode(part)
                    for token in ([one] * area if one == self._picture_token else [one])
                ]
                tokens += ids
                learned += [counts] * len(ids)
        following = zip(tokens[1:], learned[1:], strict=True)
        return tokens, [token if counts else IGNORED for token, counts in following] + [IGNORED]


def _padded(tokens: list[int], labels: list[int], length: int) -> tuple[Ids, Ids]:
    missing = length - len(tokens)
    return np.array(tokens + [0] * missing), np.array(labels + [IGNORED] * missing)


def mrope_positions(tokens: Ids, picture_token: int, cells: tuple[int, int]) -> Ids:
    """Number a sequence's tokens as Qwen2-VL does.

    Text counts on in all three rows. A picture's cells share one time and count up in height and
    width; the text goes on after the largest of these.

    Args:
        tokens: (length,) token ids, a picture being a run of picture tokens.
        picture_token: its id.
        cells: width and height of every picture in cells.

    Returns:
        (3, length): time, height and width.

    Source: transformers, `Qwen2VLModel.get_rope_index`.
    """
    wide, tall = cells
    area = wide * tall
    ranks = np.cumsum(tokens == picture_token) - 1  # which picture token this is
    inside = tokens == picture_token
    cell = np.where(inside, ranks % area, 0)
    # A picture of `area` tokens moves what follows by max(wide, tall) only.
    passed = np.where(inside, ranks // area, (ranks + 1) // area)
    base = np.arange(len(tokens)) - passed * (area - max(wide, tall)) - cell
    offsets = np.stack([np.zeros_like(cell), cell // wide, cell % wide])
    numbers: Ids = np.where(inside, base + offsets, base)
    return numbers
