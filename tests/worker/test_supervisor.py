"""One worker per slot: restarts, hand-backs, drains, with small real processes as workers."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.processes import command, is_running, until_async
from worker import keeper, supervisor
from worker.children import Command
from worker.contract.errors import StoreUnavailable
from worker.keeper import GaveUpError
from worker.supervisor import Slot, Supervisor

# A worker that says who it is, drains in `drain_s` when asked, and hands back at once on SIGQUIT.
WORKER = """
import os, signal, sys, time
from pathlib import Path
folder, slot, owner, drain_s = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
def say(word):
    with (folder / slot).open("a") as file:
        file.write(f"{word} {owner} {os.getpid()}\\n")
def drain(*_):
    say("drains")
    time.sleep(drain_s)
    say("drained")
    sys.exit(0)
def hand_back(*_):
    say("hands-back")
    os._exit(0)
signal.signal(signal.SIGTERM, drain)
signal.signal(signal.SIGQUIT, hand_back)
say("began")
time.sleep(60)
"""


class Scene:
    """A supervisor, what its workers say, and the owners whose jobs were handed back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handed_back: list[str] = []
        self.given_up: list[tuple[str, str]] = []
        self.refusals = 0
        self.supervisor: Supervisor | None = None
        self.running: asyncio.Task[None] | None = None

    def start(self, *slots: Slot, drain_s: float = 5.0) -> Supervisor:
        self.supervisor = Supervisor(slots, self.hand_back, self.give_up, drain_s=drain_s)
        self.running = asyncio.create_task(self.supervisor.run())
        return self.supervisor

    async def hand_back(self, owner: str) -> int:
        if self.refusals:
            self.refusals -= 1
            raise StoreUnavailable("Redis restarts")
        self.handed_back.append(owner)
        return 1

    async def give_up(self, _owner: str, gpus: str, reason: str) -> None:
        self.given_up.append((gpus, reason))

    def worker(self, name: str = "a", drain_s: float = 0.0) -> Slot:
        def make(owner: str) -> Command:
            words = (str(self.folder), name, owner, str(drain_s))
            return command(WORKER, name=name, arguments=words, log=self.folder / f"{name}.log")

        return Slot(name, make)

    def script(self, name: str, code: str) -> Slot:
        log = self.folder / f"{name}.log"
        return Slot(name, lambda _owner: command(code, name=name, log=log), gpus=name)

    def said(self, word: str, name: str = "a") -> list[tuple[str, int]]:
        """Return (owner, pid) of everyone in a slot who said a word."""
        path = self.folder / name
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(owner, int(pid)) for spoken, owner, pid in lines if spoken == word]

    async def until_said(self, word: str, times: int = 1, name: str = "a") -> None:
        await until_async(lambda: len(self.said(word, name)) >= times)


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(keeper, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(supervisor, "HAND_BACK_PAUSE_S", 0.01)
    made = Scene(tmp_path)
    yield made
    if made.supervisor is not None and made.running is not None:
        made.supervisor.stop()
        made.supervisor.stop()
        with contextlib.suppress(GaveUpError):
            await made.running


async def test_a_killed_workers_jobs_are_handed_back_and_a_new_owner_takes_its_place(scene: Scene):
    made = scene.start(scene.worker())
    await scene.until_said("began")
    [(first, pid)] = scene.said("began")

    os.kill(pid, signal.SIGKILL)

    await scene.until_said("began", times=2)
    assert scene.handed_back == [first]
    assert scene.said("began")[1][0] != first
    made.stop()
    await scene.running


async def test_the_death_of_one_worker_does_not_touch_the_other(scene: Scene):
    made = scene.start(scene.worker("a"), scene.worker("b"))
    await scene.until_said("began", name="a")
    await scene.until_said("began", name="b")

    os.kill(scene.said("began", "a")[0][1], signal.SIGKILL)

    await scene.until_said("began", times=2, name="a")
    assert len(scene.said("began", "b")) == 1
    made.stop()
    await scene.running


async def test_handing_back_is_tried_again_while_redis_is_away(scene: Scene):
    scene.refusals = 3
    made = scene.start(scene.worker())
    await scene.until_said("began")
    [(first, pid)] = scene.said("began")

    os.kill(pid, signal.SIGKILL)

    await scene.until_said("began", times=2)
    assert scene.handed_back == [first]
    made.stop()
    await scene.running


async def test_a_redis_that_stays_away_does_not_stop_the_restart(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "HAND_BACK_TRIES", 2)
    scene.refusals = 2
    made = scene.start(scene.worker())
    await scene.until_said("began")

    os.kill(scene.said("began")[0][1], signal.SIGKILL)

    await scene.until_said("began", times=2)
    assert scene.handed_back == []
    made.stop()
    await scene.running


async def test_stopping_lets_every_worker_drain(scene: Scene):
    made = scene.start(scene.worker("a", drain_s=0.2), scene.worker("b", drain_s=0.2))
    await scene.until_said("began", name="a")
    await scene.until_said("began", name="b")

    made.stop()
    await scene.running

    assert len(scene.said("drained", "a")) == len(scene.said("drained", "b")) == 1
    assert len(scene.said("began", "a")) == 1


async def test_asked_twice_workers_hand_back_at_once(scene: Scene):
    made = scene.start(scene.worker(drain_s=30))
    await scene.until_said("began")
    made.stop()
    await scene.until_said("drains")

    made.stop()
    await asyncio.wait_for(scene.running, 5)

    assert len(scene.said("hands-back")) == 1
    assert scene.said("drained") == []


async def test_a_worker_that_does_not_end_its_drain_is_killed_and_its_jobs_handed_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "DRAIN_MARGIN_S", 0.1)
    made = scene.start(scene.worker(drain_s=30), drain_s=0.1)
    await scene.until_said("began")
    [(owner, pid)] = scene.said("began")

    made.stop()
    await asyncio.wait_for(scene.running, 5)

    assert scene.handed_back == [owner]
    assert not is_running(pid)


async def test_the_signal_to_drain_reaches_the_worker_and_not_what_it_started(scene: Scene):
    """Tensor-parallel helpers must live until the drain of their parent is over."""
    helper = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        f"heard = Path({str(scene.folder)!r}) / 'heard'\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), os._exit(0)))\n"
        "if os.fork() == 0:\n"
        "    signal.signal(signal.SIGTERM, lambda *_: heard.touch())\n"
        "    (heard.parent / 'up').touch()\n"
        "    time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    made = scene.start(scene.script("x", helper))
    await until_async((scene.folder / "up").exists)

    made.stop()
    await scene.running

    assert not (scene.folder / "heard").exists()


async def test_a_wrong_configuration_ends_all_of_it_with_the_workers_own_words(scene: Scene):
    wrong = "import sys; print('no model in /nowhere', file=sys.stderr); sys.exit(78)"
    scene.start(scene.worker("a"), scene.script("x", wrong))

    with pytest.raises(GaveUpError, match=r"^no model in /nowhere$"):
        await asyncio.wait_for(scene.running, 10)

    assert all(not is_running(pid) for _owner, pid in scene.said("began"))


async def test_a_worker_whose_engine_keeps_dying_is_given_up_and_the_others_go_on(scene: Scene):
    dying = "import sys; print('CUDA error', file=sys.stderr); sys.exit(75)"
    made = scene.start(scene.worker("a"), scene.script("x", dying))
    await scene.until_said("began")
    log = scene.folder / "x.log"

    await until_async(lambda: log.exists() and log.read_text().count("CUDA error") == 3)

    assert scene.running is not None
    assert not scene.running.done()
    assert is_running(scene.said("began")[0][1])
    made.stop()
    await scene.running
    assert log.read_text().count("CUDA error") == 3


async def test_a_worker_that_cannot_go_on_with_its_gpus_leaves_the_others_alone(scene: Scene):
    broken = "import sys; print('GPU 3 has fallen off the bus'); sys.exit(69)"
    made = scene.start(scene.worker("a"), scene.script("x", broken))
    await scene.until_said("began")
    log = scene.folder / "x.log"
    await until_async(lambda: scene.given_up == [("x", "GPU 3 has fallen off the bus")])
    assert len(scene.handed_back) == 1

    made.stop()
    await scene.running

    assert len(scene.said("drained")) == 1  # it went on until it was told to stop
    assert log.read_text().count("GPU 3") == 1


async def test_when_no_worker_can_go_on_with_its_gpus_that_is_the_end(scene: Scene):
    broken = "import sys; print('GPU {} has fallen off the bus'); sys.exit(69)"
    scene.start(*(scene.script(name, broken.format(name)) for name in ("1", "2")))

    with pytest.raises(GaveUpError, match=r"^GPU [12] has fallen off the bus$") as caught:
        await asyncio.wait_for(scene.running, 10)

    assert caught.value.status == 69


async def test_when_every_worker_is_given_up_the_reason_is_told(scene: Scene):
    scene.start(scene.script("x", "import sys; print('CUDA error'); sys.exit(75)"))

    with pytest.raises(GaveUpError, match=r"died 3 times in ten minutes.*CUDA error"):
        await asyncio.wait_for(scene.running, 10)
