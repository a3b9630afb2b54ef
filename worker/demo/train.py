"""Train the demo model from nothing and write its Hugging Face folder.

    python -m worker.demo.train --out worker/demo/model --minutes 8

One H100 with 16 cores trains it in minutes. The run is as long as `--minutes` says, whatever the
machine; started again with the same `--checkpoint` it goes on where it was. Several GPUs learn from
as many times the pictures:

    python -m torch.distributed.run --nproc-per-node 2 -m -- worker.demo.train --out …
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import cos, pi
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from worker.demo import dialogues
from worker.demo.batches import Batch, BatchMaker
from worker.demo.card import write_card
from worker.demo.clips import make_clip
from worker.demo.evaluate import evaluate
from worker.demo.folder import build_model, build_tokenizer, write_folder
from worker.demo.layout import SPECIAL_TOKENS, render
from worker.demo.network import losses, new_marker
from worker.demo.questions import all_texts
from worker.demo.reader import Reader
from worker.demo.scenes import make_pair, make_scene
from worker.demo.team import Team

_WARM_UP = 0.02  # share of the run
_MARKS_WEIGHT = 0.5  # of the loss that names animals in cells, beside that of the answers
_CHECKPOINT_EVERY_S = 60.0
_RANK_SEEDS = 500  # between two members' seeds; each loader takes one


@dataclass
class Progress:
    """How far a run is; kept in its checkpoint."""

    step: int = 0
    trained_s: float = 0.0
    waited_s: float = 0.0  # of these, for pictures to be drawn


class Steps(IterableDataset[list[dict[str, Tensor]]]):
    """What every training step learns, drawn without end in each loader process."""

    def __init__(self, tokenizer_folder: Path, seed: int, scale: float) -> None:
        self._folder = tokenizer_folder
        self._seed = seed
        self._scale = scale

    def __iter__(self) -> Iterator[list[dict[str, Tensor]]]:
        """Yield one step's batches as tensors."""
        torch.set_num_threads(1)
        worker = get_worker_info()
        seed = self._seed + (worker.id if worker else 0)
        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        encode = tokenizer.backend_tokenizer.encode
        maker = BatchMaker(lambda text: encode(text, add_special_tokens=False).ids)
        for step in maker.steps(seed, self._scale):
            yield [_tensors(batch) for batch in step]


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {
        field.name: torch.from_numpy(np.ascontiguousarray(getattr(batch, field.name)))
        for field in fields(batch)
    }


def tokenizer_texts(samples: int = 1500) -> list[str]:
    """Return every fixed phrase and the text of sampled dialogues, without special tokens."""
    random = Random(1)
    texts = all_texts()
    for _ in range(samples):
        for seen in (make_scene(random), make_pair(random), make_clip(random)):
            (dialogue,) = dialogues.training_dialogues(random, seen, 1)
            text = render(dialogue.messages, answer_next=False)
            for token in SPECIAL_TOKENS:
                text = text.replace(token, "")
            texts.append(text)
    return texts


@dataclass(frozen=True)
class Plan:
    """What a run is to do."""

    out: Path  # the folder that is written in the end; the tokenizer is there from the start
    checkpoint: Path  # keeps the run; an existing one is continued
    start: Path | None  # folder of an earlier run whose weights and tokenizer are the beginning
    minutes: float  # length of the whole run, parts before a checkpoint counted in
    rate: float  # learning rate at its peak
    seed: int  # of weights, scenes and words
    device: str  # "cuda" or "cpu"


class Training:
    """One run: model, optimiser and progress; a checkpoint keeps all three."""

    def __init__(self, plan: Plan, team: Team) -> None:
        torch.manual_seed(plan.seed)
        self._plan = plan
        self._team = team
        self.progress = Progress()
        self.tokenizer, model = _begin(plan.start)
        if team.leads:
            self.tokenizer.save_pretrained(plan.out)
        team.wait()
        self.model = model.to(team.device)
        self._marker = new_marker(self.model).to(team.device)
        self._trained = [*self.model.parameters(), *self._marker.parameters()]
        self._optimiser = torch.optim.AdamW(
            self._trained, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.05
        )
        if plan.checkpoint.exists():
            self._resume()

    def run(self, loaders: int, scale: float) -> None:
        """Train until the time is up, then write the folder."""
        steps = DataLoader(
            Steps(self._plan.out, self._fresh_seed(), scale),
            batch_size=None,
            num_workers=loaders,
            prefetch_factor=2 if loaders else None,
            pin_memory=self._plan.device == "cuda",
        )
        last = saved = perf_counter()
        self.model.train()
        for batches in steps:
            self.progress.waited_s += perf_counter() - last
            found = self._step(batches)
            now = perf_counter()
            self.progress.trained_s += now - last
            last = now
            if self.progress.step % 50 == 1 and self._team.leads:
                self._report(found)
            if self._done >= 1:
                break
            if now - saved > _CHECKPOINT_EVERY_S and self._team.leads:
                self._save()
                saved = now
        if self._team.leads:
            self._save()
            write_folder(self._plan.out, self.model.cpu(), self.tokenizer)

    def _fresh_seed(self) -> int:
        """Return a seed whose scenes neither an earlier part nor another seed's run has drawn."""
        ours = _RANK_SEEDS * self._team.rank
        return 1_000_003 * self._plan.seed + 1009 * self.progress.step + ours

    @property
    def _done(self) -> float:
        """The share of the run that is over."""
        return self.progress.trained_s / (self._plan.minutes * 60)

    def _step(self, batches: list[dict[str, Tensor]]) -> list[Tensor]:
        """Learn from one step's batches; the optimiser moves once. Returns the losses."""
        found: list[Tensor] = []
        for batch in batches:
            moved = {
                name: value.to(self._team.device, non_blocking=True)
                for name, value in batch.items()
            }
            with torch.autocast(self._plan.device, torch.bfloat16):
                answers, marks = losses(self.model, self._marker, moved)
            ((answers + _MARKS_WEIGHT * marks) / len(batches)).backward()  # type: ignore[no-untyped-call]  # theirs
            found += [answers.detach(), marks.detach()]
        # Members' clocks differ; what they do at a time and when they end must not.
        self.progress.trained_s = self._team.average(self._trained, self.progress.trained_s)
        for group in self._optimiser.param_groups:
            group["lr"] = self._plan.rate * schedule(self._done)
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.progress.step += 1
        return found

    def _report(self, found: list[Tensor]) -> None:
        values = " ".join(f"{loss.item():.4f}" for loss in found)
        done = self.progress
        print(
            f"step {done.step}, {done.trained_s:.0f} s, {done.waited_s / done.trained_s:.0%} of "
            f"them waiting for pictures, answers and marks: {values}",
            flush=True,
        )

    def _save(self) -> None:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "marker": self._marker.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "progress": vars(self.progress),
        }
        partial = self._plan.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._plan.checkpoint)  # a run killed here still has the last checkpoint

    def _resume(self) -> None:
        state = torch.load(self._plan.checkpoint, map_location=self._team.device)
        self.model.load_state_dict(state["model"])
        self._marker.load_state_dict(state["marker"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])
        print(f"resumed at step {self.progress.step}", flush=True)


def _begin(start: Path | None) -> tuple[Any, Any]:
    """Return tokenizer and model of an earlier run, or new ones."""
    tokenizer: Any
    if start is None:
        tokenizer = build_tokenizer(tokenizer_texts())
        return tokenizer, build_model(tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = build_model(tokenizer)
    earlier = Qwen2VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    model.load_state_dict(earlier.state_dict())
    return tokenizer, model


def schedule(done: float) -> float:
    """Return the share of the peak rate at a share of the run: a short ramp, then a cosine."""
    if done < _WARM_UP:
        return max(0.01, done / _WARM_UP)
    return 0.01 + 0.99 * 0.5 * (1 + cos(pi * min(1.0, done)))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=8.0, help="length of the whole run")
    parser.add_argument("--loaders", type=int, default=14, help="processes that draw")
    parser.add_argument("--scale", type=float, default=1.0, help="size of a step; 0.05 for a trial")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo-checkpoint.pt"))
    parser.add_argument("--start", type=Path, help="folder of an earlier run to begin with")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate at its peak")
    parser.add_argument("--seed", type=int, default=1, help="another one draws other scenes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--held-out", type=int, default=500, help="scenes per task to measure; 0: none"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    team = Team(plan.device)
    training = Training(plan, team)
    training.run(options.loaders, options.scale)
    team.leave()
    if not options.held_out or not team.leads:
        return
    reader = Reader(options.out, options.device)
    batch = 100 if options.device == "cuda" else 4
    scores = evaluate(reader, options.held_out, batch, max(1, options.loaders))
    done = training.progress
    pictures = 470 * team.size
    sentence = (
        f"{done.step} steps of about {pictures} pictures in {done.trained_s / 60:.1f} minutes"
    )
    beginning = f", from the weights of {options.start}" if options.start else ""
    write_card(options.out, scores, f"{sentence}{beginning}.")


if __name__ == "__main__":
    main()
