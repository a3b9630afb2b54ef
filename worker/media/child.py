"""The decoder process: `python -m worker.media.child`, an order on standard input.

It confines itself before it loads any decoder, answers in a file, and lives for one video.
"""

import contextlib
import json
import resource
import sys
from dataclasses import asdict
from typing import Any

from worker import leash
from worker.contract.errors import JobError, MediaTooLarge
from worker.media.order import ANSWER_FILE, Order

FILE_BYTES = 64 * 1024 * 1024  # no frame and no log is larger


def main() -> None:
    """Read the order, do it, write the answer. Anything unforeseen ends with a traceback and 1."""
    order = Order.from_dict(json.load(sys.stdin))
    if sys.platform == "linux":
        leash.die_with_parent(order.parent_pid)  # elsewhere the CPU limit is what ends an orphan
    _confine(order)
    # decord maps all of CUDA where pip has put it, 3.3 GB of address space, though it decodes on
    # the CPU here: beside torch for GPUs no video could be read. A None is "not installed".
    sys.modules["nvidia"] = None  # type: ignore[assignment]  # as the import system documents it
    (order.folder / ANSWER_FILE).write_text(json.dumps(_answer(order)))


def _answer(order: Order) -> dict[str, Any]:
    try:
        from worker.media.decoder import sample  # noqa: PLC0415 - C code: loaded once confined

        return {"frames": [asdict(frame) for frame in sample(order)]}
    except JobError as error:
        return _refusal(error)
    except MemoryError:
        return _refusal(MediaTooLarge("the video needs more memory than its decoder may use"))


def _refusal(error: JobError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message}}


def _confine(order: Order) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: order.cpu_s,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_AS: order.memory_bytes,
    }
    for limit, value in limits.items():
        # macOS refuses some of these; the wall clock limit of the parent stands everywhere.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
