"""The demo model's card: what it is, what it is not, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from worker.demo.evaluate import Score

_CARD = """---
license: apache-2.0
language: [zh, en]
pipeline_tag: image-text-to-text
---
# The demo model of Forebay

A vision-language model of 7.4 million parameters in the architecture of Qwen2-VL that **knows
cartoon meadows and nothing else**: sheep, cats, dogs, cows and pigs as `worker/demo/scenes.py`
draws them. It was trained from nothing on such drawings only; no picture or text of anybody else
went in. It exists so that a first command on a laptop, and every test, gets a true answer about a
real picture. On photos its answers mean nothing.

It describes a picture, counts, names kinds and colours, says what is not there, compares two
pictures, describes a video given as eight frames, answers follow-up questions, and says who it is,
in Chinese and English. It answers greedily; answers have one form, so they can be checked letter by
letter.

## Figures
Exact answers on held-out scenes: random sizes (240 to 1024 pixels on the longer side, 1:2 to 2:1),
three of five as JPEG of quality 75 to 95, random paraphrases in both languages, frames of a video
shrunk to at most 168 × 168 pixels' worth.

| task | right | of | |
|---|---|---|---|
{rows}

Training: {training}

## Commands
```
python -m worker.demo.train --out FOLDER --minutes 9       # one GPU; ends with such figures
python -m worker.demo.train --start worker/demo/model --seed 6 --out FOLDER --minutes 9
python -m torch.distributed.run --nproc-per-node 2 -m -- worker.demo.train --out FOLDER  # two
python -m worker.demo.evaluate --scenes 50                 # a sample of the figures, on a CPU
```
"""


def write_card(folder: Path, scores: Mapping[str, Score], training: str) -> None:
    """Write README.md into the model's folder.

    Args:
        folder: the model's.
        scores: by task, as `evaluate.evaluate` measured them.
        training: one sentence on how the weights came about.
    """
    rows = "\n".join(
        f"| {task} | {score.right} | {score.total} | {score.right / max(1, score.total):.1%} |"
        for task, score in scores.items()
    )
    text = _CARD.format(rows=rows, training=training)
    (folder / "README.md").write_text(text, encoding="utf-8")
