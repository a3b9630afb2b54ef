"""What must not leak: cancelled prompts, and the memory of all processes over many prompts.

    python tests/gpu/endurance.py cancels --model /tmp/2b --backend turbomind
    python tests/gpu/endurance.py memory  --model demo --backend pytorch --prompts 20000

Drives the engine process alone, without Redis or HTTP. Ends with status 1 where something leaked.
`--engine echo` runs the same without a GPU.
"""

import argparse
import asyncio
import hashlib
import random
import time
from contextlib import aclosing
from pathlib import Path

from tests.gpu.pictures import jpeg
from worker.engine import EngineSpec
from worker.engine.base import EngineOptions, Picture, Prompt, Turn
from worker.engine.process import EngineProcess
from worker.media.image import decode

CANCELS, INSIDE = 200, 256
FREE_WITHIN_S = 1.0
WARM_UP = 2000
FLAT_SHARE = 0.03  # what memory may grow after the warm-up
SAMPLES = 20


async def cancels(engine: EngineProcess, options: argparse.Namespace) -> bool:
    """Cancel at random moments under load; the engine's counters must come back to zero."""
    randoms = random.Random(1)
    readers = [
        asyncio.create_task(_read(engine, _prompt(n, 128 if n % 2 else 400, picture=n % 3 == 0)))
        for n in range(INSIDE)
    ]
    await asyncio.sleep(1.0)
    victims = randoms.sample(readers, min(options.cancels, len(readers)))
    took = []
    for victim in victims:
        await asyncio.sleep(randoms.uniform(0, 0.01))
        began = time.monotonic()
        victim.cancel()
        await asyncio.wait({victim})
        took.append(time.monotonic() - began)
    await asyncio.gather(*readers, return_exceptions=True)
    await asyncio.sleep(FREE_WITHIN_S)
    counters = await engine.counters()
    print(f"cancelled {len(took)}: slowest {max(took):.3f} s; afterwards {counters}")
    is_free = (counters.running, counters.waiting, counters.seats_taken) == (0, 0, 0)
    return is_free and max(took) < FREE_WITHIN_S


async def memory(engine: EngineProcess, options: argparse.Namespace) -> bool:
    """Send many short prompts; after the warm-up no process may grow."""
    pid = engine.pid
    assert pid is not None
    numbers = iter(range(options.prompts))
    seen: list[tuple[int, int]] = []
    step = max(options.prompts // SAMPLES, 1)

    async def worker() -> None:
        for number in numbers:
            await _read(engine, _prompt(number, 8, picture=number % 4 == 0))
            if number % step == 0:
                seen.append((number, _family_bytes(pid)))
                print(f"{number}: {seen[-1][1] / 1e6:.0f} MB", flush=True)

    await asyncio.gather(*(worker() for _ in range(INSIDE)))
    after = [size for number, size in seen if number >= min(WARM_UP, options.prompts // 2)]
    growth = (after[-1] - after[0]) / after[0]
    print(f"{options.prompts} prompts: {growth:+.1%} after the warm-up; {await engine.counters()}")
    return growth < FLAT_SHARE


async def _read(engine: EngineProcess, prompt: Prompt) -> int:
    tokens = 0
    async with aclosing(engine.generate(prompt)) as deltas:
        async for delta in deltas:
            tokens += len(delta.token_ids)
    return tokens


def _prompt(number: int, max_tokens: int, *, picture: bool) -> Prompt:
    data = jpeg(number % 64)
    shown = Picture(data, 448, 448, hashlib.sha256(data).hexdigest())
    parts = (shown, f"What is this? {number}") if picture else (f"Who are you? {number}",)
    options = EngineOptions(max_tokens, temperature=0.0, ignore_eos=True)
    return Prompt(str(number), (Turn("user", parts),), options)


def _family_bytes(root: int) -> int:
    """Return the resident memory of a process and all below it."""
    family, size = {root}, 0
    stats = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        stats[int(stat.parent.name)] = (int(fields[1]), int(fields[21]) * 4096)
    for _ in range(4):
        family |= {pid for pid, (parent, _) in stats.items() if parent in family}
    for pid in family & stats.keys():
        size += stats[pid][1]
    return size


async def run(options: argparse.Namespace) -> bool:
    """Start the engine, do what was asked for, close it."""
    spec = EngineSpec(
        str(options.model),
        options.engine,
        backend=options.backend,
        tp=options.tp,
        slots=INSIDE,
        decode=decode,
    )
    engine = EngineProcess(spec, log_level="WARNING")
    print(await engine.start(), flush=True)
    try:
        return await (cancels if options.what == "cancels" else memory)(engine, options)
    finally:
        await engine.close()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="What must not leak.")
    parser.add_argument("what", choices=("cancels", "memory"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--engine", default="lmdeploy")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--cancels", type=int, default=CANCELS)
    raise SystemExit(0 if asyncio.run(run(parser.parse_args())) else 1)


if __name__ == "__main__":
    main()
