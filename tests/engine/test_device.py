"""Whose fault a failed start is: one device's, or that of what every worker was given."""

import asyncio
import os
import signal

import pytest

from tests.support.processes import until_async
from worker.contract.errors import EngineFailed, OutOfMemory
from worker.engine import EngineSpec, device
from worker.engine.process import EngineProcess


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


class AcceleratorError(RuntimeError):
    """As torch calls its own."""


def told_on(cause: Exception) -> EngineFailed:
    """Return a sentence of an engine's that came from another error."""
    error = EngineFailed("LMDeploy cannot load it")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemory("it does not fit"),
        OutOfMemoryError("tried to allocate 2 GiB"),
        AcceleratorError("an illegal memory access was encountered"),
        RuntimeError("[TM][ERROR] CUDA runtime error: out of memory"),
        RuntimeError("No enough gpu memory for runtime."),
        RuntimeError("NCCL error: unhandled system error"),
    ],
)
def test_memory_and_drivers_are_one_devices_fault_also_behind_a_sentence(error: Exception):
    assert device.is_to_blame(error)
    assert device.is_to_blame(told_on(error))


@pytest.mark.parametrize(
    "error",
    [
        EngineFailed("there is no model folder /models/CUDA"),
        OSError("no such file: /models/CUDA"),
        ValueError("unknown quantization"),
        RuntimeError("size mismatch for lm_head.weight"),
        AttributeError("num_attention_heads"),
    ],
)
def test_what_every_worker_was_given_is_no_devices_fault(error: Exception):
    assert not device.is_to_blame(error)
    assert not device.is_to_blame(told_on(error))


@pytest.mark.parametrize(
    "spec", [EngineSpec("/no/such/folder", "transformers"), EngineSpec("demo", "lmdeploy")]
)
async def test_a_model_or_a_library_that_is_not_there_fails_in_every_worker_alike(spec: EngineSpec):
    with pytest.raises(EngineFailed) as caught:
        await EngineProcess(spec).start()

    assert caught.value.is_everywhere is True


async def test_of_an_engine_that_is_killed_while_it_loads_nobody_says_so():
    engine = EngineProcess(EngineSpec("echo", "echo"))
    starting = asyncio.create_task(engine.start())
    await until_async(lambda: engine.pid is not None)

    os.kill(engine.pid or 0, signal.SIGKILL)

    with pytest.raises(EngineFailed, match=r"SIGKILL .*while it loaded") as caught:
        await starting
    assert caught.value.is_everywhere is None


def test_fewer_gpus_than_a_model_is_spread_over_are_this_workers_alone():
    device.check_count(2, 2)

    with pytest.raises(
        EngineFailed, match=r"over 2 GPUs, and CUDA shows this process 1 "
    ) as caught:
        device.check_count(1, 2)

    assert caught.value.is_everywhere is False


class Slots:
    """What the echo engine cannot count its slots by, as a GPU has no memory for them."""

    def __bool__(self) -> bool:
        raise OutOfMemoryError("tried to allocate 2 GiB")


async def test_a_gpu_without_memory_is_told_apart_across_the_process():
    engine = EngineProcess(EngineSpec("echo", "echo", slots=Slots()))  # type: ignore[arg-type]

    with pytest.raises(EngineFailed, match="OutOfMemoryError") as caught:
        await engine.start()

    assert caught.value.is_everywhere is False
