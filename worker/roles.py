"""The roles that `forebay worker` runs in the foreground, each under a supervisor."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from worker import commands, gpus
from worker.children import Command
from worker.commands import ChatOptions
from worker.contract import broker
from worker.contract.door import RedisDoor
from worker.contract.registry import Registry
from worker.contract.settings import Settings
from worker.contract.store import JobStore
from worker.notices import Notices
from worker.supervisor import Slot, Supervisor, run_until_signal

TAKES_GPUS = {"auto", "lmdeploy"}  # engines that use a GPU without being told which


def chat(
    settings: Settings, environ: Mapping[str, str], options: ChatOptions, asked: Sequence[str]
) -> None:
    """Run one chat worker per GPU set until a signal.

    Raises:
        GpuError: a set is not there, overlaps another, or belongs to another chat worker.
        GaveUpError: the configuration is wrong, or no worker can be kept alive.
    """
    there = gpus.present() if asked or options.engine in TAKES_GPUS else ()
    if not asked:
        there = gpus.visible(there, environ.get("CUDA_VISIBLE_DEVICES"))
    sets = gpus.choose(asked, options.tp, there)
    environ = commands.with_hub_token(environ, settings.hf_token)
    with gpus.held(sets, there):
        slots = [
            Slot(_name(one), partial(commands.chat, options, one, environ), one or "")
            for one in sets
        ]
        asyncio.run(_supervise(settings, slots, "chat", options.name))


def media(
    settings: Settings, environ: Mapping[str, str], slots: int | None, processes: int
) -> None:
    """Run media workers until a signal. Raises GaveUpError if none can be kept alive."""
    command = partial(commands.media, slots, environ)
    asyncio.run(_supervise(settings, [Slot("media", command)] * processes, "media"))


def webhooks(settings: Settings, environ: Mapping[str, str]) -> None:
    """Run a worker for callbacks until a signal. Raises GaveUpError if it cannot be kept alive."""
    _run_one(settings, "webhooks", partial(commands.webhooks, environ))


def sweep(settings: Settings, environ: Mapping[str, str]) -> None:
    """Run a sweeper until a signal. Raises GaveUpError if it cannot be kept alive."""
    _run_one(settings, "sweep", lambda _owner: commands.sweep(environ))


def _run_one(settings: Settings, name: str, command: Callable[[str], Command]) -> None:
    asyncio.run(_supervise(settings, [Slot(name, command)], name))


async def _supervise(
    settings: Settings, slots: Sequence[Slot], role: str, model: str | None = None
) -> None:
    door = RedisDoor(settings, max_connections=2)
    store = JobStore(door)
    tickets = broker.Tickets(broker.make_app(settings), store.published)

    async def hand_back(owner: str) -> int:
        given = await store.hand_back(owner)
        for job_id, queue in given:  # at once, and before all that wait: their readers do, too
            tickets.send(job_id, queue, urgent=True)
        return len(given)

    notices = Notices(Registry(door), role, model)
    repeating = asyncio.create_task(notices.run())
    supervisor = Supervisor(slots, hand_back, notices.post, drain_s=settings.drain_s)
    try:
        await run_until_signal(supervisor)
        await notices.withdraw()  # where it gives up itself they stay for as long as a heartbeat
    finally:
        repeating.cancel()
        await tickets.close()
        await door.close()


def _name(gpu_set: str | None) -> str:
    return "cpu" if gpu_set is None else f"gpu{gpu_set.replace(',', '_')}"
