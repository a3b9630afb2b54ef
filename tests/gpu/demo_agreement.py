"""Compare the demo model's greedy answers: LMDeploy on a GPU against transformers on a CPU.

    python tests/gpu/demo_agreement.py transformers --json reference.json
    python tests/gpu/demo_agreement.py lmdeploy --backend turbomind --json turbomind.json
    python tests/gpu/demo_agreement.py engine --backend pytorch --tp 2 --json tp2.json
    python tests/gpu/demo_agreement.py compare reference.json turbomind.json tp2.json

Each of the first three answers the same held-out scenes and writes the token ids of every answer;
`engine` is our engine process around LMDeploy, `lmdeploy` its own pipeline.
Pictures come at the model's own size, as the service prepares them, so no engine resizes anything.
"""

# ruff: noqa: PLC0415  # each command needs another engine

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from worker.demo import MODEL_DIR
from worker.demo.evaluate import TASKS, Exam, make_exam

FIRST_EXAM = 50_000  # beyond what the model card measures
MAX_NEW_TOKENS = 128
CELL, MIN_PIXELS, MAX_PIXELS = 28, 112 * 112, 336 * 336


def exams(number: int) -> list[Exam]:
    """Make `number` exams, the tasks in turn, pictures at the model's own size."""
    tasks = list(TASKS)
    made = [make_exam(tasks[index % len(tasks)], FIRST_EXAM + index) for index in range(number)]
    return [
        Exam(
            type(exam.prompt)(exam.prompt.messages, tuple(map(_fitted, exam.prompt.pictures))),
            exam.answer,
        )
        for exam in made
    ]


def _fitted(picture: Image.Image) -> Image.Image:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(picture.height, picture.width, CELL, MIN_PIXELS, MAX_PIXELS)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def by_transformers(model: Path, asked: list[Exam], processes: int) -> list[list[int]]:
    """Answer one by one in float32 on the CPU, with one thread per process."""
    shares = [asked[first::processes] for first in range(processes)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        answered = list(pool.map(partial(_by_transformers, model), shares))
    return [answered[number % processes][number // processes] for number in range(len(asked))]


def _by_transformers(model: Path, asked: list[Exam]) -> list[list[int]]:
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)

    from worker.demo.reader import Reader

    reader, tokenizer = Reader(model), AutoTokenizer.from_pretrained(model)
    answers = [reader.answer(exam.prompt, MAX_NEW_TOKENS) for exam in asked]
    return [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]


async def by_engine(model: Path, asked: list[Exam], backend: str, tp: int) -> list[list[int]]:
    """Answer all at once with our engine process around LMDeploy."""
    from worker.engine import EngineSpec
    from worker.engine.process import EngineProcess
    from worker.media.image import decode

    spec = EngineSpec(
        str(model), "lmdeploy", backend=backend, tp=tp, context_tokens=4096, decode=decode
    )
    engine = EngineProcess(spec, log_level="WARNING")
    print(await engine.start(), flush=True)
    try:
        return list(await asyncio.gather(*(_answered(engine, exam) for exam in asked)))
    finally:
        await engine.close()


async def _answered(engine: Any, exam: Exam) -> list[int]:
    from worker.engine.base import EngineOptions, Prompt, Turn

    pictures = iter(exam.prompt.pictures)
    turns = tuple(
        Turn(message["role"], tuple(_parts(message["content"], pictures)))
        for message in exam.prompt.messages
    )
    options = EngineOptions(MAX_NEW_TOKENS, temperature=0.0)
    tokens: list[int] = []
    async for delta in engine.generate(Prompt(str(id(exam)), turns, options)):
        tokens += delta.token_ids
    return tokens


def _parts(content: Any, pictures: Any) -> list[Any]:
    """Return a message's parts as our engine takes them; the pictures as PNG lose nothing."""
    from worker.engine.base import Picture

    if isinstance(content, str):
        return [content]
    parts: list[Any] = []
    for part in content:
        if part["type"] != "image":
            parts.append(part["text"])
            continue
        shown, file = next(pictures), io.BytesIO()
        shown.save(file, "PNG")
        data = file.getvalue()
        parts.append(Picture(data, *shown.size, hashlib.sha256(data).hexdigest()))
    return parts


def by_lmdeploy(model: Path, asked: list[Exam], backend: str, tp: int) -> list[list[int]]:
    """Answer all at once with LMDeploy on `tp` GPUs."""
    from lmdeploy import GenerationConfig, PytorchEngineConfig, TurbomindEngineConfig, pipeline
    from transformers import AutoTokenizer

    common: dict[str, Any] = {
        "tp": tp, "session_len": 4096, "dtype": "bfloat16", "cache_max_entry_count": 0.2,
    }  # fmt: skip
    if backend == "pytorch":
        config = PytorchEngineConfig(
            distributed_executor_backend="mp" if tp > 1 else None, **common
        )
    else:
        config = TurbomindEngineConfig(**common)
    settings = GenerationConfig(do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    with pipeline(str(model), backend_config=config) as engine:
        responses = engine([_messages(exam) for exam in asked], gen_config=settings)
    end = AutoTokenizer.from_pretrained(model).eos_token_id  # reported by one backend only
    return [[token for token in response.token_ids if token != end] for response in responses]


def _messages(exam: Exam) -> list[dict[str, Any]]:
    """Return the exam's messages with the pictures inside, in LMDeploy's form."""
    pictures = iter(exam.prompt.pictures)
    messages = []
    for message in exam.prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "image_data", "image_data": {"data": next(pictures)}}
                if part["type"] == "image"
                else part
                for part in content
            ]
        messages.append({"role": message["role"], "content": content})
    return messages


def compare(reference: Path, others: list[Path]) -> bool:
    """Print how many answers and tokens differ from the reference; return whether none does."""
    expected = json.loads(reference.read_text())
    equal = True
    for path in others:
        got = json.loads(path.read_text())
        pairs = list(zip(expected, got, strict=True))
        wrong = [index for index, (one, two) in enumerate(pairs) if one != two]
        tokens = sum(
            sum(a != b for a, b in zip(one, two, strict=False)) + abs(len(one) - len(two))
            for one, two in pairs
        )
        total = sum(map(len, expected))
        print(
            f"{path.name}: {len(wrong)} of {len(pairs)} answers, {tokens} of {total} tokens differ"
        )
        print(*[f"  exam {index}: {expected[index]} {got[index]}" for index in wrong[:5]], sep="\n")
        equal = equal and not wrong
    return equal


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("transformers", "lmdeploy", "engine"):
        command = commands.add_parser(name)
        command.add_argument("--model", type=Path, default=MODEL_DIR)
        command.add_argument("--scenes", type=int, default=100)
        command.add_argument("--json", type=Path, required=True)
        if name == "transformers":
            command.add_argument("--processes", type=int, default=2)
        else:
            command.add_argument("--backend", choices=("turbomind", "pytorch"), required=True)
            command.add_argument("--tp", type=int, default=1)
    command = commands.add_parser("compare")
    command.add_argument("reference", type=Path)
    command.add_argument("others", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "compare":
        raise SystemExit(0 if compare(options.reference, options.others) else 1)
    asked = exams(options.scenes)
    if options.command == "transformers":
        answers = by_transformers(options.model, asked, options.processes)
    elif options.command == "engine":
        answers = asyncio.run(by_engine(options.model, asked, options.backend, options.tp))
    else:
        answers = by_lmdeploy(options.model, asked, options.backend, options.tp)
    right = sum(
        by == exam.answer for by, exam in zip(_texts(options.model, answers), asked, strict=True)
    )
    print(f"{options.json.name}: {right} of {len(asked)} answers right")
    options.json.write_text(json.dumps(answers))


def _texts(model: Path, answers: list[list[int]]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer.decode(tokens) for tokens in answers]


if __name__ == "__main__":  # LMDeploy starts its ranks by importing this file again
    main()
