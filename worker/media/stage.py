"""The media stage of one job: every reference becomes prepared pictures in the object store.

A part's life: its bytes are obtained (fetched, uploaded or known) and kept by their hash, then
decoded and shrunk for the model, unless somebody has done so before.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from worker.contract.errors import JobError, MediaTooLarge, StoreUnavailable
from worker.contract.job import MediaProfile, MediaRef, PreparedMedia, Stage, VideoPolicy
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings
from worker.media.once import Memo, Once
from worker.media.scratch import Scratch
from worker.media.sources import Sources
from worker.media.workshop import Shared, Workshop, together

PARTS_AT_A_TIME = 4  # of one job; bounds its fetches and its room on disk

OnProgress = Callable[[Stage, int], Awaitable[None]]
"""Is told what is being done and how many parts are ready."""


async def prepare_all(  # noqa: PLR0917 - what it takes is pinned in this order
    refs: tuple[MediaRef, ...],
    profile: MediaProfile,
    policy: VideoPolicy,
    objects: ObjectStore,
    memo: Memo,
    limits: Settings,
    on_progress: OnProgress,
    *,
    shared: Shared | None = None,
) -> tuple[PreparedMedia, ...]:
    """Prepare all parts of one job for a model; return them in the order of `refs`.

    The same bytes with the same profile and policy are prepared once, whichever jobs and processes
    ask; only small pictures of which nothing has to be made are looked at by each. The first part
    that fails ends the others, and cancelling ends all: no process and no file is left behind.

    Args:
        refs: pictures and videos as they were handed in.
        profile: what the model wants.
        policy: how this job wants its videos sampled.
        objects: where originals and prepared pictures are kept.
        memo: shared by all processes, see `Memo`.
        limits: this server's bounds.
        on_progress: awaited whenever a part gets ahead.
        shared: the bounds over all jobs of this process; without it, those of this job alone.

    Raises:
        MediaError: why the first part failed; `param` names it.
        InvalidRequest: the policy does not fit a video; `param` names it.
        StoreUnavailable: nothing is wrong with the media; try again.
    """
    _check_count(refs, limits.media_max_parts)
    shared = shared or Shared()
    once = Once(memo, shared.locks)
    sources = Sources(objects, memo, once, limits)
    workshop = Workshop(profile, policy, objects, sources, once, shared, limits)
    progress = _Progress(len(refs), on_progress)
    at_a_time = asyncio.Semaphore(PARTS_AT_A_TIME)

    async def prepare(ref: MediaRef) -> PreparedMedia:
        async with at_a_time:
            with _blaming(ref), Scratch() as scratch:
                original = await sources.obtain(ref, scratch)
                await progress.obtained()
                media = await workshop.prepared(original, ref.type, scratch)
                await progress.finished()
                return media

    await progress.tell()
    return tuple(await together(prepare(ref) for ref in refs))


class _Progress:
    """Counts parts; a job is fetching until the last part has its bytes."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self._waiting = total
        self._done = 0
        self._on_progress = on_progress

    async def obtained(self) -> None:
        self._waiting -= 1
        await self.tell()

    async def finished(self) -> None:
        self._done += 1
        await self.tell()

    async def tell(self) -> None:
        stage = Stage.FETCHING if self._waiting else Stage.PREPARING
        await self._on_progress(stage, self._done)


@contextlib.contextmanager
def _blaming(ref: MediaRef) -> Iterator[None]:
    """Name the part in whatever goes wrong with it."""
    try:
        yield
    except StoreUnavailable:
        raise  # no part's fault
    except JobError as error:
        if error.param is not None:
            raise
        raise type(error)(error.message, param=ref.param) from error


def _check_count(refs: tuple[MediaRef, ...], most: int) -> None:
    if len(refs) > most:
        raise MediaTooLarge(
            f"{len(refs)} pictures and videos in one job; the limit is {most}",
            param=refs[most].param,
        )
