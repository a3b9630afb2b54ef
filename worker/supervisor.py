"""One worker process per GPU set: its owner name, its restarts, and its jobs when it dies.

    SIGTERM, SIGINT        each worker finishes what runs within the grace time, then all end
    the same once more     each worker hands its jobs back at once (it is sent SIGQUIT)

Knows no job: what a dead worker held is given back by a call that is passed in, under the owner
name of that one incarnation. Another call is told of each place whose worker is given up.
"""

import asyncio
import logging
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from worker.children import Command
from worker.contract.errors import StoreUnavailable
from worker.contract.log import event
from worker.keeper import EXIT_CONFIG, EXIT_USAGE, GaveUpError, Keeper

DRAIN_MARGIN_S = 10.0  # for a worker to close its engine and connections after the drain
HAND_BACK_TRIES = 30
HAND_BACK_PAUSE_S = 0.5  # 15 s in all; then the sweeper takes the jobs as their leases run out

HandBack = Callable[[str], Awaitable[int]]
GivenUp = Callable[[str, str, str], Awaitable[None]]
"""Is told an owner name for the place, its GPUs, and why nobody works there any more."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one worker: its command for a given owner name, and its GPUs where it has any."""

    name: str
    command: Callable[[str], Command]
    gpus: str = ""


class Supervisor:
    """Keeps one worker per slot running. Make and `run` it on the main thread's loop."""

    def __init__(
        self, slots: Sequence[Slot], hand_back: HandBack, given_up: GivenUp, *, drain_s: float
    ) -> None:
        self._hand_back = hand_back
        self._given_up = given_up
        self._grace_s = drain_s + DRAIN_MARGIN_S
        self._slots = slots
        self._keepers = [self._keeper(slot) for slot in slots]
        self._asked = False
        self._ending = asyncio.Event()
        self._reason: GaveUpError | None = None

    async def run(self) -> None:
        """Keep the workers running until `stop` is asked for or none is left.

        Raises:
            GaveUpError: the configuration is wrong, or every worker was given up.
        """
        watching = asyncio.gather(*map(self._watch, self._slots, self._keepers))
        ending = asyncio.create_task(self._ending.wait())
        await asyncio.wait((watching, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        await asyncio.gather(*(keeper.stop(self._grace_s) for keeper in self._keepers))
        await watching
        if self._reason is not None and not self._asked:
            raise self._reason

    def stop(self) -> None:
        """Ask for a drain; asked once more, make the workers hand back at once."""
        if self._asked:
            for keeper in self._keepers:
                keeper.send(signal.SIGQUIT)
        self._asked = True
        self._ending.set()

    def _keeper(self, slot: Slot) -> Keeper:
        owner = ""

        def command() -> Command:
            nonlocal owner
            owner = _owner(slot)
            return slot.command(owner)

        return Keeper(command, on_end=lambda: self._give_back(owner))

    async def _watch(self, slot: Slot, keeper: Keeper) -> None:
        try:
            keeper.start()
            await keeper.ended()
        except GaveUpError as error:
            event(_log, "worker.given_up", level=logging.ERROR, reason=str(error))
            self._reason = error
            if error.status in {EXIT_CONFIG, EXIT_USAGE}:  # the others have the same one
                self._ending.set()
            await self._given_up(_owner(slot), slot.gpus, str(error))

    async def _give_back(self, owner: str) -> None:
        """Hand back what an incarnation held; Redis may be restarting, so try for a while."""
        for _ in range(HAND_BACK_TRIES):
            try:
                jobs = await self._hand_back(owner)
            except StoreUnavailable as error:
                event(_log, "worker.hand_back_failed", owner=owner, reason=error.message)
                await asyncio.sleep(HAND_BACK_PAUSE_S)
            else:
                event(_log, "worker.handed_back", owner=owner, jobs=jobs)
                return


def _owner(slot: Slot) -> str:
    return f"{socket.gethostname()}.{slot.name}.{secrets.token_hex(4)}"


async def run_until_signal(supervisor: Supervisor) -> None:
    """Run a supervisor that SIGTERM and SIGINT stop. Raises GaveUpError as `run` does."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, supervisor.stop)
    await supervisor.run()
