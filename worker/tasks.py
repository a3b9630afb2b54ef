"""The Celery tasks and the process around them; no logic.

    python -m worker.tasks chat --owner ID --model M …      one engine, its jobs
    python -m worker.tasks media --owner ID …               media, callbacks and a sweeper
    python -m worker.tasks webhooks --owner ID …            callbacks and a sweeper
    python -m worker.tasks sweep                            a sweeper alone

Exit status: 0 after a drain, 75 when a restart is wanted, 78 for what no restart can mend, here or
in another such process, 69 for what none can mend here; the last line on standard error then is the
reason.
"""

import argparse
import asyncio
import os
import platform
import secrets
import signal
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from celery import Celery, signals
from celery.exceptions import Terminated

from worker import pool
from worker.contract import broker, keys, settings
from worker.contract.errors import JobError
from worker.contract.job import Lane
from worker.contract.log import set_up
from worker.engine import EngineSpec
from worker.holds import Stop
from worker.keeper import EXIT_CONFIG, EXIT_GAVE_UP, EXIT_RESTART
from worker.pool_run import CancelReason, current_request
from worker.runner import Verdict
from worker.runtime.base import Failure, Identity
from worker.runtime.chat import ChatRuntime

if TYPE_CHECKING:  # no chat worker's: one that is started again should be back soon
    from worker.runtime.cpu import CpuRuntime, HookRuntime

OK = 0
DEFAULT_SLOTS = {"echo": 256, "transformers": 4, "lmdeploy": 256}
MEDIA_SLOTS = 32  # mostly fetches that wait; decoding is bounded by the cores
HOOK_SLOTS = 32  # a ticket is done as soon as it is read

Runtime: TypeAlias = "ChatRuntime | HookRuntime"


class JobFailedError(Exception):
    """Tells Celery and Flower that a job failed; the reason stands in the job."""


def main(argv: list[str] | None = None) -> int:
    """Run one worker process until it is told to stop; return its exit status."""
    args = _parse(argv)
    config = settings.load()
    set_up(config.log_level)
    app = broker.make_app(config)
    if args.role == "sweep":
        return asyncio.run(_sweep(config, app, Identity(args.owner, "sweep", 0)))
    runtime = _make_runtime(args, config, app)
    _register(app, runtime)
    return _serve(args, config, app, runtime)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.tasks")
    parser.add_argument("role", choices=["chat", "media", "webhooks", "sweep"])
    parser.add_argument("--owner", default=secrets.token_hex(8))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--served-name", default=None)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--slots", type=int, default=None)
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser.parse_args(argv)


def _make_runtime(args: argparse.Namespace, config: settings.Settings, app: Celery) -> Runtime:
    slots = args.slots = args.slots or _default_slots(args)
    me = Identity(args.owner, args.role, slots)
    if args.role != "chat":
        return _make_cpu_runtime(config, app, me)
    spec = EngineSpec(
        model=args.model,
        engine=_engine(args),
        backend=args.backend,
        tp=args.tp,
        slots=slots,
        decode=_decoder(args),
        trust_remote_code=args.trust_remote_code,
    )
    return ChatRuntime(
        config, app, me, spec=spec, served_name=_served_name(args), why_cancelled=_why_cancelled
    )


def _make_cpu_runtime(config: settings.Settings, app: Celery, me: Identity) -> "HookRuntime":
    from worker.runtime.cpu import CpuRuntime, HookRuntime  # noqa: PLC0415 - see above

    if me.role == "webhooks":
        return HookRuntime(config, app, me)
    return CpuRuntime(config, app, me, _why_cancelled)


def _decoder(args: argparse.Namespace) -> Any:
    """Return what opens pictures for the engine; echo looks at their bytes alone."""
    if _engine(args) == "echo":
        return None
    from worker.media.image import decode  # noqa: PLC0415 - numpy and Pillow

    return decode


def _default_slots(args: argparse.Namespace) -> int:
    match args.role:
        case "media":
            return MEDIA_SLOTS
        case "webhooks":
            return HOOK_SLOTS
        case _:
            return DEFAULT_SLOTS[_engine(args)]


def _engine(args: argparse.Namespace) -> Any:
    from worker.engine import choose  # noqa: PLC0415 - may ask the CUDA driver

    return choose(args.engine)


def _served_name(args: argparse.Namespace) -> str:
    return str(args.served_name or args.model)


def _why_cancelled() -> Stop | None:
    """Flower's terminate means the caller's cancel; a drain or shutdown gives the job back."""
    is_terminated = current_request.get().cancel_reason is CancelReason.TERMINATED
    return Stop.CANCELLED if is_terminated else None


def _register(app: Celery, runtime: Runtime) -> None:
    if isinstance(runtime, ChatRuntime):
        _register_jobs(app, runtime, broker.CHAT_TASK)
    else:
        _register_lanes(app, runtime)


def _register_lanes(app: Celery, runtime: "HookRuntime") -> None:
    from worker.runtime.cpu import CpuRuntime  # noqa: PLC0415 - see above

    async def attend(lane: str) -> str:
        runtime.attend(lane)
        return "attended"

    app.task(name=broker.HOOK_TASK)(attend)
    if isinstance(runtime, CpuRuntime):
        _register_jobs(app, runtime, broker.MEDIA_TASK)


def _register_jobs(app: Celery, runtime: "ChatRuntime | CpuRuntime", name: str) -> None:
    async def run(job_id: str) -> str:
        verdict = await runtime.run(job_id)
        if verdict is Verdict.FAILED:
            raise JobFailedError(job_id)
        if verdict is Verdict.CANCELLED:
            raise Terminated(job_id)  # which Flower shows as REVOKED
        return str(verdict)

    app.task(name=name, throws=(JobFailedError, Terminated))(run)


async def _sweep(config: settings.Settings, app: Celery, me: Identity) -> int:
    from worker.runtime.cpu import SweepRuntime  # noqa: PLC0415 - see above

    runtime = SweepRuntime(config, app, me)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await runtime.start()
    await stopped.wait()
    await runtime.close()
    return OK


def _serve(
    args: argparse.Namespace, config: settings.Settings, app: Celery, runtime: Runtime
) -> int:
    loops: list[asyncio.AbstractEventLoop] = []

    async def boot(made: pool.AsyncPool) -> None:
        if isinstance(runtime, ChatRuntime):
            runtime.on_ready = lambda is_ready: made.on_hub(worker.consumer.take, is_ready)
        loops.append(asyncio.get_running_loop())
        try:
            await runtime.start()
        except JobError as error:
            if not error.retryable:  # a store that is away will come back
                await runtime.fail(Failure.of(error))
            raise

    async def shutdown(_: pool.AsyncPool) -> None:
        await runtime.close()

    def say_draining(**_: Any) -> None:
        if loops and runtime.failure is None:
            asyncio.run_coroutine_threadsafe(runtime.say("draining"), loops[0])

    pool.configure(app, pool.PoolOptions(boot=boot, shutdown=shutdown, drain_s=config.drain_s))
    signals.worker_shutting_down.connect(say_draining, weak=False)
    app.conf.worker_consumer = "worker.pool_consumer:BatchingConsumer"
    worker = app.Worker(
        hostname=f"{args.role}-{_place()}-{args.owner[-6:]}@{platform.node()}",
        pool_cls=pool.AsyncPool,
        concurrency=_in_flight(args.slots) if args.role == "chat" else args.slots,
        queues=_queues(args, app),
        task_events=True,
        without_mingle=True,
        without_gossip=True,
        loglevel=config.log_level,
        redirect_stdouts=False,
        quiet=True,  # no banner
    )
    try:
        worker.start()
    except SystemExit as ended:
        worker.exitcode = ended.code
    if runtime.failure is not None:
        sys.stderr.write(f"{runtime.failure.reason}\n")
        return EXIT_CONFIG if runtime.failure.is_everywhere else EXIT_GAVE_UP
    return OK if not worker.exitcode else EXIT_RESTART


def _queues(args: argparse.Namespace, app: Celery) -> list[str]:
    match args.role:
        case "media":
            return [*broker.queues_of(Lane.MEDIA), keys.HOOK_QUEUE]
        case "webhooks":
            return [keys.HOOK_QUEUE]
        case _:
            model = _served_name(args)
            own = broker.own_queue(app, model, args.owner)
            return [*broker.queues_of(Lane.CHAT, model), own]


def _in_flight(slots: int) -> int:
    """Hold a tenth more jobs than the engine takes: the next is ready when one ends."""
    return slots + max(1, slots // 10)


def _place() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(",", "_") or "cpu"


if __name__ == "__main__":
    sys.exit(main())
