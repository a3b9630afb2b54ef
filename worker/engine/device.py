"""Whether a start fails, and whose fault it is: one worker's device's, or what all were given."""

import re
from collections.abc import Iterator

from worker.contract.errors import EngineFailed, OutOfMemory

_KINDS = {"AcceleratorError", "DistBackendError"}
"""torch's, by name: an engine without torch has no need of it, and this module neither."""
_WORDS = re.compile(r"CUDA|NCCL|gpu memory|can't allocate memory")
"""In a plain RuntimeError: all that TurboMind has, and LMDeploy where its cache finds no room."""


def check_count(seen: int, tp: int) -> None:
    """Raise EngineFailed where CUDA shows fewer GPUs than the model is to be spread over."""
    if seen < tp:
        raise EngineFailed(
            f"the model is to be spread over {tp} GPUs, and CUDA shows this process {seen} "
            "(nvidia-smi, CUDA_VISIBLE_DEVICES)",
            is_everywhere=False,
        )


def is_to_blame(error: BaseException) -> bool:
    """Return whether memory, a GPU or its driver made a start fail, so that others may do well.

    What led to the error counts too: engines tell it on in a sentence of their own.
    """
    return any(_is_its_fault(one) for one in _chain(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what led to it, says that memory ran out."""
    return any(_is_of_memory(one) for one in _chain(error))


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, OutOfMemory)):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error)


def _is_its_fault(error: BaseException) -> bool:
    if _is_of_memory(error):
        return True
    if _KINDS & {kind.__name__ for kind in type(error).__mro__}:
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
