"""Videos, from the worker's side: start a decoder process, wait for so long, read its answer.

No decoder runs in the worker itself. What takes the process down, or keeps it busy for ever, costs
one job a clean error.
"""

import asyncio
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import worker
from worker.contract import errors
from worker.contract.errors import JobError, MediaDecoderCrashed, MediaDecoderTimeout
from worker.contract.job import MediaProfile, VideoPolicy
from worker.contract.log import event
from worker.contract.settings import Settings
from worker.media.order import ANSWER_FILE, Order, Sample

LOG_FILE = "decoder.log"
LOG_TAIL_BYTES = 2000
CPUS_PER_PROCESS = 2  # decord's threads; the CPU limit is so much times the wall limit

# All that the process is given: no secret of ours goes along. decord insists on a PATH.
_ENVIRONMENT = {"PYTHONPATH": str(Path(worker.__file__).parents[1]), "PATH": os.defpath}
_BY_CODE: Mapping[str, type[JobError]] = {
    kind.code: kind
    for kind in (
        errors.MediaUnreadable,
        errors.MediaUnsupported,
        errors.MediaTooLarge,
        errors.InvalidRequest,
    )
}
log = logging.getLogger(__name__)


def order_for(
    path: Path,
    folder: Path,
    demuxer: str,
    *,
    profile: MediaProfile,
    policy: VideoPolicy,
    limits: Settings,
) -> Order:
    """Return the order to sample one video for a model, within this server's limits."""
    return Order(
        path=path,
        folder=folder,
        demuxer=demuxer,
        policy=policy,
        max_frames=limits.video_max_frames,
        max_pixels=limits.video_max_pixels,
        max_s=limits.video_max_s,
        frame_max_pixels=frame_max_pixels(profile, policy),
        multiple=profile.multiple,
        memory_bytes=limits.video_decode_bytes,
        cpu_s=math.ceil(limits.video_decode_s * CPUS_PER_PROCESS),
        parent_pid=os.getpid(),
    )


def frame_max_pixels(profile: MediaProfile, policy: VideoPolicy) -> int:
    """Return the bound of a frame's width × height: the model's, or the job's where it is less."""
    return min(profile.frame_max_pixels, policy.max_pixels or profile.frame_max_pixels)


async def sample(order: Order, wall_s: float) -> list[Sample]:
    """Have a video's frames written into the order's folder; return them in time order.

    Cancelling kills the process before this returns.

    Raises:
        MediaDecoderTimeout: it did not finish within `wall_s`, or used up its processor time.
        MediaDecoderCrashed: it died, or ended without an answer.
        MediaUnreadable, MediaUnsupported, MediaTooLarge, InvalidRequest: as the decoder found.
    """
    with (order.folder / LOG_FILE).open("wb") as errors_out:
        process = await _started(errors_out.fileno())
        try:
            async with asyncio.timeout(wall_s):
                await process.communicate(json.dumps(order.as_dict()).encode())
        except TimeoutError as error:
            raise MediaDecoderTimeout(f"the video was not decoded within {wall_s:g} s") from error
        finally:
            await _ended(process)
    return _result(order.folder, process.returncode or 0)


async def _started(errors_fd: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # modules come from where ours do, never from the working folder
        "-m",
        "worker.media.child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=errors_fd,
        env=_ENVIRONMENT,
        start_new_session=True,  # Ctrl-C is for the worker, which ends it in its own order
    )


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Return once the process is gone, killed if need be; nothing leaves one behind."""
    if process.returncode is None:
        process.kill()
        await asyncio.shield(process.wait())


def _result(folder: Path, returncode: int) -> list[Sample]:
    answer = _read_answer(folder / ANSWER_FILE)
    if returncode == -signal.SIGXCPU:
        raise MediaDecoderTimeout("the video used up its decoder's processor time")
    if returncode != 0 or answer is None:
        event(log, "media.decoder_crashed", level=logging.WARNING, returncode=returncode,
              last_words=_tail(folder / LOG_FILE))  # fmt: skip
        raise MediaDecoderCrashed("the decoder died on this video")
    if "error" in answer:
        found = answer["error"]
        raise _BY_CODE[found["code"]](found["message"])
    return [Sample(**frame) for frame in answer["frames"]]


def _read_answer(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    answer: dict[str, Any] = json.loads(path.read_text())
    return answer


def _tail(path: Path) -> str:
    return path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
