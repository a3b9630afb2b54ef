"""Measure the demo model on scenes it has not seen: exact answers by task.

python -m worker.demo.evaluate --scenes 50          # a sample on a CPU, minutes
python -m worker.demo.evaluate --scenes 500 --device cuda --batch 100 --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter

from PIL import Image

from worker.demo import MODEL_DIR, dialogues
from worker.demo.batches import spoil
from worker.demo.clips import make_clip
from worker.demo.dialogues import Dialogue
from worker.demo.layout import VIDEO_FRAME_MAX_PIXELS
from worker.demo.questions import PICTURE_TASKS
from worker.demo.reader import Prompt, Reader
from worker.demo.scenes import Scene, draw, make_pair, make_scene

HELD_OUT_SEED = 10_000_000
"""First seed of the held-out scenes. Training draws from streams seeded otherwise."""


@dataclass(frozen=True)
class Exam:
    """A prompt and the only answer that counts."""

    prompt: Prompt
    answer: str


@dataclass
class Score:
    """Right answers of one task, and some of the wrong ones as (asked, expected, got)."""

    right: int = 0
    total: int = 0
    wrong: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, exam: Exam, got: str) -> None:
        """Count one answer."""
        self.total += 1
        self.right += got == exam.answer
        if got != exam.answer:
            self.wrong.append((str(exam.prompt.messages[-1]["content"]), exam.answer, got))


def _size(random: Random) -> tuple[int, int]:
    """Choose a picture's size as users send them: 240 to 1024 on the longer side, up to 2:1."""
    side, aspect = random.randint(240, 1024), random.uniform(0.5, 2.0)
    return (side, round(side / aspect)) if aspect > 1 else (round(side * aspect), side)


def _about_picture(random: Random, task: str, *, before: int = 0) -> tuple[Dialogue, list[Scene]]:
    scene = make_scene(random, *_size(random))
    return dialogues.about_picture(random, scene, task, before=before), [scene]


def _kind_and_colour(random: Random) -> tuple[Dialogue, list[Scene]]:
    return _about_picture(random, random.choice(("kinds", "colours")))


def _follow_up(random: Random) -> tuple[Dialogue, list[Scene]]:
    task = random.choice([task for task in PICTURE_TASKS if task != "hello"])
    return _about_picture(random, task, before=random.randint(1, 2))


def _difference(random: Random) -> tuple[Dialogue, list[Scene]]:
    pair = make_pair(random, *_size(random))
    return dialogues.about_pair(random, pair, "difference"), list(pair)


def _second_picture(random: Random) -> tuple[Dialogue, list[Scene]]:
    pair = make_pair(random, *_size(random))
    return dialogues.one_after_the_other(random, pair), list(pair)


def _video(random: Random) -> tuple[Dialogue, list[Scene]]:
    clip = make_clip(random, *_size(random))
    return dialogues.about_clip(random, clip, "video"), list(clip.frames)


def _text(random: Random) -> tuple[Dialogue, list[Scene]]:
    return dialogues.text_only(random), []


TASKS: dict[str, Callable[[Random], tuple[Dialogue, list[Scene]]]] = {
    "count": partial(_about_picture, task="count"),
    "kind and colour": _kind_and_colour,
    "describe": partial(_about_picture, task="describe"),
    "absent animal": partial(_about_picture, task="absent"),
    "difference": _difference,
    "video": _video,
    "follow-up": _follow_up,
    "second picture": _second_picture,
    "text only": _text,
}
"""What is measured; each makes a dialogue and the scenes of its pictures."""


def make_exam(task: str, number: int) -> Exam:
    """Make exam `number` of a task; pictures have random sizes and are mostly JPEGs.

    Raises:
        KeyError: the task is not one of `TASKS`.
    """
    random = Random(f"{task} {HELD_OUT_SEED + number}")
    dialogue, scenes = TASKS[task](random)
    pictures = [spoil(random, draw(scene)).convert("RGB") for scene in scenes]
    if task == "video":
        pictures = [_shrunk(picture) for picture in pictures]
    return Exam(Prompt(dialogue.prompt, tuple(pictures)), dialogue.answer)


def _shrunk(frame: Image.Image) -> Image.Image:
    """Shrink a frame as the service does before the model sees it."""
    ratio = (VIDEO_FRAME_MAX_PIXELS / (frame.width * frame.height)) ** 0.5
    if ratio >= 1:
        return frame
    return frame.resize((round(frame.width * ratio), round(frame.height * ratio)))


def evaluate(reader: Reader, scenes: int, batch: int, processes: int) -> dict[str, Score]:
    """Ask `scenes` exams of every task, `batch` at once; `processes` draw them."""
    scores = {task: Score() for task in TASKS}
    with ProcessPoolExecutor(processes) as pool:
        for task, score in scores.items():
            exams = pool.map(partial(make_exam, task), range(scenes), chunksize=8)
            waiting: list[Exam] = []
            for number, exam in enumerate(exams, 1):
                waiting.append(exam)
                if len(waiting) == batch or number == scenes:
                    _ask(reader, waiting, score)
                    waiting = []
            print(
                f"{task:>16}: {score.right} of {score.total}",
                *score.wrong[:4],
                sep="\n  ",
                flush=True,
            )
    return scores


def _ask(reader: Reader, exams: list[Exam], score: Score) -> None:
    answers = reader.answers([exam.prompt for exam in exams])
    for exam, got in zip(exams, answers, strict=True):
        score.add(exam, got)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--scenes", type=int, default=50, help="held-out scenes per task")
    parser.add_argument("--batch", type=int, default=1, help="prompts answered at once")
    parser.add_argument("--processes", type=int, default=2, help="that draw the scenes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="end with all figures as one line")
    options = parser.parse_args()
    started = perf_counter()
    reader = Reader(options.model, options.device)
    print(f"loaded in {perf_counter() - started:.1f} s", flush=True)
    scores = evaluate(reader, options.scenes, options.batch, options.processes)
    if options.json:
        print(
            json.dumps({task: asdict(score) for task, score in scores.items()}, ensure_ascii=False)
        )


if __name__ == "__main__":
    main()
