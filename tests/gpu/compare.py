"""The same load on the same GPU: LMDeploy's own server, then ours; one table of ratios.

    python tests/gpu/compare.py --model ../qwen2-2b --backend turbomind --json turbomind.json
    python tests/gpu/compare.py --model ../qwen3-2b --backend pytorch --loads steady --servers ours

Models: random_model.py. Each server has the GPU to itself. Loads: `picture` and
`text` (--jobs at once, streamed), `plain` (the same picture load without streaming), `steady`
(pictures, --jobs of them always under way, for --seconds), `idle` (one at a time: first token).
Ours is asked over /v1/jobs; theirs over /v1/chat/completions. Figures are the medians of --repeat
runs, after one small run that nobody counts, and `failed` of all runs together; of `idle` those of
30 requests, after two. Needs LMDeploy, and for ours what `forebay up` needs. Servers that run
already: --theirs-url, --ours-url.
`--gpus 1` takes another GPU than the first, so that two runs go side by side; give each its own
cores, as with `taskset -c`. `--engine echo --servers ours` tries the whole of ours without a GPU.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.bench.load import Load, Report
from worker.bench.run import bench
from worker.datadir import choose_port

SERVERS = ("theirs", "ours")
START_S, STOP_S = 240.0, 60.0
CLIENTS = 4  # processes; one alone would be what is slow
IDLE_ASKED = 32
LOADS = ("picture", "text", "plain", "steady", "idle")
FIGURES = (
    "jobs_per_s", "tokens_per_s", "ttft_p50_s", "ttft_p99_s", "total_p50_s", "pieces_p50",
    "pieces_min", "queue_p50_s", "failed",
)  # fmt: skip


def main() -> None:
    """Run what was asked for and print the table."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for server in options.servers:
        with _server(server, options) as url:
            print(f"{server}: ready at {url}", flush=True)
            for name in options.loads:
                figures.setdefault(name, {})[server] = _measured(server, name, url, options)
                if options.json:
                    options.json.write_text(json.dumps(figures, indent=1))
    print(_table(figures))


def _measured(server: str, name: str, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of a load's figures on a server."""
    load = _load(server, name, url, options)
    if name == "idle":
        return _idle(load)
    bench(replace(load, jobs=32, seconds=0.0))
    runs = []
    for _ in range(options.repeat):
        result = bench(load, CLIENTS)
        runs.append(result)
        print(f"{server} {name}: {json.dumps(result.as_dict())}", flush=True)
    return {figure: _median(runs, figure) for figure in FIGURES}


def _load(server: str, name: str, url: str, options: argparse.Namespace) -> Load:
    return Load(
        url,
        api="jobs" if server == "ours" else "chat",
        stream=name != "plain",
        jobs=0 if name == "steady" else options.jobs,
        seconds=options.seconds if name == "steady" else 0.0,
        inside=options.jobs if name == "steady" else 0,
        pixels=0 if name == "text" else 448,
        max_tokens=options.max_tokens,
    )


def _idle(load: Load) -> dict[str, Any]:
    one = replace(load, jobs=1)
    firsts = [bench(replace(one, prompt=f"number {n} of {{number}}")) for n in range(IDLE_ASKED)]
    return {figure: _median(firsts[2:], figure) for figure in FIGURES}


def _median(runs: list[Report], figure: str) -> float | None:
    values = [value for run in runs if (value := getattr(run, figure)) is not None]
    if figure == "failed":  # what failed in one run of three must not be told as none
        return sum(values)
    return round(statistics.median(values), 4) if values else None


@contextlib.contextmanager
def _server(name: str, options: argparse.Namespace) -> Iterator[str]:
    """Start a server, yield its URL once it answers, and end it with all that it started."""
    given = options.ours_url if name == "ours" else options.theirs_url
    if given:
        yield given
        return
    port = choose_port()
    url = f"http://127.0.0.1:{port}"
    folder = Path(tempfile.mkdtemp(prefix=f"compare-{name}-"))
    command = _ours(options, port, folder) if name == "ours" else _theirs(options, port)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=_environ(name, options),
        )  # fmt: skip
        try:
            ready = f"{url}/health/ready" if name == "ours" else f"{url}/v1/models"
            _wait(ready, process, folder)
            yield url
        finally:
            _end(process)


def _environ(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Return a server's environment. Ours is told its GPUs by --gpus, theirs by the variable."""
    environ = {**os.environ, "TM_LOG_LEVEL": "WARNING", "CUDA_VISIBLE_DEVICES": _gpus(options)}
    if name == "ours":
        del environ["CUDA_VISIBLE_DEVICES"]
    return environ


def _gpus(options: argparse.Namespace) -> str:
    return str(options.gpus or ",".join(map(str, range(options.tp))))


def _theirs(options: argparse.Namespace, port: int) -> list[str]:
    return [
        sys.executable, "-m", "lmdeploy", "serve", "api_server", str(options.model),
        "--server-port", str(port), "--backend", options.backend,
        "--max-batch-size", str(options.slots), "--tp", str(options.tp), "--log-level", "WARNING",
        *(("--distributed-executor-backend", "mp") if options.tp > 1 else ()),
    ]  # fmt: skip


def _ours(options: argparse.Namespace, port: int, folder: Path) -> list[str]:
    device = ("--gpus", _gpus(options)) if options.engine == "lmdeploy" else ()
    return [
        sys.executable, "-m", "worker.cli", "up", "--engine", options.engine,
        "--backend", options.backend, "--model", str(options.model), "--slots", str(options.slots),
        *device, "--port", str(port), "--flower-port", "0",
        "--data-dir", str(folder / "data"),
    ]  # fmt: skip


def _wait(url: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if _answers(url):
            return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    logs = [*folder.glob("log"), *folder.glob("data/**/*.log")]
    said = "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)
    raise SystemExit(f"{url} did not answer\n{said}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_S)


def _table(figures: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = [f"{'load':<9}{'figure':<13}{'theirs':>10}{'ours':>10}{'ours/theirs':>13}"]
    for name, by_server in figures.items():
        for figure in FIGURES:
            theirs, ours = (by_server.get(s, {}).get(figure) for s in SERVERS)
            if theirs is None and ours is None:
                continue
            ratio = f"{ours / theirs:.2f}" if theirs and ours is not None else "–"
            left, right = ("–" if value is None else f"{value:g}" for value in (theirs, ours))
            rows.append(f"{name:<9}{figure:<13}{left:>10}{right:>10}{ratio:>13}")
    return "\n".join(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="LMDeploy's server and ours under one load.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--backend", choices=("turbomind", "pytorch"), required=True)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--gpus", help="such as 1 or 0,1, --tp of them; default: the first")
    parser.add_argument("--engine", choices=("lmdeploy", "echo"), default="lmdeploy")
    parser.add_argument("--slots", type=int, default=256, help="inside the engine at once")
    parser.add_argument("--jobs", type=int, default=512, help="at once, or always under way")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=120.0, help="of a steady run")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each load but idle")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=["picture", "text", "idle"])
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=[*SERVERS])
    parser.add_argument("--theirs-url")
    parser.add_argument("--ours-url")
    parser.add_argument("--json", type=Path, help="file for the figures, written after each load")
    return parser.parse_args()


if __name__ == "__main__":
    main()
