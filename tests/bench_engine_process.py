"""What an engine in its own process costs its parent, with the echo engine at zero token time.

    python tests/bench_engine_process.py [--prompts 4000] [--in-flight 200] [--tokens 64]

Prints prompts per second and CPU milliseconds per prompt of both processes. Not a test.
"""

import argparse
import asyncio
import time
from pathlib import Path

from worker.engine import EngineSpec
from worker.engine.base import EngineOptions, Prompt, Turn
from worker.engine.process import EngineProcess


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far (Linux; ticks of 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def _work(engine: EngineProcess, numbers: asyncio.Queue[int], tokens: int) -> None:
    options = EngineOptions(max_tokens=tokens)
    turns = (Turn("user", (f"[[tokens={tokens} rate=0]]",)),)
    while not numbers.empty():
        prompt = Prompt(f"job-{numbers.get_nowait()}", turns, options)
        async for _ in engine.generate(prompt):
            pass


async def _measure(prompts: int, in_flight: int, tokens: int) -> None:
    engine = EngineProcess(EngineSpec("echo", "echo"), log_level="WARNING")
    await engine.start()
    numbers: asyncio.Queue[int] = asyncio.Queue()
    for number in range(prompts):
        numbers.put_nowait(number)
    began, ours, theirs = time.monotonic(), time.process_time(), _cpu_s(engine.pid or 0)
    await asyncio.gather(*(_work(engine, numbers, tokens) for _ in range(in_flight)))
    took_s = time.monotonic() - began
    ours, theirs = time.process_time() - ours, _cpu_s(engine.pid or 0) - theirs
    await engine.close()
    print(
        f"{prompts} prompts of {tokens} tokens, {in_flight} in flight: "
        f"{prompts / took_s:.0f} prompts/s; CPU per prompt: parent {1000 * ours / prompts:.3f} ms, "
        f"engine process {1000 * theirs / prompts:.3f} ms"
    )


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    asyncio.run(_measure(given.prompts, given.in_flight, given.tokens))


if __name__ == "__main__":
    main()
